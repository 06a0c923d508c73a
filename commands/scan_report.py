"""The command that shows what a scan needs: `tharsis scan-report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from commands.console import USAGE, ConfigOption, DataOption, fail, out, progress_bar, settings_from
from config.settings import Settings
from index.archive import Archive
from index.files import is_part10

if TYPE_CHECKING:
    from commands.scan_report_page import ScanReport
    from reconstruct.corrections.wanted import Corrections
    from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
    from reconstruct.projections.scan import Scan

_EDGE = 0.05
"""Line integral at the ends of the rows, as a fraction of the largest, beyond which an object is cut off."""

_DRIFT = 0.01
_STRIPES = 0.004
_SHIFT_PX = 0.25


def scan_report(
    what: Annotated[str, typer.Argument(metavar="FOLDER|SERIES", help="A folder of projections, or a stored series.")],
    out_folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where page and pictures go.")],
    bin_number: Annotated[int, typer.Option("--bin", min=1, help="The energy bin that is shown.")] = 1,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show what is wrong with a scan, and what the corrections do about it, on one page.

    The page (report.html) needs nothing else. It shows views, flat field, sinogram and the central slice with and
    without the corrections of the settings; where those are all off, with the ones that the scan seems to need.

    Example:  tharsis scan-report scan/ --out report/
    """
    from commands.scan_report_page import write_report
    from reconstruct.geometry import GeometryError
    from reconstruct.projections.p6 import encodings_from
    from reconstruct.projections.scan import ScanError

    settings = settings_from(config, data=data)
    try:
        scan = encodings_from(settings.site_mappings).read_scan(_files(what, settings))
        with progress_bar("Looking at the scan") as bar:
            report = look_at(scan, bin_number, settings, bar.fraction)
        page = write_report(report, out_folder)
    except (ScanError, GeometryError) as error:
        fail(str(error))
    for sentence in report.advice:
        out.print(sentence, highlight=False)
    out.print(f"see {page}", highlight=False)


def _files(what: str, settings: Settings) -> list[Path]:
    if Path(what).is_dir():
        return sorted(file for file in Path(what).rglob("*") if file.is_file() and is_part10(file))
    if not (settings.archive.data / "catalogue.sqlite").exists():
        fail(f"{what} is no folder, and {settings.archive.data} is no data folder of a node", USAGE)
    from plugins.node import CannotProceed, Series
    from plugins.reconstruction import StoredScan

    try:
        return StoredScan.of(Series(Archive.from_settings(settings.archive), what)).paths
    except CannotProceed as error:
        fail(str(error))


def look_at(scan: Scan, bin_number: int, settings: Settings, tell: Callable[[float], None]) -> ScanReport:
    """Return what the page tells of an energy bin of a scan; `tell` is called with the fraction done.

    Raises
    ------
    ScanError, GeometryError
        The scan cannot be reconstructed.
    """
    from commands.scan_report_page import ScanPictures, ScanReport
    from plugins.reconstruction import parameters_from
    from reconstruct.corrections.chain import calibrated, corrected_integrals
    from reconstruct.corrections.unsteady_pixels import unsteady_pixels
    from reconstruct.corrections.wanted import Corrections

    integrals = scan.line_integrals(bin_number, lambda fraction: tell(0.3 * fraction))
    facts, advice, needed = _judged(scan, integrals)
    wanted = parameters_from(settings).corrections
    wanted = (needed if wanted == Corrections() else wanted).left_to_do(scan)
    after_scan, _ = calibrated(scan, wanted)
    before, after = wanted.margins(after_scan)
    extended = np.empty((*scan.shape[:2], scan.shape[2] + before + after), dtype=np.float32)
    corrected_integrals(after_scan, bin_number, wanted, out=extended, progress=lambda f: tell(0.3 + 0.4 * f))
    measured = extended[:, :, before : extended.shape[2] - after]
    grid = scan.grid()
    middle_view, middle_row = scan.shape[0] // 2, scan.shape[1] // 2
    unsteady = unsteady_pixels(integrals)
    raw, flat, dead = _stored(scan, bin_number, middle_view)
    facts["dead pixels in the flat fields"] = str(int(dead.sum()))
    facts["unsteady pixels in the views"] = str(int(unsteady.sum()))
    pictures = ScanPictures(
        raw,
        flat,
        (integrals[middle_view], measured[middle_view]),
        (integrals[:, middle_row], measured[:, middle_row]),
        np.where(dead, 1, np.where(unsteady, 2, 0)).astype(np.uint8),
        _drift(integrals),
        (
            _central_slice(scan.geometry, grid, integrals, (0, 0)),
            _central_slice(after_scan.geometry, grid, extended, (before, after)),
        ),
    )
    tell(1.0)
    label = scan.bins[bin_number - 1].label
    name = str(scan.header.get("SeriesDescription") or scan.uid)
    title = f"{name}: energy bin {bin_number}" + (f" ({label})" if label else "")
    return ScanReport(title, pictures, facts, wanted.recipe(), advice)


