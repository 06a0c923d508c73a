"""One canonical form for the images of every modality, so that an encoder sees anatomy and not encoding.

A canonical frame is a float32 square, 0 (black, air, padding) to 1, as the image is meant to be seen: the modality
transformation is applied (PS3.3 C.11.1), MONOCHROME1 is turned over, colour becomes luminance, padding becomes black.
Hounsfield units go through one fixed curve, so that the same tissue has the same grey in every CT; everything else is
stretched between its own percentiles, since its units mean nothing across scanners. The physical aspect is kept, the
image is centred in the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from index.decoding import PIXEL_KEYWORDS, frames, stored_pixels
from index.encoders.encoder import Images
from index.encoders.square import to_square
from index.errors import InvalidIdentifier

VERSION = 1
"""Version of the preprocessing: part of every ModelID, raised whenever a canonical frame would change."""

SIDE = 128
"""Rows and columns of a canonical frame."""

_HU = (-1000.0, -150.0, 250.0, 1500.0)
_HU_GREY = (0.0, 0.25, 0.75, 1.0)
"""Half of the grey scale for soft tissue (a window of 400 HU at 50), a quarter each for lung and bone."""

_PERCENTILES = (0.5, 99.5)
_SAMPLE = 65536
"""At most about this many pixels are looked at for the percentiles."""

_LUMINANCE = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, which PS3.3 C.7.6.3.1.2 uses for YBR_FULL."""

Frame = npt.NDArray[np.float64]


class NoPixels(ValueError):
    """The instance has no image, or none that can be decoded here; the message is a sentence."""


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels; `x` (column) and `y` (row) of its upper left pixel count from 0."""

    x: int
    y: int
    width: int
    height: int

    def of(self, frame: Frame) -> Frame:
        """Return that part of `frame`, axes (row, column); raises `InvalidIdentifier` when it is not inside."""
        rows, columns = frame.shape
        fits = 0 <= self.x < self.x + self.width <= columns and 0 <= self.y < self.y + self.height <= rows
        if not fits:
            raise InvalidIdentifier(
                f"a region of {self.width} × {self.height} pixels at ({self.x}, {self.y}) "
                f"is not inside the image of {columns} × {rows}",
                element="QueryRegion",
            )
        return frame[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, eq=False)
class CanonicalFrames:
    """Frames of one instance.

    Attributes
    ----------
    numbers
        Frame numbers, from 1; 0 for the frame of a single-frame instance.
    images
        Axes (frame, row, column), 0 to 1.
    """

    numbers: tuple[int, ...]
    images: Images


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices of 0 … `count` − 1, evenly spread and clear of both ends."""
    if count <= most:
        return list(range(count))
    return [int((index + 0.5) * count / most) for index in range(most)]


def canonical_frames(
    dataset: Dataset,
    *,
    file: BinaryIO | None = None,
    numbers: Sequence[int] | None = None,
    most: int = 24,
    region: Region | None = None,
    side: int = SIDE,
) -> CanonicalFrames:
    """Bring frames of `dataset` into the canonical form.

    Parameters
    ----------
    dataset
        With its File Meta Information (the decoder needs the transfer syntax). Not changed.
    file
        What `dataset` was read from, when its long values were left there; frames are then read one by one.
    numbers
        Frame numbers, from 1. None: at most `most`, evenly spread over the instance.
    region
        Only this part, windowed like the whole frame.
    side
        Rows and columns of the result.

    Raises
    ------
    NoPixels
        No image in it, or none that can be decoded here.
    InvalidIdentifier
        A frame or a region that the instance does not have.
    """
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise NoPixels(f"{dataset.get('SOPClassUID', 'the instance')} has no pixel data")
    try:
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        indices = _indices(count, numbers, most)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        decoded = zip(indices, frames(dataset, stored_pixels(dataset, file), syntax, indices=indices), strict=True)
        images = np.stack([_canonical(dataset, index, stored, region, side) for index, (stored, _) in decoded])
    except InvalidIdentifier:
        raise
    except Exception as error:  # headers and pixels of strangers make the decoders raise anything
        why = " ".join(str(error).split())
        raise NoPixels(f"the image cannot be decoded: {why}"[:200]) from error
    return CanonicalFrames(tuple(index + 1 if count > 1 else 0 for index in indices), images)


