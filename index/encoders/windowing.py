"""From stored pixel values to greys: 0 (black, air, padding) to 1, as the image is meant to be seen.

The modality transformation is applied (PS3.3 C.11.1), an inverted image is turned over, colour becomes luminance,
padding becomes black. Hounsfield units go through one fixed curve, so that the same tissue has the same grey in every
CT. Images that are rendered already (colour; Secondary Capture and ultrasound of 8 bits) keep their greys. Everything
else is stretched between its own percentiles, since its units mean nothing across scanners.

The VOI LUT and the window (PS3.3 C.11.2) are how somebody wanted to look at it: the same image with another window is
the same image, so they are not applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from index.encoders.functional_groups import functional_group

Frame = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Stored = npt.NDArray[np.generic]

_HU = (-1000.0, -150.0, 250.0, 1500.0)
_HU_GREY = (0.0, 0.25, 0.75, 1.0)
"""Half of the grey scale for soft tissue (a window of 400 HU at 50), a quarter each for lung and bone."""

_WHITE = 255.0
"""In 8 bits."""

_PERCENTILES = (0.5, 99.5)
_SAMPLE = 1 << 20
"""At most about this many pixels are looked at for the percentiles."""

_LUMINANCE = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, which PS3.3 C.7.6.3.1.2 uses for YBR_FULL."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Root of the UIDs of all Secondary Capture SOP Classes."""

_RENDERED = (_SECONDARY_CAPTURE, "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")
"""Secondary Capture, Ultrasound Image and Ultrasound Multi-frame Image."""

_PADDING = ("PixelPaddingValue", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue")
_PADDING_LIMIT = ("PixelPaddingRangeLimit", "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit")


@dataclass(frozen=True, eq=False)
class Grey:
    """A frame as it is meant to be seen.

    Attributes
    ----------
    values
        Axes (row, column), 0 to 1.
    range
        Of the values after the modality transformation, what 0 to 1 stands for: comparable within a series, where a
        frame of noise alone has a small one.
    """

    values: Frame
    range: float


def grey(dataset: Dataset, index: int, stored: Stored, photometric: str) -> Grey:
    """Return the greys of a decoded frame.

    Parameters
    ----------
    index
        Of the frame, from 0.
    stored
        Axes (row, column) or (row, column, sample).
    photometric
        Photometric Interpretation of `stored`: the decoders turn most colour into RGB.

    Raises
    ------
    ValueError
        Samples that nothing here knows how to see.
    """
    if stored.ndim == 3 or photometric == "PALETTE COLOR":
        values, white = _luminance(dataset, stored, photometric)
        valid, is_hounsfield, inverted = np.isfinite(values), False, False
    else:
        values, is_hounsfield = _modality_values(dataset, index, stored)
        valid = np.isfinite(values) & ~_padding(dataset, stored)
        inverted = _is_inverted(dataset, photometric)
        white = _white(dataset, stored)
    if is_hounsfield:
        seen, extent = np.interp(values, _HU, _HU_GREY), _HU[-1] - _HU[0]
    elif white:
        seen, extent = values / white, white
    else:
        seen, extent = _between_percentiles(values, valid)
    if inverted and not is_hounsfield:
        seen = 1.0 - seen
    seen[~valid] = 0.0
    return Grey(seen, extent)


def _luminance(dataset: Dataset, stored: Stored, photometric: str) -> tuple[Frame, float]:
    """Return the luminance of colour, and the value that is white; 0 where nobody can tell."""
    if photometric == "PALETTE COLOR":
        colours = np.asarray(apply_color_lut(stored, dataset)[..., :3])
        return np.asarray(colours @ _LUMINANCE, dtype=np.float64), float(np.iinfo(colours.dtype).max)
    white = _WHITE if stored.dtype == np.uint8 else 0.0
    if stored.shape[2] != 3:
        raise ValueError(f"{stored.shape[2]} samples per pixel as {photometric}, expected 1 or 3")
    if photometric.startswith("YBR"):
        return stored[..., 0].astype(np.float64), white
    if photometric != "RGB":
        raise ValueError(f"colour as {photometric}, expected RGB, YBR or a palette")
    return np.asarray(stored @ _LUMINANCE, dtype=np.float64), white


def _padding(dataset: Dataset, stored: Stored) -> Mask:
    """Where `stored` holds Pixel Padding Value (PS3.3 C.7.5.1.1.2), written signed or unsigned."""
    value = next((dataset[keyword].value for keyword in _PADDING if keyword in dataset), None)
    if value is None or stored.dtype.kind not in "iuf":
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = next((dataset[keyword].value for keyword in _PADDING_LIMIT if keyword in dataset), None)
    as_written = np.float64 if stored.dtype.kind == "f" else np.int64
    ends: npt.NDArray[Any] = np.array([value, value if limit is None else limit], as_written).astype(stored.dtype)
    unused = stored.dtype.itemsize * 8 - int(dataset.get("BitsStored") or 0)
    if ends.dtype.kind in "iu" and 0 < unused < stored.dtype.itemsize * 8:
        ends = ends << unused >> unused  # some scanners pad with values that need the bits which decoders clear
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))


