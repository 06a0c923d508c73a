"""The seams into pynetdicom, and what hangs on them. A failure here after an upgrade: look at scp/transport.py."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import socket
import threading
import tracemalloc
from pathlib import Path

import pynetdicom.association
import pynetdicom.dimse_messages
import pynetdicom.utils
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, _config, _globals, evt, fsm
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

import scp
from scp import client, transport
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_GET
from scp.errors import AssociationLost
from scp.part10 import data_set_offset, read_object
from scp.requestor import Peer, RequestingEntity
from scp.upper_layer import BoundedQueue

ME = Requestor("ME")


def test_pynetdicom_still_has_the_seams():
    source = inspect.getsource(Association._serve_request)
    assert "uid_to_service_class(class_uid)(self)" in source
    assert pynetdicom.association.uid_to_service_class is transport._service_class
    assert {"_reactor_checkpoint", "_is_paused", "_accepted_cx"} <= set(vars(Association(AE(), "requestor")))
    assert {"_data_set_file", "_data_set_path"} <= set(vars(DIMSEMessage()))
    assert hasattr(C_STORE(), "_dataset_path")
    assert hasattr(C_STORE(), "_dataset_file")
    for name in ("receive_primitive", "get_msg", "maximum_pdu_size"):
        assert hasattr(DIMSEServiceProvider, name)
    assert "self._data_set_file.file.flush()" in inspect.getsource(DIMSEMessage.decode_msg)


def test_pynetdicom_still_has_the_seams_of_the_upper_layer():
    loop = inspect.getsource(DULServiceProvider.run_reactor)
    for call in ("_process_recv_primitive()", "_is_transport_event()", "time.sleep(self._run_loop_delay)"):
        assert call in loop
    assert "self._read_pdu_data()" in inspect.getsource(DULServiceProvider._is_transport_event)
    assert "self.socket.send(pdu.encode())" in inspect.getsource(DULServiceProvider._send)
    assert "self._reactor_checkpoint.wait()" in inspect.getsource(Association._run_reactor)
    assert "self.dul.idle_timer_expired()" in inspect.getsource(Association._run_reactor)
    layer = vars(Association(AE(), "acceptor").dul)
    assert {"_idle_timer", "_recv_pdu", "_kill_thread", "_run_loop_delay", "artim_timer", "event_queue"} <= set(layer)
    assert "if not socket._is_connected:" in inspect.getsource(ACSE._negotiate_as_requestor)
    assert "self._create_socket(assoc, local_address, tls_args)" in inspect.getsource(AE.associate)
    for name in ("_process_recv_primitive", "_is_transport_event", "_decode_pdu", "_read_pdu_data", "_send"):
        assert hasattr(DULServiceProvider, name)
    assert {"_ready", "_is_connected"} <= set(vars(AssociationSocket(Association(AE(), "acceptor"), socket.socket())))
    assert hasattr(AssociationSocket, "_shutdown_socket")


def named():
    """Module → private names of pynetdicom, as the docstring of `scp.transport` has them."""
    items = re.findall(r"^- `scp\.(\w+)`: (.+?)[;.]$", transport.__doc__ or "", re.MULTILINE | re.DOTALL)
    return {module: set(re.findall(r"``(_\w+)``", text)) for module, text in items}


def test_private_parts_of_pynetdicom_are_used_where_they_are_named_only():
    """The node's own transport, `scp.wire`, does with what pynetdicom documents."""
    theirs = {name for path in Path(pynetdicom.__path__[0]).glob("*.py") for name in _names(path)}
    used = {}
    for path in Path(scp.__path__[0]).rglob("*.py"):
        if found := {name for name in _of_others(ast.parse(path.read_text())) & theirs if _is_private(name)}:
            used[".".join(path.relative_to(scp.__path__[0]).with_suffix("").parts)] = found
    assert used == named()


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _names(path):
    """The names in a module of pynetdicom's, its own included."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        for kind, field in ((ast.Attribute, "attr"), (ast.FunctionDef, "name"), (ast.Name, "id")):
            if isinstance(node, kind):
                yield getattr(node, field)


def _of_others(tree):
    """Names that a module imports of pynetdicom, or uses of objects that are none of its own; those that it uses or
    defines in heirs of pynetdicom's classes, too."""
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("pynetdicom")]
    if not imports:
        return set()
    imported = {name.name for node in imports for name in node.names}
    found = {part for node in imports for part in node.module.split(".")} | imported
    heirs = [node for node in nodes if isinstance(node, ast.ClassDef)
             and imported & {base.id for base in node.bases if isinstance(base, ast.Name)}]  # fmt: skip
    of_heirs = {id(node) for heir in heirs for node in ast.walk(heir)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            is_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_self or id(node) in of_heirs:
                found.add(node.attr)
        elif isinstance(node, ast.FunctionDef) and id(node) in of_heirs:
            found.add(node.name)
    return found


def test_pynetdicom_still_has_every_private_part_that_is_named():
    entity = AE()
    assoc = Association(entity, "acceptor")
    where = {
        pynetdicom: {"_config", "_globals"},
        pynetdicom.dimse_messages: {"_COMMAND_SET_KEYWORDS"},
        entity: {"_create_socket"},
        assoc: {"_accepted_cx", "_is_paused", "_kill", "_reactor_checkpoint"},
        assoc.dul: named()["upper_layer"],
        AssociationSocket(assoc, socket.socket()): {"_is_connected", "_ready", "_shutdown_socket"},
        DIMSEMessage(): {"_data_set_file"},
        C_STORE(): {"_dataset_file", "_dataset_path"},
    }
    assert set().union(*named().values()) == set().union(*where.values())
    assert [name for owner, names in where.items() for name in names if not hasattr(owner, name)] == []


def test_private_parts_of_pynetdicom_still_do_what_they_did():
    settings = ("LOG_HANDLER_LEVEL", "LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS")
    assert [getattr(_config, setting) for setting in settings] == ["none", False, False]
    assert _config.VALIDATORS["UI"]("no UID") == (True, "")
    assert "_config.VALIDATORS[" in inspect.getsource(pynetdicom.utils)
    assert '_config.LOG_HANDLER_LEVEL == "standard"' in inspect.getsource(Association)
    assert _globals.MODE_ACCEPTOR == Association(AE(), _globals.MODE_ACCEPTOR).mode == "acceptor"
    assert Association(AE(), _globals.MODE_ACCEPTOR).is_acceptor
    for response, element in (("N-ACTION-RSP", "OffendingElement"), ("C-ECHO-RSP", "ErrorComment")):
        assert element in pynetdicom.dimse_messages._COMMAND_SET_KEYWORDS[response]
    assert "_COMMAND_SET_KEYWORDS[" in inspect.getsource(pynetdicom.dimse_messages)
    assert "while not self._kill:" in inspect.getsource(Association._run_reactor)
    assert "self._kill = True" in inspect.getsource(Association.kill)
    layer = Association(AE(), "acceptor").dul
    assert isinstance(layer._idle_timer, Timer)
    assert "return self._idle_timer.expired" in inspect.getsource(DULServiceProvider.idle_timer_expired)
    assert "self._idle_timer.start()" in inspect.getsource(DULServiceProvider.run_reactor)
    assert "if self._kill_thread:" in inspect.getsource(DULServiceProvider.run_reactor)
    assert "dul._recv_pdu.get(False)" in inspect.getsource(fsm.DT_2)
    for action in (fsm.AA_1, fsm.AA_7, fsm.AA_8):
        assert "dul._send(" in inspect.getsource(action)


def test_another_entity_of_the_process_keeps_its_own_services(make_file):
    """A stock pynetdicom SCP beside the node is not taken over."""
    got = []
    entity = AE("STOCK")
    entity.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)

    def keep(event):
        got.append(event.dataset.PatientID)
        return 0

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    [result] = client.send(Peer("127.0.0.1", server.server_address[1], "STOCK"), [make_file(1)], ME)
    server.shutdown()
    assert result.is_stored
    assert got == ["P1"]


