"""What is in a stored SEG: its segments with their codes, and its frames (PS3.3 A.51, A.104, C.8.20)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, SegmentationStorage

from index import decoding
from index.encoders.functional_groups import functional_group, of_frame
from plugins.node import CannotProceed
from plugins.segmentation.segmenter import Algorithm, Segment
from plugins.slices import Frame

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage."""

SEGMENTATIONS = frozenset({SegmentationStorage, LABEL_MAP_STORAGE})

BINARY, FRACTIONAL, LABELMAP = "BINARY", "FRACTIONAL", "LABELMAP"

MANUAL = Algorithm("Manual", "", Code("123109", "DCM", "Manual Processing"), {})
"""What made a segment whose Segment Algorithm Type is MANUAL: nobody names an algorithm for it."""

_PARAMETERS = re.compile(r",(?=[^,]*=)")
"""What parts ``name=value,name=value``: a value may hold commas, a name not."""

_BACKGROUND = Code("125040", "DCM", "Background")


@dataclass(frozen=True)
class StoredFrame:
    """A frame of a SEG.

    Attributes
    ----------
    index
        From 0.
    segment
        The segment that it shows; None in a label map, which shows all of them.
    sources
        The images that it says it was derived from; frame 0 where it names no frame of an image.
    """

    index: int
    segment: int | None
    sources: tuple[Frame, ...]


@dataclass(frozen=True, eq=False)
class StoredSegments:
    """A SEG, looked through.

    Attributes
    ----------
    kind
        ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
    segments
        Segment Number → segment, in the order of numbers, the background of a label map left out.
    background
        Values of a label map that stand for no segment.
    """

    dataset: Dataset
    kind: str
    segments: dict[int, Segment]
    background: frozenset[int]
    frames: tuple[StoredFrame, ...]

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    def stored_values(self, frames: Sequence[StoredFrame]) -> Iterator[NDArray[Any]]:
        """Yield the stored values, axes (row, column), of `frames`; raises `CannotProceed` for what is undecodable."""
        indices = [frame.index for frame in frames]
        if not indices:
            return
        try:
            value, syntax = self.dataset.PixelData, self.dataset.file_meta.TransferSyntaxUID
            for pixels, _ in decoding.frames(self.dataset, value, syntax, indices=indices):
                yield pixels
        except Exception as error:
            why = " ".join(str(error).split())
            raise CannotProceed(f"the segmentation cannot be decoded: {why}"[:300]) from error

    def fractions(self, frames: Sequence[StoredFrame]) -> Iterator[NDArray[np.float32]]:
        """Yield `frames` of a FRACTIONAL SEG as probabilities or occupancies, 0 to 1 (PS3.3 C.8.20.2.4)."""
        largest = int(self.dataset.get("MaximumFractionalValue") or 0)
        if largest <= 0:
            raise CannotProceed("a fractional segmentation without Maximum Fractional Value")
        for values in self.stored_values(frames):
            yield np.asarray(values, np.float32) / np.float32(largest)

    def masks(self, frames: Sequence[StoredFrame], threshold: float) -> Iterator[NDArray[np.bool_]]:
        """Yield where the segment is in `frames` of a BINARY SEG, or of a FRACTIONAL one from `threshold` on."""
        if self.kind == FRACTIONAL:
            yield from (fraction >= threshold for fraction in self.fractions(frames))
        else:
            yield from (np.asarray(values != 0) for values in self.stored_values(frames))


def stored_segments(dataset: Dataset) -> StoredSegments:
    """Look through a SEG of any kind.

    Raises
    ------
    CannotProceed
        It is none, or it does not say what segments or frames it has.
    """
    if dataset.get("SOPClassUID") not in SEGMENTATIONS:
        raise CannotProceed(f"expected a segmentation, got {UID(str(dataset.get('SOPClassUID', 'nothing'))).name}")
    kind = str(dataset.get("SegmentationType", "")).upper()
    if kind not in (BINARY, FRACTIONAL, LABELMAP):
        raise CannotProceed(f"expected a BINARY, FRACTIONAL or LABELMAP segmentation, got {kind or 'none of them'}")
    if not dataset.get("Rows") or not dataset.get("Columns") or "PixelData" not in dataset:
        raise CannotProceed("the segmentation has no pixels")
    items: dict[int, Dataset] = {}
    for item in dataset.get("SegmentSequence") or []:
        number = int(item.get("SegmentNumber", -1))
        if number in items:
            raise CannotProceed(f"the segmentation has two segments of number {number}")
        items[number] = item
    background = _background(dataset, items) if kind == LABELMAP else frozenset()
    segments = {number: _segment(number, items[number]) for number in sorted(items) if number not in background}
    if not segments:
        raise CannotProceed("the segmentation has no segment")
    _refuse_short(dataset)
    return StoredSegments(dataset, kind, segments, background, _frames(dataset, kind, segments))


