"""Text that is burned into pixels: refused, or painted over where a mask rule says where it is (PS3.15 E.3.1).

An image is refused when it says Burned In Annotation YES, and, unless the profile trusts what says nothing, when it is
of a kind that often shows names and does not say NO: secondary capture, ultrasound, visible light, screen shots,
pictures of slide labels. A mask rule that fits lets it pass, for then the rectangles are painted over in every frame. A
rule of which a rectangle reaches out of the image was written for another format: it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from pydicom._uid_dict import UID_dictionary
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from index import decoding
from index.deidentification.profile import MaskRule, Profile
from index.deidentification.reader import Element, Reader
from index.errors import CannotDeidentify, OutOfSpace

Rectangle = tuple[int, int, int, int]
Samples = npt.NDArray[np.generic]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SUSPICIOUS = (
    f"{_STORAGE}7", f"{_STORAGE}6.1", f"{_STORAGE}6.2", f"{_STORAGE}6", f"{_STORAGE}3", f"{_STORAGE}3.1",
    f"{_STORAGE}77.1.1", f"{_STORAGE}77.1.2", f"{_STORAGE}77.1.4", f"{_STORAGE}77.1.5.4", f"{_STORAGE}77.1.7",
    f"{_STORAGE}77.2",
)  # fmt: skip
"""Secondary capture, ultrasound, and visible light but for microscopes' slides and photographs of the eye's inside.

