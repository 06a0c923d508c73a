"""Reconstruction on a Dask cluster: two worker processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from distributed import Client, LocalCluster

from reconstruct.checkpoint import Checkpoint
from reconstruct.cluster import ClusterError, SharedFiles, connected, reconstruct_slabs
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.phantoms import asymmetric, line_integrals
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.p1 import read_p1
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.slabs import Plan, remaining
from reconstruct.stepped_plan import plan_of

pytestmark = pytest.mark.slow

GRID = VolumeGrid((80, 40, 40), (1.5, 2.4, 2.4))
MEMORY_MB = 64


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1", scheduler_port=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def plan() -> Plan:
    geometry = ConeBeamGeometry.circular(
        source_to_isocenter_mm=400.0,
        source_to_detector_mm=600.0,
        view_angles_rad=np.arange(60) * 2 * np.pi / 60,
        rows=80,
        columns=64,
        row_pitch_mm=2.6,
        column_pitch_mm=3.0,
    )
    return Plan(geometry, GRID)


@pytest.fixture(scope="module")
def expected(plan: Plan) -> np.ndarray:
    integrals = line_integrals(asymmetric(45.0), plan.geometry)
    return np.concatenate([plan.reconstruct(integrals, slab, memory_mb=MEMORY_MB) for slab in plan.slabs(MEMORY_MB)])


@pytest.fixture
def files(plan: Plan, tmp_path: Path) -> SharedFiles:
    checkpoint = Checkpoint(tmp_path, {})
    shape = (plan.geometry.views, plan.geometry.rows, plan.geometry.columns)
    checkpoint.array(1, "integrals", shape)[:] = line_integrals(asymmetric(45.0), plan.geometry)
    checkpoint.array(1, "volume", GRID.shape_zyx)
    return SharedFiles(checkpoint.path(1, "integrals"), checkpoint.path(1, "volume"))


def volume(files: SharedFiles) -> np.ndarray:
    return np.fromfile(files.volume, np.float32).reshape(GRID.shape_zyx)


def test_a_cluster_gives_the_same_voxels(
    cluster: LocalCluster, plan: Plan, expected: np.ndarray, files: SharedFiles
) -> None:
    done = []
    with connected(cluster.scheduler_address) as client:
        reconstruct_slabs(
            client, plan, plan.slabs(MEMORY_MB), files, memory_mb=MEMORY_MB, done=done.append, look=lambda: None
        )
    assert sorted(slab.start for slab in done) == [slab.start for slab in plan.slabs(MEMORY_MB)]
    np.testing.assert_array_equal(volume(files), expected)


def test_axial_positions_are_merged_on_a_cluster_as_on_one_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    circle = ConeBeamGeometry.circular(
        source_to_isocenter_mm=400.0, source_to_detector_mm=600.0, view_angles_rad=np.arange(40) * np.pi / 20,
        rows=32, columns=48, row_pitch_mm=2.6, column_pitch_mm=3.0,
    )  # fmt: skip
    geometry = Positions(axial_mm=(-18.0, 18.0)).along_axis(circle)
    plan = plan_of(geometry, VolumeGrid((40, 30, 30), (1.5, 2.0, 2.0)))
    checkpoint = Checkpoint(tmp_path, {})
    integrals = checkpoint.array(1, "integrals", (geometry.views, geometry.rows, geometry.columns))
    integrals[:] = line_integrals(asymmetric(30.0), geometry)
    made = checkpoint.array(1, "volume", plan.grid.shape_zyx)
    files = SharedFiles(checkpoint.path(1, "integrals"), checkpoint.path(1, "volume"))
    slabs = plan.slabs(MEMORY_MB)
    for groups, tolerance in ((1, 0.0), (3, 2e-7)):
        with connected(cluster.scheduler_address) as client:
            reconstruct_slabs(
                client, plan, slabs, files,
                memory_mb=MEMORY_MB, view_groups=groups, done=lambda _slab: None, look=lambda: None,
            )  # fmt: skip
        alone = np.concatenate([plan.reconstruct(integrals, slab, memory_mb=MEMORY_MB) for slab in slabs])
        np.testing.assert_allclose(np.asarray(made), alone, rtol=0, atol=tolerance)


def test_groups_of_views_give_the_same_but_for_rounding(
    cluster: LocalCluster, plan: Plan, expected: np.ndarray, files: SharedFiles
) -> None:
    with connected(cluster.scheduler_address) as client:
        reconstruct_slabs(
            client, plan, plan.slabs(MEMORY_MB)[:2], files,
            memory_mb=MEMORY_MB, view_groups=3, done=lambda _slab: None, look=lambda: None,
        )  # fmt: skip
    np.testing.assert_allclose(volume(files)[:32], expected[:32], atol=2e-7)


def test_a_worker_that_dies_is_survived(
    cluster: LocalCluster, plan: Plan, expected: np.ndarray, files: SharedFiles
) -> None:
    victims = []

    def kill_one(_slab: object) -> None:
        if not victims:
            workers: dict[str, int] = client.run(os.getpid)
            victims.append(next(iter(workers.values())))
            os.kill(victims[0], signal.SIGKILL)

    with connected(cluster.scheduler_address) as client:
        reconstruct_slabs(
            client, plan, plan.slabs(MEMORY_MB), files, memory_mb=MEMORY_MB, done=kill_one, look=lambda: None
        )
        client.wait_for_workers(2)
    assert victims
    np.testing.assert_array_equal(volume(files), expected)


def test_work_that_is_stopped_goes_on_where_it_was(
    cluster: LocalCluster, plan: Plan, expected: np.ndarray, files: SharedFiles
) -> None:
    class Stopped(Exception):
        pass

    slabs, done = plan.slabs(MEMORY_MB), []

    def look() -> None:
        if len(done) >= 2:
            raise Stopped

    with connected(cluster.scheduler_address) as client, pytest.raises(Stopped):
        reconstruct_slabs(client, plan, slabs, files, memory_mb=MEMORY_MB, done=done.append, look=look)
    ranges = [(slab.start, slab.stop) for slab in done]
    left = remaining(slabs, ranges)
    assert 0 < len(left) <= len(slabs) - 2
    with connected(cluster.scheduler_address) as client:
        reconstruct_slabs(
            client, plan, left, files, memory_mb=MEMORY_MB, done=lambda _slab: None, look=lambda: None
        )
    np.testing.assert_array_equal(volume(files), expected)


def test_a_fault_of_the_scan_is_told_as_one(cluster: LocalCluster, plan: Plan, files: SharedFiles) -> None:
    shape = (plan.geometry.views, plan.geometry.rows, plan.geometry.columns)
    np.memmap(files.integrals, np.float32, "r+", shape=shape)[7] = np.nan
    nothing = lambda *_: None  # noqa: E731
    slabs = plan.slabs(MEMORY_MB)[:1]
    with connected(cluster.scheduler_address) as client, pytest.raises(ValueError, match="view 7 is not"):
        reconstruct_slabs(client, plan, slabs, files, memory_mb=MEMORY_MB, done=nothing, look=nothing)


def test_a_scan_comes_out_of_a_cluster_as_from_one_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    scan = read_p1(simulate_scan("calibration", views=24, rows=40, columns=24, thresholds_kev=(18, 45), seed=1))

    def pixels(parameters: Parameters) -> np.ndarray:
        made = reconstruct_scan(scan, parameters, lambda _fraction: None, tmp_path)
        return np.stack([instance.pixel_array.astype(int) for series in made for instance in series.instances])

    there, here = pixels(Parameters(scheduler=cluster.scheduler_address)), pixels(Parameters(memory_mb=1000))
    assert len(there) > 20
    # Sums in another order differ in the last bit, and so may a rounded value here and there.
    assert np.abs(there - here).max() <= 1
    assert np.mean(there != here) < 1e-3
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_ends_in_the_middle_is_one_sentence(plan: Plan, files: SharedFiles) -> None:
    code = (
        "import sys\nfrom distributed import LocalCluster\nif __name__ == '__main__':\n"
        " with LocalCluster(n_workers=1, dashboard_address='127.0.0.1:0', host='127.0.0.1') as cluster:\n"
        "  print(cluster.scheduler_address, flush=True)\n  sys.stdin.read()\n"
    )
    nothing = lambda *_: None  # noqa: E731
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        try:
            with connected(head.stdout.readline().strip()) as client, pytest.raises(ClusterError, match="is gone"):
                reconstruct_slabs(
                    client, plan, plan.slabs(MEMORY_MB), files, memory_mb=MEMORY_MB, done=nothing, look=head.kill
                )
        finally:
            head.kill()


class Deserted:
    """Stands for a client whose scheduler has one worker to begin with, and never one again."""

    def __init__(self) -> None:
        self.left = [{"one": {}}]

    def scheduler_info(self, n_workers: int) -> dict[str, object]:
        return {"workers": self.left.pop() if self.left else {}}

    def submit(self, *_arguments: object, **_options: object) -> object:
        return object()

    def cancel(self, _futures: object, *, force: bool) -> None:
        """Nobody is there to be told."""


def test_work_that_all_workers_have_left_ends_some_time(
    plan: Plan, files: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconstruct.cluster._WORKERLESS_S", 0.0)
    monkeypatch.setattr("reconstruct.cluster._ended", lambda *_: set())
    looks = []

    def look() -> None:
        looks.append(1)
        assert len(looks) < 1000, "it waits for ever"

    with pytest.raises(ClusterError, match="has had no workers"):
        reconstruct_slabs(
            cast("Client", Deserted()), plan, plan.slabs(MEMORY_MB), files,
            memory_mb=MEMORY_MB, done=lambda _slab: None, look=look,
        )  # fmt: skip


def test_a_scheduler_that_is_not_there_or_has_no_workers_is_one_sentence(
    plan: Plan, files: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = connected("tcp://127.0.0.1:1")
    with monkeypatch.context() as patch:
        patch.setattr("reconstruct.cluster._CONNECT_S", 1)
        with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
            nobody.__enter__()
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as empty,
        connected(empty.scheduler_address) as client,
    ):
        nothing = lambda *_: None  # noqa: E731
        with pytest.raises(ClusterError, match="has no workers"):
            reconstruct_slabs(client, plan, [], files, memory_mb=1, done=nothing, look=nothing)
