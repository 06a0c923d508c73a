"""Feldkamp-Davis-Kress: cone-beam projections around an axis to a volume, within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reconstruct.backprojection import UPDATES_A_PASS, BackProjector, Device, back_projector
from reconstruct.blocks import LINES, Blocks, Mapped, blocks_of
from reconstruct.filtering import Filtering
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.kernel_threads import kernel_threads
from reconstruct.kernels import clear, touch
from reconstruct.kernels_vectors import LANES
from reconstruct.redundancy import Redundancy, redundancy
from reconstruct.weights import require_circular
from reconstruct.working_memory import is_mapped, release

_LINE_BYTES = 64
"""Filtered views begin on a line of the cache, wherever they lie."""

_VIEWS_A_PASS = 64 if LANES == 16 else 32
"""Views added at least in between: every pass reads and writes all voxels, which counts for more the quicker it is."""

_FILTER_COST = 20
"""Filtering a pixel takes about as long as this many voxel updates; only `progress` depends on it."""


class Projections(Protocol):
    """What `fdk` reads: an array, a memory map, or anything else with a shape and slices by view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(view, row, column)."""

    def __getitem__(self, views: slice, /) -> Any:
        """Return the views as an array (view, row, column)."""


def fdk(
    projections: Projections,
    geometry: ConeBeamGeometry,
    grid: VolumeGrid,
    *,
    filter: str = "ram-lak",
    cutoff: float = 1.0,
    limited_arc: bool = False,
    measured: Redundancy | None = None,
    memory_mb: int = 2048,
    threads: int = 0,
    device: Device = "cpu",
    progress: Callable[[float], None] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Reconstruct a circular scan: a full circle, also with a detector offset to one side, or a short scan.

    Projections are weighted, ramp filtered along their columns' direction and back-projected with bilinear
    interpolation (Feldkamp, Davis & Kress 1984; Kak & Slaney 1988, 3.6); `reconstruct.redundancy` says what rays count
    for that are measured once or twice. Views may be spaced unequally, turn either
    way and repeat an angle; detectors may be shifted, tilted and mirrored. Beyond the outermost pixel centres a
    projection falls to 0 within one pixel.

    Parameters
    ----------
    projections
        Line integrals of attenuation, no unit, (view, row, column); any real type.
    geometry
        Source and detector of every view.
    grid
        The voxels wanted.
    filter, cutoff
        Window of the ramp, one of `reconstruct.filters.FILTERS`, and where it ends as a fraction of the Nyquist
        frequency.
    limited_arc
        Whether an arc that is no short scan is reconstructed as it is, without a scale of its values (tomosynthesis).
    measured
        What the measurements count for, where `geometry` is but a part of a scan. None: as `geometry` and `limited_arc`
        say.
    memory_mb
        Most that is allocated, MiB, besides `projections` and the result: views are filtered in blocks and slices
        worked on in slabs that fit.
    threads
        Threads of the kernels; 0: all cores.
    device
        Where to back-project: "cpu", "cuda" or "auto". On a device, filtered views and slabs take most of its memory.
    progress
        Called now and then with the fraction done, last with 1.0. It may raise to stop the work.
    out
        Where to put the volume, (z, y, x) float32, C-contiguous: an array or a memory map. None: a new array.

    Returns
    -------
    volume
        Attenuation, 1/mm, (z, y, x) float32; `out` if given.

    Raises
    ------
    GeometryError
        Views that do not go far enough round, or another scan that FDK cannot reconstruct.
    ValueError
        Shapes that do not fit, an unknown filter, projections that are not finite, too little memory.
    """
    expected = (geometry.views, geometry.rows, geometry.columns)
    if tuple(projections.shape) != expected:
        raise ValueError(f"expected projections of shape {expected}, got {tuple(projections.shape)}")
    require_circular(geometry)
    if measured is None:
        measured = redundancy(geometry, limited_arc=limited_arc)
    symmetric = geometry.extended(*measured.missing_columns)
    filtering = Filtering(geometry, symmetric, measured, filter, cutoff)
    projector = back_projector(symmetric, grid, device)
    volume = _result(out, grid)
    mapped = Mapped(is_mapped(projections), is_mapped(volume))
    blocks = blocks_of(geometry, symmetric, grid, projector, memory_mb, mapped)
    report = _Progress(progress, symmetric, grid)
    voxels = _Voxels(projector, volume, grid, blocks, report)
    together = blocks.views
    if blocks.holds(grid):
        together = _equal(geometry.views, min(together, _views_in_a_pass(projector, volume, is_new=out is None)))
    with kernel_threads(threads) as workers:
        # A new volume is empty until the last view is added: filtered views may lie there.
        spare = volume.reshape(-1) if out is None and blocks.holds(grid) else None
        buffer = projector.allocate(min(together, geometry.views), spare)
        lies_there = isinstance(buffer, np.ndarray) and np.may_share_memory(buffer, volume)
        voxels.is_blank = out is None and not lies_there
        for views in _pieces(slice(0, geometry.views), together):
            for batch in _pieces(views, blocks.batch):
                filtering.store(projections[batch], batch, projector, _within(buffer, views, batch), workers)
                report.filtered(batch)
            voxels.add(buffer, views, is_last=views.stop == geometry.views)
    return volume if out is None else out