Classes of which the UID begins with one of these count as well: those of video, and of several frames.
"""

_SUSPICIOUS_ALONE = f"{_STORAGE}77.1"
"""VL Image Storage - Trial: UIDs of all visible light begin with its own."""

_SUSPICIOUS_TYPES = ("SCREEN SAVE", "SCREENSAVE", "LABEL", "DOSE_INFO")
_BURNED_IN, _IMAGE_TYPE, _LABEL = Tag(0x0028, 0x0301), Tag(0x0008, 0x0008), Tag(0x0048, 0x0010)
_MODALITY, _MANUFACTURER, _MODEL = Tag(0x0008, 0x0060), Tag(0x0008, 0x0070), Tag(0x0008, 0x1090)
_ROWS, _COLUMNS, _PIXELS = Tag(0x0028, 0x0010), Tag(0x0028, 0x0011), Tag(0x7FE0, 0x0010)
_BIT_POSITION, _OVERLAY_DATA = 0x0102, 0x3000
_OF_OVERLAY_PLANE = (0x0010, 0x0011, 0x0100, _BIT_POSITION)
"""Overlay Rows, Columns, Bits Allocated and Bit Position: what has one of them has an overlay."""

_OVERLAY_GROUPS = range(0x6000, 0x6100, 2)
"""The standard has 16 today; older editions had all of these."""

_OF_ENCAPSULATED = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength")
_IN_PLACE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def require_clean(reader: Reader, sop_class: str, profile: Profile) -> list[Rectangle]:
    """Return what has to be painted over in an object, nothing for most; (left, top, width, height), pixels.

    Raises
    ------
    CannotDeidentify
        Its pixels show text, or may, and no rule says where; or an overlay lies in bits of its pixels.
    """
    present = dict(reader.elements())
    if not any(Tag(keyword) in present for keyword in decoding.PIXEL_KEYWORDS):
        return []
    _require_no_embedded_overlay(reader, present)
    rectangles = [rectangle for rule in profile.masks if _fits(rule, reader) for rectangle in rule.rectangles]
    if rectangles:
        return rectangles
    burned_in = "".join(reader.texts(_BURNED_IN)).strip()
    if burned_in == "YES":
        raise CannotDeidentify("Burned In Annotation is YES, and no mask rule fits", element="BurnedInAnnotation")
    if "".join(reader.texts(_LABEL)).strip() == "YES":
        sentence = "the image shows a specimen label, and no mask rule fits"
        raise CannotDeidentify(sentence, element="SpecimenLabelInImage")
    if burned_in != "NO" and profile.burned_in == "refuse" and _is_suspicious(reader, sop_class):
        raise CannotDeidentify(
            f"{kind_of(sop_class)} may show names: Burned In Annotation is not NO, and no mask rule fits",
            element="BurnedInAnnotation",
        )
    return []


def _is_suspicious(reader: Reader, sop_class: str) -> bool:
    is_kind = sop_class == _SUSPICIOUS_ALONE
    is_kind = is_kind or any(sop_class == uid or sop_class.startswith(f"{uid}.") for uid in _SUSPICIOUS)
    kinds = {value.strip().upper() for value in reader.texts(_IMAGE_TYPE)}
    return is_kind or bool(kinds.intersection(_SUSPICIOUS_TYPES))


def kind_of(sop_class: str) -> str:
    """Return what a SOP Class is called; a UID that the standard does not define is told to nobody."""
    return UID(sop_class).name if sop_class in UID_dictionary else "the image"


def _fits(rule: MaskRule, reader: Reader) -> bool:
    wanted = ((_MODALITY, rule.modality), (_MANUFACTURER, rule.manufacturer), (_MODEL, rule.model))
    has_values = all(
        not value or value.strip().lower() == "".join(reader.texts(tag)).strip().lower() for tag, value in wanted
    )
    rows, columns = _length(reader, _ROWS), _length(reader, _COLUMNS)
    has_size = rule.rows in (0, rows) and rule.columns in (0, columns)
    return has_values and has_size and all(_lies_inside(each, rows, columns) for each in rule.rectangles)


def _lies_inside(rectangle: Rectangle, rows: int, columns: int) -> bool:
    left, top, width, height = rectangle
    return left + width <= columns and top + height <= rows


def _length(reader: Reader, tag: BaseTag) -> int:
    """Return Rows or Columns; 0 where the object does not tell it."""
    told = "".join(reader.texts(tag))
    return int(told) if told.isdecimal() else 0


def _require_no_embedded_overlay(reader: Reader, present: dict[BaseTag, Element]) -> None:
    """Refuse an overlay that has no data of its own, or says that it lies in a bit of the pixels (PS3.3 C.9.2)."""
    for group in _OVERLAY_GROUPS:
        if not any(Tag(group, element) in present for element in _OF_OVERLAY_PLANE):
            continue
        has_data = _has_value(present.get(Tag(group, _OVERLAY_DATA)))
        if not has_data or reader.texts(Tag(group, _BIT_POSITION)) not in ([], ["0"]):
            raise CannotDeidentify("an overlay lies in unused bits of the pixels, where it cannot be removed")


def _has_value(element: Element | None) -> bool:
    """Whether an element has a value, also one that was left in its file."""
    if isinstance(element, RawDataElement):
        return element.length > 0
    return element is not None and not element.is_empty


def mask(made: Dataset, source: Dataset, rectangles: Sequence[Rectangle], syntax: str) -> str:
    """Paint over rectangles in all frames of `made`, and say so; return the transfer syntax that it has then.

    What was compressed becomes Explicit VR Little Endian: compressing it again would lose more. That it was compressed
    lossily once is still told (PS3.3 C.7.6.1.1.5).

    Raises
    ------
    CannotDeidentify
        The pixels cannot be decoded, or are not what a mask can be painted on.
    """
    if _PIXELS not in source:
        raise CannotDeidentify("a mask rule fits, but its pixels are of floating point", element="PixelData")
    painted = bytearray()
    try:
        for frame, properties in _frames(source, syntax):
            kind = str(properties.get("photometric_interpretation") or source.PhotometricInterpretation)
            pixels = frame.copy()
            for rectangle in rectangles:
                _paint(pixels, rectangle, kind)
            painted += np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    except OutOfSpace:
        raise
    except Exception:  # noqa: BLE001  (decoders raise anything; what they say may quote a value of the object)
        raise CannotDeidentify("a mask rule fits, but the pixels cannot be decoded", element="PixelData") from None
    if int(source.get("BitsAllocated") or 8) == 1:
        painted = bytearray(np.packbits(np.frombuffer(painted, np.uint8), bitorder="little").tobytes())
    _describe(made, kind, int(source.get("SamplesPerPixel") or 1))
    width = "OB" if int(made.BitsAllocated) <= 8 and syntax != ImplicitVRLittleEndian else "OW"
    made[_PIXELS] = DataElement(_PIXELS, width, bytes(painted) + bytes(len(painted) % 2))
    if syntax in _IN_PLACE:
        return syntax
    _as_little_endian(made, syntax)
    return str(ExplicitVRLittleEndian)


def _frames(source: Dataset, syntax: str) -> Iterator[tuple[Samples, decoding.Properties]]:
    value = source.get_item(_PIXELS).value
    options = {"extended_offsets": (source.ExtendedOffsetTable, source.ExtendedOffsetTableLengths)} \
        if "ExtendedOffsetTable" in source and "ExtendedOffsetTableLengths" in source else {}
    return decoding.frames(source, BytesIO(value), syntax or str(ExplicitVRLittleEndian), **options)


def _paint(pixels: Samples, rectangle: Rectangle, kind: str) -> None:
    """Fill a rectangle with black, or the darkest that the frame has; it has to lie inside of the frame."""
    left, top, width, height = rectangle
    part = pixels[top : top + height, left : left + width]
    if part.shape[:2] != (height, width):
        raise ValueError("a frame is smaller than Rows and Columns say")
    if pixels.ndim == 3:
        part[...] = np.array([0, 128, 128] if kind.startswith("YBR") else [0, 0, 0], pixels.dtype)
    elif kind == "PALETTE COLOR":
        part[...] = 0
    else:
        part[...] = pixels.max() if kind == "MONOCHROME1" else pixels.min()


def _describe(made: Dataset, kind: str, samples: int) -> None:
    made.BurnedInAnnotation = "NO"
    made.PhotometricInterpretation = kind
    if samples > 1:
        made.PlanarConfiguration = 0
    for keyword in _OF_ENCAPSULATED:
        if keyword in made:
            delattr(made, keyword)
    kinds = [str(value) for value in made.get("ImageType") or []]
    if kinds:
        made.ImageType = ["DERIVED", *kinds[1:]]


def _as_little_endian(made: Dataset, syntax: str) -> None:
    """Let raw elements of a big endian data set be decoded, so that they are encoded anew."""
    if syntax == ExplicitVRBigEndian:
        made.decode()
