"""Numbers among the attributes of a frame: a value that cannot be meant is refused where it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pydicom.datadict import tag_for_keyword

from reconstruct.projections.elements import ELEMENTS
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes

_OTHER_NAMES = {
    "CTPDAngle": "Detector Focal Center Angular Position (7031,xx01)",
    "CTPDAxialPosition": "Detector Focal Center Axial Position (7031,xx02)",
    "CTPDRadialDistance": "Detector Focal Center Radial Distance (7031,xx03)",
    "CTPDConstantRadialDistance": "Constant Radial Distance (7031,xx31)",
    "CTPDCentralElement": "Detector Central Element (7031,xx33)",
    "CTPDSpacing": "Detector Element Axial and Transverse Spacing (7029,xx06), (7029,xx02)",
    "ImagePrincipalPoint": "RT Image Position (3002,0012)",
    "ImageTurn": "X-Ray Image Receptor Angle (3002,000E)",
    "SiteAngle": "angle of a site mapping",
    "SiteSecondaryAngle": "secondary_angle of a site mapping",
    "SiteSourceToIsocentre": "source_to_isocentre of a site mapping",
    "SiteSourceToDetector": "source_to_detector of a site mapping",
    "SitePitch": "pitch of a site mapping",
    "SitePrincipalPoint": "principal_point of a site mapping",
    "SiteTilt": "tilt of a site mapping",
    "SiteTravel": "travel of a site mapping",
}
"""How values that the readers compose, or take from elements without a keyword, are named to the user."""


def quantity(attributes: Attributes, keyword: str, *, above: float = -math.inf) -> float | None:
    """Return the number of a keyword, None where it is absent; see `quantities`."""
    values = quantities(attributes, keyword, 1, above=above)
    return None if values is None else values[0]


def quantities(
    attributes: Attributes, keyword: str, size: int, *, above: float = -math.inf
) -> tuple[float, ...] | None:
    """Return the `size` numbers of a keyword, None where it is absent.

    Raises
    ------
    ScanError
        Another number of values, one that is no finite number, or one that is not above `above`.
    """
    value = attributes.get(keyword)
    if value is None:
        return None
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(parts) != size:
        raise ScanError(f"{name_of(keyword)} has {len(parts)} values, expected {size}")
    expected = "a finite number" if above == -math.inf else f"a number above {above:g}"
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{name_of(keyword)} is {value!r}, expected {expected}") from error
    for number in numbers:
        if not math.isfinite(number) or number <= above:
            raise ScanError(f"{name_of(keyword)} is {number:g}, expected {expected}")
    return numbers


def name_of(keyword: str) -> str:
    """Return how a sentence for the user names an attribute, for example ``Water Attenuation (0071,xx29)``."""
    if keyword in _OTHER_NAMES:
        return _OTHER_NAMES[keyword]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword)
    if keyword in ELEMENTS:
        return f"{words} {ELEMENTS[keyword].label}"
    tag = tag_for_keyword(keyword)
    return words if tag is None else f"{words} ({tag >> 16:04X},{tag & 0xFFFF:04X})"