def _judged(scan: Scan, integrals: NDArray[np.float32]) -> tuple[dict[str, str], list[str], Corrections]:
    """Return figures of a scan, sentences on what they ask for, and the corrections that they ask for."""
    from reconstruct.corrections.chain import tells_principal_point
    from reconstruct.corrections.principal_point import estimate_principal_column
    from reconstruct.corrections.rings import remove_rings
    from reconstruct.corrections.unsteady_pixels import unsteady_pixels
    from reconstruct.corrections.wanted import Corrections

    facts = {"views × rows × columns": " × ".join(map(str, scan.shape)), "geometry": scan.geometry_from}
    advice, needed = [], Corrections()
    drift = _drift(integrals)
    if drift is not None:
        span = float(np.ptp(drift))
        facts["drift of the source"] = f"{100 * span:.1f} %"
        if span > _DRIFT:
            advice.append(f"The source drifts by {100 * span:.1f} %: drift = true.")
            needed = replace(needed, drift=True)
    if unsteady_pixels(integrals).any():
        advice.append("Pixels misbehave in the views that look sound in the flat fields: unsteady_pixels = 8.0.")
        needed = replace(needed, unsteady_pixels=8.0)
    middle = integrals[:, scan.shape[1] // 2 : scan.shape[1] // 2 + 1].copy()
    stripes = float(np.std((middle - remove_rings(middle.copy(), "combined")).mean(axis=0)))
    facts["stripes in the middle row"] = f"{stripes:.4f} (line integral, standard deviation)"
    if stripes > _STRIPES:
        advice.append('Pixels are off by a constant, which makes rings: rings = "combined", or "sorted" for weak ones.')
        needed = replace(needed, rings="combined")
    cut = float(max(np.median(integrals[:, :, :2].max(axis=1)), np.median(integrals[:, :, -2:].max(axis=1))))
    facts["at the ends of the rows"] = f"{cut:.3f} (line integral; largest {float(integrals.max()):.2f})"
    if cut > _EDGE * float(np.percentile(integrals, 99.5)) and drift is None:
        way = "cosine" if scan.bins[0].water_per_cm is None else "water"
        advice.append(f'The object is wider than the detector: truncation = "{way}".')
        needed = replace(needed, truncation=way)
    try:
        found = estimate_principal_column(integrals, scan.geometry)
    except ValueError as error:
        facts["principal column"] = str(error)
    else:
        told = "told by the scan" if tells_principal_point(scan) else "the detector's centre, as nothing is told"
        facts["principal column"] = (
            f"{found.column:.2f} ± {found.uncertainty:.2f} from conjugate views (clarity {found.clarity:.2f}); "
            f"{found.given:.2f} {told}"
        )
        if abs(found.column - found.given) > max(_SHIFT_PX, 3 * found.uncertainty):
            advice.append(
                f"Conjugate views see the axis in column {found.column:.2f}, not {found.given:.2f}: "
                'principal_point = "estimated".'
            )
            needed = replace(needed, principal_point="estimated")
    return facts, advice or ["Nothing: the scan needs no further corrections."], needed


def _drift(integrals: NDArray[np.float32]) -> NDArray[np.float64] | None:
    from reconstruct.corrections.drift import source_drift

    try:
        return source_drift(integrals)
    except ValueError:
        return None


def _stored(
    scan: Scan, bin_number: int, view: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Return a view and the mean flat field as they are stored, and the pixels that are dead in it."""
    from reconstruct.preprocess import dead_pixels
    from reconstruct.projections.frames import read_frames

    counter = scan.counters[bin_number - 1]
    raw, _ = next(read_frames(counter.views[view : view + 1]))
    if not counter.flats:
        return raw, None, np.zeros(raw.shape, dtype=bool)
    flats = np.stack([values for values, _ in read_frames(counter.flats)])
    return raw, flats.mean(axis=0), dead_pixels(flats)


def _central_slice(
    geometry: ConeBeamGeometry, grid: VolumeGrid, integrals: NDArray[np.float32], margins: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the middle slice, 1/mm, (y, x)."""
    from reconstruct.slabs import Plan

    middle = grid.shape_zyx[0] // 2
    plan = Plan(geometry.extended(*margins), grid, limited_arc=True, extrapolated=margins)
    volume: NDArray[np.float32] = plan.reconstruct(integrals, plan.slab(middle, middle + 1))[0]
    return volume
