"""Images in files: TIFF (single or stacked), MetaImage, and raw pixels without a header."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from reconstruct.imports.raw_scan import Images
from reconstruct.projections.frames import ScanError

Image = NDArray[np.generic]


@dataclass(frozen=True)
class RawFormat:
    """How files without a header are to be read.

    Attributes
    ----------
    rows, columns
        Of an image.
    dtype
        Of a pixel, as numpy writes it: ``uint8``, ``<u2``, ``float32``.
    offset_bytes
        Before the first pixel.
    """

    rows: int
    columns: int
    dtype: str
    offset_bytes: int = 0

    def read(self, path: Path) -> Image:
        """Return the image of a file, memory-mapped."""
        kind = np.dtype(self.dtype)
        expected = self.offset_bytes + self.rows * self.columns * kind.itemsize
        found = path.stat().st_size
        if found != expected:
            raise ScanError(
                f"{path.name} has {found} bytes, expected {expected} for {self.rows} × {self.columns} {kind}"
            )
        return np.memmap(path, kind, "r", self.offset_bytes, (self.rows, self.columns))


def images_in(paths: Sequence[Path], raw: RawFormat | None = None) -> Images:
    """Return the images in files: one a file, or all of a single stack.

    Raises
    ------
    ScanError
        A file that is missing or no such image.
    """
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise ScanError(f"{missing} is missing")
    if not paths:
        raise ScanError("the scan has no images")
    if raw is not None:
        return Images(lambda index: raw.read(paths[index]), len(paths), lambda index: paths[index].name)
    if len(paths) == 1:
        return _stack(paths[0])
    return Images(lambda index: _tiff(paths[index]), len(paths), lambda index: paths[index].name)


def _stack(path: Path) -> Images:
    if path.suffix.lower() in (".mha", ".mhd"):
        return meta_image(path)[0]
    try:
        pages = tifffile.TiffFile(path).pages
        count = len(pages)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise ScanError(f"{path.name} cannot be read as TIFF: {error}") from error
    return Images(lambda index: _page(path, index), count, lambda index: f"image {index + 1} of {path.name}")


def _tiff(path: Path) -> Image:
    return _page(path, 0)


def _page(path: Path, index: int) -> Image:
    try:
        return np.asarray(tifffile.imread(path, key=index))
    except (OSError, ValueError, IndexError, RuntimeError, tifffile.TiffFileError, zlib.error) as error:
        raise ScanError(f"image {index + 1} of {path.name} cannot be read as TIFF: {error}") from error


_TYPES = {
    "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def meta_image(path: Path) -> tuple[Images, tuple[float, float], tuple[float, float]]:
    """Return the images of a MetaImage stack, and the spacing and the origin of their columns and rows, mm.

    Raises
    ------
    ScanError
        No MetaImage of three dimensions, a compressed one, or one whose axes are turned.
    """
    with path.open("rb") as file:
        lines: dict[str, str] = {}
        while "ElementDataFile" not in lines:
            line = file.readline(4096)
            if not line or b"=" not in line:
                raise ScanError(f"{path.name} is no MetaImage: its header has no ElementDataFile")
            key, _, value = line.decode("ascii", "replace").partition("=")
            lines[key.strip()] = value.strip()
        start = file.tell()
    if lines.get("CompressedData", "False").lower() == "true":
        raise ScanError(f"{path.name} is compressed; write it uncompressed, so that views can be read one by one")
    size = [int(part) for part in lines.get("DimSize", "").split()]
    kind = _TYPES.get(lines.get("ElementType", ""))
    if len(size) != 3 or kind is None:
        raise ScanError(f"{path.name} has {len(size)} dimensions of {lines.get('ElementType')}, expected 3 of a number")
    order = (
        ">" if lines.get("BinaryDataByteOrderMSB", lines.get("ElementByteOrderMSB", "False")).lower() == "true" else "<"
    )
    _refuse_turned(lines, path)
    own = lines["ElementDataFile"].upper() == "LOCAL"
    file_path = path if own else path.parent / lines["ElementDataFile"]
    if not file_path.is_file():
        raise ScanError(f"{file_path.name}, which {path.name} names, is missing")
    shape = (size[2], size[1], size[0])
    count, found = int(np.prod(shape)) * np.dtype(kind).itemsize, file_path.stat().st_size
    begin = _first_byte(lines, path, start if own else 0, found - count)
    if begin < 0 or found < begin + count:
        raise ScanError(f"{file_path.name} has {found} bytes, expected {max(begin, 0) + count}")
    pixels = np.memmap(file_path, f"{order}{kind}", "r", begin, shape)
    spacing = _two(lines.get("ElementSpacing") or lines.get("ElementSize") or "1 1 1")
    origin = _two(lines.get("Offset") or lines.get("Position") or lines.get("Origin") or "0 0 0")
    return (
        Images(lambda index: pixels[index], size[2], lambda index: f"image {index + 1} of {path.name}"),
        spacing,
        origin,
    )


def _refuse_turned(lines: dict[str, str], path: Path) -> None:
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        told = lines.get(key, "")
        try:
            turned = bool(told) and [float(part) for part in told.split()] != np.eye(3).reshape(-1).tolist()
        except ValueError:
            turned = True
        if turned:
            raise ScanError(f"{path.name} turns its images: {key} is {told!r}, expected 1 0 0 0 1 0 0 0 1")


def _first_byte(lines: dict[str, str], path: Path, after_header: int, from_the_end: int) -> int:
    """Return where the first pixel lies: HeaderSize says how much comes before, -1 that nothing comes behind."""
    told = lines.get("HeaderSize", "0")
    if not re.fullmatch(r"-1|[0-9]+", told):
        raise ScanError(f"{path.name}: HeaderSize is {told!r}, expected -1 or a number of bytes")
    size = int(told)
    return from_the_end if size < 0 else size or after_header


def _two(text: str) -> tuple[float, float]:
    x, y, *_ = (float(part) for part in text.split())
    return x, y


def listed(folder: Path, told: Any, what: str) -> list[Path]:
    """Return the files that a pattern, a name or a list of names means, below a folder.

    Those of a pattern come in order of their names, numbers in them by their value: 2 before 10, padded or not.

    Raises
    ------
    ScanError
        There is none, or something else than names.
    """
    if isinstance(told, list) and all(isinstance(name, str) for name in told):
        return [folder / name for name in told]
    if not isinstance(told, str):
        raise ScanError(f'{what} is {told!r}, expected a pattern such as "views/*.tif" or a list of names')
    found = sorted((path for path in folder.glob(told) if path.is_file()), key=_natural)
    if not found:
        raise ScanError(f"no file in {folder} is meant by {what} = {told!r}")
    return found


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Return what sorts names by the numbers within them, and equal ones by how they are written."""
    name = path.as_posix()
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
