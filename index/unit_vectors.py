"""Vectors of Euclidean length 1: making them, keeping them in a row, comparing them.

For unit vectors one number says it all: the cosine. Score and distance are two ways of writing it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""Unit vectors along the last axis, of length d."""

_STORED = np.dtype("<f4")


def unit(vectors: npt.ArrayLike) -> Vectors:
    """Scale `vectors`, axes (…, d), to length 1.

    Raises
    ------
    ValueError
        One of them has no direction: its length is zero or not finite.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths == 0.0):
        raise ValueError("a vector without direction: its length is zero or not finite")
    return np.asarray(rows / lengths, dtype=np.float32)


def mean_direction(vectors: npt.ArrayLike) -> Vectors:
    """Return the unit vector, axis (d,), along the mean of `vectors`, axes (n, d); raises like `unit`."""
    return unit(np.mean(np.asarray(vectors, dtype=np.float64), axis=0))


def whole_direction(vectors: npt.ArrayLike) -> Vectors:
    """Return the vector of a series, axis (2d,), of length 1, by those of its frames, axes (n, d).

    The direction of their mean beside that of their elementwise maximum, both of the same length: what most of it looks
    like, and whatever is to be seen in any of it. Of one vector v this is v beside v.

    Raises
    ------
    ValueError
        As `mean_direction`.
    """
    largest = np.max(np.asarray(vectors, dtype=np.float64), axis=0)
    length = np.linalg.norm(largest)
    half = largest / length if length > 0.0 else largest  # no component is positive anywhere: that half says nothing
    return unit(np.concatenate([mean_direction(vectors).astype(np.float64), half]))


def to_bytes(vector: Vectors) -> bytes:
    """Return `vector` as a row of the catalogue keeps it: float32, little endian."""
    return vector.astype(_STORED).tobytes()


def from_bytes(stored: bytes) -> Vectors:
    """Return the vector, axis (d,), that `to_bytes` wrote."""
    return np.frombuffer(stored, dtype=_STORED).astype(np.float32)


def cosines(vectors: Vectors, queries: Vectors) -> npt.NDArray[np.float64]:
    """Return the cosines, axes (n, m), of `vectors`, axes (n, d), with `queries`, axes (m, d).

    Computed in double precision and rounded to 12 decimals: equal vectors have equal cosines wherever they stand, and
    1 with themselves.
    """
    rows, columns = vectors.astype(np.float64), queries.astype(np.float64)
    found = rows @ columns.T
    found /= np.sqrt(np.vecdot(rows, rows)[:, None] * np.vecdot(columns, columns))
    np.round(found, 12, out=found)
    np.maximum(found, -1.0, out=found)
    return np.minimum(found, 1.0, out=found)


def score(cosine: float) -> float:
    """Return the similarity, 0 (opposite) to 1 (identical)."""
    return (1.0 + cosine) / 2.0


def distance(cosine: float) -> float:
    """Return the Euclidean distance, 0 to 2, of two unit vectors."""
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * cosine)))
