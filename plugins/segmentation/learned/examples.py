"""What a segmenter learns from: volumes with what annotations tell of their voxels, and which part each belongs to."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from index.split import is_held_out, patient_key
from plugins.segmentation.classes import SegmentClass
from plugins.segmentation.learned.inputs import Hounsfield
from plugins.segmentation.learned.losses import UNKNOWN

_VALIDATION = 0.15
"""Share of the training patients that early stopping watches."""

_BLOCK_SLICES = 8
"""Neighbouring slices show nearly the same, so that slices are held out in blocks of so many."""


@dataclass(frozen=True, eq=False)
class Example:
    """A volume, or a part of its slices.

    Attributes
    ----------
    patient, study, series
        Where it comes from.
    values
        HU ``(z, y, x)``, as `preparation.prepared` gives them.
    truth
        Class of each voxel, ``(z, y, x)``: 0 is background, `UNKNOWN` where no annotation tells.
    is_told
        Which classes the annotations tell of in each slice, axes (z, class); the background always.
    step
        Distance of the neighbours that the network sees, in slices.
    slice_mm
        Distance of slices, mm.
    lowest_mm
        Where the first slice lies along the axis from feet to head, mm.
    first
        Number of the first slice in the volume that this is a part of.
    """

    patient: str
    study: str
    series: str
    values: Hounsfield
    truth: npt.NDArray[np.uint8]
    is_told: npt.NDArray[np.bool_]
    step: float
    slice_mm: float
    lowest_mm: float = 0.0
    first: int = 0

    def part(self, first: int, last: int) -> Example:
        """Return the slices from `first` on and before `last`; what lies beyond them is not seen."""
        inside = slice(first, last)
        values, truth, is_told = self.values[inside], self.truth[inside], self.is_told[inside]
        lowest = self.lowest_mm + first * self.slice_mm
        return replace(
            self, values=values, truth=truth, is_told=is_told, lowest_mm=lowest, first=self.first + first
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """Volumes of one set of classes.

    Attributes
    ----------
    classes
        Class n of a truth is ``classes[n - 1]``.
    """

    classes: tuple[SegmentClass, ...]
    volumes: tuple[Example, ...]

    def slices(self) -> list[tuple[int, int]]:
        """Return (volume, slice) of each slice of which any annotation tells."""
        return [
            (number, at)
            for number, volume in enumerate(self.volumes)
            for at in np.flatnonzero((volume.truth != UNKNOWN).any(axis=(1, 2))).tolist()
        ]

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many voxels each class has, axis (class,), the background first."""
        total = np.zeros(1 + len(self.classes), dtype=np.int64)
        for volume in self.volumes:
            total += np.bincount(volume.truth.ravel(), minlength=256)[: len(total)]
        return total

    def digest(self) -> str:
        """Return a fingerprint of all that training could see of it."""
        sha = hashlib.sha256(repr([each.to_plain() for each in self.classes]).encode())
        for volume in self.volumes:
            sha.update(repr((volume.values.shape, volume.step)).encode())
            for part in (volume.values, volume.truth, volume.is_told):
                sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Parts:
    """Three parts that share no slice, and where they are split by patient no patient.

    Attributes
    ----------
    training
        What the weights are fitted on.
    validation
        What early stopping watches; may be empty.
    held_out
        What the report judges by. It influences nothing.
    """

    training: Examples
    validation: Examples
    held_out: Examples


def split_patients(examples: Examples, *, fraction: float, seed: int) -> Parts:
    """Split by patient; the same patients are held out as by `tharsis train` and `tharsis evaluate`."""
    keys = [patient_key(volume.patient, volume.study) for volume in examples.volumes]
    held_out = [is_held_out(key, seed=seed, fraction=fraction) for key in keys]
    watched = [is_held_out(f"validation {key}", seed=seed, fraction=_VALIDATION) for key in keys]
    return Parts(
        _chosen(examples, [not out and not watch for out, watch in zip(held_out, watched, strict=True)]),
        _chosen(examples, [not out and watch for out, watch in zip(held_out, watched, strict=True)]),
        _chosen(examples, held_out),
    )


def split_slices(examples: Examples, *, fraction: float, seed: int) -> Parts:
    """Split the slices of each volume, in blocks: for archives of too few patients.

    No part sees a slice of another, not even as the neighbour of one of its own. Held-out blocks are spread evenly, and
    are the same in all volumes of a patient.
    """
    training: list[Example] = []
    held_out: list[Example] = []
    numbers: dict[tuple[str, int], int] = {}
    thickness: dict[str, float] = {}
    phase = float(np.random.default_rng(seed).random())
    for volume in examples.volumes:
        patient = patient_key(volume.patient, volume.study)
        block_mm = thickness.setdefault(patient, _BLOCK_SLICES * volume.slice_mm)
        heights = volume.lowest_mm + (np.arange(len(volume.values)) + 0.5) * volume.slice_mm
        blocks = [
            numbers.setdefault((patient, int(block)), len(numbers)) for block in np.floor(heights / block_mm)
        ]
        steps = np.array(blocks) * fraction + phase
        is_out = np.asarray(np.floor(steps + fraction) > np.floor(steps))
        for out, first, last in _runs(is_out):
            (held_out if out else training).append(volume.part(first, last))
    nothing: tuple[Example, ...] = ()
    return Parts(
        Examples(examples.classes, tuple(training)),
        Examples(examples.classes, nothing),
        Examples(examples.classes, tuple(held_out)),
    )


def _chosen(examples: Examples, wanted: Sequence[bool]) -> Examples:
    volumes = tuple(volume for volume, is_wanted in zip(examples.volumes, wanted, strict=True) if is_wanted)
    return Examples(examples.classes, volumes)


def _runs(held_out: npt.NDArray[np.bool_]) -> Iterator[tuple[bool, int, int]]:
    """Yield (whether held out, first, last + 1) of each run of slices."""
    borders = [0, *(np.flatnonzero(np.diff(held_out)) + 1).tolist(), len(held_out)]
    for first, last in itertools.pairwise(borders):
        yield bool(held_out[first]), first, last
