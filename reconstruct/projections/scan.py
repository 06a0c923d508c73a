"""A scan: everything that FDK needs, whatever the encoding it came in.

Pixels stay in their files. `Scan.line_integrals` reads the frames of one energy bin one by one and keeps nothing but
its result, so that a scan of many counters needs the memory of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from reconstruct import preprocess
from reconstruct.corrections.counts import NO_CORRECTIONS, CountCorrections
from reconstruct.corrections.interpolation import PixelRepair
from reconstruct.corrections.saturation import replace_saturated
from reconstruct.corrections.tiles import VirtualDetector
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.projections.curved_detector import CurvedDetector
from reconstruct.projections.frames import Counter, Frame, ScanError, read_together
from reconstruct.projections.open_field import OpenField
from reconstruct.stations import fitted_grid
from reconstruct.working_memory import release

__all__ = [
    "Counter",
    "CounterKind",
    "EnergyBin",
    "Frame",
    "PixelMeaning",
    "ReconstructionRequest",
    "Scan",
    "ScanError",
    "SourceInstance",
    "Tiles",
]

_log = logging.getLogger(__name__)

_MOST_ALONG = 65535
"""Voxels along an axis: Rows (0028,0010) and Columns (0028,0011) have 16 bits, and more slices are a wrong unit.

