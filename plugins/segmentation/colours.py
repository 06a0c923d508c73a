"""The colour that a segment is shown in (PS3.3 C.8.20.2, Recommended Display CIELab Value), by what it is.

Tissues look the same in every SEG of this node, whichever segmenter found them and how many segments there are. What
has no colour of its own takes hues one golden angle apart, in the order of the segments.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

from pydicom.sr.coding import Code

RGB = tuple[int, int, int]

BY_TYPE: Mapping[str, RGB] = {
    "74947009": (90, 220, 235),  # gas: cyan
    "39607008": (110, 160, 225),  # lung: blue
    "55603005": (240, 205, 80),  # adipose tissue: yellow
    "87784001": (200, 115, 100),  # soft tissue: reddish brown
    "3138006": (240, 230, 205),  # bone: ivory
    "7140000": (225, 40, 40),  # contrast agent: red
    "18115005": (225, 60, 220),  # calcification: magenta
}
"""sRGB by SNOMED CT code of the segmented property type."""

_GOLDEN_ANGLE = 0.381966
_SATURATION, _VALUE = 0.65, 0.9


def colour(property_type: Code, number: int) -> RGB:
    """Return the sRGB colour, 0 to 255, of segment `number` (from 1) of that property type."""
    if property_type.scheme_designator == "SCT" and property_type.value in BY_TYPE:
        return BY_TYPE[property_type.value]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_ANGLE % 1, _SATURATION, _VALUE)
    return round(255 * red), round(255 * green), round(255 * blue)
