"""P5: RT Images of a linear accelerator, one file a view (PS3.3 A.17, C.8.8.2, IEC 61217).

The gantry stands at 0° above the table and turns clockwise seen from its foot. Pitch and position are those of the
plane at RT Image SID. A table that is turned would need its own rotation axis and is refused.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTImageStorage

from reconstruct.projections.encoding import Encoding, is_without_object
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes, frame_attributes
from reconstruct.projections.intensities import meaning_of_intensities
from reconstruct.projections.places import GANTRY_PLACES
from reconstruct.projections.quantities import name_of, quantities, quantity

Numbers = NDArray[np.float64]

_STANDARD_ORIENTATION = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
_STRAIGHT_DEG = 0.1


def is_p5(dataset: Dataset) -> bool:
    """Whether an instance is an RT Image with a Gantry Angle (300A,011E) that is no DRR, or a flat or dark frame."""
    if dataset.get("SOPClassUID") != RTImageStorage:
        return False
    if is_without_object(dataset):
        return True
    kind = dataset.get("ImageType") or []
    computed = not isinstance(kind, str) and any(word in ("DRR", "FLUENCE") for word in kind)
    return dataset.get("GantryAngle") is not None and not computed


def attributes_of(dataset: Dataset) -> Sequence[Attributes]:
    """Return the attributes of every frame, with where the central ray meets the image and how the image is turned.

    Raises
    ------
    ScanError
        A table that is turned or tilted, or an orientation that is no plane across the beam.
    """
    exposure = _exposure(dataset)
    return [
        ChainMap(_composed(frame) | exposure, frame)  # type: ignore[arg-type]
        for frame in frame_attributes(dataset)
    ]


def _exposure(dataset: Dataset) -> dict[str, Any]:
    """Return the Exposure Time (0018,1150), ms, of the Exposure Sequence (3002,0030) of a single image."""
    items = dataset.get("ExposureSequence") or []
    told = items[0].get("ExposureTime") if len(items) == 1 else None
    return {} if told is None else {"ExposureTime": told}


def _composed(attributes: Attributes) -> dict[str, Any]:
    for keyword in ("PatientSupportAngle", "TableTopPitchAngle", "TableTopRollAngle", "GantryPitchAngle"):
        turned = quantity(attributes, keyword) or 0.0
        if abs((turned + 180) % 360 - 180) > _STRAIGHT_DEG:
            raise ScanError(
                f"{name_of(keyword)} is {turned:g} degrees, expected a table and a gantry that stand straight"
            )
    orientation = np.asarray(quantities(attributes, "RTImageOrientation", 6) or _STANDARD_ORIENTATION)
    along_row, along_column = orientation[:2], orientation[3:5]
    handed = float(along_row[0] * along_column[1] - along_row[1] * along_column[0])
    if abs(abs(handed) - 1) > 1e-3 or abs(float(along_row @ along_column)) > 1e-3:
        raise ScanError(
            f"{name_of('RTImageOrientation')} is {orientation.tolist()}, expected two directions at right angles in "
            "the image plane"
        )
    receptor = quantity(attributes, "XRayImageReceptorAngle") or 0.0
    own = math.degrees(math.atan2(along_row[1], along_row[0]))
    mirrored = handed > 0
    values: dict[str, Any] = {"ImageTurn": receptor + own + (180.0 if mirrored else 0.0)}
    if mirrored:
        values["FieldOfViewHorizontalFlip"] = "YES"
    point = _principal_point(attributes, along_row, along_column, receptor)
    if point is not None:
        values["ImagePrincipalPoint"] = point
    return values


def _principal_point(
    attributes: Attributes, along_row: Numbers, along_column: Numbers, receptor_deg: float
) -> list[float] | None:
    """Return the column and row, 0-based, in which the central axis of the beam meets the image."""
    pitch = quantities(attributes, "ImagePlanePixelSpacing", 2, above=0)
    first = quantities(attributes, "RTImagePosition", 2)
    moved = quantities(attributes, "XRayImageReceptorTranslation", 3)
    if pitch is None or (first is None and moved is None):
        return None
    rows, columns = int(attributes["Rows"]), int(attributes["Columns"])
    # Without a position the image is taken to be centred on the receptor.
    corner = -((columns - 1) / 2 * pitch[1] * along_row + (rows - 1) / 2 * pitch[0] * along_column)
    corner = corner if first is None else np.asarray(first)
    to_axis = -_receptor_origin(attributes, moved, receptor_deg) - corner
    return [float(to_axis @ along_row) / pitch[1], float(to_axis @ along_column) / pitch[0]]


def _receptor_origin(
    attributes: Attributes, moved: tuple[float, ...] | None, receptor_deg: float
) -> Numbers:
    """Return where the receptor's origin lies off the beam's axis, in its own axes, brought to the plane at the SID."""
    if moved is None:
        return np.zeros(2)
    axis_mm, plane_mm = quantity(attributes, "RadiationMachineSAD"), quantity(attributes, "RTImageSID")
    scale = plane_mm / (axis_mm - moved[2]) if axis_mm and plane_mm and axis_mm > moved[2] else 1.0
    sine, cosine = math.sin(math.radians(receptor_deg)), math.cos(math.radians(receptor_deg))
    return scale * np.array([cosine * moved[0] + sine * moved[1], cosine * moved[1] - sine * moved[0]])


P5 = Encoding(
    "P5",
    "RT Image with a Gantry Angle (300A,011E)",
    is_p5,
    frozenset({RTImageStorage}),
    alone=lambda _dataset: False,
    attributes=attributes_of,
    places=GANTRY_PLACES,
    meaning=meaning_of_intensities,
)