What memory and disk have no room for is refused by those who know both.
"""

_VIEWS_AT_ONCE = 16
"""Views of all tiles that are held to be stitched."""


class PixelMeaning(StrEnum):
    """What a pixel holds, after its rescale."""

    COUNTS = "COUNTS"
    INTENSITY = "INTENSITY"
    TRANSMISSION = "TRANSMISSION"
    LINE_INTEGRAL = "LINE_INTEGRAL"


class CounterKind(StrEnum):
    """Whether a counter counts everything above its threshold, or what lies between two."""

    CUMULATIVE = "CUMULATIVE"
    DIFFERENTIAL = "DIFFERENTIAL"


@dataclass(frozen=True)
class EnergyBin:
    """An energy window of the detector.

    Attributes
    ----------
    index
        1-based, ascending with energy.
    low_kev, high_kev
        Thresholds, keV; None where not known (no threshold, an open top).
    effective_kev
        Energy of a monochromatic beam that would attenuate alike, keV.
    water_per_cm
        Attenuation of water in this bin, 1/cm; None: no Hounsfield units can be given.
    """

    index: int
    low_kev: float | None = None
    high_kev: float | None = None
    effective_kev: float | None = None
    water_per_cm: float | None = None

    @property
    def label(self) -> str:
        """The window as text, for example ``25-38 keV`` or ``52+ keV``; empty when not known."""
        if self.low_kev is None:
            return "" if self.high_kev is None else f"<{self.high_kev:g} keV"
        return f"{self.low_kev:g}+ keV" if self.high_kev is None else f"{self.low_kev:g}-{self.high_kev:g} keV"


@dataclass(frozen=True)
class ReconstructionRequest:
    """What the operator asked for, as far as given; (x, y, z) in the frame of the scan, the patient's (LPS)."""

    voxel_mm_xyz: tuple[float, float, float] | None = None
    matrix_xyz: tuple[int, int, int] | None = None
    centre_mm_xyz: tuple[float, float, float] | None = None
    filter: str | None = None
    cutoff: float | None = None

    def over(self, other: ReconstructionRequest) -> ReconstructionRequest:
        """Return this request, completed by what `other` asks for besides."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(other, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class SourceInstance:
    """A stored instance that pixels of the scan came from."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of a scan whose detector was smaller than what it had to see.

    Attributes
    ----------
    detector
        What they make up together.
    counters
        For each tile the frames of each bin's counter, (tile, bin), views in the order of those of the scan.
    """

    detector: VirtualDetector
    counters: tuple[tuple[Counter, ...], ...]


@dataclass(frozen=True, eq=False)
class Scan:
    """A cone-beam scan.

    Attributes
    ----------
    uid
        Scan Set UID (0071,xx01), else the Series Instance UID.
    geometry
        Source and detector of every view, in order of acquisition.
    geometry_from
        What the geometry was taken from: matrices, vectors, standard attributes, ….
    bins
        Energy bins, ascending, ``bins[k].index == k + 1``.
    counters
        Frames of the counter that each bin starts at, parallel to `bins`; of the first tile where there are several.
    pixel_meaning, counter_kind, counting_mode
        What the pixels hold; the mode is SPM or CSM, or empty when not given.
    corrections
        Corrections already applied (0071,xx08).
    header
        One instance without its pixels: patient, study, equipment.
    sources
        All instances, for provenance.
    request
        What the operator asked for.
    notes
        Sentences for the user: which geometry was taken, what disagrees.
    knows_detector_distance
        Whether the distance of the detector in `geometry` is known; projection matrices do not hold it.
    curved
        The cylinder that the pixels lie on; `geometry` is that of the plane that they are brought to.
    tiles
        What is stitched to the detector of `geometry`; None where the detector saw all at once.
    """

    uid: str
    geometry: ConeBeamGeometry
    geometry_from: str
    bins: tuple[EnergyBin, ...]
    counters: tuple[Counter, ...]
    header: Dataset
    sources: tuple[SourceInstance, ...]
    pixel_meaning: PixelMeaning = PixelMeaning.COUNTS
    counter_kind: CounterKind = CounterKind.DIFFERENTIAL
    counting_mode: str = ""
    corrections: frozenset[str] = frozenset()
    request: ReconstructionRequest = field(default_factory=ReconstructionRequest)
    notes: tuple[str, ...] = ()
    knows_detector_distance: bool = True
    curved: CurvedDetector | None = None
    tiles: Tiles | None = None

    @property
    def detectors(self) -> tuple[tuple[Counter, ...], ...]:
        """The counters of each tile; of the one detector where there are no tiles."""
        return (self.counters,) if self.tiles is None else self.tiles.counters

    def grid(self, voxel_mm: float = 0.0) -> VolumeGrid:
        """Return the grid that was requested, completed by the one fitted to the field of view.

        Parameters
        ----------
        voxel_mm
            Edge of the voxels where the request does not say; 0: the detector's pitch, scaled to the isocentre.

        Raises
        ------
        ScanError
            More voxels along an axis than the rows and columns of a CT image can number, or a volume far from all
            that the scan has seen.
        """
        asked = self.request
        edges = asked.voxel_mm_xyz
        fitted = fitted_grid(self.geometry, min(edges) if edges else voxel_mm)
        edges = edges or _three(reversed(fitted.voxel_mm_zyx))
        extent = [n * e for n, e in zip(reversed(fitted.shape_zyx), reversed(fitted.voxel_mm_zyx), strict=True)]
        # A tolerance, so that an extent of a whole number of voxels does not lose one to rounding.
        matrix = asked.matrix_xyz or [max(1, int(size / e + 1e-6)) for size, e in zip(extent, edges, strict=True)]
        x, y, z = (int(n) for n in matrix)
        if max(x, y, z) > _MOST_ALONG:
            raise ScanError(
                f"a volume of {x} × {y} × {z} voxels is too large: expected at most {_MOST_ALONG} columns, rows and "
                "slices"
            )
        grid = VolumeGrid((z, y, x), (edges[2], edges[1], edges[0]), asked.centre_mm_xyz or fitted.centre_mm_xyz)
        _require_in_sight(grid, fitted)
        return grid

    def line_integrals(
        self,
        bin_number: int,
        progress: Callable[[float], None] | None = None,
        out: NDArray[np.float32] | None = None,
        corrections: CountCorrections = NO_CORRECTIONS,
    ) -> NDArray[np.float32]:
        """Return the line integrals of an energy bin, no unit, (view, row, column) float32.

        Counts → difference of counters → flat field → ``-log`` → dead pixels replaced by their neighbours. Memory: the
        result and a few frames.

        Parameters
        ----------
        bin_number
            1-based index of the bin.
        progress
            Called with the fraction done; may raise to stop the work.
        out
            Where to put them: an array or a memory map of that shape and type. None: a new array.
        corrections
            What is done to the counts besides.

        Raises
        ------
        ScanError
            No such bin, flat fields that are overexposed, too many dead pixels, pixels that cannot be decoded,
            a correction that needs what the scan does not tell.
        """
        if not 1 <= bin_number <= len(self.bins):
            raise ScanError(f"the scan has energy bins 1 to {len(self.bins)}, and no bin {bin_number}")
        if out is None:
            out = np.empty(self.shape, dtype=np.float32)
        elif out.shape != self.shape or out.dtype != np.float32:
            raise ValueError(f"expected out of shape {self.shape} and float32, got {out.shape} and {out.dtype}")
        readers = [
            _Views(self, counters, self._open_field(counters, corrections), corrections)
            for counters in (self.counters_of(detector, bin_number) for detector in self.detectors)
        ]
        tell = progress or (lambda _fraction: None)
        if self.tiles is None:
            self._read(readers[0], out, tell)
        else:
            self._stitch(readers, self.tiles.detector, out, tell)
        full = sum(reader.full for reader in readers)
        if full:
            _log.info("energy bin %d: %d of %d samples are saturated", bin_number, full, out.size)
        return out

    def _read(self, reader: _Views, out: NDArray[np.float32], tell: Callable[[float], None]) -> None:
        for view, integrals in enumerate(reader.integrals()):
            out[view] = integrals if self.curved is None else self.curved.flattened(integrals, view)
            release(out[view])
            tell((view + 1) / len(out))

    def _stitch(
        self,
        readers: Sequence[_Views],
        detector: VirtualDetector,
        out: NDArray[np.float32],
        tell: Callable[[float], None],
    ) -> None:
        """Read the tiles side by side and stitch them."""
        views = [reader.integrals() for reader in readers]
        for start in range(0, len(out), _VIEWS_AT_ONCE):
            stop = min(start + _VIEWS_AT_ONCE, len(out))
            blocks = [np.stack(list(islice(of_tile, stop - start))) for of_tile in views]
            detector.stitch(blocks, out[start:stop])
            release(out[start:stop])
            tell(stop / len(out))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the projections of one energy bin: (view, row, column)."""
        return self.geometry.views, self.geometry.rows, self.geometry.columns

    def _open_field(self, counters: tuple[Counter, ...], corrections: CountCorrections) -> OpenField | None:
        if self._is_relative():
            return None
        return OpenField.of(
            counters,
            counting=self.pixel_meaning is PixelMeaning.COUNTS,
            keep_dead="DEAD_PIXEL" in self.corrections,
            corrections=corrections,
        )

    def _is_relative(self) -> bool:
        return self.pixel_meaning in (PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL)

    def counters_of(self, detector: tuple[Counter, ...], bin_number: int) -> tuple[Counter, ...]:
        """Return the counter of a bin and, where counters are cumulative, the one above it."""
        cumulative = self.counter_kind is CounterKind.CUMULATIVE and not self._is_relative()
        return detector[bin_number - 1 : bin_number + 1 if cumulative else bin_number]


