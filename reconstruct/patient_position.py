"""How the patient lies in the scanner: from the codes of PS3.3 C.8.19.6.13 and C.8.4.6 to a Patient Position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from reconstruct.geometry import ConeBeamGeometry

_RELATIONSHIPS = {"102540008": "HF", "F-10470": "HF", "102541007": "FF", "F-10480": "FF"}
"""Patient Gantry Relationship (0054,0414), CID 21: SCT codes and the SRT ones of older objects."""

_MODIFIERS = {
    "40199007": "S",
    "F-10340": "S",
    "1240000": "P",
    "F-10310": "P",
    "102535000": "DR",
    "F-10318": "DR",
    "102536004": "DL",
    "F-10317": "DL",
}
"""Patient Orientation Modifier (0054,0412), CID 20."""

_LPS_AXES = {
    "HFS": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "HFP": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "HFDR": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "HFDL": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "FFS": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "FFP": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "FFDR": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "FFDL": ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
}
"""Patient left, posterior and head in the table's axes (X to its left, Y down, Z to its head)."""


def patient_position(dataset: Dataset) -> str:
    """Return the Patient Position (0018,5100), also from the orientation codes; empty when not known."""
    given = str(dataset.get("PatientPosition") or "")
    if given:
        return given
    orientations = dataset.get("PatientOrientationCodeSequence") or []
    relation = _RELATIONSHIPS.get(_code(dataset.get("PatientGantryRelationshipCodeSequence")), "")
    modifier = ""
    for orientation in orientations[:1]:
        modifier = _MODIFIERS.get(_code(orientation.get("PatientOrientationModifierCodeSequence")), "")
    return relation + modifier if relation and modifier else ""


def in_patient_axes(geometry: ConeBeamGeometry, position: str) -> ConeBeamGeometry:
    """Return a geometry that is given in the table's axes in patient LPS.

    Parameters
    ----------
    geometry
        In the axes of the table, or of the isocentre system with the table straight.
    position
        Patient Position; one that is empty or not of PS3.3 C.7.3.1.1.2 leaves the axes as they are.
    """
    if position not in _LPS_AXES or position == "HFS":
        return geometry
    axes = np.array(_LPS_AXES[position], dtype=np.float64).T
    return replace(
        geometry,
        sources=geometry.sources @ axes,
        detector_centres=geometry.detector_centres @ axes,
        column_steps=geometry.column_steps @ axes,
        row_steps=geometry.row_steps @ axes,
    )


def _code(sequence: Any) -> str:
    return str(sequence[0].get("CodeValue") or "") if sequence else ""
