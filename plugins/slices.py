"""The slices of a stored series that are embedded: found by their headers, looked at, chosen by what they show."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

    Raises
    ------
    CannotProceed
        The series has no image that can be decoded here.
    """
    places = _places(series)
    looked_at = [places[index] for index in spread(len(places), LOOKED_AT * most)]
    found = _look_at(archive, series, looked_at, progress)
    seen = [found[place] for place in looked_at if place in found]
    images = np.stack([slice_.image for slice_ in seen])
    picked = chosen(contents(images, [slice_.range for slice_ in seen]), most)
    return Slices(tuple(seen[index].frame for index in picked), images[picked])


def _places(series: Series) -> list[Place]:
    places: list[Place] = []
    for index, path in enumerate(series.paths):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
        _require_room(header, path)
        places += places_of(header, index)
    return in_order(places)


def _require_room(header: Dataset, path: Path) -> None:
    """Refuse an instance that claims more frames than its file can hold, before anything is made for each."""
    try:
        claimed = int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError) as error:
        raise CannotProceed(no_number(header)) from error
    most = most_frames(header, path.stat().st_size)
    if claimed > most:
        raise CannotProceed(f"Number of Frames (0028,0008) is {claimed}, and the file has room for {most} at most")


def _look_at(
    archive: Archive, series: Series, places: list[Place], progress: Callable[[float], None]
) -> dict[Place, _Seen]:
    """Return the canonical images at `places`, instance by instance; what cannot be decoded is left out."""
    found: dict[Place, _Seen] = {}
    refused = ""
    of_instance: dict[int, dict[int, Place]] = {}
    for place in places:
        of_instance.setdefault(place.instance, {})[place.number] = place
    for done, (index, wanted) in enumerate(sorted(of_instance.items()), start=1):
        instance = series.instances[index]
        try:
            with open_image(instance.path, archive.scratch_file) as (dataset, file):
                frames = canonical_frames(dataset, file=file, numbers=list(wanted))
        except NoPixels as error:
            refused = str(error)
            continue
        for number, image, extent in zip(frames.numbers, frames.images, frames.ranges, strict=True):
            found[wanted[number or 1]] = _Seen((instance.sop_instance_uid, number), image, extent)
        progress(done / len(of_instance))
    if not found:
        raise CannotProceed(refused or "the series has no image")
    if refused:
        logger.warning("series %s: some images were left out: %s", series.uid, refused)
    return found
