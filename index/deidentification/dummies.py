"""Dummy values (action D of PS3.15 Table E.1-1a): valid for their VR, the same for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom.dataset import Dataset

VALUES: Mapping[str, Any] = {
    "AE": "REMOVED", "AS": "000D", "CS": "REMOVED", "DA": "19000101", "DS": "0", "DT": "19000101000000",
    "IS": "0", "LO": "REMOVED", "LT": "REMOVED", "PN": "REMOVED", "SH": "REMOVED", "ST": "REMOVED", "TM": "000000",
    "UC": "REMOVED", "UR": "urn:removed", "UT": "REMOVED",
    "AT": 0x00000000, "FD": 0.0, "FL": 0.0, "SL": 0, "SS": 0, "SV": 0, "UL": 0, "US": 0, "UV": 0,
    "OB": b"\0\0", "OD": bytes(8), "OF": bytes(4), "OL": bytes(4), "OV": bytes(8), "OW": b"\0\0", "UN": b"\0\0",
}  # fmt: skip
"""By VR; UI and SQ depend on what they replace."""

TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs of free text."""


SCHEME = "99THARSIS"
"""The private coding scheme in which this node writes: energy windows, parameters of measurements, dummies."""


def code() -> Dataset:
    """Return a coded entry that says nothing (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "REMOVED", SCHEME, "Removed"
    return item


def text_item() -> Dataset:
    """Return a content item of an SR document that says that content was removed (PS3.3 C.17.3)."""
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", "Removed"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121106", "DCM", "Comment"
    item.ConceptNameCodeSequence = [name]
    return item


def graphic_annotation(layer: str) -> Dataset:
    """Return a graphic annotation that shows a single point, on `layer` (PS3.3 C.10.5)."""
    graphic = Dataset()
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions, graphic.NumberOfGraphicPoints = "PIXEL", 2, 1
    graphic.GraphicData, graphic.GraphicType = [1.0, 1.0], "POINT"
    item = Dataset()
    item.GraphicLayer, item.GraphicObjectSequence = layer, [graphic]
    return item
