"""How the work of FDK is cut so that everything it holds at the same time fits into a bound on memory."""

from __future__ import annotations

from dataclasses import dataclass

import numba

from reconstruct.backprojection import BackProjector
from reconstruct.filters import padded_size, row_bytes
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernels_vectors import LANES
from reconstruct.working_memory import MIB, mapped_bytes

LINES = 32
"""Lines of voxels are worked on, and written, in multiples of this many: whole tiles of the kernels."""

_DEPTH = 256
"""Slices that are worked on together before lines are cut: the kernels share the work for a column of voxels."""

_LEAST_DEPTH = 64
_LEAST_VIEWS = 8
"""What is added in one pass at least, where there is a choice: fewer slices or views waste the kernels' work."""

_BATCH = 32
"""Views filtered at once, at most."""

_WEIGHT_BYTES = 64
"""What the weights of a column of one view take while they are computed."""

_TABLE_BYTES = 2048
"""What vectors, matrices and shares of a view take, of the scan and of its parts."""


@dataclass(frozen=True)
class Mapped:
    """What FDK reads and writes lies in files that are mapped: the pages in use count as memory."""

    projections: bool = False
    volume: bool = False


@dataclass(frozen=True)
class Blocks:
    """How the work is cut.

    Attributes
    ----------
    batch
        Views filtered at once.
    views
        Views held filtered.
    slices, lines
        Voxels worked on at once, of whole lines.
    """

    batch: int
    views: int
    slices: int
    lines: int

    def writes_once(self, views: int, grid: VolumeGrid) -> bool:
        """Whether no voxel is taken up again after it was written: all views are held, or all voxels."""
        return self.views >= views or self.holds(grid)

    def holds(self, grid: VolumeGrid) -> bool:
        """Whether all voxels of the grid are worked on at once."""
        return self.slices >= grid.shape_zyx[0] and self.lines >= grid.shape_zyx[1]


@dataclass(frozen=True)
class _Needs:
    """Bytes that the parts of the work take."""

    grid: VolumeGrid
    projector: BackProjector
    filtering: int
    in_file: bool

    def voxels(self, slices: int, lines: int) -> int:
        """Return what working on so many slices and lines takes, and writing them through a buffer."""
        _, all_lines, columns = self.grid.shape_zyx
        together = self.projector.slices_together
        rounded = -(-slices // together) * together
        own = self.projector.slice_bytes // all_lines * lines * rounded
        line = 4 * columns
        if self.in_file:
            buffer = slices * min(lines, LINES) * line
            return own + buffer + mapped_bytes(min(lines, LINES) * line, slices * all_lines * line)
        return own + (0 if lines == all_lines else slices * LINES * line)


def blocks_of(
    geometry: ConeBeamGeometry,
    symmetric: ConeBeamGeometry,
    grid: VolumeGrid,
    projector: BackProjector,
    memory_mb: int,
    mapped: Mapped,
) -> Blocks:
    """Cut the work so that what is held at the same time fits into `memory_mb`.

    All views are held filtered where that leaves room for some voxels; else all voxels, where that leaves room for some
    views. Where neither does, both are cut, and voxels are taken up again for each block of views.

    Parameters
    ----------
    geometry, symmetric
        Of the views, with the columns that there are, and with those that an offset detector lacks.
    projector
        Of `symmetric` and `grid`; it says what views and voxels take.
    mapped
        What does not lie in memory.

    Raises
    ------
    ValueError
        Too little memory for a view and a few voxels.
    """
    allowed_mb = projector.memory_mb(memory_mb)
    pixels = 4 * geometry.rows * geometry.columns
    read = mapped_bytes(pixels, pixels * geometry.views) if mapped.projections else 0
    fixed = _TABLE_BYTES * geometry.views + projector.scratch_bytes + read
    budget = allowed_mb * MIB - fixed
    needs = _Needs(grid, projector, filtering_bytes(geometry, symmetric.columns), mapped.volume)
    slices, lines, _ = grid.shape_zyx
    fewest_lines = min(lines, LINES)
    least_voxels = needs.voxels(min(slices, projector.slices_together), fewest_lines)
    view, batch = projector.view_bytes, needs.filtering
    least = view + max(batch, least_voxels)
    if least > budget:
        raise ValueError(
            f"expected memory for at least one view and {fewest_lines} lines of {projector.slices_together} slices, "
            f"{-(-(least + fixed) // MIB)} MiB, got {allowed_mb} MiB"
        )
    some_voxels = needs.voxels(min(slices, _LEAST_DEPTH), fewest_lines)
    rest = budget - view * geometry.views
    if rest >= max(batch, some_voxels):
        return Blocks(_batch(geometry.views, rest, batch), geometry.views, *_voxels(needs, rest, fewest_lines))
    everything = needs.voxels(slices, lines)
    rest = budget - everything
    if rest >= batch + view * min(geometry.views, _LEAST_VIEWS):
        together = _batch(geometry.views, rest // 4, batch)
        views = min(geometry.views, (rest - together * batch) // view)
        return Blocks(min(together, views), views, slices, lines)
    # A quarter for the work on voxels and batches, more where one of them needs it; the views get the rest.
    share = max(budget // 4, batch, min(some_voxels, budget - view), least_voxels)
    together = _batch(geometry.views, share, batch)
    cut = _voxels(needs, share, fewest_lines)
    views = min(geometry.views, (budget - max(together * batch, needs.voxels(*cut))) // view)
    return Blocks(min(together, views), views, *cut)


def filtering_bytes(geometry: ConeBeamGeometry, columns: int) -> int:
    """Return what a view takes while it is weighted and filtered: its pixels as float32, and the work on its rows.

    That is the arrays of SciPy's transforms, or what each thread has for transforms in vectors, if that is more.
    """
    pixels = 4 * geometry.rows * geometry.columns
    lane = 2 * padded_size(columns) + geometry.columns + 16
    in_vectors = int(numba.config.NUMBA_NUM_THREADS) * 4 * LANES * lane
    return pixels + max(geometry.rows * row_bytes(columns), in_vectors) + _WEIGHT_BYTES * columns


def _batch(views: int, room: int, each: int) -> int:
    return min(views, _BATCH, max(1, room // each))


def _voxels(needs: _Needs, room: int, fewest_lines: int) -> tuple[int, int]:
    """Return how many slices and lines fit: all, else fewer lines of `_DEPTH` slices, else fewer slices."""
    slices, lines, _ = needs.grid.shape_zyx
    if needs.voxels(slices, lines) <= room:
        return slices, lines
    together = needs.projector.slices_together
    depth = min(slices, -(-_DEPTH // together) * together)
    while depth > together and needs.voxels(depth, fewest_lines) > room:
        depth = max(together, depth // 2 // together * together)
    fitting = fewest_lines
    while fitting < lines and needs.voxels(depth, min(lines, fitting + LINES)) <= room:
        fitting = min(lines, fitting + LINES)
    return depth, fitting
