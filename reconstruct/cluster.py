"""Slabs of a volume on many machines, through an existing Dask scheduler.

Each task is a slab, or a part of its views: it maps the line integrals from a file that all machines see, reads the
rows that it needs, and writes its voxels into the file of the volume. What goes over the network is the plan, which is
small. A worker that dies loses its tasks to the others: writing a slab twice gives the same voxels.

The same work on thousands of processors: Chen et al., iFDK: a scalable framework for instant high-resolution image
reconstruction, SC '19.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from reconstruct.backprojection import Device
from reconstruct.slabs import Plan, Slab
from reconstruct.working_memory import return_freed_memory

if TYPE_CHECKING:
    from distributed import Client, Future

_WAIT_S = 0.5
"""How often the one who waits for slabs is let to look at other things."""

_CONNECT_S = 30

_WORKERLESS_S = 600.0
"""A scheduler may be without workers for so long, as when they are started anew, seconds."""

_RETRIES = 3
"""A task is begun again so often after its worker died or failed."""


class ClusterError(Exception):
    """The cluster cannot be used, or has failed; the message is one sentence for the user."""


@dataclass(frozen=True)
class SharedFiles:
    """The files that every worker sees under the same path.

    Attributes
    ----------
    integrals
        Line integrals, (view, row, column) float32, native bytes.
    volume
        Where voxels go, (z, y, x) float32, of its full size already.
    """

    integrals: Path
    volume: Path


@dataclass(frozen=True)
class _Resources:
    """What a task may take."""

    memory_mb: int
    device: Device


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """Connect to a Dask scheduler, ``tcp://host:port`` or ``tls://host:port``.

    Raises
    ------
    ClusterError
        The library is not installed, or nobody answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError("reconstructing on a cluster needs Dask: pip install 'tharsis[cluster]'") from error
    try:
        client = Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def reconstruct_slabs(
    client: Client,
    plan: Plan,
    slabs: Sequence[Slab],
    files: SharedFiles,
    *,
    memory_mb: int,
    device: Device = "cpu",
    view_groups: int = 0,
    done: Callable[[Slab], None],
    look: Callable[[], None],
) -> None:
    """Reconstruct `slabs` on the workers of `client` into the file of the volume.

    With one group of views the voxels are those that `Plan.reconstruct` gives on one machine, bit by bit where the
    processors have the same vector instructions; with more groups their sum, which differs in float32's last bits.

    Parameters
    ----------
    memory_mb
        Of a task, MiB; parts of views hold their slab besides.
    device
        Where a worker back-projects: "cpu", "cuda", or "auto" for a CUDA device where it has one.
    view_groups
        Groups of views that a slab is divided into; 0: one, or more where there are more workers than slabs.
    done
        Called with each slab when its voxels are in the file.
    look
        Called often while waiting; may raise to stop the work.

    Raises
    ------
    ClusterError
        A task failed, or was lost with its worker too often; the scheduler is gone, or has lost all of its workers.
    GeometryError, ValueError
        The scan cannot be reconstructed, as `Plan.reconstruct` says.
    """
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise ClusterError("the Dask scheduler has no workers")
    groups = groups_of(plan, view_groups or -(-workers // max(1, len(slabs))))
    resources = _Resources(memory_mb, device)
    left = {_submit(client, plan, slab, files, groups, resources): slab for slab in slabs}
    try:
        seen = time.monotonic()
        while left:
            look()
            seen = _workers_seen(client, seen)
            for future in _ended(client, left):
                slab = left.pop(future)
                _require_done(future)
                done(slab)
    finally:
        client.cancel(list(left), force=True)


def groups_of(plan: Plan, count: int) -> list[slice]:
    """Divide the views of a plan into `count` groups of neighbours, or as many as there are views."""
    ends = np.linspace(0, plan.geometry.views, min(count, plan.geometry.views) + 1).round().astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(ends)]


def _submit(
    client: Client, plan: Plan, slab: Slab, files: SharedFiles, groups: Sequence[slice], resources: _Resources
) -> Future:
    """Queue a slab; the future tells when its voxels are written.

    The plan goes along with each task, some 100 bytes a view. Scattered, it would be lost with those who hold it.
    """
    if len(groups) == 1:
        return client.submit(
            _write_slab, plan, slab, files, resources, pure=False, retries=_RETRIES, key=f"slab-{slab.start}-{uuid4()}"
        )
    parts = [
        client.submit(_part, plan, slab, files.integrals, views, resources, pure=False, retries=_RETRIES)
        for views in groups
    ]
    return client.submit(_write_sum, parts, slab, files, pure=False, retries=_RETRIES)


def _workers_seen(client: Client, seen: float) -> float:
    """Return when the scheduler was last known to have a worker, by the monotonic clock: now, or as before."""
    now = time.monotonic()
    if client.scheduler_info(n_workers=1)["workers"]:
        return now
    if now - seen > _WORKERLESS_S:
        raise ClusterError(f"the Dask scheduler has had no workers for {_WORKERLESS_S:.0f} s")
    return seen


def _ended(client: Client, futures: Iterable[Future]) -> set[Future]:
    from distributed import wait

    try:
        with client.as_current():
            return set(wait(list(futures), timeout=_WAIT_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return set()
    except CancelledError as error:
        raise ClusterError("the Dask scheduler is gone, or somebody has cancelled its work") from error


def _require_done(future: Future) -> None:
    if future.status == "finished":
        return
    error = future.exception()
    if isinstance(error, ValueError):  # of the scan, not of the cluster
        raise error
    raise ClusterError(f"a slab failed on the cluster: {type(error).__name__}: {error}") from error


# On a worker

_ONE_AT_A_TIME = threading.Lock()
"""Kernels take all threads of their process: two slabs at once would only wait for each other."""


def _write_slab(plan: Plan, slab: Slab, files: SharedFiles, resources: _Resources) -> None:
    """Reconstruct into the mapped file: a slab may be larger than what a task may hold."""
    volume = np.memmap(files.volume, dtype=np.float32, mode="r+", shape=plan.grid.shape_zyx)
    _part(plan, slab, files.integrals, slice(0, plan.geometry.views), resources, volume[slab.slices])
    del volume
    with files.volume.open("rb") as file:
        os.fsync(file.fileno())


def _write_sum(parts: Sequence[NDArray[np.float32]], slab: Slab, files: SharedFiles) -> None:
    total = np.zeros_like(parts[0])
    for part in parts:
        total += part
    _write(total, slab, files.volume)


def _part(
    plan: Plan,
    slab: Slab,
    integrals: Path,
    views: slice,
    resources: _Resources,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    from distributed import get_worker

    geometry = plan.geometry
    shape = (geometry.views, geometry.rows, geometry.columns)
    return_freed_memory()
    projections = np.memmap(integrals, dtype=np.float32, mode="r", shape=shape)
    with _ONE_AT_A_TIME:
        return plan.reconstruct(
            projections,
            slab,
            views=views,
            memory_mb=resources.memory_mb,
            threads=get_worker().state.nthreads,
            device=resources.device,
            out=out,
        )


def _write(voxels: NDArray[np.float32], slab: Slab, volume: Path) -> None:
    """Write a slab to its place, and have it on disk before anybody is told."""
    with volume.open("r+b") as file:
        file.seek(slab.start * voxels[0].nbytes)
        file.write(np.ascontiguousarray(voxels).data)
        file.flush()
        os.fsync(file.fileno())
