"""kill -9 at random moments: what was answered 0000 is there afterwards, once and unaltered, and work goes on.

The moments and what is sent follow from one seed, which a failure shows; ``KILL_SEED`` and ``KILL_ROUNDS`` set it and
the number of rounds for a longer run. The moments are spread: each falls at random into a share of its own of the time
in which a node is killed, so that a dozen rounds leave no part of it out.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dsutils import encode

from index.archive import Archive
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, Proposal
from scp.errors import PeerError
from scp.part10 import data_set_offset
from scp.requestor import Timeouts, connect

ROUNDS = int(os.environ.get("KILL_ROUNDS", "12"))
SEED = int(os.environ.get("KILL_SEED", "20261120"))
SENDERS = 4
LATEST_S = 0.8
"""A node is killed at this time after the first answer at the latest."""

UID = "1.2.826.0.1.3680043.9.7133.{}".format
TITLE = Requestor("SENDER", Timeouts(connect=60, acse=60, dimse=60, network=60))


@dataclass
class Truth:
    """What the node has promised, as its senders know it.

    Attributes
    ----------
    answered
        SOP Instance UID → SHA-256 of the data set that was answered 0000 last.
    possible
        SOP Instance UID → contents that were sent since and got no answer: the node may have either.
    """

    answered: dict[str, str] = field(default_factory=dict)
    possible: dict[str, set[str]] = field(default_factory=dict)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    unexpected: list[str] = field(default_factory=list)


@dataclass
class Sender:
    """One of the parallel senders: new objects mostly; some a second time, some with other content, some that another
    sender sends at the same moment."""

    number: int
    round: int
    truth: Truth
    dice: random.Random
    first_answer: threading.Event
    template: Dataset
    count: int = 0

    def run(self, peer):
        try:
            link = connect(
                peer, [Proposal(CTImageStorage, (ExplicitVRLittleEndian,))], calling="SENDER", timeouts=TITLE.timeouts
            )
        except PeerError:  # killed before it began
            return
        try:
            while True:
                self.send(link, *self.choose())
        except PeerError:
            return  # the node died under this association, as intended
        finally:
            link.abort()

    def choose(self):
        """Return UID and content version of the next object."""
        kind = self.dice.random()
        self.count += 1
        own = f"{self.round}.{self.number}"
        if kind < 0.70 or self.count < 3:
            return UID(f"9.{own}.{self.count}"), 0
        if kind < 0.80:  # again, as it was
            return UID(f"9.{own}.{self.dice.randrange(1, self.count)}"), 0
        if kind < 0.90:  # one that all senders send at about the same time
            return UID(f"9.{self.round}.99.{self.count // 4}"), 0
        return UID(f"9.{own}.7777"), self.count  # other content each time

    def send(self, link, uid, version):
        shared = ".99." in uid
        series = UID(f"8.{self.round}.{99 if shared else self.number}")
        study = UID(f"7.{self.round}")
        dataset = self.template
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, series, study
        dataset.ImageComments = f"{uid} {version} " + "x" * (4000 if version % 2 else 400)
        data = encode(dataset, False, True)
        digest = hashlib.sha256(data).hexdigest()
        with self.truth.lock:
            self.truth.possible.setdefault(uid, set()).add(digest)
            self.truth.places[uid] = (study, series)
        status = link.store((CTImageStorage, uid), ExplicitVRLittleEndian, data)
        with self.truth.lock:
            if status.code != 0:
                self.truth.unexpected.append(f"{uid} version {version} was answered {status}")
                return
            self.truth.answered[uid] = digest
            if version:
                self.truth.possible[uid] = {digest}
        self.first_answer.set()


def listed(node, study, series=None):
    """(SOP Instance UID of each row, NumberOfStudyRelatedInstances) as C-FIND tells them."""
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.NumberOfStudyRelatedInstances = "STUDY", study, None
    keys.NumberOfStudyRelatedSeries = None
    studies = list(client.find(node.peer, keys, STUDY_ROOT_FIND, TITLE))
    assert len(studies) <= 1, "a study is listed twice"
    if not studies:
        return [], 0
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.SeriesInstanceUID = "SERIES", study, None
    found = [str(row.SeriesInstanceUID) for row in client.find(node.peer, keys, STUDY_ROOT_FIND, TITLE)]
    assert len(found) == len(set(found)) == studies[0].NumberOfStudyRelatedSeries
    uids = []
    for each in found:
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.SeriesInstanceUID = "IMAGE", study, each
        keys.SOPInstanceUID = None
        uids += [str(row.SOPInstanceUID) for row in client.find(node.peer, keys, STUDY_ROOT_FIND, TITLE)]
    return uids, int(studies[0].NumberOfStudyRelatedInstances)


def check(node, truth, studies):
    """Compare what the node lists and holds of `studies` with what was answered."""
    assert truth.unexpected == []
    archive = Archive(node.data)
    for study in studies:
        uids, counted = listed(node, study)
        assert [uid for uid, times in Counter(uids).items() if times > 1] == [], "listed twice"
        assert counted == len(uids), "the kept count is not what is there"
        promised = {uid for uid in truth.answered if truth.places[uid][0] == study}
        assert promised - set(uids) == set(), "answered 0000 and lost"
        assert set(uids) - set(truth.possible) == set(), "nobody sent it"
        for uid in uids:
            path = archive.open_instance(uid).path
            digest = hashlib.sha256(path.read_bytes()[data_set_offset(path) :]).hexdigest()
            assert digest in truth.possible[uid] | {truth.answered.get(uid)}, f"{uid} was altered"
    archive.close()


def one_round(node, truth, dice, number, template, kill, after_s):
    """Send with all senders, and call `kill` so long after the first answer."""
    first_answer = threading.Event()
    senders = [
        Sender(who, number, truth, random.Random(dice.random()), first_answer, deepcopy(template))
        for who in range(1, SENDERS + 1)
    ]
    threads = [threading.Thread(target=sender.run, args=(node.peer,)) for sender in senders]
    for thread in threads:
        thread.start()
    assert first_answer.wait(300), node.log()[-3000:]
    threading.Event().wait(after_s)
    kill()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a sender hangs"


@pytest.fixture
def dice(request):
    """Random moments and choices, told when the test fails."""
    print(f"KILL_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def moments(dice, rounds):
    """One random moment out of each of as many equal shares of the time, in any order."""
    shares = [LATEST_S * (share + dice.random()) / rounds for share in range(rounds)]
    dice.shuffle(shares)
    return shares


def kill_in_any_order(node, dice):
    pids = list(node.processes().values())
    dice.shuffle(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    node.wait()


@pytest.mark.slow(90)
def test_what_was_answered_with_success_survives_kills_at_random_moments(serve, tharsis, make_dataset, dice):
    node = serve(settle_time_s=0.1, more='overwrite = "always"\n')
    truth = Truth()
    for number, moment in enumerate(moments(dice, ROUNDS), 1):
        one_round(node, truth, dice, number, make_dataset(1), lambda: kill_in_any_order(node, dice), moment)
        node.start()
        check(node, truth, [UID(f"7.{number}")])
    check(node, truth, [UID(f"7.{number}") for number in range(1, ROUNDS + 1)])
    assert len(truth.answered) > ROUNDS * SENDERS
    assert list((node.data / "incoming").iterdir()) == []
    told = tharsis("fsck", "--data", node.data)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.slow(40)
@pytest.mark.parametrize("name", ["network", "worker-1"])
def test_a_process_that_is_killed_under_load_loses_nothing_and_comes_back(
    serve, tharsis, make_dataset, wait_until, dice, name
):
    node = serve(settle_time_s=0.1, more='overwrite = "always"\n')
    truth = Truth()

    def kill_and_stop_sending():
        dead = node.processes()[name]
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: node.processes()[name] != dead)
        if name != "network":  # the senders go on until theirs is killed, too
            kill_in_any_order(node, dice)
            node.start()
        wait_until(lambda: is_serving(node))

    for number, moment in enumerate(moments(dice, 3), 1):
        one_round(node, truth, dice, number, make_dataset(1), kill_and_stop_sending, moment)
        check(node, truth, [UID(f"7.{number}")])
    if name == "network":  # it was started again three times, and each time somebody tidied up after it
        wait_until(lambda: node.log().count("half-received files, files without a row") == 3)
        assert list((node.data / "incoming").iterdir()) == []
    told = tharsis("fsck", "--data", node.data)
    assert told.returncode == 0, told.stdout + told.stderr


def is_serving(node):
    try:
        return client.echo(node.peer, TITLE) >= 0
    except PeerError:
        return False


@pytest.mark.slow(40)
@pytest.mark.parametrize("killed_in", ["reconstruct", "segment"])
def test_a_scan_that_was_being_processed_is_finished_after_the_kill(serve, tharsis, wait_until, tmp_path, killed_in):
    node = serve(settle_time_s=0.2)
    scan = tmp_path / "scan"
    made = tharsis("simulate-scan", "--phantom", "plaque", "--views", 48, "--rows", 72, "--columns", 96, "--out", scan)
    assert made.returncode == 0, made.stderr
    assert all(sent.is_stored for sent in client.send(node.peer, sorted(scan.iterdir()), Requestor()))
    archive = Archive(node.data)

    workers = [pid for name, pid in node.processes().items() if name.startswith("worker")]

    def is_caught() -> bool:
        """Whether the workers, which stand still now, are at it; else they go on."""
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        if any(job.kind == killed_in for job in archive.jobs.recent(states=("running",))):
            return True
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        return False

    wait_until(is_caught)
    node.kill()
    assert archive.jobs.pending(), "nothing was left to finish"
    node.start()
    wait_until(lambda: not archive.jobs.pending(), timeout=900)
    rows = archive.database.execute(
        "SELECT modality, count(DISTINCT series.id), count(*), count(DISTINCT instance.sop_instance_uid) "
        "FROM instance JOIN series ON series.id = instance.series GROUP BY modality"
    ).fetchall()
    found = {modality: counts for modality, *counts in rows}
    assert found["CT"][0] == 4, "one CT series for each energy bin"
    assert found["CT"][1] == found["CT"][2], "no slice twice"
    assert found["SEG"] == [1, 1, 1]
    assert not archive.jobs.recent(states=("failed",))
