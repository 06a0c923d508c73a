"""The slices of a stored series that are embedded, evenly spread over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from index.archive import Archive
from index.decoding import open_image
from index.encoders.encoder import Images
from index.encoders.pixels import NoPixels, canonical_frames
from plugins.embedding import _chosen_frames
from plugins.node import CannotProceed, Series

Frame = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Slices:
    frames: tuple[Frame, ...]
    images: Images


def choose_slices(archive: Archive, series: Series, most: int, progress: Callable[[float], None]) -> Slices:
    frames: list[Frame] = []
    images = []
    for instance, numbers in _chosen_frames(series, most):
        try:
            with open_image(series.instances[instance].path, archive.scratch_file) as (dataset, file):
                found = canonical_frames(dataset, file=file, numbers=numbers)
        except NoPixels:
            continue
        uid = series.instances[instance].sop_instance_uid
        frames += [(uid, number) for number in found.numbers]
        images.append(found.images)
    if not images:
        raise CannotProceed("the series has no image")
    return Slices(tuple(frames), np.concatenate(images))
