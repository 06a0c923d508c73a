"""Pieces that the data sets of this node are made of: sequence items, codes, decimal strings."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat


def decimal(value: float) -> DSfloat:
    """Return a number as DS, rounded to the 16 characters of PS3.5 table 6.2-1."""
    return DSfloat(value, auto_format=True)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a code sequence item (PS3.3 8.8)."""
    return item_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def item_of(**attributes: Any) -> Dataset:
    """Return a sequence item with these attributes, by keyword."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