class _Layer:
    """What a queue needs to know of the upper layer."""

    def __init__(self, state):
        self.state_machine = type("machine", (), {"current_state": state})
        self.alive = True

    def is_alive(self):
        return self.alive


def test_data_waits_for_room_and_is_refused_when_the_association_is_gone():
    layer = _Layer("Sta6")
    waiting = BoundedQueue(layer)
    for _ in range(4):
        waiting.put(P_DATA())
    raised = []

    def one_more():
        try:
            waiting.put(P_DATA())
        except AssociationLost as error:
            raised.append(error)

    thread = threading.Thread(target=one_more)
    thread.start()
    waiting.put("abort")  # not data: does not wait
    assert waiting.qsize() == 5
    layer.state_machine.current_state = "Sta1"
    thread.join(60)
    assert not thread.is_alive()
    assert raised
    assert waiting.qsize() == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_object(start_node, make_file, tmp_path):
    """64 MB in and out again: both ends are in this process, and hold a few PDUs of it at most."""
    node, path = start_node(), make_file(1)
    size = 64 << 20
    dataset = Dataset()
    content = path.read_bytes()
    with path.open("wb") as file:  # the same CT with a large private element before its pixels
        offset = content.index(b"\xe0\x7f\x10\x00")
        creator, large = b"\x09\x70\x10\x00LO\x04\x00TEST", b"\x09\x70\x01\x10OB\0\0"
        file.write(content[:offset] + creator + large + size.to_bytes(4, "little"))
        for _ in range(64):
            file.write(bytes(1 << 20))
        file.write(content[offset:])
    del content
    peer = Peer("127.0.0.1", node.port, "THARSIS")
    gc.collect()
    tracemalloc.start()
    [result] = client.send(peer, [path], ME)
    assert result.is_stored, result
    dataset.QueryRetrieveLevel, dataset.StudyInstanceUID = "STUDY", "1.2.826.0.1.3680043.9.7133.1"
    *_, last = client.get(peer, dataset, tmp_path / "got", STUDY_ROOT_GET, ME)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.status.is_success
    assert peak < size / 4
    [got] = (tmp_path / "got").glob("*.dcm")
    sent = path.read_bytes()[data_set_offset(path):]
    assert got.read_bytes()[data_set_offset(got):] == sent
    assert read_object(got).sop_instance_uid == read_object(path).sop_instance_uid


