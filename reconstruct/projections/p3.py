"""P3: DICOM-CT-PD, one file a view.

Its frame is left-handed [1]_: seen from the front of the gantry x points right, y up to 12 o'clock and z into the
gantry, and the focal spot at φ stands at ``(-ρ sin φ, ρ cos φ, z)``. Pixels are stored column by column; columns run
along x at φ = 0 and turn with the gantry, rows along z. The focal spot may fly. Detectors are planes or cylinders about
the focal centre.

.. [1] Chen et al., Development and validation of an open data format for CT projection data, Med. Phys. 42 (2015) 6964.
"""

from __future__ import annotations

import re
import struct
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset

from reconstruct.projections.encoding import Encoding
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes, frame_attributes
from reconstruct.projections.places import CT_PD_PLACES
from reconstruct.projections.scan import PixelMeaning

_GROUPS = (0x7029, 0x7031, 0x7037)
_ANGLE = (0x7031, 0x01)

_ELEMENTS: Mapping[str, tuple[int, int, str]] = {
    "CTPDTransverseSpacing": (0x7029, 0x02, "f"),
    "CTPDAxialSpacing": (0x7029, 0x06, "f"),
    "CTPDShape": (0x7029, 0x0B, "s"),
    "CTPDAngle": (0x7031, 0x01, "f"),
    "CTPDAxialPosition": (0x7031, 0x02, "f"),
    "CTPDRadialDistance": (0x7031, 0x03, "f"),
    "CTPDConstantRadialDistance": (0x7031, 0x31, "f"),
    "CTPDCentralElement": (0x7031, 0x33, "f"),
    "CTPDAngularShift": (0x7033, 0x0B, "f"),
    "CTPDAxialShift": (0x7033, 0x0C, "f"),
    "CTPDRadialShift": (0x7033, 0x0D, "f"),
    "CTPDSpectra": (0x7033, 0x61, "H"),
    "CTPDSpectrum": (0x7033, 0x63, "H"),
    "CTPDBeamHardening": (0x7039, 0x03, "s"),
    "CTPDGain": (0x7039, 0x04, "s"),
    "CTPDDark": (0x7039, 0x05, "s"),
    "CTPDFlat": (0x7039, 0x06, "s"),
    "CTPDDeadPixel": (0x7039, 0x07, "s"),
    "CTPDScatter": (0x7039, 0x08, "s"),
    "CTPDLog": (0x7039, 0x09, "s"),
    "CTPDWater": (0x7041, 0x01, "d"),
}
"""Group, offset and kind: numbers as FL or US, text as CS, and d for a DS."""

_CORRECTIONS = {
    "CTPDBeamHardening": "BEAM_HARDENING", "CTPDGain": "GAIN", "CTPDDark": "DARK", "CTPDFlat": "FLAT",
    "CTPDDeadPixel": "DEAD_PIXEL", "CTPDScatter": "SCATTER",
}  # fmt: skip
"""The flags of the Preprocessing Flags Module, and what Corrections Applied (0071,xx08) calls them."""

_PER_CM = 10.0
"""The attenuation of water stands there in 1/mm."""


def is_p3(dataset: Dataset) -> bool:
    """Whether an instance reserves blocks in groups 7029, 7031 and 7037 and has the angle of a focal centre."""
    return all(_block(dataset, group) is not None for group in _GROUPS) and _value(dataset, *_ANGLE, "f") is not None