class _Voxels:
    """The voxels that blocks of views are added to: all at once where there is room, else a tile after the other.

    A tile is cut out of the volume, or taken up again, when its first view is added, and written back with the last.

    Attributes
    ----------
    is_blank
        Whether the volume is known to be zero.
    """

    def __init__(
        self,
        projector: BackProjector,
        volume: NDArray[np.float32],
        grid: VolumeGrid,
        blocks: Blocks,
        report: _Progress,
    ) -> None:
        self._projector, self._volume, self._report = projector, volume, report
        self.is_blank = False
        self._kept: Any = None
        self._keeps = blocks.holds(grid)
        slices, lines, _ = grid.shape_zyx
        self._tiles = [
            (z, y) for z in _pieces(slice(0, slices), blocks.slices) for y in _pieces(slice(0, lines), blocks.lines)
        ]
        self._is_first = True

    def add(self, buffer: Any, views: slice, *, is_last: bool) -> None:
        """Add a block of views to all voxels; after the last one they are in the volume."""
        for slices, lines in self._tiles:
            tile = self._volume[slices, lines]
            work = self._projector.begin(tile) if self._kept is None else self._kept
            for part in _pieces(views, _views_a_pass(tile, self._projector.updates_a_pass)):
                self._projector.add(_within(buffer, views, part), part, work, slices.start, lines.start)
                self._report.added(part, tile.size)
            if self._keeps and not is_last:
                self._kept = work
            else:
                self._write(work, tile, is_new=self._keeps or self._is_first)
            del work
        self._is_first = False

    def _write(self, work: Any, tile: NDArray[np.float32], *, is_new: bool) -> None:
        """Put what was added into a tile of the volume, instead of what is there or besides."""
        count = tile.shape[1]
        if tile.flags.c_contiguous and not is_mapped(tile):
            if is_new and self.is_blank:
                touch(tile.reshape(-1))
            elif is_new:
                clear(tile.reshape(-1))
            self._projector.finish(work, slice(0, count), tile)
            return
        for lines in _pieces(slice(0, count), LINES):
            self._write_lines(work, tile, lines, is_new=is_new)

    def _write_lines(self, work: Any, tile: NDArray[np.float32], lines: slice, *, is_new: bool) -> None:
        """Put some lines through a buffer, which is gone before that of the next ones is made."""
        buffer = np.zeros((len(tile), lines.stop - lines.start, tile.shape[2]), dtype=np.float32)
        self._projector.finish(work, lines, buffer)
        for there, added in zip(tile, buffer, strict=True):
            if is_new:
                there[lines] = added
            else:
                there[lines] += added
            release(there[lines])


def _result(out: NDArray[np.float32] | None, grid: VolumeGrid) -> NDArray[np.float32]:
    """The volume, as a plain array; zeros where it is new."""
    if out is None:
        return np.zeros(grid.shape_zyx, dtype=np.float32)
    if out.shape != grid.shape_zyx or out.dtype != np.float32 or not out.flags.c_contiguous:
        order = "contiguous" if out.flags.c_contiguous else "not contiguous"
        raise ValueError(
            f"expected out of shape {grid.shape_zyx}, float32 and contiguous, got {out.shape}, {out.dtype} and {order}"
        )
    return np.asarray(out)


def _views_a_pass(voxels: NDArray[np.float32], updates: int) -> int:
    return max(_VIEWS_A_PASS, updates // voxels.size)


def _views_in_a_pass(projector: BackProjector, volume: NDArray[np.float32], *, is_new: bool) -> int:
    """Return how many filtered views are kept: few, or as many as are added at once and fit into a new volume."""
    few = _views_a_pass(volume, UPDATES_A_PASS)
    if not is_new:
        return few
    room = (volume.nbytes - _LINE_BYTES) // projector.view_bytes
    return max(few, min(room, _views_a_pass(volume, projector.updates_a_pass)))


def _equal(whole: int, longest: int) -> int:
    """Return how long pieces are that are about equally long; a multiple of four, since kernels add so many at once."""
    length = -(-whole // -(-whole // longest))
    return min(longest, -(-length // 4) * 4)


def _pieces(whole: slice, length: int) -> Iterator[slice]:
    for start in range(whole.start, whole.stop, length):
        yield slice(start, min(start + length, whole.stop))


def _within(buffer: NDArray[np.float32], views: slice, part: slice) -> NDArray[np.float32]:
    """The part of a block's buffer that holds the scan's views `part`."""
    return buffer[part.start - views.start : part.stop - views.start]


class _Progress:
    """Adds up what is done and tells it as a fraction."""

    def __init__(
        self, tell: Callable[[float], None] | None, geometry: ConeBeamGeometry, grid: VolumeGrid
    ) -> None:
        self._tell = tell
        self._filter_cost = _FILTER_COST * geometry.rows * geometry.columns
        self._done = 0
        self._total = geometry.views * (self._filter_cost + int(np.prod(grid.shape_zyx, dtype=np.int64)))

    def filtered(self, views: slice) -> None:
        self._advance((views.stop - views.start) * self._filter_cost)

    def added(self, views: slice, voxels: int) -> None:
        self._advance((views.stop - views.start) * voxels)

    def _advance(self, cost: int) -> None:
        self._done += cost
        if self._tell is not None:
            self._tell(self._done / self._total)
