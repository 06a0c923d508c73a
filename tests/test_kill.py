"""kill -9 of the whole node: what was answered 0000 is there afterwards, and work that was begun is finished."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from index.archive import Archive
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND
from scp.errors import PeerError
from scp.part10 import read_object

ROUNDS = 5
BATCH = 240


def data_set_bytes(path: Path) -> bytes:
    return path.read_bytes()[read_object(path).offset :]


def listed_instances(node, study: str, series: str) -> list[str]:
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.SeriesInstanceUID = "IMAGE", study, series
    keys.SOPInstanceUID = None
    return [str(match.SOPInstanceUID) for match in client.find(node.peer, keys, STUDY_ROOT_FIND, Requestor())]


@pytest.mark.slow
def test_what_was_answered_with_success_survives_kills_at_random_moments(serve, make_file):
    dice = random.Random(20261120)
    node = serve(settle_time_s=0.1)
    files = [make_file(number, ImageComments="x" * 10_000) for number in range(1, ROUNDS * BATCH + 1)]
    answered: list[Path] = []
    for round_number in range(ROUNDS):
        batch = files[round_number * BATCH : (round_number + 1) * BATCH]
        killer = threading.Timer(dice.uniform(0.05, 0.6), node.kill)
        sending = client.send(node.peer, batch, Requestor())
        try:
            for number, sent in enumerate(sending):
                assert sent.status is not None
                assert sent.status.is_success, sent.error
                answered.append(sent.path)
                if number == 0:
                    killer.start()
        except PeerError:
            pass  # the node died under this association, as intended
        else:
            pytest.fail("the node outlived the round: send more")
        finally:
            killer.join()
        node.start()
        first = dcmread(batch[0], stop_before_pixels=True)
        listed = listed_instances(node, first.StudyInstanceUID, first.SeriesInstanceUID)
        assert len(listed) == len(set(listed)), "an instance is listed twice"
        archive = Archive(node.data)
        for path in answered:
            uid = str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            assert uid in listed, f"{uid} was answered 0000 and is lost"
            assert data_set_bytes(archive.open_instance(uid).path) == data_set_bytes(path)
        archive.close()
    assert len(answered) >= ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", ["reconstruct", "segment"])
def test_a_scan_that_was_being_processed_is_finished_after_the_kill(serve, tharsis, wait_until, tmp_path, killed_in):
    node = serve(settle_time_s=0.2)
    scan = tmp_path / "scan"
    made = tharsis("simulate-scan", "--phantom", "plaque", "--views", 48, "--rows", 72, "--columns", 96, "--out", scan)
    assert made.returncode == 0, made.stderr
    assert all(sent.is_stored for sent in client.send(node.peer, sorted(scan.iterdir()), Requestor()))
    archive = Archive(node.data)

    def running() -> bool:
        return any(job.kind == killed_in for job in archive.jobs.recent(states=("running",)))

    wait_until(running)
    node.kill()
    assert archive.jobs.pending(), "nothing was left to finish"
    node.start()
    wait_until(lambda: not archive.jobs.pending(), timeout=120)
    rows = archive.database.execute(
        "SELECT modality, count(DISTINCT series.id), count(*), count(DISTINCT instance.sop_instance_uid) "
        "FROM instance JOIN series ON series.id = instance.series GROUP BY modality"
    ).fetchall()
    found = {modality: counts for modality, *counts in rows}
    assert found["CT"][0] == 4, "one CT series for each energy bin"
    assert found["CT"][1] == found["CT"][2], "no slice twice"
    assert found["SEG"] == [1, 1, 1]
    assert not archive.jobs.recent(states=("failed",))