def attributes_of(dataset: Dataset) -> Sequence[Attributes]:
    """Return the attributes of the one frame of an instance.

    Raises
    ------
    ScanError
        A detector of another shape than a plane or a cylinder about the focal centre, or a flag that is no YES or NO.
    """
    found = {name: value for name, place in _ELEMENTS.items() if (value := _value(dataset, *place)) is not None}
    values: dict[str, Any] = dict(found)
    values["Rows"], values["Columns"] = dataset.get("Columns"), dataset.get("Rows")
    shape = str(found.get("CTPDShape") or "FLAT")
    if shape not in ("FLAT", "CYLINDRICAL"):
        raise ScanError(f"the Detector Shape (7029,xx0B) is {shape}, expected FLAT or CYLINDRICAL")
    if "CTPDAxialSpacing" in found and "CTPDTransverseSpacing" in found:
        values["CTPDSpacing"] = [found["CTPDAxialSpacing"], found["CTPDTransverseSpacing"]]
    shift = [float(found.get(name) or 0) for name in ("CTPDRadialShift", "CTPDAngularShift", "CTPDAxialShift")]
    if any(shift):
        # The frame is left-handed: angles run the other way in patient axes.
        values["FocalSpotShift"] = [shift[0], -shift[1], shift[2]]
    if int(found.get("CTPDSpectra") or 1) > 1:
        values |= {"EnergyBinCount": found["CTPDSpectra"], "CounterKind": "DIFFERENTIAL"}
        if "CTPDSpectrum" in found:
            values["EnergyBinIndex"] = found["CTPDSpectrum"]
    if "CTPDWater" in found:
        values["WaterAttenuation"] = _PER_CM * float(found["CTPDWater"])
    values["CorrectionsApplied"] = [word for name, word in _CORRECTIONS.items() if _is_set(found, name)]
    return [ChainMap(_private(frame, values), frame) for frame in frame_attributes(dataset)]  # type: ignore[arg-type]


def meaning_of(attributes: Attributes) -> PixelMeaning:
    """Return line integrals where the logarithm was taken, intensities where not."""
    if attributes.get("CTPDLog") is None:
        raise ScanError("the Log Flag (7039,xx09) is missing, expected YES or NO")
    return PixelMeaning.LINE_INTEGRAL if _is_set(attributes, "CTPDLog") else PixelMeaning.INTENSITY


def _is_set(attributes: Attributes, name: str) -> bool:
    """Whether a flag is YES; one that is absent is not."""
    told = str(attributes.get(name, "NO")).upper()
    if told not in ("YES", "NO"):
        flag = f"{re.sub('(?<=[a-z])(?=[A-Z])', ' ', name.removeprefix('CTPD'))} Flag (7039,xx{_ELEMENTS[name][1]:02X})"
        raise ScanError(f"the {flag} is {told}, expected YES or NO")
    return told == "YES"


def _private(frame: Attributes, values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what private elements of higher precedence say."""
    named = ("EnergyBinIndex", "EnergyBinCount", "CounterKind", "WaterAttenuation", "CorrectionsApplied")
    return {key: value for key, value in values.items() if key not in named or frame.get(key) is None}


def _block(dataset: Dataset, group: int) -> int | None:
    return next((tag.element for tag in dataset.keys() if tag.group == group and 0x10 <= tag.element <= 0xFF), None)  # noqa: SIM118


def _value(dataset: Dataset, group: int, offset: int, kind: str) -> Any:
    block = _block(dataset, group)
    element = None if block is None else dataset.get((group, (block << 8) | offset))
    if element is None or element.value in (None, "", b""):
        return None
    value = element.value
    if isinstance(value, bytes):
        value = _decoded(value, kind)
    return float(value) if kind == "d" else value


def _decoded(value: bytes, kind: str) -> Any:
    """Decode an element that was stored as UN, little endian (PS3.5 6.2.2)."""
    if kind in "sd":
        return value.decode("ascii", "replace").strip(" \0")
    width = struct.calcsize(f"<{kind}")
    numbers = struct.unpack(f"<{len(value) // width}{kind}", value[: len(value) // width * width])
    return numbers[0] if len(numbers) == 1 else list(numbers)


P3 = Encoding(
    "P3",
    "DICOM-CT-PD instance with blocks in groups 7029, 7031 and 7037",
    is_p3,
    attributes=attributes_of,
    places=CT_PD_PLACES,
    transposed=True,
    curved=lambda attributes: attributes.get("CTPDShape") == "CYLINDRICAL",
    meaning=meaning_of,
)