def _refuse_short(dataset: Dataset) -> None:
    """Refuse uncompressed pixels that end too early: a decoder would go on with what it has."""
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
    bits = pixels * int(dataset.BitsAllocated)
    held = len(dataset.PixelData)
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and held * 8 < bits:
        raise CannotProceed(f"expected {-(-bits // 8)} bytes of pixels in the segmentation, got {held}")


def codes_of(item: Dataset, keyword: str) -> tuple[Code, ...]:
    """Return the codes of a sequence, by Code Value, Long Code Value or URN (PS3.3 8.8)."""
    found = []
    for coded in item.get(keyword) or []:
        value = coded.get("CodeValue") or coded.get("LongCodeValue") or coded.get("URNCodeValue")
        if value:
            scheme = str(coded.get("CodingSchemeDesignator") or "")
            found.append(Code(str(value), scheme, str(coded.get("CodeMeaning") or value)))
    return tuple(found)


def code_of(item: Dataset, keyword: str) -> Code | None:
    """Return the first code of a sequence; None without."""
    return next(iter(codes_of(item, keyword)), None)


def modifiers_of(item: Dataset, keyword: str, modifiers: str) -> tuple[Code, ...]:
    """Return the codes that modify the first code of the sequence `keyword`: its own sequence `modifiers`."""
    return codes_of((item.get(keyword) or [Dataset()])[0], modifiers)


def algorithm_of(item: Dataset, keyword: str) -> Algorithm | None:
    """Return the first algorithm of an Algorithm Identification (PS3.3 10.16); None without."""
    for told in item.get(keyword) or []:
        pairs = (pair.partition("=") for pair in _PARAMETERS.split(str(told.get("AlgorithmParameters") or "")))
        parameters = {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
        version = str(told.get("AlgorithmVersion") or "")
        family = code_of(told, "AlgorithmFamilyCodeSequence")
        return Algorithm(str(told.get("AlgorithmName") or ""), version, family, parameters)
    return None


def _background(dataset: Dataset, items: dict[int, Dataset]) -> frozenset[int]:
    """Values that stand for no segment (PS3.3 C.8.20.2): the padding, segments called background, 0 when no segment."""
    called = {n for n, item in items.items() if code_of(item, "SegmentedPropertyTypeCodeSequence") == _BACKGROUND}
    padding = {int(dataset.PixelPaddingValue)} if dataset.get("PixelPaddingValue") is not None else set()
    return frozenset(called | padding | ({0} - set(items)))


def _segment(number: int, item: Dataset) -> Segment:
    label = str(item.get("SegmentLabel") or f"Segment {number}")
    category = code_of(item, "SegmentedPropertyCategoryCodeSequence")
    type_ = code_of(item, "SegmentedPropertyTypeCodeSequence")
    if category is None or type_ is None:
        raise CannotProceed(f"segment {number} ({label}) has no code of a category or of a type")
    algorithm = algorithm_of(item, "SegmentationAlgorithmIdentificationSequence")
    if algorithm is None and item.get("SegmentAlgorithmType") == "MANUAL":
        algorithm = MANUAL
    if algorithm is None and item.get("SegmentAlgorithmName"):
        algorithm = Algorithm(str(item.SegmentAlgorithmName), "", None, {})
    return Segment(
        label, category, type_,
        str(item.get("TrackingID") or ""), str(item.get("TrackingUID") or ""), number, algorithm,
        modifiers_of(item, "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
    )  # fmt: skip


def _frames(dataset: Dataset, kind: str, segments: dict[int, Segment]) -> tuple[StoredFrame, ...]:
    count = int(dataset.get("NumberOfFrames") or 1)
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if dataset.get("DimensionOrganizationType") == "TILED_FULL":
        return tuple(StoredFrame(index, None, ()) for index in range(count))  # where they are, `tiles` knows
    if groups != count:
        raise CannotProceed(f"expected {count} per-frame functional groups in the segmentation, got {groups}")
    return tuple(StoredFrame(i, _number(dataset, i, kind, segments), _sources(dataset, i)) for i in range(count))


def _number(dataset: Dataset, index: int, kind: str, segments: dict[int, Segment]) -> int | None:
    if kind == LABELMAP:
        return None
    number = of_frame(dataset, index, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
    number = next(iter(segments)) if number is None and len(segments) == 1 else number
    if number is None or int(number) not in segments:
        raise CannotProceed(f"frame {index + 1} of the segmentation shows segment {number}, which it does not describe")
    return int(number)


def _sources(dataset: Dataset, index: int) -> tuple[Frame, ...]:
    derivation = functional_group(dataset, index, "DerivationImageSequence")
    found: list[Frame] = []
    for item in (derivation or Dataset()).get("SourceImageSequence") or []:
        numbers = item.get("ReferencedFrameNumber")
        uid = str(item.get("ReferencedSOPInstanceUID") or "")
        several = numbers if isinstance(numbers, Sequence) and not isinstance(numbers, str) else [numbers or 0]
        found += [(uid, int(number)) for number in several]
    return tuple(dict.fromkeys(found))