def _modality_values(dataset: Dataset, index: int, stored: Stored) -> tuple[Frame, bool]:
    """Return the values after the modality transformation, and whether they are Hounsfield units."""
    may_be_hounsfield = dataset.get("Modality") == "CT" and not _is_projection(dataset)
    transformation = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    if "ModalityLUTSequence" in dataset:
        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        kind = str(dataset.ModalityLUTSequence[0].get("ModalityLUTType", ""))
        return values, may_be_hounsfield and kind == "HU"
    slope, intercept = transformation.get("RescaleSlope"), transformation.get("RescaleIntercept")
    values = stored.astype(np.float64)
    if slope is None or intercept is None or float(slope) == 0.0:  # a slope of 0 would erase the image
        return values, False
    is_capture = str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    kind = str(transformation.get("RescaleType", "") or ("US" if is_capture else "HU"))
    return values * float(slope) + float(intercept), may_be_hounsfield and kind == "HU"


def _white(dataset: Dataset, stored: Stored) -> float:
    """Return the value that is white in a monochrome image that is rendered already, 0 in any other."""
    is_plain = not any(dataset.get(keyword) for keyword in ("RescaleSlope", "ModalityLUTSequence"))
    is_byte = stored.dtype == np.uint8 and int(dataset.get("BitsStored") or 0) == 8
    is_rendered = str(dataset.get("SOPClassUID", "")).startswith(_RENDERED)
    return _WHITE if is_byte and is_plain and is_rendered else 0.0


def _is_projection(dataset: Dataset) -> bool:
    """Whether a CT image is a localizer, whose values are no Hounsfield units whatever it says (PS3.3 C.8.2.1.1.1)."""
    image_type = dataset.get("ImageType") or ()
    return not isinstance(image_type, str) and "LOCALIZER" in list(image_type)[2:3]


def _is_inverted(dataset: Dataset, photometric: str) -> bool:
    """Whether low values are bright.

    An inverse Presentation LUT Shape goes with MONOCHROME1 and says the same (PS3.3 C.8.11.3): it is not applied on top
    of it.
    """
    return photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"


def _between_percentiles(values: Frame, valid: Mask) -> tuple[Frame, float]:
    """Return `values` stretched between their own percentiles, and the range that makes 0 to 1."""
    sample = values[valid]
    sample = sample[:: max(1, sample.size // _SAMPLE)]
    low, high = np.percentile(sample, _PERCENTILES) if sample.size else (0.0, 0.0)
    if high <= low and sample.size:  # nearly all of one value: what differs from it is all there is to see
        low, high = values[valid].min(), values[valid].max()
    if high <= low:
        return np.zeros_like(values), 0.0
    return np.clip((np.where(valid, values, low) - low) / (high - low), 0.0, 1.0), float(high - low)
