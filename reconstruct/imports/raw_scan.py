"""A scan that is no DICOM yet: images that are read view by view, and what is known of how they were taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import ConeBeamGeometry, GeometryError
from reconstruct.imports.stage_axis import StageAxis, about_axis
from reconstruct.projections.acquisition import Exposure
from reconstruct.projections.frames import ScanError
from reconstruct.projections.plausible import check_meaning
from reconstruct.projections.scan import EnergyBin, PixelMeaning

Image = NDArray[np.generic]
T = TypeVar("T")

_LOOKED_AT = 5
"""Views that are read to see whether they can be what they are said to be."""


class Images:
    """Images of one size and type, read one by one when they are asked for.

    Parameters
    ----------
    read
        Returns the image of a number, (row, column).
    count
        How many there are.
    name
        How a sentence names one by its number.

    Raises
    ------
    ScanError
        There is none, or the first is no grayscale image.
    """

    def __init__(self, read: Callable[[int], Image], count: int, name: Callable[[int], str]) -> None:
        if count < 1:
            raise ScanError("the scan has no images")
        self._read, self._name = read, name
        first = read(0)
        if first.ndim != 2:
            raise ScanError(f"{name(0)} has {first.ndim} dimensions, expected rows and columns of a grayscale image")
        self.shape = (count, *first.shape)
        self.dtype = first.dtype

    ndim = 3

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> Image:
        """Return one image.

        Raises
        ------
        ScanError
            It has another size than the first.
        """
        image = self._read(index)
        if image.shape != self.shape[1:]:
            raise ScanError(f"{self._name(index)} has {image.shape} rows and columns, the first {self.shape[1:]}")
        return image

    def chosen(self, indices: Sequence[int]) -> Images:
        """Return some of the images, by number."""
        return Images(lambda index: self[indices[index]], len(indices), lambda index: self._name(indices[index]))


@dataclass(frozen=True)
class Setup:
    """How a scan was taken, as far as a format or the user tells; None: not told.

    Attributes
    ----------
    source_to_isocentre_mm, source_to_detector_mm
        Distances.
    pitch_mm
        Of rows and columns of the stored image on the detector.
    principal_point_px
        Column and row, 0-based, where the isocentre is seen; None: the centre of the image.
    angles_deg
        Of each view: 0 with the source at the patient's left (+x), 90 at the back (+y). For a sample on a stage these
        are the axes of the stage.
    axis
        Where the axis of the stage is; `principal_point_px`, where told, goes before its shift.
    sample_turns
        Whether the angles are of the sample and not of the source; the source then turns the other way.
    seen_from_source
        Whether columns run from left to right seen from the source, and not from the detector.
    rows_up
        Whether the first row is the lowest.
    matrices
        3 × 4 from mm to column and row, (view, 3, 4), instead of angles and distances.
    pixels
        What a pixel holds.
    unattenuated
        What it holds without an object.
    energy
        The energy bin.
    exposure
        How the tube was driven.
    view_times_s, flat_times_s
        When each view, and each flat frame, was taken, seconds after the scan began; empty: not told.
    """

    source_to_isocentre_mm: float | None = None
    source_to_detector_mm: float | None = None
    pitch_mm: tuple[float, float] | None = None
    principal_point_px: tuple[float, float] | None = None
    angles_deg: NDArray[np.float64] | None = None
    axis: StageAxis = field(default_factory=StageAxis)
    sample_turns: bool = False
    seen_from_source: bool = False
    rows_up: bool = False
    matrices: NDArray[np.float64] | None = None
    pixels: PixelMeaning = PixelMeaning.INTENSITY
    unattenuated: float | None = None
    energy: EnergyBin = field(default_factory=lambda: EnergyBin(1))
    exposure: Exposure = field(default_factory=Exposure)
    view_times_s: tuple[float, ...] = ()
    flat_times_s: tuple[float, ...] = ()

    def with_told(self, **told: Any) -> Setup:
        """Return the same with what the user says himself; None was not said."""
        return replace(self, **{name: value for name, value in told.items() if value is not None})


@dataclass(frozen=True)
class RawScan:
    """Images and how they were taken.

    Attributes
    ----------
    views, flats, darks
        Projections, and frames without an object or without a beam.
    setup
        How they were taken.
    described
        What the scan is, for Series Description.
    notes
        Sentences for the user.
    """

    views: Images
    setup: Setup
    flats: Images | None = None
    darks: Images | None = None
    described: str = ""
    notes: tuple[str, ...] = ()

    def geometry(self) -> ConeBeamGeometry:
        """Return the geometry of the views.

        Raises
        ------
        ScanError
            Something is missing or impossible; the sentence names it.
        """
        setup, (views, rows, columns) = self.setup, self.views.shape
        try:
            if setup.matrices is not None:
                _same_number("projection matrices", len(setup.matrices), views)
                return ConeBeamGeometry.from_matrices(
                    setup.matrices, rows=rows, columns=columns, source_to_detector_mm=setup.source_to_detector_mm
                )
            angles = _needed("an angle for each view (angles)", setup.angles_deg)
            _same_number("angles", len(angles), views)
            pitch = _needed("the detector pitch (--pitch)", setup.pitch_mm)
            upright = ConeBeamGeometry.circular(
                source_to_isocenter_mm=_needed(
                    "the source to isocentre distance (--source-to-isocentre)", setup.source_to_isocentre_mm
                ),
                source_to_detector_mm=_needed(
                    "the source to detector distance (--source-to-detector)", setup.source_to_detector_mm
                ),
                view_angles_rad=np.deg2rad(-angles if setup.sample_turns else angles),
                rows=rows,
                columns=columns,
                row_pitch_mm=pitch[0] if setup.rows_up else -pitch[0],
                column_pitch_mm=pitch[1] if setup.seen_from_source else -pitch[1],
                principal_point_px=setup.principal_point_px,
            )
            axis = setup.axis if setup.principal_point_px is None else replace(setup.axis, right_mm=0.0)
            return upright if axis == StageAxis() else about_axis(upright, axis)
        except GeometryError as error:
            raise ScanError(f"the geometry of the scan is impossible: {error}") from error

    def check(self) -> None:
        """Refuse a scan that could not be reconstructed once it is stored.

        Raises
        ------
        ScanError
            Flat fields or I0 are missing, frames have another size, times are told of some images only, or a number
            is one that nobody can mean.
        """
        relative = self.setup.pixels in (PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL)
        if not relative and self.flats is None and self.setup.unattenuated is None:
            raise ScanError(
                "the scan has neither flat fields nor an unattenuated value: say with --unattenuated what a pixel "
                "holds without an object, or with --pixels LINE_INTEGRAL that the logarithm was taken"
            )
        for what, images in (("flat", self.flats), ("dark", self.darks)):
            if images is not None and images.shape[1:] != self.views.shape[1:]:
                raise ScanError(
                    f"{what} frames have {images.shape[1:]} rows and columns, views {self.views.shape[1:]}"
                )
        self._check_times()
        self._check_numbers()

    def _check_numbers(self) -> None:
        energy, exposure = self.setup.energy, self.setup.exposure
        for what, value in (
            ("the detector pitch", None if self.setup.pitch_mm is None else min(self.setup.pitch_mm)),
            ("the unattenuated value", self.setup.unattenuated),
            ("the attenuation of water (water_per_cm)", energy.water_per_cm),
            ("the effective energy (effective_kev)", energy.effective_kev),
            ("the upper threshold (high_kev)", energy.high_kev),
            ("the exposure of a view (view_ms)", exposure.view_ms),
            ("the exposure of a flat frame (flat_ms)", exposure.flat_ms),
        ):
            if value is not None and not value > 0:
                raise ScanError(f"{what} is {value:g}, expected a number above 0")
        if energy.low_kev is not None and not 0 <= energy.low_kev < (energy.high_kev or np.inf):
            raise ScanError(f"the energy bin begins at {energy.low_kev:g} keV (low_kev), expected 0 or more, and less "
                            "than where it ends (high_kev)")
        if (exposure.view_ms is None) != (exposure.flat_ms is None):
            raise ScanError("the exposures of views and of flat fields are given together or not at all")

    def check_values(self) -> None:
        """Refuse views that cannot be the transmissions or line integrals that they are said to be; a few are read.

        Raises
        ------
        ScanError
            See `refuse_other_meaning`.
        """
        chosen = np.unique(np.linspace(0, len(self.views) - 1, _LOOKED_AT).round().astype(int))
        check_meaning(self.setup.pixels, (self.views[int(index)] for index in chosen))

    def _check_times(self) -> None:
        of_views, of_flats = self.setup.view_times_s, self.setup.flat_times_s
        flats = 0 if self.flats is None else len(self.flats)
        for what, times, images in (("views", of_views, len(self.views)), ("flat fields", of_flats, flats)):
            if times and len(times) != images:
                raise ScanError(f"the scan has {images} {what} and {len(times)} times of them")
        if self.flats is not None and bool(of_views) != bool(of_flats):
            told, other = ("views", "flat fields") if of_views else ("flat fields", "views")
            raise ScanError(f"the scan tells when the {told} were taken, and not when the {other} were")


def _needed(what: str, value: T | None) -> T:
    if value is None:
        raise ScanError(f"the scan does not say {what}")
    return value


def _same_number(what: str, told: int, views: int) -> None:
    if told != views:
        raise ScanError(f"the scan has {views} views and {told} {what}")


def numbers(value: Any, what: str) -> NDArray[np.float64]:
    """Return numbers as an array.

    Raises
    ------
    ScanError
        They are none, or not finite.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{what} are no numbers: {value!r}") from error
    if not np.isfinite(array).all():
        raise ScanError(f"{what} are not all finite")
    return array


def evenly(count: int, first: float, step: float) -> NDArray[np.float64]:
    """Return equally spaced angles."""
    return np.asarray(first + step * np.arange(count), dtype=np.float64)


def text_of(path: Path) -> str:
    """Return the text of a small file.

    Raises
    ------
    ScanError
        It cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}") from error
