"""A reconstruction that is killed goes on where it was, and makes nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from config.settings import Settings, load_settings
from index import changes
from index.archive import Archive
from index.changes import ChangeKind
from index.keys import Level
from plugins import reconstruction
from plugins.claim import Claim
from plugins.node import Cancelled, Task
from plugins.worker import Worker
from reconstruct.checkpoint import Checkpoint, FinishedBin, remove_abandoned
from reconstruct.projections import elements
from reconstruct.simulate import simulate_scan
from reconstruct.slabs import Plan
from tharsis import app


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    overrides = {"archive": {"data": tmp_path / "archive"}, "reconstruct": {"memory_mb": 64}, **OFF}
    return load_settings(environment={}, overrides=overrides)


OFF = {"scan_quality": {"enabled": False}}


def store_scan(settings: Settings) -> str:
    """Store a scan of two bins whose volumes do not fit the memory; return its series."""
    objects = simulate_scan("calibration", views=36, rows=16, columns=20, thresholds_kev=(18, 45), seed=1)
    archive = Archive.from_settings(settings.archive)
    for dataset in objects:
        elements.put(dataset, RequestedMatrix=[300, 300, 112], RequestedVoxelSize=[0.15, 0.15, 0.02])
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue(), announce=False)
    series = str(objects[0].SeriesInstanceUID)
    archive.jobs.push("reconstruct", series)
    archive.close()
    return series


WORK_UNTIL_KILLED = """
    import os, signal, sys
    from config.settings import Settings
    from index.archive import Archive
    from plugins.worker import Worker
    from reconstruct.slabs import Plan

    settings, left = Settings.model_validate_json(sys.stdin.read()), [int(sys.argv[1])]
    reconstruct = Plan.reconstruct

    def reconstruct_or_die(*arguments, **options):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return reconstruct(*arguments, **options)

    Plan.reconstruct = reconstruct_or_die
    archive = Archive.from_settings(settings.archive)
    archive.jobs.free_claims_of("worker-1", max_attempts=5)
    Worker(archive, settings, "worker-1").run_one()
