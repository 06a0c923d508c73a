"""The plan of a step-and-shoot scan: a slab is what each axial position makes of it, merged.

It takes the place of `slabs.Plan`, so that memory, checkpoint and cluster need not know: a slab is still made by
itself, and what some of the views add to it can still be summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruct.backprojection import Device
from reconstruct.geometry import ConeBeamGeometry, GeometryError, VolumeGrid
from reconstruct.redundancy import Redundancy
from reconstruct.slabs import Plan, Slab
from reconstruct.stations import Merging, Station, stations_of
from reconstruct.working_memory import AT_ONCE, MIB, pieces, release

_SHARE = 4
"""One part in so many of the memory goes to the volume of a position before it is merged."""

_TOGETHER = 16
"""Slices that are made at once are a multiple of this where there is room: the vector kernel works on so many."""


def plan_of(
    geometry: ConeBeamGeometry,
    grid: VolumeGrid,
    filter: str = "ram-lak",
    cutoff: float = 1.0,
    *,
    limited_arc: bool = False,
    extrapolated: tuple[int, int] = (0, 0),
) -> Plan:
    """Return the plan of a scan, of one axial position or of several; arguments are the attributes of `Plan`."""
    before, after = extrapolated
    one = len(stations_of(geometry.extended(-before, -after))) == 1
    return (Plan if one else SteppedPlan)(geometry, grid, filter, cutoff, limited_arc, extrapolated)


@dataclass(frozen=True)
class SteppedPlan(Plan):
    """A plan whose views stand at several axial positions; see `stations`."""

    def measured(self) -> Redundancy:
        """Refuse positions that cannot be reconstructed, or leave a gap; return what those of the lowest one measured.

        Raises
        ------
        GeometryError
            The sentence names the position.
        """
        self._merging.require_no_gap(self.grid)
        found = []
        for station, plan in zip(self._stations, self._plans, strict=True):
            try:
                found.append(plan.measured())
            except GeometryError as error:
                raise GeometryError(f"at the axial position z = {station.height_mm:.2f} mm: {error}") from error
        return found[0]

    def reconstruct(
        self,
        projections: Any,
        slab: Slab,
        *,
        views: slice = slice(None),
        measured: Redundancy | None = None,  # noqa: ARG002
        memory_mb: int = 2048,
        threads: int = 0,
        device: Device = "cpu",
        progress: Callable[[float], None] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the voxels of `slab`, as `Plan.reconstruct` does; `measured` tells of one position, and is not needed.

        A quarter of `memory_mb` is for what a position makes of some of the slices, before it is merged.
        """
        shape = (slab.stop - slab.start, *self.grid.shape_zyx[1:])
        volume = np.empty(shape, dtype=np.float32) if out is None else np.asarray(out)
        for part in pieces(volume):
            part[...] = 0
        shares = {index: self._merging.shares(float(self.grid.z_mm[index])) for index in range(slab.start, slab.stop)}
        made_at_once = list(self._pieces(slab, shares, memory_mb))
        for done, (number, start, stop) in enumerate(made_at_once):
            station, plan = self._stations[number], self._plans[number]
            first, end = np.searchsorted(station.views, views.indices(self.geometry.views)[:2])
            if first == end:
                continue
            self._merge(
                plan.reconstruct(
                    _OfViews(projections, station.views),
                    plan.slab(start, stop),
                    views=slice(int(first), int(end)),
                    measured=self._measured[number],
                    memory_mb=memory_mb - memory_mb // _SHARE,
                    threads=threads,
                    device=device,
                    progress=_part(progress, done, len(made_at_once)),
                ),
                [shares[index][number] for index in range(start, stop)],
                volume[start - slab.start : stop - slab.start],
            )
        return volume if out is None else out

    def _merge(
        self, made: NDArray[np.float32], shares: list[NDArray[np.float64]], merged: NDArray[np.float32]
    ) -> None:
        """Add what a position made of some slices, (z, y, x), as far as it counts in each; some lines at a time."""
        together = max(1, AT_ONCE // made[0, :1].nbytes)
        for image, counts, there in zip(made, shares, merged, strict=True):
            for start in range(0, len(image), together):
                lines = slice(start, start + together)
                there[lines] += image[lines] * self._merging.image(counts, self.grid, lines)
                release(there[lines])

    def _pieces(
        self, slab: Slab, shares: dict[int, NDArray[np.float64]], memory_mb: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield position, first slice and the one behind the last of what is made at once."""
        slice_bytes = 4 * self.grid.shape_zyx[1] * self.grid.shape_zyx[2]
        most = max(1, memory_mb * MIB // (_SHARE * slice_bytes))
        most = max(most // _TOGETHER * _TOGETHER, min(most, _TOGETHER))
        for number in range(len(self._stations)):
            needed = [index for index in range(slab.start, slab.stop) if shares[index][number].max() > 0]
            if needed:
                for start in range(needed[0], needed[-1] + 1, most):
                    yield number, start, min(start + most, needed[-1] + 1)

    @cached_property
    def _stations(self) -> tuple[Station, ...]:
        """The positions, without the columns that were made up: these widen no field of view."""
        before, after = self.extrapolated
        return stations_of(self.geometry.extended(-before, -after))

    @cached_property
    def _merging(self) -> Merging:
        return Merging.of(self._stations)

    @cached_property
    def _plans(self) -> tuple[Plan, ...]:
        geometries = [self.geometry.select(station.views) for station in self._stations]
        return tuple(
            Plan(geometry, self.grid, self.filter, self.cutoff, self.limited_arc, self.extrapolated)
            for geometry in geometries
        )

    @cached_property
    def _measured(self) -> tuple[Redundancy, ...]:
        return tuple(plan.measured() for plan in self._plans)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again: a plan is sent along with each task."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _OfViews:
    """Some of the views of projections, read when they are asked for."""

    def __init__(self, projections: Any, views: NDArray[np.intp], rows: slice = slice(None)) -> None:
        self._projections, self._views, self._rows = projections, views, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(view, row, column)."""
        _, rows, columns = self._projections.shape
        return len(self._views), len(range(*self._rows.indices(rows))), columns

    def __getitem__(self, part: Any) -> Any:
        """Return views as an array; for views and rows, the same kind of thing that is read later."""
        if isinstance(part, tuple):
            views, rows = part
            return _OfViews(self._projections, self._views[views], rows)
        read = self._projections[self._views[part], self._rows]
        release(self._projections)
        return read


def _part(progress: Callable[[float], None] | None, done: int, count: int) -> Callable[[float], None] | None:
    return None if progress is None else lambda fraction: progress((done + fraction) / count)
