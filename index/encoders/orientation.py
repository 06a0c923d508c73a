"""How an image is turned so that it is seen as radiologists look at its plane, whichever way it was stored.

Axial: rows run towards the patient's left, columns towards the back. Coronal: left and feet. Sagittal: back and feet.
An oblique plane is turned like the nearest one; nothing is resampled, only rows and columns change places or direction.
Cross-sections say how they lie in Image Orientation (Patient) (PS3.3 C.7.6.2.1.1, per frame in enhanced objects), other
images in letters, Patient Orientation (PS3.3 C.7.6.1.1.1). For quadrupeds the standard defines the axes, too; their
letters are others (R is rostral, L lateral), and are not read. An image that says nothing, or nonsense, stays as it is
stored.

::

    LPS: x to the left, y to the back (posterior), z to the head

        axial               coronal             sagittal
        ──▶ +x left         ──▶ +x left         ──▶ +y back
        │                   │                   │
        ▼ +y back           ▼ -z feet           ▼ -z feet
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from index.encoders.functional_groups import of_frame

Direction = npt.NDArray[np.float64]
"""Axis (3,): unit vector in patient coordinates (LPS)."""

_X, _Y, _Z = np.eye(3)

_PLANES = ((_X, _Y), (_X, -_Z), (_Y, -_Z))
"""Of axial, coronal and sagittal: direction along a row, direction along a column, as they are to be seen."""

_LETTERS = {"L": _X, "R": -_X, "P": _Y, "A": -_Y, "H": _Z, "F": -_Z}

_SKEW = 0.05
"""Cosine between rows and columns, or difference of a length from 1, beyond which an orientation is nonsense."""

_DECIMALS = 4
"""Cosines closer than this are equal: of two planes equally near, the first is taken, whatever the rounding."""


@dataclass(frozen=True)
class Turn:
    """How rows and columns of an image change places and direction: transposed first, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def of(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of `image`, axes (row, column), turned."""
        if self.transpose:
            image = image.T
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


AS_STORED = Turn()


def turn_of(dataset: Dataset, index: int = 0) -> Turn:
    """Return what brings frame `index`, from 0, of `dataset` into the standard view of its plane."""
    directions = plane_of(dataset, index) or _by_letters(dataset)
    return AS_STORED if directions is None else _turn(*directions)


def plane_of(dataset: Dataset, index: int = 0) -> tuple[Direction, Direction] | None:
    """Return the directions along a row and along a column of frame `index`, by Image Orientation (Patient)."""
    try:
        values = np.asarray(
            of_frame(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient"), dtype=np.float64
        )
    except (TypeError, ValueError):
        return None
    if values.shape != (6,) or not np.isfinite(values).all():
        return None
    row, column = values[:3], values[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1.0).max() > _SKEW or abs(row @ column) > _SKEW:
        return None
    return row / lengths[0], column / lengths[1]


def _by_letters(dataset: Dataset) -> tuple[Direction, Direction] | None:
    """Return the directions by a biped's Patient Orientation: the first letter of each value is the main one."""
    if str(dataset.get("AnatomicalOrientationType", "") or "BIPED") != "BIPED":
        return None
    letters = dataset.get("PatientOrientation") or ()
    if isinstance(letters, str) or len(letters) != 2:
        return None
    row, column = (_LETTERS.get(str(value)[:1].upper()) for value in letters)
    if row is None or column is None or row @ column != 0.0:
        return None
    return row, column


def _turn(row: Direction, column: Direction) -> Turn:
    """Return the turn of a plane whose rows and columns run along `row` and `column`."""
    normal = np.cross(row, column)
    across, down = max(_PLANES, key=lambda plane: round(abs(float(np.cross(*plane) @ normal)), _DECIMALS))
    straight = abs(row @ across) + abs(column @ down)
    crossed = abs(row @ down) + abs(column @ across)
    transpose = bool(round(float(crossed - straight), _DECIMALS) > 0.0)
    seen_row, seen_column = (column, row) if transpose else (row, column)
    return Turn(transpose, flip_rows=bool(seen_column @ down < 0.0), flip_columns=bool(seen_row @ across < 0.0))
