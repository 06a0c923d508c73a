"""What is wrong with a scan, and what corrections do about it: figures, sentences, and images before and after.

Line integrals live in files while they are looked at: a scan may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconstruct import preprocess
from reconstruct.corrections.chain import calibrated, corrected_integrals, tells_principal_point
from reconstruct.corrections.dead_pixels import dead_pixels
from reconstruct.corrections.defects import Defects
from reconstruct.corrections.drift import source_drift
from reconstruct.corrections.principal_point import estimate_principal_column
from reconstruct.corrections.stripes import constant_errors
from reconstruct.corrections.unsteady_pixels import seen_axis, unsteady_pixels
from reconstruct.corrections.wanted import Corrections
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.projections.flat_exposures import relative_exposures, to_the_first, with_equal_noise
from reconstruct.projections.frames import Counter, read_frames, read_together
from reconstruct.projections.scan import Scan, ScanError
from reconstruct.stations import in_field_of_view, stations_of
from reconstruct.working_memory import MIB, file_array

VERSION = 4
"""Raised when the same scan would be judged or drawn otherwise."""

Image = NDArray[np.float32]

_EDGE = 0.05
"""Line integral at the ends of the rows, as a fraction of the largest, beyond which an object is cut off."""

_DRIFT = 0.01
_STRIPES = 0.004
"""Constant error of the pixels, as a line integral, standard deviation, that makes rings if it exceeds noise, too."""

_BRIGHT, _BRIGHT_SHARE = 1.5, 0.01
"""Pixels that are that many times as bright as their flat field, and the share of them that no noise explains."""

_SHIFT_PX = 0.25

_MOST_VIEWS = 64
"""Views that a percentile is taken of, spread over the scan."""


@dataclass(frozen=True, eq=False)
class ScanPictures:
    """What is shown of one energy bin.

    Attributes
    ----------
    raw, flat
        A view and the mean flat field as they were stored, (row, column), of the first tile where there are several;
        None where the scan has no such frames.
    view
        The same view as line integrals, before and after correction.
    sinogram
        Of the middle row, before and after, (view, column).
    unsound
        Pixels that are replaced, (row, column): 1 dead in the flat fields, 2 unsteady in the views.
    drift
        Of the source, (view,); None where no air is seen.
    slice_
        The central slice, 1/mm, before and after, (y, x).
    in_view
        Voxels of it that lie within the field of view, (y, x).
    """

    raw: Image | None
    flat: Image | None
    view: tuple[Image, Image]
    sinogram: tuple[Image, Image]
    unsound: NDArray[np.uint8]
    drift: NDArray[np.float64] | None
    slice_: tuple[Image, Image]
    in_view: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ScanReport:
    """What is told of one energy bin.

    Attributes
    ----------
    title
        Which scan, which energy bin.
    pictures
        What is shown of it.
    facts
        Figures: name and what was found.
    corrections
        What was on for the pictures "after".
    advice
        Sentences on what to switch on.
    """

    title: str
    pictures: ScanPictures
    facts: Mapping[str, str]
    corrections: Mapping[str, object]
    advice: Sequence[str]


def look_at(
    scan: Scan,
    bin_number: int,
    corrections: Corrections,
    tell: Callable[[float], None],
    *,
    folder: Path | None = None,
    memory_mb: int = 2048,
) -> ScanReport:
    """Return what is to be told of an energy bin of a scan.

    Parameters
    ----------
    bin_number
        1-based.
    corrections
        What is on for the images "after"; where that is nothing, what the scan seems to need.
    tell
        Called with the fraction done; may raise to stop the work.
    folder
        Where the line integrals go for that time; None: where temporary files go.
    memory_mb
        Most that the slice may take, and that its reconstruction holds besides, MiB.

    Raises
    ------
    ScanError, GeometryError
        The scan cannot be reconstructed.
    NoRoom
        There is no room in `folder`.
    """
    _require_small_slices(scan.grid(), memory_mb)
    shape = scan.shape
    integrals = scan.line_integrals(bin_number, lambda fraction: tell(0.3 * fraction), file_array(shape, folder))
    dead, count = _dead_pixels(scan, bin_number)
    seen = _Seen.of(scan, integrals, dead)
    facts, advice, needed = _judged(scan, bin_number, integrals, seen, dead)
    wanted = (needed if corrections == Corrections() else corrections).left_to_do(scan)
    after_scan, _ = calibrated(scan, wanted, folder=folder)
    before, after = wanted.margins(after_scan)
    extended = file_array((*shape[:2], shape[2] + before + after), folder)
    corrected_integrals(
        after_scan,
        bin_number,
        wanted,
        out=extended,
        progress=lambda f: tell(0.3 + 0.4 * f),
        as_read=integrals if wanted.of_counts == Corrections().of_counts else None,
    )
    measured = extended[:, :, before : extended.shape[2] - after]
    grid = scan.grid()
    middle_view, middle_row = shape[0] // 2, shape[1] // 2
    raw, flat = _stored(scan, bin_number, middle_view)
    facts["dead pixels in the flat fields"] = str(count)
    facts["unsteady pixels in the views"] = str(int(seen.unsteady.sum()))
    for mask, where in ((dead, "dead"), (seen.unsteady, "unsteady")):
        defects = Defects.of(mask)
        if defects.together:
            facts[f"{where} together"] = str(defects)
    tell(0.75)
    slices = (
        _central_slice(scan.geometry, grid, integrals, (0, 0), memory_mb),
        _central_slice(after_scan.geometry, grid, extended, (before, after), memory_mb),
    )
    pictures = ScanPictures(
        raw,
        flat,
        (np.array(integrals[middle_view]), np.array(measured[middle_view])),
        (np.array(integrals[:, middle_row]), np.array(measured[:, middle_row])),
        np.where(dead, 1, np.where(seen.unsteady, 2, 0)).astype(np.uint8),
        seen.drift,
        slices,
        in_field_of_view(scan.geometry, grid),
    )
    tell(1.0)
    label = scan.bins[bin_number - 1].label
    name = str(scan.header.get("SeriesDescription") or scan.uid)
    title = f"{name}: energy bin {bin_number}" + (f" ({label})" if label else "")
    return ScanReport(title, pictures, facts, wanted.recipe(), advice)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is found in line integrals before they are corrected: drift of the source, unsteady pixels but dead ones."""

    drift: NDArray[np.float64] | None
    unsteady: NDArray[np.bool_]

    @classmethod
    def of(cls, scan: Scan, integrals: Image, dead: NDArray[np.bool_]) -> _Seen:
        try:
            drift = source_drift(integrals)
        except ValueError:
            drift = None
        unsteady = unsteady_pixels(integrals, axis=seen_axis(scan.geometry)) & ~dead
        if scan.tiles is not None:
            unsteady &= ~scan.tiles.detector.gap
        return cls(drift, unsteady)


