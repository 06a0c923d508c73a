"""Hostile peers: whatever they send, the node goes on serving the others and keeps nothing of it.

Each case is one conversation: an association request, PDUs, command sets and data sets, made by the rules and then
broken at some of them (`fuzzing`). After each the node has to answer a C-ECHO; after all of a test it must store, find
and answer as ever, with no thread, no file handle, no half-received file and no memory left behind.

CI runs a few hundred cases, always the same. A longer run with other ones::

    FUZZ_CASES=5000 pytest tests/test_fuzz.py --hypothesis-seed=7
"""

from __future__ import annotations

import gc
import os
import re
import threading
from pathlib import Path

import pytest
from fuzzing import (
    CONTEXTS,
    FIND,
    GET,
    HANG_S,
    MOVE,
    RELEASE,
    STORE,
    UIDS,
    associate_rq,
    converse,
    data_sets,
    messages,
    request,
    requests,
    streams,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian

from index import fsck
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET
from scp.requestor import Peer

CASES = int(os.environ.get("FUZZ_CASES", "60"))
KEPT = 8
"""File handles that SQLite keeps for later: as many as there have been connections at the same time."""
ME = Requestor("HEALTHY")

fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Watch:
    """A node, and what it looked like before it was fuzzed."""

    def __init__(self, node, folder, make_file):
        self.node, self.folder, self.make_file = node, folder, make_file
        self.peer = Peer("127.0.0.1", node.port, "THARSIS")
        self.number = 0
        self.serves()
        self.before = self.held()

    def held(self):
        gc.collect()
        handles = _handles("self")
        return {"threads": threading.active_count(), "handles": handles}

    def outside(self):
        inside = self.node.archive.data
        return sorted(str(path) for path in self.folder.rglob("*") if inside not in (path, *path.parents))

    def answers(self):
        assert client.echo(self.peer, ME) < HANG_S

    def serves(self):
        self.number += 1
        uid = f"1.2.826.0.1.3680043.9.7133.9.{self.number}"
        [sent] = client.send(self.peer, [self.make_file(self.number)], ME)
        assert sent.status is not None
        assert sent.status.is_success, sent.error
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.StudyInstanceUID = "IMAGE", "1.2.826.0.1.3680043.9.7133.1"
        keys.SeriesInstanceUID, keys.SOPInstanceUID = "1.2.826.0.1.3680043.9.7133.2", uid
        assert [match.SOPInstanceUID for match in client.find(self.peer, keys, STUDY_ROOT_FIND, ME)] == [uid]

    def is_unharmed(self, wait_until):
        self.serves()
        wait_until(lambda: list(self.node.archive.incoming.iterdir()) == [])
        wait_until(lambda: self.held()["threads"] <= self.before["threads"])
        wait_until(lambda: self.held()["handles"] <= self.before["handles"] + KEPT)
        assert list(fsck.check(self.node.archive, fsck.Options(), lambda *_: None)) == []


@pytest.fixture
def watch(start_node, make_file, tmp_path, wait_until):
    node = start_node(overwrite="always", network_timeout_s=5.0, acse_timeout_s=2.0, dimse_timeout_s=3.0)
    watch = Watch(node, tmp_path, make_file)
    yield watch
    watch.is_unharmed(wait_until)
    strangers = [path for path in watch.outside() if not path.rpartition("/")[2].startswith("object")]
    assert strangers == [], "files outside of the data folder"


@pytest.mark.slow
@fuzzed
@given(stream=streams())
def test_pdus(watch, stream):
    """PS3.8 9.3: types, lengths, items, in any state."""
    converse(watch.node.port, stream)
    watch.answers()


@pytest.mark.slow
@fuzzed
@given(rq=requests())
def test_association_requests(watch, rq):
    """PS3.8 9.3.2: titles, contexts, user items; and what is sent before the answer to them."""
    converse(watch.node.port, rq, RELEASE)
    watch.answers()


@pytest.mark.slow
@fuzzed
@given(sent=st.lists(messages(), min_size=1, max_size=4))
def test_messages(watch, sent):
    """PS3.7 E.1, PS3.8 E.2: commands, fragments, responses and C-CANCELs that nobody asked for."""
    converse(watch.node.port, associate_rq(), b"".join(sent) + RELEASE)
    watch.answers()


@pytest.mark.slow
@fuzzed
@given(context=st.sampled_from([1, 3, 5, 7]), uid=st.one_of(st.just(b"1.2.3.4"), UIDS), data=st.data())
def test_stored_data_sets(watch, context, uid, data):
    """PS3.5 7: what is stored is found by its own values and by nothing else; the rest is refused."""
    content = data.draw(data_sets(CONTEXTS[context][1]))
    converse(watch.node.port, associate_rq(), request(context, STORE, content, uid), RELEASE)
    watch.answers()


@pytest.mark.slow
@fuzzed
@given(context=st.sampled_from([11, 13, 15, 17, 19, 21]), data=st.data())
def test_identifiers(watch, context, data):
    """PS3.4 C.4: queries and retrievals with hostile Identifiers."""
    content = data.draw(data_sets(CONTEXTS[context][1]))
    field = {17: MOVE, 19: GET}.get(context, FIND)
    converse(watch.node.port, associate_rq(), request(context, field, content), RELEASE)
    watch.answers()


@pytest.mark.slow
def test_what_was_stored_of_them_is_sent_or_fails_alone(watch, tmp_path_factory):
    """A C-GET that has to convert every one of the survivors (PS3.4 C.4.3.3): each is one sub-operation of its own."""
    numbers = iter(range(10_000, 100_000))

    @fuzzed
    @given(context=st.sampled_from([1, 3, 5]), data=st.data())
    def attack(context, data):
        uid = f"1.{next(numbers)}".encode()
        content = data.draw(data_sets(CONTEXTS[context][1])).replace(b"1.2.3.4", uid)
        converse(watch.node.port, associate_rq(), request(context, STORE, content, uid), RELEASE)

    attack()
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.NumberOfStudyRelatedInstances = "STUDY", "1.2.7", None
    [study] = client.find(watch.peer, keys, STUDY_ROOT_FIND, ME)
    assert study.NumberOfStudyRelatedInstances >= 5, "too few survive to tell anything"
    del keys.NumberOfStudyRelatedInstances
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        folder = tmp_path_factory.mktemp("got")
        objects = [(CTImageStorage, syntax)]
        *_, last = client.get(watch.peer, keys, folder, STUDY_ROOT_GET, ME, objects=objects)
        counts = last.counts
        assert counts.completed + counts.failed + counts.warning == study.NumberOfStudyRelatedInstances
        assert counts.completed > 0
        assert len(list(folder.glob("*.dcm"))) == counts.completed + counts.warning


def _handles(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status(pid, name):
    """A number of /proc/<pid>/status: VmRSS in kB, Threads."""
    told = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert told is not None
    return int(told[1])


@pytest.mark.slow
def test_processes_neither_die_nor_grow(serve, tharsis, wait_until):
    """The same cases twice: the second time takes no more memory, threads or handles. What was stored of them goes
    through the worker, where it fails its own jobs and no others."""
    node = serve(settle_time_s=0.1, more='overwrite = "always"\n[jobs]\nmax_attempts = 1\n')
    processes = node.processes()
    network = processes["network"]

    def stored(context):
        made = st.tuples(UIDS, data_sets(CONTEXTS[context][1]))
        return made.map(lambda pair: request(context, STORE, pair[1], pair[0] or b"1.2.3.4"))

    @fuzzed
    @given(sent=st.one_of(messages(), *(stored(context) for context in (1, 3, 5, 7))), stream=streams())
    def attack(sent, stream):
        converse(node.port, stream)
        converse(node.port, associate_rq(), sent + RELEASE)

    attack()
    wait_until(lambda: not client.echo(node.peer, ME) > HANG_S)
    before = [_status(network, "VmRSS"), _status(network, "Threads"), _handles(network)]
    attack()
    wait_until(lambda: _status(network, "Threads") <= before[1])
    wait_until(lambda: _handles(network) <= before[2] + KEPT)
    assert _status(network, "VmRSS") < before[0] + 32_000
    wait_until(lambda: not {"queued", "running"} & set(node.jobs()))
    assert node.processes() == processes, "a process was restarted"
    assert "Traceback" not in node.log()
    told = tharsis("fsck", "--data", node.data)
    assert told.returncode == 0, told.stdout
