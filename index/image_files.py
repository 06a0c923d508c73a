"""Images that are not DICOM (PNG, JPEG, BMP, TIFF): their samples, as DICOM can hold them.

What cannot be kept is refused in one sentence, never squeezed: floating point, negative values, colour of 16 bits,
several pictures in one file. Colours become RGB; what a file says of its orientation (EXIF) is applied; transparency
lies on black.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from index.decoding import LARGEST_FRAME
from index.errors import InvalidInstance

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LONGEST_SIDE = 65535
"""Rows and Columns are unsigned shorts."""

_DEEP_GREY = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_WITH_TRANSPARENCY = {"LA", "La", "PA", "RGBA", "RGBa"}


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A picture.

    Attributes
    ----------
    samples
        Axes (row, column) for grey, (row, column, 3) for RGB; uint8, or uint16 for grey of more than 8 bits.
    lossy_ratio
        How much lossy compression has made it smaller, None where there was none.
    sha256
        Of the file, hex.
    """

    samples: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    lossy_ratio: float | None
    sha256: str


def read_image_file(path: Path) -> ImageFile:
    """Read the picture in `path`.

    Raises
    ------
    InvalidInstance
        No image, a damaged one, or one that DICOM cannot hold as it is.
    OSError
        The file itself cannot be read.
    """
    content = path.read_bytes()
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")  # of metadata and of size, which is limited here
            _require_fitting(image)
            kind = image.format
            upright = ImageOps.exif_transpose(image)
            samples = _samples(upright)
    except UnidentifiedImageError as error:
        raise InvalidInstance("no PNG, JPEG, BMP or TIFF image, or a damaged one") from error
    except InvalidInstance:
        raise
    except Exception as error:  # a parser fed with damaged files raises anything
        raise InvalidInstance(f"the image cannot be read: {' '.join(str(error).split())}"[:200]) from error
    ratio = samples.nbytes / len(content) if kind == "JPEG" else None
    return ImageFile(samples, ratio, hashlib.sha256(content).hexdigest())


def _require_fitting(image: Image.Image) -> None:
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1:
        raise InvalidInstance(f"one picture in a file is expected, got {pictures}")
    if any(";16" in str(tile.args) for tile in getattr(image, "tile", ())) and image.mode not in _DEEP_GREY:
        raise InvalidInstance(f"colour of 8 bits a sample is expected, got 16 bits ({image.mode})")
    if max(image.size) > _LONGEST_SIDE:
        raise InvalidInstance(f"at most {_LONGEST_SIDE} rows and columns, got {image.height} and {image.width}")
    size = image.width * image.height * max(2, len(image.getbands()))
    if size > LARGEST_FRAME:
        raise InvalidInstance(f"an image of {size} bytes, at most {LARGEST_FRAME} are decoded")


def _samples(image: Image.Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    if image.mode == "F":
        raise InvalidInstance("integers are expected as samples, got floating point")
    if image.mode in _DEEP_GREY:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise InvalidInstance(f"samples of 0 to 65535 are expected, got {values.min()} to {values.max()}")
        return values.astype(np.uint16)
    if image.mode in _WITH_TRANSPARENCY or "transparency" in image.info:
        seen = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen)
        return np.asarray(flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB"))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