def test_stop_lets_an_association_finish_and_then_aborts(start_node, make_file):
    node = start_node()
    entity = AE("SLOW")
    entity.add_requested_context("1.2.840.10008.1.1")
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    assert assoc.send_c_echo().Status == 0
    node.server.stop(0.1)
    assoc.join(60)
    assert assoc.is_aborted
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", _closed_port(assoc)), timeout=5)


def _closed_port(assoc):
    return assoc.acceptor.port


def test_an_association_that_ends_in_time_is_not_aborted(start_node):
    node = start_node()
    entity = AE("QUICK")
    entity.add_requested_context("1.2.840.10008.1.1")
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    stopping = threading.Thread(target=node.server.stop, args=(60.0,))
    stopping.start()
    assert assoc.send_c_echo().Status == 0
    assoc.release()
    stopping.join(60)
    assert assoc.is_released
    assert not assoc.is_aborted


def test_one_association_too_many_is_rejected_for_now(start_node):
    node = start_node(max_associations=1)
    entity = RequestingEntity("MANY")
    entity.add_requested_context("1.2.840.10008.1.1")
    first = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    second = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    assert second.is_rejected
    assert second.acceptor.primitive.result == 2
    first.release()


def test_a_rejection_that_comes_at_once_is_a_rejection(start_node, wait_until):
    """Even when the connection is closed again before the requestor looks whether there is one."""
    node = start_node(accept_unknown=False)
    entity = RequestingEntity("NOBODY")
    entity.add_requested_context("1.2.840.10008.1.1")

    def dawdle(event):
        wait_until(lambda: not event.assoc.dul.is_alive())

    assoc = entity.associate(
        "127.0.0.1", node.port, ae_title="THARSIS", evt_handlers=[(evt.EVT_REQUESTED, dawdle)]
    )
    assert assoc.is_rejected
    assert assoc.acceptor.primitive.diagnostic == 3
