"""The slices of a stored series that are embedded: found by their headers, looked at, chosen by what they show."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from index.archive import Archive
from index.decoding import open_image
from index.encoders.encoder import Images
from index.encoders.pixels import NoPixels, canonical_frames
from index.encoders.slices import (
    HEADER,
    LOOKED_AT,
    Place,
    chosen,
    contents,
    in_order,
    most_frames,
    no_number,
    places_of,
    spread,
)
from index.errors import OutOfSpace
from plugins.node import CannotProceed, Series

logger = logging.getLogger(__name__)

Frame = tuple[str, int]
"""SOP Instance UID; frame number from 1, or 0 for a single-frame instance."""


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of a series, in their order along it.

    Attributes
    ----------
    images
        Canonical, axes (slice, row, column).
    """

    frames: tuple[Frame, ...]
    images: Images


@dataclass(frozen=True, eq=False)
class _Seen:
    frame: Frame
    image: npt.NDArray[np.float32]
    range: float


def choose_slices(archive: Archive, series: Series, most: int, progress: Callable[[float], None]) -> Slices:
    """Return at most `most` slices of `series`, spread over what they show.

    One image is decoded at a time, and no more than `LOOKED_AT` times `most` however long the series is.

    What cannot be read or decoded is left out, with a warning.

    Raises
    ------
    CannotProceed
        The series has no image that can be decoded here.
    OSError
        None of its files can be read now.
    OutOfSpace
        There is no room for what a deflated data set inflates to.
    """
    left_out = _LeftOut()
    places = _places(series, left_out)
    looked_at = [places[index] for index in spread(len(places), LOOKED_AT * most)]
    found = _look_at(archive, series, looked_at, left_out, progress)
    if not found:
        left_out.refuse()
    left_out.tell(series)
    seen = [found[place] for place in looked_at if place in found]
    images = np.stack([slice_.image for slice_ in seen])
    picked = chosen(contents(images, [slice_.range for slice_ in seen]), most)
    return Slices(tuple(seen[index].frame for index in picked), images[picked])


class _LeftOut:
    """The files of a series that cannot be read or decoded, and why the last one cannot."""

    def __init__(self) -> None:
        self._count = 0
        self._why: Exception = CannotProceed("the series has no image")

    def add(self, path: Path, error: Exception) -> None:
        """Note one file."""
        self._count += 1
        if isinstance(error, (CannotProceed, NoPixels, OSError)):
            self._why = error
        else:
            self._why = CannotProceed(f"{path.name} cannot be read: {' '.join(str(error).split())}"[:200])

    def refuse(self) -> NoReturn:
        """Raise why nothing is left: a file that is not there now may come back, all else stays as it is."""
        raise self._why if isinstance(self._why, OSError) else CannotProceed(str(self._why))

    def tell(self, series: Series) -> None:
        """Warn of what is left out."""
        if self._count:
            logger.warning(
                "series %s: %d of %d files are left out: %s",
                series.uid, self._count, len(series.instances), self._why,
            )  # fmt: skip


def _places(series: Series, left_out: _LeftOut) -> list[Place]:
    places: list[Place] = []
    for index, path in enumerate(series.paths):
        try:
            places += _places_in(path, index)
        except Exception as error:  # noqa: BLE001  (headers of strangers make the reader raise anything)
            left_out.add(path, error)
    return in_order(places)


def _places_in(path: Path, index: int) -> list[Place]:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
    try:
        _require_room(header, path)
        return places_of(header, index)
    except (TypeError, ValueError) as error:
        raise CannotProceed(no_number(header)) from error


def _require_room(header: Dataset, path: Path) -> None:
    """Refuse an instance that claims more frames than its file can hold, before anything is made for each."""
    claimed = int(header.get("NumberOfFrames") or 1)
    most = most_frames(header, path.stat().st_size)
    if claimed > most:
        raise CannotProceed(f"Number of Frames (0028,0008) is {claimed}, and the file has room for {most} at most")


def _look_at(
    archive: Archive, series: Series, places: list[Place], left_out: _LeftOut, progress: Callable[[float], None]
) -> dict[Place, _Seen]:
    """Return the canonical images at `places`, instance by instance."""
    found: dict[Place, _Seen] = {}
    of_instance: dict[int, dict[int, Place]] = {}
    for place in places:
        of_instance.setdefault(place.instance, {})[place.number] = place
    for done, (index, wanted) in enumerate(sorted(of_instance.items()), start=1):
        instance = series.instances[index]
        try:
            with open_image(instance.path, archive.scratch_file) as (dataset, file):
                frames = canonical_frames(dataset, file=file, numbers=list(wanted))
        except OutOfSpace:
            raise
        except Exception as error:  # noqa: BLE001  (so do their data sets)
            left_out.add(instance.path, error)
            continue
        for number, image, extent in zip(frames.numbers, frames.images, frames.ranges, strict=True):
            found[wanted[number or 1]] = _Seen((instance.sop_instance_uid, number), image, extent)
        progress(done / len(of_instance))
    return found
