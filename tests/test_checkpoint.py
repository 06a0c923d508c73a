"""A reconstruction that is killed goes on where it was, and makes nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.settings import Settings, load_settings
from index import changes
from index.archive import Archive
from index.changes import ChangeKind
from plugins.worker import Worker
from reconstruct.checkpoint import Checkpoint, FinishedBin, remove_abandoned
from reconstruct.projections import elements
from reconstruct.simulate import simulate_scan
from reconstruct.slabs import Plan


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
    rows = archive.database.execute(
        "SELECT count(*) FROM instance JOIN series ON series.id = instance.series WHERE series.modality = 'CT' "
        "GROUP BY series.id"
    ).fetchall()
    assert rows == [(112,), (112,)]
    stored = Counter(change.kind for change in changes.since(archive.database, 0))
    assert stored[ChangeKind.REPLACED] == 0


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