def _indices(count: int, numbers: Sequence[int] | None, most: int) -> list[int]:
    if numbers is None:
        return spread(count, most)
    indices = sorted({number - 1 for number in numbers})
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise InvalidIdentifier(f"frames {list(numbers)} asked of an instance of {count}", element="QueryFrameNumber")
    return indices


def _canonical(
    dataset: Dataset, index: int, stored: npt.NDArray[np.generic], region: Region | None, side: int
) -> npt.NDArray[np.float32]:
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    valid = np.ones(stored.shape[:2], dtype=np.bool_)
    is_hounsfield = False
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(stored, dataset)[..., :3] @ _LUMINANCE
    elif stored.ndim == 3:
        is_partial = photometric.startswith("YBR_PARTIAL")
        values = stored[..., 0].astype(np.float64) if is_partial else stored[..., :3] @ _LUMINANCE
    else:
        valid = ~_padding(dataset, stored)
        values, is_hounsfield = _modality_values(dataset, index, stored)
    valid &= np.isfinite(values)
    if is_hounsfield:
        grey = np.interp(values, _HU, _HU_GREY)
    else:
        grey = _between_percentiles(values, valid)
        if photometric == "MONOCHROME1":
            grey = 1.0 - grey
    grey[~valid] = 0.0
    if region is not None:
        grey = region.of(grey)
    return to_square(grey, side, pixel_aspect=_pixel_aspect(dataset, index))


def _padding(dataset: Dataset, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where `stored` holds Pixel Padding Value (PS3.3 C.7.5.1.1.2), written signed or unsigned."""
    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = np.array([value, value if limit is None else limit], dtype=np.int64).astype(stored.dtype)
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))


def _modality_values(dataset: Dataset, index: int, stored: npt.NDArray[np.generic]) -> tuple[Frame, bool]:
    """Return the values after the modality transformation, and whether they are Hounsfield units."""
    transformation = _functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    if "ModalityLUTSequence" in dataset:
        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        kind = str(dataset.ModalityLUTSequence[0].get("ModalityLUTType", ""))
        return values, dataset.get("Modality") == "CT" and kind == "HU"
    slope, intercept = transformation.get("RescaleSlope"), transformation.get("RescaleIntercept")
    values = stored.astype(np.float64)
    if slope is None or intercept is None or float(slope) == 0.0:  # a slope of 0 would erase the image
        return values, False
    kind = str(transformation.get("RescaleType", "") or "HU")
    return values * float(slope) + float(intercept), dataset.get("Modality") == "CT" and kind == "HU"


def _between_percentiles(values: Frame, valid: npt.NDArray[np.bool_]) -> Frame:
    sample = values[valid]
    sample = sample[:: max(1, sample.size // _SAMPLE)]
    low, high = np.percentile(sample, _PERCENTILES) if sample.size else (0.0, 0.0)
    if high <= low and sample.size:  # nearly all of one value: what differs from it is all there is to see
        low, high = sample.min(), sample.max()
    if high <= low:
        return np.zeros_like(values)
    return np.clip((np.where(valid, values, low) - low) / (high - low), 0.0, 1.0)


def _functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Return the functional group `keyword` of frame `index` of an enhanced object (PS3.3 C.7.6.16), or None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[index : index + 1], *shared[:1]):
        items: Sequence[Dataset] = groups.get(keyword) or []
        if items:
            return items[0]
    return None


def _pixel_aspect(dataset: Dataset, index: int) -> float:
    """Return height over width of a pixel, 1.0 when the instance does not say."""
    measures = _functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    for source, keyword in (
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        pair = source.get(keyword)
        if pair is not None and len(pair) == 2 and min(map(float, pair)) > 0:
            return float(pair[0]) / float(pair[1])
    return 1.0
