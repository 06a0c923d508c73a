"""The segments of a stored SEG: what they are called and coded as, their colours, their voxels on the source's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from plugins.measurement.subject import Source
from plugins.node import CannotProceed
from plugins.segmentation.reading import read_segmentation
from plugins.segmentation.stored_segments import modifiers_of

_PALETTE = (
    "#4cc9f0", "#f9c74f", "#f3722c", "#90be6d", "#c77dff", "#43aa8b", "#ff8fab", "#4895ef", "#e9ff70", "#d4a373",
)  # fmt: skip
"""For segments that bring no colour: told apart on black and on grey, next ones the most."""
_GOLDEN = 0.618034

_LATERALITIES = (
    Code("7771000", "SCT", "Left"),
    Code("24028007", "SCT", "Right"),
    Code("51440002", "SCT", "Bilateral"),
    Code("66459002", "SCT", "Unilateral"),
)
"""PS3.16 CID 244; codes of SNOMED-RT are equal to them."""


@dataclass(frozen=True)
class StoredSegment:
    """An item of the Segment Sequence (PS3.3 C.8.20.4).

    Attributes
    ----------
    number
        Segment Number.
    label
        Segment Label.
    category, type
        Segmented Property Category and Type; None where the SEG has none.
    modifiers
        Of the type: left, right.
    site
        Anatomic Region; None where the SEG has none.
    site_modifiers
        Of the region.
    tracking_id, tracking_uid
        Empty where the SEG has none.
    colour
        ``#rrggbb``: Recommended Display CIELab Value, else one of ours.
    """

    number: int
    label: str
    category: Code | None
    type: Code | None
    modifiers: tuple[Code, ...]
    site: Code | None
    site_modifiers: tuple[Code, ...]
    tracking_id: str
    tracking_uid: str
    colour: str

    @property
    def laterality(self) -> Code | None:
        """The side of the patient, in the codes of CID 244, that region or type are modified by; None without."""
        told = (*self.site_modifiers, *self.modifiers)
        return next((side for modifier in told for side in _LATERALITIES if side == modifier), None)


def is_laterality(modifier: Code) -> bool:
    """Whether a modifier says on which side of the patient something is (CID 244)."""
    return modifier in _LATERALITIES


def segments_of(seg: Dataset) -> tuple[StoredSegment, ...]:
    """Return the segments in the order of their numbers; not the background of a label map (PS3.3 C.8.20.2.3.3)."""
    items = [item for item in seg.SegmentSequence if int(item.SegmentNumber) > 0]
    items.sort(key=lambda item: int(item.SegmentNumber))
    return tuple(_segment(item, place) for place, item in enumerate(items))


def coded_names(segments: Sequence[StoredSegment]) -> dict[int, str]:
    """Return what the codes call each segment, by its number, and nothing that somebody may have typed in.

    For example ``Kidney, right``; with the number of the segment where others have the same codes or it has none.
    """
    names = {each.number: _coded_name(each) for each in segments}
    times = Counter(names.values())
    return {
        number: (f"{name} (segment {number})" if times[name] > 1 else name) if name else f"Segment {number}"
        for number, name in names.items()
    }


def _coded_name(segment: StoredSegment) -> str:
    meaning = segment.type.meaning if segment.type else segment.category.meaning if segment.category else ""
    modifiers, side = list(segment.modifiers), segment.laterality
    if side is not None and side not in modifiers:
        modifiers.append(side)
    return ", ".join(filter(None, [meaning, *(modifier.meaning.lower() for modifier in modifiers)]))


def _segment(item: Dataset, place: int) -> StoredSegment:
    return StoredSegment(
        number=int(item.SegmentNumber),
        label=str(item.get("SegmentLabel") or f"Segment {item.SegmentNumber}"),
        category=_code(item, "SegmentedPropertyCategoryCodeSequence"),
        type=_code(item, "SegmentedPropertyTypeCodeSequence"),
        modifiers=modifiers_of(
            item, "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"
        ),
        site=_code(item, "AnatomicRegionSequence"),
        site_modifiers=modifiers_of(item, "AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
        tracking_id=str(item.get("TrackingID") or ""),
        tracking_uid=str(item.get("TrackingUID") or ""),
        colour=_colour(item, place),
    )


def _code(item: Dataset, keyword: str) -> Code | None:
    sequence = item.get(keyword)
    if not sequence or not sequence[0].get("CodeValue"):
        return None
    code = sequence[0]
    return Code(str(code.CodeValue), str(code.CodingSchemeDesignator), str(code.CodeMeaning))


def _colour(item: Dataset, place: int) -> str:
    """Return the display colour; the encoding of CIELab is that of PS3.3 C.10.7.1.1."""
    lab = item.get("RecommendedDisplayCIELabValue")
    if not lab or len(lab) != 3:
        return _PALETTE[place] if place < len(_PALETTE) else _further_colour(place)
    from skimage.color import lab2rgb  # takes its time, and few segments bring a colour

    scaled = np.array([lab[0] / 65535 * 100, lab[1] / 65535 * 255 - 128, lab[2] / 65535 * 255 - 128])
    red, green, blue = (round(255 * float(part)) for part in np.clip(lab2rgb(scaled), 0, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _further_colour(place: int) -> str:
    """Return a colour beyond the palette: hues a golden section apart never come again."""
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(place * _GOLDEN % 1, 0.5 + 0.2 * (place % 3), 0.95))
    return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True, eq=False)
class SegmentVoxels:
    """The voxels of the segments of a SEG, on the grid of its source images.

    Attributes
    ----------
    layers
        Label maps ``(z, y, x)`` of segment numbers, 0 where there is none: as few as hold segments that overlap.
    layer_of
        Segment number to its place in `layers`.
    """

    layers: tuple[NDArray[np.uint16], ...]
    layer_of: Mapping[int, int]

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Return the voxels of a segment, ``(z, y, x)``."""
        mask: NDArray[np.bool_] = self.layers[self.layer_of[number]] == number
        return mask


def voxels_of(seg: Dataset, source: Source) -> SegmentVoxels:
    """Read the voxels of all segments.

    Parameters
    ----------
    seg
        The whole SEG.
    source
        The series that it segments.

    Raises
    ------
    CannotProceed
        Its frames do not lie on the source images, pixel by pixel, or not all of these are here.
    """
    _refuse_missing(seg, source)
    reading = read_segmentation(seg, source.grid)
    if reading.resampled:
        raise CannotProceed(f"SEG {seg.SOPInstanceUID} has a grid of its own, not that of its source images")
    layers, layer_of = [], {}
    for place, one in enumerate(reading.segmentations):
        numbers = [segment.number or 0 for segment in one.segments]
        layers.append(np.array([0, *numbers], np.uint16)[one.labels])
        layer_of.update(dict.fromkeys(numbers, place))
    return SegmentVoxels(tuple(layers), layer_of)


def _refuse_missing(seg: Dataset, source: Source) -> None:
    """Refuse when the SEG refers to images of the series that are not here: their voxels would be missing."""
    named = {
        str(instance.ReferencedSOPInstanceUID)
        for item in seg.get("ReferencedSeriesSequence") or []
        if item.get("SeriesInstanceUID") == source.series_instance_uid
        for instance in item.get("ReferencedInstanceSequence") or []
    }
    missing = named - {uid for uid, _ in source.grid.frames}
    if missing:
        raise CannotProceed(
            f"{len(missing)} of {len(named)} images of series {source.series_instance_uid} that SEG "
            f"{seg.SOPInstanceUID} refers to are not stored"
        )