def _judged(
    scan: Scan, bin_number: int, integrals: Image, seen: _Seen, dead: NDArray[np.bool_]
) -> tuple[dict[str, str], list[str], Corrections]:
    """Return figures of a scan, sentences on what they ask for, and the corrections that they ask for."""
    facts = {"views × rows × columns": " × ".join(map(str, scan.shape)), "geometry": scan.geometry_from}
    facts |= _put_together(scan)
    some = integrals[:: max(1, len(integrals) // _MOST_VIEWS)]
    advice, needed = _belonging_together(scan, bin_number, some), Corrections()
    if seen.drift is not None:
        span = float(np.ptp(seen.drift))
        facts["drift of the source"] = f"{100 * span:.1f} %"
        if span > _DRIFT:
            advice.append(f"The source drifts by {100 * span:.1f} %: drift = true.")
            needed = replace(needed, drift=True)
    if seen.unsteady.any():
        advice.append(
            "Pixels misbehave in the views that look sound in the flat fields "
            f"({Defects.of(seen.unsteady)}): unsteady_pixels = 8.0."
        )
        needed = replace(needed, unsteady_pixels=8.0)
    stripes, chance = constant_errors(integrals, seen.unsteady | dead, _flat_noise(scan, bin_number))
    facts["stripes in the middle rows"] = f"{stripes:.4f} (line integral, standard deviation; noise {chance:.4f})"
    if stripes > max(_STRIPES, chance):
        advice.append('Pixels are off by a constant, which makes rings: rings = "combined", or "sorted" for weak ones.')
        needed = replace(needed, rings="combined")
    cut = float(max(np.median(integrals[:, :, :2].max(axis=1)), np.median(integrals[:, :, -2:].max(axis=1))))
    facts["at the ends of the rows"] = f"{cut:.3f} (line integral; largest {float(integrals.max()):.2f})"
    if cut > _EDGE * float(np.percentile(some, 99.5)) and seen.drift is None:
        way = "cosine" if scan.bins[0].water_per_cm is None else "water"
        advice.append(f'The object is wider than the detector: truncation = "{way}".')
        needed = replace(needed, truncation=way)
    found, sentences = _principal_column(scan, integrals)
    facts["principal column"] = found
    if sentences:
        advice += sentences
        needed = replace(needed, principal_point="estimated")
    return facts, advice or ["Nothing: the scan needs no further corrections."], needed


def _belonging_together(scan: Scan, bin_number: int, some: Image) -> list[str]:
    """Return a sentence where views are brighter than their flat fields, which no object makes them."""
    if not scan.counters[bin_number - 1].flats:
        return []
    share = float(np.mean(some < -np.log(_BRIGHT)))
    if share <= _BRIGHT_SHARE:
        return []
    return [
        f"{100 * share:.0f} % of the pixels of the views are more than {_BRIGHT} times as bright as their flat field: "
        "flat fields and views do not belong together."
    ]


def _flat_noise(scan: Scan, bin_number: int) -> float:
    """Return the usual noise of the mean flat field, as a fraction, from how its frames scatter; 0 where one is all."""
    flats_of = [Counter(counter.flats) for counter in scan.counters_of(scan.counters, bin_number)]
    if min(len(counter.views) for counter in flats_of) < 2:
        return 0.0
    flats = np.stack([preprocess.differential_bins(images.values)[0] for images in read_together(flats_of)])
    # The beam may change from frame to frame; that is no noise of a pixel.
    flats /= np.maximum(flats.mean(axis=(1, 2), keepdims=True), preprocess.COUNT_FLOOR)
    mean = flats.mean(axis=0)
    lit = mean > 0
    if not lit.any():
        return 0.0
    variance = flats.var(axis=0, ddof=1)[lit] / len(flats)
    return float(np.sqrt(np.median(variance / mean[lit] ** 2)))


def _put_together(scan: Scan) -> dict[str, str]:
    """Say of what tiles and axial positions a scan consists, where there are several."""
    told = {}
    if scan.tiles is not None:
        detector = scan.tiles.detector
        told["tiles"] = f"{len(detector.origins_px)} of {detector.tile_shape[0]} × {detector.tile_shape[1]} pixels"
        told["pixels between tiles"] = f"{int(detector.gap.sum())}, interpolated"
    stations = stations_of(scan.geometry)
    if len(stations) > 1:
        told["axial positions"] = ", ".join(f"{station.height_mm:.2f}" for station in stations) + " mm"
    return told


def _principal_column(scan: Scan, integrals: Image) -> tuple[str, list[str]]:
    """Return what conjugate views say of the axis, and a sentence where they contradict what was taken."""
    station = stations_of(scan.geometry)[0]
    try:
        found = estimate_principal_column(station.of(integrals), station.geometry)
    except ValueError as error:
        return str(error), []
    told = "told by the scan" if tells_principal_point(scan) else "the detector's centre, as nothing is told"
    fact = (
        f"{found.column:.2f} ± {found.uncertainty:.2f} from conjugate views (clarity {found.clarity:.2f}); "
        f"{found.given:.2f} {told}"
    )
    if abs(found.column - found.given) <= max(_SHIFT_PX, 3 * found.uncertainty):
        return fact, []
    return fact, [
        f"Conjugate views see the axis in column {found.column:.2f}, not {found.given:.2f}: "
        'principal_point = "estimated".'
    ]


def _stored(scan: Scan, bin_number: int, view: int) -> tuple[Image, Image | None]:
    """Return a view and the mean flat field as they are stored; of the first tile where there are several."""
    counter = scan.counters[bin_number - 1]
    raw, _ = next(read_frames(counter.views[view : view + 1]))
    if not counter.flats:
        return raw, None
    return raw, np.mean([values for values, _ in read_frames(counter.flats)], axis=0, dtype=np.float32)


def _dead_pixels(scan: Scan, bin_number: int) -> tuple[NDArray[np.bool_], int]:
    """Return where on the detector pixels are dead by their flat fields, (row, column), and how many, of all tiles."""
    dead, count = np.zeros(scan.shape[1:], dtype=bool), 0
    origins = [(0.0, 0.0)] if scan.tiles is None else scan.tiles.detector.origins_px
    for counters, (column, row) in zip(scan.detectors, origins, strict=True):
        flats = counters[bin_number - 1].flats
        if not flats:
            continue
        frames, exposures = np.stack([values for values, _ in read_frames(flats)]), relative_exposures(flats)
        to_the_first(frames, exposures)
        own = dead_pixels(with_equal_noise(frames, exposures))
        count += int(own.sum())
        rows, columns = np.nonzero(own)
        rows = np.clip(rows + round(row), 0, dead.shape[0] - 1)
        dead[rows, np.clip(columns + round(column), 0, dead.shape[1] - 1)] = True
    return dead, count


def _require_small_slices(grid: VolumeGrid, memory_mb: int) -> None:
    _, rows, columns = grid.shape_zyx
    if 4 * rows * columns > memory_mb * MIB:
        raise ScanError(
            f"expected memory for a slice of {columns} × {rows} voxels, {-(-4 * rows * columns // MIB)} MiB, got "
            f"{memory_mb} MiB"
        )


def _central_slice(
    geometry: ConeBeamGeometry, grid: VolumeGrid, integrals: Image, margins: tuple[int, int], memory_mb: int
) -> Image:
    """Return the middle slice, 1/mm, (y, x)."""
    from reconstruct.stepped_plan import plan_of  # the kernels' compiler takes its time

    middle = grid.shape_zyx[0] // 2
    plan = plan_of(geometry.extended(*margins), grid, limited_arc=True, extrapolated=margins)
    volume = plan.reconstruct(integrals, plan.slab(middle, middle + 1), memory_mb=memory_mb)
    return np.asarray(volume[0])
