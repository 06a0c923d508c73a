"""The private elements for what a cone-beam scan has no standard home for: ``THARSIS PROJECTION 1.0``, group 0071.

An element may stand in the item of a frame, in the shared item or at the top of the data set; the most specific wins.
They are registered with pydicom's private dictionary, so that they keep their meaning in Implicit VR, and data sets
that carry them declare the block as safe to keep in de-identification (PS3.3 C.12.1.1.7, PS3.15 E.3.10).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import add_private_dict_entries
from pydicom.dataset import Dataset

CREATOR = "THARSIS PROJECTION 1.0"
GROUP = 0x0071


@dataclass(frozen=True)
class Element:
    """One private element.

    Attributes
    ----------
    offset
        Last byte of its element number; the byte before is that of the reserved block.
    vr, vm
        Value Representation and Multiplicity.
    keyword
        Its name here, PascalCase as DICOM's.
    """

    offset: int
    vr: str
    vm: str
    keyword: str

    @property
    def label(self) -> str:
        """How a sentence for the user names it, for example ``(0071,xx12)``."""
        return f"({GROUP:04X},xx{self.offset:02X})"


_TABLE = (
    # the scan as a whole
    Element(0x01, "UI", "1", "ScanSetUID"),
    Element(0x05, "UL", "1", "ExpectedFrames"),  # of all instances of the scan set
    Element(0x06, "US", "1", "ExpectedInstances"),
    # the pixels
    Element(0x07, "CS", "1", "PixelMeaning"),  # COUNTS, INTENSITY, TRANSMISSION, LINE_INTEGRAL
    Element(0x08, "CS", "1-n", "CorrectionsApplied"),  # the words of corrections.wanted.APPLIED
    Element(0x09, "FD", "1", "UnattenuatedValue"),  # I0: what a pixel holds without an object
    Element(0x10, "CS", "1", "FrameRole"),  # PROJECTION, FLAT, DARK
    # the geometry of a view, scan frame, mm and degrees
    Element(0x11, "FD", "1", "ViewAngle"),  # zero and sense of Positioner Isocenter Primary Angle (0018,9463)
    Element(0x12, "FD", "3", "SourcePosition"),
    Element(0x13, "FD", "3", "DetectorCentre"),
    Element(0x14, "FD", "3", "ColumnStep"),
    Element(0x15, "FD", "3", "RowStep"),
    Element(0x16, "FD", "12", "ProjectionMatrix"),  # 3 x 4 row-major, mm to (column, row), 0-based
    Element(0x17, "FD", "2", "PrincipalPoint"),  # column\row, 0-based
    Element(0x18, "FD", "3", "DetectorTilt"),  # about the column direction, the row direction, the central ray
    Element(0x19, "FD", "1", "AxialSamplePosition"),
    Element(0x1A, "FD", "1-2", "CameraPosition"),  # along the columns, then the rows, on the detector, mm
    Element(0x30, "FD", "2", "TileOrigin"),  # column\\row of its first pixel on the virtual detector, 0-based
    # the energy bin
    Element(0x20, "US", "1", "EnergyBinIndex"),  # 1-based
    Element(0x21, "US", "1", "EnergyBinCount"),
    Element(0x22, "FD", "1", "EnergyThresholdLow"),  # keV
    Element(0x23, "FD", "1", "EnergyThresholdHigh"),
    Element(0x24, "CS", "1", "CountingMode"),  # SPM, CSM
    Element(0x25, "CS", "1", "CounterKind"),  # CUMULATIVE, DIFFERENTIAL
    Element(0x28, "FD", "1", "EffectiveEnergy"),  # keV
    Element(0x29, "FD", "1", "WaterAttenuation"),  # 1/cm
    # what the operator asked for
    Element(0x50, "FD", "3", "RequestedVoxelSize"),  # x\y\z, mm
    Element(0x51, "UL", "3", "RequestedMatrix"),  # x\y\z, voxels
    Element(0x52, "FD", "3", "RequestedCentre"),  # x\y\z, mm
    Element(0x53, "CS", "1", "RequestedFilter"),
    Element(0x54, "FD", "1", "RequestedCutoff"),  # fraction of the Nyquist frequency
)
ELEMENTS: Mapping[str, Element] = {element.keyword: element for element in _TABLE}
_BY_OFFSET = {element.offset: element for element in _TABLE}
_FORMATS = {"FD": "d", "UL": "I", "US": "H"}

add_private_dict_entries(
    CREATOR,
    {
        (GROUP << 16) | 0x1000 | element.offset: (element.vr, element.vm, element.keyword, "")
        for element in _TABLE
    },
)


def put(item: Dataset, **values: Any) -> None:
    """Add private elements to a data set or item, keyword by keyword; None is left out."""
    present = {keyword: value for keyword, value in values.items() if value is not None}
    if not present:
        return
    block = _block(item) or _reserve(item)
    for keyword, value in present.items():
        element = ELEMENTS[keyword]
        item.add_new((GROUP, (block << 8) | element.offset), element.vr, value)


def read(item: Dataset) -> dict[str, Any]:
    """Return the private elements that stand in `item` itself, by keyword.

    The block may be any of 10 to FF. Values that came as UN (a peer without this dictionary) are decoded.
    """
    block = _block(item)
    if block is None:
        return {}
    values: dict[str, Any] = {}
    for data_element in item.group_dataset(GROUP):
        offset = data_element.tag.element - (block << 8)
        known = _BY_OFFSET.get(offset)
        if known is None:
            continue
        value = data_element.value
        if isinstance(value, bytes):
            value = _decode(value, known.vr)
        if value is not None and value != "":
            values[known.keyword] = value
    return values


def _block(item: Dataset) -> int | None:
    """Return the block, 10 to FF, that the creator reserved in `item` (PS3.5 7.8.1), None when it did not."""
    reserved = (tag.element for tag in item.keys() if tag.group == GROUP and 0x10 <= tag.element <= 0xFF)  # noqa: SIM118
    return next((block for block in reserved if _creator(item, block) == CREATOR), None)


def _reserve(item: Dataset) -> int:
    block = next(block for block in range(0x10, 0x100) if (GROUP, block) not in item)
    item.add_new((GROUP, block), "LO", CREATOR)
    return block


def _creator(item: Dataset, block: int) -> str:
    value = item[GROUP, block].value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")


def _decode(value: bytes, vr: str) -> Any:
    """Decode an element that was sent as UN: little endian, as PS3.5 6.2.2 note 2 says of UN."""
    if vr not in _FORMATS:
        parts = [part.strip(" \0") for part in value.decode("ascii", "replace").split("\\")]
    else:
        width = struct.calcsize(f"<{_FORMATS[vr]}")
        parts = list(struct.unpack(f"<{len(value) // width}{_FORMATS[vr]}", value[: len(value) // width * width]))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts


def declare(dataset: Dataset) -> None:
    """Declare the block as free of identifying information (0008,0300), PS3.3 C.12.1.1.7."""
    characteristics = Dataset()
    characteristics.PrivateGroupReference = GROUP
    characteristics.PrivateCreatorReference = CREATOR
    characteristics.BlockIdentifyingInformationStatus = "SAFE"
    dataset.PrivateDataElementCharacteristicsSequence = [characteristics]
