"""The grid of source images: their frames in order along the normal of their plane, and where that is in the patient.

Labels lie on this grid, ``(z, y, x)``. What is not there has no slice: a series that lost one of its files has a grid
with one slice less, and the gap stays in `SourceGrid.planes`. `Placement` has no gaps; its step along z is then the
usual one, the median, so that it is right up to the first gap; `SourceGrid.is_even` tells whether it is throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from index.encoders.slices import no_number
from plugins.node import CannotProceed
from plugins.segmentation.planes import FrameOf, Planes, planes_of, step_mm_of
from plugins.segmentation.segmenter import Placement
from plugins.segmentation.tiles import Tiling, tiling_of_images
from plugins.slices import Frame

HEADER = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "InstanceNumber", "NumberOfFrames",
    "Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationType", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes",
    "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "NumberOfOpticalPaths", "OpticalPathSequence",
)  # fmt: skip
"""Attributes that tell the frames of an image and where they lie."""

ON_SLICE = 0.1
"""How far from a voxel, in voxels, something may lie and still be said to lie on it."""


@dataclass(frozen=True, eq=False)
class SourceGrid:
    """Frames of one size, in order.

    Attributes
    ----------
    frames
        SOP Instance UID, and frame number from 1 (0 for a single-frame instance), of each slice.
    shape_zyx
        Slices, rows, columns.
    frame_of_reference_uid
        Empty where they have none.
    planes
        Where the slices are, in order along the normal; None for images that are in no plane of the patient, which are
        in the order of Instance Number and frame.
    step_mm
        Usual distance of neighbouring planes; of a single slice its thickness. None where it is not known.
    tiling
        Where the slices are in the total pixel matrix of a slide; None for all others.
    """

    frames: tuple[Frame, ...]
    shape_zyx: tuple[int, int, int]
    frame_of_reference_uid: str
    planes: Planes | None
    step_mm: float | None
    tiling: Tiling | None = None

    @cached_property
    def numbers(self) -> dict[Frame, int]:
        """Frame → slice, from 0; a single-frame instance by the frame numbers 0 and 1."""
        found = {frame: number for number, frame in enumerate(self.frames)}
        return found | {(uid, 1): number for number, (uid, frame) in enumerate(self.frames) if frame == 0}

    @property
    def spacing_mm_zyx(self) -> tuple[float, float, float]:
        """Distance of planes, rows and columns; that of planes is along the normal, so that their product is a volume.

        Raises
        ------
        CannotProceed
            The images are in no plane, or a single slice does not say how thick it is.
        """
        planes, step = self._known()
        return step, *planes.spacing_mm_yx

    @cached_property
    def placement(self) -> Placement:
        """Where the voxels are in the patient; raises like `spacing_mm_zyx`."""
        planes, step = self._known()
        rows, columns = planes.spacing_mm_yx
        first, last = planes.positions_mm[0], planes.positions_mm[-1]
        extent = float(planes.distances_mm[-1] - planes.distances_mm[0])
        along = (last - first) / extent if extent > 0 else planes.normal_xyz
        return Placement(
            origin_mm_xyz=_xyz(first),
            step_z_xyz=_xyz(along * step),
            step_y_xyz=_xyz(planes.column_xyz * rows),
            step_x_xyz=_xyz(planes.row_xyz * columns),
        )

    @cached_property
    def is_even(self) -> bool:
        """Whether every slice lies where `placement` says, within a tenth of a voxel."""
        planes, step = self._known()
        expected = planes.positions_mm[0] + np.outer(np.arange(len(self.frames)), self.placement.step_z_xyz)
        off = planes.positions_mm - expected
        across = np.abs(planes.in_plane(off)).max()
        return bool(np.abs(off @ planes.normal_xyz).max() <= ON_SLICE * step and across <= ON_SLICE)

    def _known(self) -> tuple[Planes, float]:
        if self.planes is None:
            raise CannotProceed("the images do not say where they lie in the patient")
        if self.step_mm is None:
            raise CannotProceed("the only slice does not say how thick it is")
        return self.planes, self.step_mm


def grid_of_files(paths: Iterable[Path]) -> SourceGrid:
    """Return the grid of Part 10 files, single-frame in any order or multi-frame; raises as `source_grid`."""
    return source_grid(
        [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER)) for path in paths]
    )


def source_grid(headers: Sequence[Dataset]) -> SourceGrid:
    """Return the grid of the frames of images.

    Parameters
    ----------
    headers
        Images with the attributes of `HEADER`, pixels are not looked at; in any order.

    Raises
    ------
    CannotProceed
        There is none; they differ in size, orientation, pixel spacing or Frame of Reference; two lie at one position.
    """
    ordered = sorted(headers, key=lambda header: (_number(header), str(header.SOPInstanceUID)))
    frames = [(header, index) for header in ordered for index in range(_frame_count(header))]
    if not frames:
        raise CannotProceed("there is no image")
    rows, columns = _the_only("Rows and Columns", ((h.get("Rows"), h.get("Columns")) for h in ordered))
    if not rows or not columns:
        raise CannotProceed("the images have no Rows and Columns")
    (reference,) = _the_only("Frame of Reference", ((str(h.get("FrameOfReferenceUID") or ""),) for h in ordered))
    tiling = tiling_of_images(ordered)
    planes = planes_of(frames) if tiling is None else None
    order = list(range(len(frames)))
    if planes is not None:
        order = [int(index) for index in np.argsort(planes.distances_mm, kind="stable")]
        planes = planes.at(order)
    names = tuple(_name(*frames[index]) for index in order)
    step = None if planes is None else _step_mm(planes, names, frames[order[0]])
    return SourceGrid(names, (len(frames), int(rows), int(columns)), reference, planes, step, tiling)


def _step_mm(planes: Planes, names: Sequence[Frame], first: FrameOf) -> float | None:
    steps = np.diff(planes.distances_mm)
    if not len(steps):
        return step_mm_of(first)
    usual = float(np.median(steps))
    if usual <= 0 or steps.min() <= ON_SLICE * usual:
        twice = int(np.argmin(steps))
        raise CannotProceed(
            f"expected one slice at each position, got two at {planes.distances_mm[twice]:.3f} mm along the normal: "
            f"{_told(names[twice])} and {_told(names[twice + 1])}"
        )
    return usual


def _the_only(what: str, values: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        one, other = (" and ".join(str(part) or "none" for part in value) for value in found[:2])
        raise CannotProceed(f"expected images of one {what}, got {one} beside {other}")
    return found[0]


def _name(header: Dataset, index: int) -> Frame:
    return str(header.SOPInstanceUID), index + 1 if _frame_count(header) > 1 else 0


def _told(frame: Frame) -> str:
    return f"{frame[0]} frame {frame[1]}" if frame[1] else frame[0]


def _frame_count(header: Dataset) -> int:
    try:
        return int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError) as error:
        raise CannotProceed(no_number(header)) from error


def _number(header: Dataset) -> int:
    try:
        return int(header.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _xyz(vector: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
