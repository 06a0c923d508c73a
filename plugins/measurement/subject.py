"""What a SEG describes: the stored series that it refers to, and the other energy bins of the same scan."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from index import derivations
from index.archive import Archive
from index.errors import NotFound
from plugins import reconstruction
from plugins.node import CannotProceed, Series
from plugins.segmentation.source_grid import SourceGrid
from plugins.segmentation.stored_segments import SEGMENTATIONS
from plugins.segmentation.volume_reader import read_on_grid
from reconstruct.projections import elements
from reconstruct.projections.scan import EnergyBin

logger = logging.getLogger(__name__)

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_SAME_PLACE_MM = 1e-3
LEAST_ALONG_AXIS = 0.9
"""Cosine with an axis of the patient from which on something runs along it: the normal of axial slices, a row."""


@dataclass(frozen=True, eq=False)
class Source:
    """A measured series of axial slices.

    Attributes
    ----------
    slices
        Headers, from feet to head.
    grid
        Where the voxels are in the patient.
    unit
        Of the values: ``HU`` or ``1/cm``.
    energy
        None for a series that does not say which energies it shows.
    """

    series_instance_uid: str
    slices: tuple[Dataset, ...]
    grid: SourceGrid
    unit: str
    energy: EnergyBin | None

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm³, also where slices are sheared against each other."""
        return float(abs(np.linalg.det(self.grid.placement.affine[:3, :3])))

    @property
    def energy_label(self) -> str:
        """For example ``18-30 keV``, ``bin 2`` where the thresholds are not known, empty where nothing is known."""
        return "" if self.energy is None else self.energy.label or f"bin {self.energy.index}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A SEG with what it refers to.

    Attributes
    ----------
    seg
        The whole SEG.
    source
        The series that was segmented.
    values
        Its voxels, ``(z, y, x)`` float32 in its unit.
    bins
        Series Instance UIDs of all energy bins of that scan, ascending; of the source alone where it is no bin.
    made_here
        Whether this node made the SEG, so that its texts are its segmenters'.
    """

    seg: Dataset
    source: Source
    values: NDArray[np.float32]
    bins: tuple[str, ...]
    made_here: bool


def segmented_only(subject: Subject) -> Subject:
    """Return the subject without the energy bins that were not segmented."""
    return replace(subject, bins=(subject.source.series_instance_uid,))


def is_segmentation(series: Series) -> bool:
    """Whether the series holds SEG objects."""
    return series.instances[0].sop_class_uid in SEGMENTATIONS


def source_series(archive: Archive, seg: Dataset) -> Series:
    """Return the stored series that the SEG refers to (PS3.3 C.12.1.1.1, Referenced Series Sequence).

    Raises
    ------
    CannotProceed
        It names none, or none of them is stored.
    """
    named = [str(item.get("SeriesInstanceUID", "")) for item in seg.get("ReferencedSeriesSequence") or []]
    if not named:
        raise CannotProceed(f"SEG {seg.SOPInstanceUID} does not say which series it segments (0008,1115)")
    for uid in named:
        try:
            return Series(archive, uid)
        except NotFound:
            continue
    raise CannotProceed(f"the series that SEG {seg.SOPInstanceUID} segments is not stored: {' and '.join(named)[:200]}")


def energy_bins(archive: Archive, source: Series) -> tuple[str, ...]:
    """Return the stored series of all energy bins of the scan that `source` was reconstructed from, ascending."""
    made_by = source.made_by
    if made_by is None or made_by.kind != reconstruction.KIND:
        return (source.uid,)
    stored = []
    for uid in made_by.outputs:
        try:
            stored.append(Series(archive, uid).uid)
        except NotFound:
            logger.warning("energy bin %s of series %s is not stored: it is not measured", uid, source.uid)
    return tuple(stored)


def read_source(series: Series) -> tuple[Source, NDArray[np.float32]]:
    """Read a CT series of axial slices: what it is, and its voxels ``(z, y, x)``.

    Raises
    ------
    CannotProceed
        It is not one: another modality or orientation, several sizes, slices without place, order or unit.
    """
    _refuse_other(series)
    images, grid, volume = read_on_grid(series.paths)
    if not grid.is_even:
        raise CannotProceed(f"the slices of series {series.uid} are not evenly spaced: their voxels have no one volume")
    for image in images:
        del image.PixelData
    unit = "HU" if volume.is_hu else "1/cm"
    source = Source(series.uid, tuple(images), grid, unit, _energy(images[0]))
    return source, volume.values


def read_bin(series: Series, subject: Subject) -> tuple[Source, NDArray[np.float32]]:
    """Read one of the energy bins of the scan; the segmented one is not read again.

    Raises
    ------
    CannotProceed
        Its voxels do not lie where those of the segmented one lie.
    """
    first = subject.source
    if series.uid == first.series_instance_uid:
        return first, subject.values
    other, values = read_source(series)
    same = values.shape == subject.values.shape and np.allclose(
        other.grid.placement.affine, first.grid.placement.affine, atol=_SAME_PLACE_MM
    )
    if not same:
        raise CannotProceed(f"series {series.uid} does not lie on the grid of series {first.series_instance_uid}")
    return other, values


def read_subject(archive: Archive, seg: Dataset) -> Subject:
    """Read the source of a SEG, and find the other energy bins.

    Raises
    ------
    CannotProceed
        The source is not stored, is no CT series of axial slices, or has another Frame of Reference.
    """
    series = source_series(archive, seg)
    source, values = read_source(series)
    mine, theirs = (str(item.get("FrameOfReferenceUID", "")) for item in (seg, source.slices[0]))
    if mine and theirs and mine != theirs:
        raise CannotProceed(f"SEG {seg.SOPInstanceUID} has the Frame of Reference {mine}, its source {theirs}")
    made_here = derivations.maker(archive.database, str(seg.SeriesInstanceUID)) is not None
    return Subject(seg, source, values, energy_bins(archive, series), made_here)


def _refuse_other(series: Series) -> None:
    header = series.header
    if header.get("Modality") != "CT":
        modality = header.get("Modality") or "of no modality"
        raise CannotProceed(f"only CT is measured, and series {series.uid} is {modality}")
    missing = [keyword for keyword in _GEOMETRY if header.get(keyword) in (None, "")]
    if missing:
        raise CannotProceed(f"series {series.uid} is no series of slices: {missing[0]} is missing")
    row, column = np.reshape([float(value) for value in header.ImageOrientationPatient], (2, 3))
    if np.cross(row, column)[2] < LEAST_ALONG_AXIS:
        raise CannotProceed(f"the slices of series {series.uid} are not axial, which is what can be measured")


def _energy(header: Dataset) -> EnergyBin | None:
    told = elements.read(header)
    if "EnergyBinIndex" not in told:
        return None
    numbers = (told.get(keyword) for keyword in ("EnergyThresholdLow", "EnergyThresholdHigh", "EffectiveEnergy"))
    return EnergyBin(int(told["EnergyBinIndex"]), *(None if number is None else float(number) for number in numbers))
