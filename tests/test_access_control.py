"""Who may associate with this node, from where, and what for (PS3.8 9.3.4, PS3.7 C.5.7; rights of the settings)."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from config.application_entities import ApplicationEntity
from config.settings import SettingsError, load_settings
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, VERIFICATION
from scp.requestor import RequestingEntity

ALL = ["store", "find", "move", "similar"]


def _associate(node, calling, *, called="THARSIS", contexts=(VERIFICATION,)):
    entity = RequestingEntity(calling)
    for uid in contexts:
        entity.add_requested_context(uid, ExplicitVRLittleEndian if uid != VERIFICATION else None)
    return entity.associate("127.0.0.1", node.port, ae_title=called)


def _audit(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]


@pytest.mark.parametrize(
    ("addresses", "address", "allowed"),
    [
        ((), "203.0.113.9", True),
        (("192.0.2.17",), "192.0.2.17", True),
        (("192.0.2.17",), "192.0.2.18", False),
        (("192.0.2.0/24",), "192.0.2.254", True),
        (("192.0.2.0/24",), "192.0.3.1", False),
        (("192.0.2.0/24", "127.0.0.1"), "127.0.0.1", True),
        (("192.0.2.0/24",), "::ffff:192.0.2.1", True),  # IPv4 on a socket of IPv6
        (("2001:db8::/32",), "2001:db8::5", True),
        (("2001:db8::/32",), "2001:db9::5", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("192.0.2.0/24",), "::1", False),
    ],
)
def test_addresses(addresses, address, allowed):
    assert ApplicationEntity("WS", frozenset(), addresses=addresses).may_call_from(address) == allowed


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (["workstation.example"], ["'workstation.example'", "no IP address"]),
        (["192.0.2.300"], ["'192.0.2.300'"]),
        (["192.0.2.17/24"], ["'192.0.2.17/24'", "host bits"]),
        ("192.0.2.17", ["addresses: expected a list"]),
    ],
)
def test_an_address_that_is_none_is_one_sentence(addresses, words):
    with pytest.raises(SettingsError) as caught:
        load_settings(
            environment={}, overrides={"application_entities": [{"title": "WS", "addresses": addresses}]}
        )
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("calling", "called", "diagnostic", "words"),
    [
        ("WS", "THARSIS", None, ""),
        ("WS", "THARSIS_SIM", None, ""),
        ("WS", "ANOTHER", 7, "called AE title 'ANOTHER' is not ours"),
        ("WS", "tharsis", 7, "called AE title 'tharsis' is not ours"),
        ("ELSEWHERE", "THARSIS", 3, "'ELSEWHERE' may not call from 127.0.0.1"),
        ("NOBODY", "THARSIS", 3, "'NOBODY' is not known"),
        ("ws", "THARSIS", 3, "'ws' is not known"),
        ("NOBODY", "ANOTHER", 7, "called AE title"),
    ],
)
def test_who_may_associate(start_node, caplog, calling, called, diagnostic, words):
    """PS3.8 table 9-21: rejected-permanent by the service-user, 3 calling and 7 called AE title not recognized."""
    node = start_node(
        accept_unknown=False,
        entities=[
            {"title": "WS", "rights": ALL, "addresses": ["192.0.2.0/24", "127.0.0.0/8"]},
            {"title": "ELSEWHERE", "rights": ALL, "addresses": ["192.0.2.0/24"]},
        ],
    )
    assoc = _associate(node, calling, called=called)
    if diagnostic is None:
        assert assoc.send_c_echo().Status == 0
        assoc.release()
        assert _audit(caplog) == []
        return
    assert assoc.is_rejected
    answer = assoc.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, diagnostic)
    [line] = _audit(caplog)
    assert f"rejected an association of {calling}@127.0.0.1 with {called}" in line
    assert words in line


def test_a_known_title_from_another_address_is_not_taken_for_an_unknown_one(start_node):
    """Else a stolen title would have the rights of anybody."""
    node = start_node(accept_unknown=True, entities=[{"title": "WS", "rights": ALL, "addresses": ["192.0.2.1"]}])
    assert _associate(node, "WS").is_rejected
    stranger = _associate(node, "STRANGER")
    assert stranger.is_established
    stranger.release()


def test_an_unchecked_called_title(start_node):
    node = start_node(check_called_aet=False)
    assoc = _associate(node, "WS", called="WHOEVER")
    assert assoc.send_c_echo().Status == 0
    assoc.release()


def _ask(assoc, make_dataset, right):
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", "1.2.3"
    if right == "store":
        return assoc.send_c_store(make_dataset(1))
    if right == "find":
        return [status for status, _ in assoc.send_c_find(identifier, STUDY_ROOT_FIND)][-1]
    if right == "move":
        return [status for status, _ in assoc.send_c_move(identifier, "DEST", STUDY_ROOT_MOVE)][-1]
    return [status for status, _ in assoc.send_c_get(identifier, STUDY_ROOT_GET)][-1]


@pytest.mark.parametrize(
    ("request_of", "right"), [("store", "store"), ("find", "find"), ("move", "move"), ("get", "move")]
)
def test_each_operation_needs_its_right(start_node, make_dataset, caplog, request_of, right):
    """0124 Refused: Not authorized, with an Error Comment (PS3.7 C.5.7), and a line in the audit log."""
    entities = [
        {"title": "HAS", "rights": [right]},
        {"title": "LACKS", "rights": [other for other in ALL if other != right]},
        {"title": "DEST", "host": "127.0.0.1", "port": 9},
    ]
    node = start_node(accept_unknown=False, entities=entities)
    contexts = (CTImageStorage, STUDY_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET)
    assoc = _associate(node, "LACKS", contexts=contexts)
    status = _ask(assoc, make_dataset, request_of)
    assert status.Status == 0x0124
    assert status.ErrorComment == f"AE LACKS lacks the right '{right}' on this node"
    assoc.release()
    [line] = _audit(caplog)
    assert line == f"LACKS@127.0.0.1 C-{request_of.upper()} refused: {status.ErrorComment}"
    assoc = _associate(node, "HAS", contexts=contexts)
    assert _ask(assoc, make_dataset, request_of).Status == 0
    assoc.release()


def test_what_an_unknown_caller_may_do(start_node, make_dataset):
    node = start_node(accept_unknown=True, unknown_rights=["store"])
    assoc = _associate(node, "SOMEBODY", contexts=(CTImageStorage, STUDY_ROOT_FIND))
    assert _ask(assoc, make_dataset, "store").Status == 0
    assert _ask(assoc, make_dataset, "find").Status == 0x0124
    assoc.release()


def test_a_request_that_cannot_be_judged_is_rejected(start_node, monkeypatch):
    """pynetdicom logs what a handler raises and goes on; an error must not open the door."""
    node = start_node()
    monkeypatch.setattr(node.server._acceptor._services, "refusal", lambda *_: 1 / 0)
    assoc = _associate(node, "WS")
    assert assoc.is_rejected
    assert assoc.acceptor.primitive.result_source == 2