class _Views:
    """The line integrals of one detector, or of one tile, view by view; counts the saturated samples among them."""

    def __init__(
        self, scan: Scan, counters: tuple[Counter, ...], open_field: OpenField | None, corrections: CountCorrections
    ) -> None:
        self._scan, self._counters, self._corrections = scan, counters, corrections
        self._open_field = open_field
        self._repair = None if open_field is None else _repair(open_field.dead)
        self.full = 0

    def integrals(self) -> Iterator[NDArray[np.float32]]:
        """Yield the line integrals of each view, (row, column), with dead pixels replaced by their neighbours."""
        for integrals in self._as_measured():
            yield integrals if self._repair is None else self._repair.of(integrals)

    def _as_measured(self) -> Iterator[NDArray[np.float32]]:
        for view, images in enumerate(read_together(self._counters)):
            if self._open_field is not None:
                self.full += int(np.count_nonzero(images.full))
                transmission = self._open_field.transmission(images.values, view, self._counters)
                integrals = preprocess.line_integrals(transmission)
                yield replace_saturated(integrals, images.full) if self._corrections.saturated else integrals
            elif self._scan.pixel_meaning is PixelMeaning.TRANSMISSION:
                least = self._counters[0].views[view].slope * preprocess.COUNT_FLOOR
                yield preprocess.line_integrals(np.maximum(images.values[0], least))
            else:
                yield images.values[0]


def _repair(dead: NDArray[np.bool_]) -> PixelRepair:
    try:
        return PixelRepair(dead)
    except ValueError as error:
        raise ScanError(str(error)) from error


def _require_in_sight(grid: VolumeGrid, fitted: VolumeGrid) -> None:
    """Refuse a grid that lies beyond twice the field of view: up to there, some of the views may see something."""
    for axis, wanted, seen in zip("xyz", _ends(grid), _ends(fitted), strict=True):
        margin = (seen[1] - seen[0]) / 2
        if wanted[0] > seen[1] + margin or wanted[1] < seen[0] - margin:
            raise ScanError(
                f"a volume of {axis} = {wanted[0]:g} to {wanted[1]:g} mm is out of sight: the scan sees {axis} = "
                f"{seen[0]:g} to {seen[1]:g} mm"
            )


def _ends(grid: VolumeGrid) -> list[tuple[float, float]]:
    """The faces of a volume along x, y and z, mm."""
    sizes = [n * e for n, e in zip(reversed(grid.shape_zyx), reversed(grid.voxel_mm_zyx), strict=True)]
    return [(at - size / 2, at + size / 2) for at, size in zip(grid.centre_mm_xyz, sizes, strict=True)]


def _three(values: Iterator[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z
