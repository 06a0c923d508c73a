"""The corrections of a scan in the order in which a detector adds what they remove, and words for what was done.

Counts first (pile-up, saturation, flat fields over time: `counts.CountCorrections`), then line integrals: unsteady
pixels, scatter, drift of the source, rings, beam hardening, and last what lies beyond the detector. Everything works in
place on a few views or rows, so that line integrals may be a memory map. What the scanner has done already, as
Corrections Applied (0071,xx08) says, is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconstruct.basis import Beam
from reconstruct.corrections.defects import Defects
from reconstruct.corrections.drift import remove_drift, source_drift
from reconstruct.corrections.hardening import Hardening, given_polynomial, harden_back, water_polynomial
from reconstruct.corrections.interpolation import interpolate_pixels
from reconstruct.corrections.principal_point import (
    PrincipalColumn,
    estimate_principal_column,
    with_principal_column,
)
from reconstruct.corrections.rings import ROWS_AT_ONCE, remove_rings
from reconstruct.corrections.scatter import remove_scatter
from reconstruct.corrections.truncation import extrapolate
from reconstruct.corrections.unsteady_pixels import seen_axis, unsteady_pixels
from reconstruct.corrections.wanted import Corrections
from reconstruct.materials import WATER
from reconstruct.projections.functional_groups import first_attributes
from reconstruct.projections.scan import Scan, ScanError
from reconstruct.spectrum import bin_spectra
from reconstruct.stations import stations_of
from reconstruct.working_memory import file_array

_log = logging.getLogger(__name__)

Image = NDArray[np.float32]


def calibrated(
    scan: Scan,
    corrections: Corrections,
    *,
    folder: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Scan, Corrections]:
    """Return the scan with the principal point that its data tell, where that is wanted, and what is left to correct.

    The lowest energy bin, which has the strongest contrast, is read once for it. The scan says in `geometry_from` and
    in a note what was found. Where the point is "missing" and cannot be found, which takes a full circle, the middle
    of the detector stays, and a note says so.

    Parameters
    ----------
    folder
        Where its line integrals go for that time; None: where temporary files go.
    progress
        Called with the fraction done; may raise to stop the work.

    Raises
    ------
    ScanError
        The data do not tell it.
    """
    as_given = replace(corrections, principal_point="given")
    if corrections.principal_point == "given":
        return scan, corrections
    if corrections.principal_point == "missing" and tells_principal_point(scan):
        return scan, as_given
    integrals = scan.line_integrals(1, progress, file_array(scan.shape, folder), corrections.of_counts)
    # Conjugate rays are those of one circle: of several axial positions the first serves.
    station = stations_of(scan.geometry)[0]
    try:
        found = estimate_principal_column(station.of(integrals), station.geometry)
    except ValueError as error:
        if corrections.principal_point == "missing":
            return replace(scan, notes=(*scan.notes, f"the principal point stays in the middle: {error}")), as_given
        raise ScanError(str(error)) from error
    corrected = replace(
        scan,
        geometry=with_principal_column(scan.geometry, found.column),
        geometry_from=f"{scan.geometry_from}; principal column {found.column:.2f} from conjugate views",
        notes=(*scan.notes, sentence_of(found)),
    )
    return corrected, corrections


def sentence_of(found: PrincipalColumn) -> str:
    """Return what was estimated, for the user."""
    return (
        f"the axis is seen in column {found.column:.2f} ± {found.uncertainty:.2f}, estimated from conjugate views "
        f"(clarity {found.clarity:.2f}), instead of {found.given:.2f}"
    )


def tells_principal_point(scan: Scan) -> bool:
    """Whether the scan says where the central ray meets the detector; else its centre was taken."""
    if scan.geometry_from.partition(":")[0] != "angles and distances":
        return True
    first = first_attributes(scan.header)
    return any(first.get(k) is not None for k in ("PositionOfIsocenterProjection", "PrincipalPoint"))


def corrected_integrals(
    scan: Scan,
    bin_number: int,
    corrections: Corrections,
    *,
    out: Image,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: Callable[[float], None] | None = None,
    as_read: Image | None = None,
) -> Image:
    """Read the line integrals of an energy bin and correct them.

    Parameters
    ----------
    corrections
        What is `left_to_do`.
    out
        Where they go, (view, row, column) float32 with the columns of `Corrections.margins` besides those of the scan.
    rows_at_once
        As `remove_rings` takes it.
    progress
        Called with the fraction done; may raise to stop the work.
    as_read
        What reading gives, for one who has read them already with the same corrections of counts.

    Returns
    -------
    `out`.

    Raises
    ------
    ScanError
        A correction needs what the scan does not tell; the sentence names it.
    """
    before, after = corrections.margins(scan)
    measured = out[:, :, before : out.shape[2] - after]
    tell = progress or (lambda _fraction: None)
    if as_read is None:
        scan.line_integrals(bin_number, lambda fraction: tell(fraction / 2), measured, corrections.of_counts)
    else:
        measured[...] = as_read
    try:
        correct(
            measured,
            scan,
            bin_number,
            corrections,
            rows_at_once=rows_at_once,
            progress=lambda fraction: tell(0.5 + fraction / 2),
        )
        if corrections.truncation != "none":
            water = _water_per_column(scan, bin_number) if corrections.truncation == "water" else 0.0
            extrapolate(out, before, after, corrections.truncation, water_per_column=water)
    except ValueError as error:
        raise ScanError(f"energy bin {bin_number}: {error}") from error
    return out


def correct(
    integrals: Image,
    scan: Scan,
    bin_number: int,
    corrections: Corrections,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: Callable[[float], None] | None = None,
) -> Image:
    """Correct line integrals of the size of the detector, (view, row, column) float32, in place.

    Parameters
    ----------
    rows_at_once
        As `remove_rings` takes it.
    progress
        Called with the fraction done, between steps and during the long one; may raise to stop the work.

    Raises
    ------
    ValueError
        A correction needs what the scan does not tell.
    """
    tell = progress or (lambda _fraction: None)
    if corrections.unsteady_pixels > 0:
        unsteady = unsteady_pixels(
            integrals, deviations=corrections.unsteady_pixels, axis=seen_axis(scan.geometry)
        )
        _log.info(
            "energy bin %d: %d unsteady pixels are interpolated: %s",
            bin_number, np.count_nonzero(unsteady), Defects.of(unsteady),
        )  # fmt: skip
        interpolate_pixels(integrals, unsteady)
    tell(0.1)
    remove_scatter(integrals, corrections.scatter_fraction)
    tell(0.2)
    if corrections.drift:
        remove_drift(integrals, source_drift(integrals))
    tell(0.3)
    remove_rings(
        integrals,
        corrections.rings,
        size=corrections.ring_columns,
        deviations=corrections.ring_deviations,
        rows_at_once=rows_at_once,
        progress=lambda fraction: tell(0.3 + 0.6 * fraction),
    )
    hardening = hardening_of(scan, bin_number, corrections)
    return integrals if hardening is None else harden_back(integrals, hardening)


def hardening_of(scan: Scan, bin_number: int, corrections: Corrections) -> Hardening | None:
    """Return the polynomial of an energy bin, None where beam hardening is left alone.

    Raises
    ------
    ValueError
        Tube voltage or thresholds are missing, or no polynomial is given for the bin.
    """
    if corrections.beam_hardening == "none":
        return None
    if corrections.beam_hardening == "polynomial":
        return given_polynomial(corrections.beam_hardening_polynomial, bin_number, len(scan.bins))
    thresholds = [energy_bin.low_kev for energy_bin in scan.bins]
    kvp = first_attributes(scan.header).get("KVP")
    if kvp is None or None in thresholds:
        raise ValueError("beam hardening cannot be computed: KVP (0018,0060) or the thresholds (0071,xx22) are missing")
    lows = [float(low) for low in thresholds if low is not None]
    water = [energy_bin.water_per_cm for energy_bin in scan.bins]
    filtration, path = corrections.filtration_mm_al, corrections.water_path_mm
    if filtration == 0:
        if None in water:
            raise ValueError(
                "beam hardening cannot be computed: filtration_mm_al is 0, and the attenuation of water (0071,xx29), "
                "which would tell it, is missing"
            )
        filtration = Beam.fitted(lows, float(kvp), [w for w in water if w is not None], path).filtration_mm_al
    spectrum = bin_spectra(lows, float(kvp), filtration)[bin_number - 1]
    told = water[bin_number - 1]
    return water_polynomial(spectrum, told / 10 if told is not None else spectrum.effective_per_mm(WATER, path))


def _water_per_column(scan: Scan, bin_number: int) -> float:
    """Return what a column's width at the isocentre attenuates in water."""
    water = scan.bins[bin_number - 1].water_per_cm
    if water is None:
        raise ValueError(
            'the attenuation of water (0071,xx29) is missing, which truncation = "water" needs; "cosine" does not'
        )
    geometry = scan.geometry
    pitch = float(np.mean(np.linalg.norm(geometry.column_steps, axis=1) * geometry.isocentre_depths))
    return water / 10 * pitch
