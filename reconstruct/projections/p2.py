"""P2: a rotational run as X-Ray Angiographic Images, multi-frame or one image a view (PS3.3 A.14, C.8.7.5).

The positioner turns about the patient: at primary angle 0 the source is behind the patient, at 90° the detector is on
the patient's left side. Increments are relative to the primary angle; a single one is the step from frame to frame
(C.8.7.5.1.3). What the X-Ray Table Module calls lateral is along the patient: the operator stands beside the table, and
its movement towards the head is positive (C.8.7.4.1.3).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import XRayAngiographicImageStorage

from reconstruct.projections.encoding import Encoding, is_without_object
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes, frame_attributes
from reconstruct.projections.intensities import meaning_of_intensities
from reconstruct.projections.places import POSITIONER_PLACES
from reconstruct.projections.quantities import name_of

_ANGLES = ("PositionerPrimaryAngle", "PositionerSecondaryAngle")
_TABLE = "TableLateralIncrement"
_LEAST_TURN_DEG = 20.0
"""A run that turns by less is no rotation: positioners shake."""


def is_p2(dataset: Dataset) -> bool:
    """Whether an instance is a run that turns, one image that may be of a turn, or flat or dark frames."""
    if dataset.get("SOPClassUID") != XRayAngiographicImageStorage:
        return False
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        return dataset.get("PositionerPrimaryAngle") is not None or is_without_object(dataset)
    return is_run(dataset) or is_without_object(dataset)


def is_run(dataset: Dataset) -> bool:
    """Whether an instance alone is a rotational run."""
    increments = _numbers(dataset.get("PositionerPrimaryAngleIncrement"))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames == 1 or not increments:
        return False
    turn = abs(increments[0]) * (frames - 1) if len(increments) == 1 else max(increments) - min(increments)
    return turn >= _LEAST_TURN_DEG


def attributes_of(dataset: Dataset) -> Sequence[Attributes]:
    """Return the attributes of every frame, angles with their increment.

    Raises
    ------
    ScanError
        Neither one increment nor one for each frame; the table's are one for each frame.
    """
    frames = frame_attributes(dataset)
    turned: list[dict[str, Any]] = [{} for _ in frames]
    for keyword in _ANGLES:
        increments = _numbers(dataset.get(f"{keyword}Increment"))
        start = dataset.get(keyword)
        if start is None or not increments:
            continue
        if len(increments) == 1:
            increments = [number * increments[0] for number in range(len(frames))]
        _check_number(f"{keyword}Increment", increments, len(frames))
        for values, increment in zip(turned, increments, strict=True):
            values[keyword] = float(start) + increment
    table = _numbers(dataset.get(_TABLE))
    if any(table):
        _check_number(_TABLE, table, len(frames))
        for values, increment in zip(turned, table, strict=True):
            values[_TABLE] = increment
    return [ChainMap(values, frame) for values, frame in zip(turned, frames, strict=True)]  # type: ignore[arg-type]


def _check_number(keyword: str, increments: Sequence[float], frames: int) -> None:
    if len(increments) != frames:
        raise ScanError(f"{name_of(keyword)} has {len(increments)} values for {frames} frames")


def _numbers(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    return [float(part) for part in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]


P2 = Encoding(
    "P2",
    "X-Ray Angiographic Image of a rotational run: with a Positioner Primary Angle (0018,1510) or its increments "
    "(0018,1520)",
    is_p2,
    frozenset({XRayAngiographicImageStorage}),
    alone=is_run,
    attributes=attributes_of,
    places=POSITIONER_PLACES,
    meaning=meaning_of_intensities,
)
