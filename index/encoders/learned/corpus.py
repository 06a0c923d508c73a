"""What training sees: canonical images with what is known of each, and which part each belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from index.split import is_held_out, patient_key

UNKNOWN = -1
"""Class of an image without a label."""

NO_TRUTH = 255
"""In a truth map: nobody has segmented this image."""

_VALIDATION = 0.15
"""Share of the training patients that early stopping watches."""

Images = npt.NDArray[np.float16]
Numbers = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Truth = npt.NDArray[np.uint8]
Part = npt.NDArray[np.bool_]
AnyNumber = TypeVar("AnyNumber", bound=np.integer[Any])


@dataclass(frozen=True, eq=False)
class Corpus:
    """Images and what is known of them; all arrays begin with the axis (n,).

    Attributes
    ----------
    images
        Canonical frames, axes (n, row, column); half precision, which is finer than what a display shows.
    labels
        Class numbers, `UNKNOWN` where there is no label.
    classes
        Names of the classes by their number.
    patients, studies, series
        Whom and what each image belongs to; a patient without an ID is "" here, see `patient_keys`.
    places
        Position of the image in its series: neighbours differ by 1.
    truth
        Segment numbers of the pixels, axes (n, row, column), `NO_TRUTH` throughout where there is no segmentation;
        None when no image has one.
    segments
        Names of the segments 1, 2, …
    left_out
        How many series of the archive take no part, since nothing of them can be read or decoded.
    """

    images: Images
    labels: Numbers
    classes: tuple[str, ...]
    patients: Texts
    studies: Texts
    series: Texts
    places: Numbers
    truth: Truth | None = None
    segments: tuple[str, ...] = ()
    left_out: int = 0

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        lengths = {len(value) for value in self._arrays().values()}
        if len(lengths) != 1:
            raise ValueError(f"expected arrays of one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.images)

    def part(self, chosen: Part) -> Corpus:
        """Return the images where `chosen`, axis (n,), is true, as a corpus of their own."""
        arrays: dict[str, Any] = {name: value[chosen] for name, value in self._arrays().items()}
        return replace(self, **arrays)

    def compact(self) -> Corpus:
        """Return the same images with only those classes and segments that occur, numbered anew in their order.

        What training sees does not then depend on names that only held-out patients have.
        """
        labels, classes = _renumbered(self.labels, self.classes, UNKNOWN)
        if self.truth is None:
            return replace(self, labels=labels, classes=classes, segments=())
        named = ("", *self.segments)
        truth, segments = _renumbered(self.truth, named, NO_TRUTH, always=(0,))
        has_truth = len(segments) > 1
        return replace(
            self, labels=labels, classes=classes, truth=truth if has_truth else None, segments=segments[1:]
        )

    @cached_property
    def patient_keys(self) -> Texts:
        """What stands for the patient of each image (`index.split.patient_key`), axis (n,)."""
        keys = [patient_key(*pair) for pair in zip(self.patients.tolist(), self.studies.tolist(), strict=True)]
        return np.array(keys, dtype=np.str_)

    @cached_property
    def neighbours(self) -> Numbers:
        """The images before and after each in its series, or itself; axes (n, 2)."""
        found = {(series, place): row for row, (series, place) in enumerate(zip(self.series, self.places, strict=True))}
        rows = [
            [found.get((series, place + step), row) for step in (-1, 1)]
            for row, (series, place) in enumerate(zip(self.series, self.places, strict=True))
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    def digest(self) -> str:
        """Return a fingerprint of all that training could see of it."""
        sha = hashlib.sha256(repr((self.classes, self.segments)).encode())
        for name, value in sorted(self._arrays().items()):
            sha.update(f"{name} {value.shape} {value.dtype}".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        return sha.hexdigest()

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _renumbered(
    numbers: npt.NDArray[AnyNumber], names: tuple[str, ...], none: int, always: tuple[int, ...] = ()
) -> tuple[npt.NDArray[AnyNumber], tuple[str, ...]]:
    """Return `numbers` without gaps and the names that go with them; `none` stays, and so do those in `always`."""
    used = [number for number in range(len(names)) if number in always or bool((numbers == number).any())]
    table = np.full(max(none, len(names)) + 1, none, dtype=numbers.dtype)
    table[used] = np.arange(len(used))
    return np.where(numbers == none, numbers, table[numbers]), tuple(names[number] for number in used)


@dataclass(frozen=True, eq=False)
class Split:
    """Three parts, disjoint by patient; each with the axis (n,) of the corpus.

    Attributes
    ----------
    training
        What the weights and the whitening are fitted on.
    validation
        What early stopping watches; of the training patients, and fitted on by nothing but the whitening.
    held_out
        What the report judges by. It influences nothing.
    """

    training: Part
    validation: Part
    held_out: Part


def split(corpus: Corpus, *, fraction: float, seed: int) -> Split:
    """Split by patient; the same patients are held out as in `tharsis evaluate` with that seed and fraction."""
    keys = corpus.patient_keys.tolist()
    held_out = np.array([is_held_out(key, seed=seed, fraction=fraction) for key in keys], dtype=np.bool_)
    validated = [is_held_out(f"validation {key}", seed=seed, fraction=_VALIDATION) for key in keys]
    validation = np.array(validated, dtype=np.bool_) & ~held_out
    return Split(~held_out & ~validation, validation, held_out)
