"""What is asked of a vector index and what it answers: values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from index.neighbours import SearchMode

Ids = npt.NDArray[np.int64]
"""Rows of the table `embedding`, by their id."""

_NO_IDS: Ids = np.empty(0, dtype=np.int64)


class Grain(StrEnum):
    """Which rows an index holds."""

    FRAME = "frame"
    SERIES = "series"


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows of an index compete.

    Attributes
    ----------
    among
        Only these; None: all.
    without
        Not these.
    """

    among: Ids | None = None
    without: Ids = field(default_factory=lambda: _NO_IDS)


@dataclass(frozen=True, eq=False)
class Hits:
    """Rows found, best first, rows of equal cosine in the order of their ids.

    Attributes
    ----------
    cosines
        Exact, whatever the mode: in double precision, from the stored vectors.
    complete
        Whether these are all rows that compete.
    mode
        How they were found.
    estimated_recall
        Lower 95 % confidence bound of the share of the true nearest that such a search finds; 1 for an exact one.
    """

    ids: Ids
    cosines: npt.NDArray[np.float64]
    complete: bool
    mode: SearchMode = SearchMode.EXACT
    estimated_recall: float = 1.0