"""


def killed_after(settings: Settings, slabs: int) -> None:
    """Run a worker in a process that is killed when it begins its next slab after so many."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK_UNTIL_KILLED), str(slabs)],
        input=settings.model_dump_json(),
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.slow
def test_a_killed_reconstruction_makes_nothing_twice(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store_scan(settings)
    done: list[tuple[int, int]] = []
    whole = Plan.reconstruct

    def noted(plan: Plan, projections: Any, slab: Any, **options: Any) -> Any:
        done.append((slab.start, slab.stop))
        return whole(plan, projections, slab, **options)

    killed_after(settings, 3)  # in the first bin
    killed_after(settings, 8)  # seven slabs a bin: the first is finished, four of the second are done
    work = settings.archive.data / "work"
    [folder] = work.iterdir()
    assert (folder / "bins").read_text().count("\n") == 1
    assert (folder / "bin-2.volume-done").read_text().count("\n") == 4

    monkeypatch.setattr(Plan, "reconstruct", noted)
    archive = Archive.from_settings(settings.archive)
    worker = Worker(archive, settings, "worker-1")
    archive.jobs.free_claims_of("worker-1", max_attempts=5)
    assert worker.run_one()
    [job] = [job for job in archive.jobs.recent() if job.kind == "reconstruct"]
    assert (job.state, job.error) == ("done", "")
    assert done == [(start, start + 16) for start in range(64, 112, 16)]
    assert list(work.iterdir()) == []
    assert ct_images(archive) == [112, 112]
    stored = Counter(change.kind for change in changes.since(archive.database, 0))
    assert stored[ChangeKind.REPLACED] == 0


def ct_images(archive: Archive) -> list[int]:
    rows = archive.database.execute(
        "SELECT count(*) FROM instance JOIN series ON series.id = instance.series WHERE series.modality = 'CT' "
        "GROUP BY series.id"
    )
    return [count for (count,) in rows.fetchall()]


class Stopper:
    """Makes the worker linger at a slab, or at a slice that it stores, until its job is cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, slab: int = 0, slices: int = 0) -> None:
        self.reached, self.may_go_on, self._left = threading.Event(), threading.Event(), [slab, slices]
        self._claims: list[Claim] = []
        whole, ingest = Plan.reconstruct, Archive.ingest

        def reconstruct(plan: Plan, *arguments: Any, **options: Any) -> Any:
            while self._lingers(0):  # as long as a slab of a large volume takes
                whole(plan, *arguments, **options)
            return whole(plan, *arguments, **options)

        def store(archive: Archive, content: bytes, **options: Any) -> Any:
            if self._lingers(1):
                self._wait_until_cancelled()
            return ingest(archive, content, **options)

        begin = Claim.__enter__

        def noted(claim: Claim) -> None:
            self._claims.append(claim)
            begin(claim)

        monkeypatch.setattr(Claim, "__enter__", noted)
        monkeypatch.setattr(Plan, "reconstruct", reconstruct)
        monkeypatch.setattr(Archive, "ingest", store)

    def _wait_until_cancelled(self) -> None:
        while not self.may_go_on.is_set() and not self._claims[-1]._lost.wait(0.05):
            pass

    def _lingers(self, what: int) -> bool:
        self._left[what] -= 1
        if self._left[what] == 0:
            self.reached.set()
        return self._left[what] <= 0 and self.reached.is_set() and not self.may_go_on.is_set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [{"slab": 3}, {"slab": 9}, {"slices": 20}, {"slices": 130}],
    ids=["in the first bin", "in the second bin", "while slices are stored", "while slices of the second are stored"],
)  # fmt: skip
def test_nothing_stays_of_a_reconstruction_that_is_cancelled_and_it_can_be_run_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, wait_until: Any, where: dict[str, int]
) -> None:
    store_scan(settings)
    archive = Archive.from_settings(settings.archive)
    before = archive.database.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall()
    work, stopper = settings.archive.data / "work", Stopper(monkeypatch, **where)
    worker = Worker(archive, settings, "worker-1", kinds=("reconstruct",))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert stopper.reached.wait(300)
        [job] = archive.jobs.recent(states=("running",))
        assert [path.name for path in next(work.iterdir()).iterdir() if path.suffix == ".volume"]
        cancelled = CliRunner().invoke(app, ["jobs", "cancel", str(job.id), "--data", str(settings.archive.data)])
        assert cancelled.exit_code == 0, cancelled.output
        wait_until(lambda: not list(work.iterdir()))
        stopper.may_go_on.set()
        after = archive.database.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall()
        assert (after, ct_images(archive)) == (before, [])
        assert archive.jobs.get(job.id).state == "cancelled"

        again = archive.jobs.retry(job.id)
        wait_until(lambda: archive.jobs.get(again).state not in ("queued", "running"))
    finally:
        stopper.may_go_on.set()
        worker.stop()
        thread.join(300)
    assert (archive.jobs.get(again).state, archive.jobs.get(again).error) == ("done", "")
    assert ct_images(archive) == [112, 112]
    assert list(work.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["queued again", "deleted"])
def test_what_another_worker_goes_on_with_stays(settings: Settings, *, kept: bool) -> None:
    """A worker that lost its claim removes nothing, unless nobody can have it: the job went with its series."""
    series = store_scan(settings)
    archive = Archive.from_settings(settings.archive)
    job = archive.jobs.claim("worker-1", claim_s=60, max_attempts=5, kinds=("reconstruct",))
    assert job is not None

    def lose(fraction: float) -> None:
        if fraction > 0.3:
            if kept:
                assert archive.jobs.free_claims_of("worker-1", max_attempts=5)
            else:
                archive.delete(Level.SERIES, series)
            raise Cancelled

    with pytest.raises(Cancelled):
        reconstruction.reconstruct(Task(archive, settings, job, lose))
    assert bool(list((settings.archive.data / "work").glob("*/bin-1.volume-done"))) == kept


def test_what_is_noted_is_found_again(tmp_path: Path) -> None:
    names = {"source": "1.2.3", "recipe": "{}"}
    first = Checkpoint(tmp_path, names)
    first.array(1, "volume", (4, 2, 3))[1:3] = 7
    first.part_done(1, "volume", 1, 3)
    again = Checkpoint(tmp_path, names)
    assert again.parts_done(1, "volume") == [(1, 3)]
    assert again.array(1, "volume", (4, 2, 3)).sum() == 7 * 12
    assert Checkpoint(tmp_path, {**names, "recipe": "other"}).parts_done(1, "volume") == []
    again.finish_bin(FinishedBin(1, "1.2.3.4", 4))
    assert again.finished_bins() == (FinishedBin(1, "1.2.3.4", 4),)
    assert not again.path(1, "volume").exists()
    assert again.parts_done(1, "volume") == []
    again.remove()
    assert Checkpoint(tmp_path, names).finished_bins() == ()


def test_a_note_that_was_cut_off_and_a_file_of_another_size_do_not_count(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {})
    checkpoint.array(1, "volume", (4, 2, 3))
    checkpoint.part_done(1, "volume", 0, 2)
    with (checkpoint.folder / "bin-1.volume-done").open("a") as notes:
        notes.write('{"start": 2, "st')
    assert checkpoint.parts_done(1, "volume") == [(0, 2)]
    checkpoint.part_done(1, "volume", 2, 4)
    assert checkpoint.parts_done(1, "volume") == [(0, 2), (2, 4)]
    np.testing.assert_array_equal(checkpoint.array(1, "volume", (5, 2, 3)), np.zeros((5, 2, 3)))
    assert checkpoint.parts_done(1, "volume") == []


def test_work_that_nobody_goes_on_with_is_removed(tmp_path: Path) -> None:
    old, new = Checkpoint(tmp_path, {"name": "old"}), Checkpoint(tmp_path, {"name": "new"})
    old.array(1, "volume", (1, 2, 3))
    for path in (old.path(1, "volume"), old.folder):
        os.utime(path, (0, 0))
    assert remove_abandoned(tmp_path) == 1
    assert (old.folder.exists(), new.folder.exists()) == (False, True)
