"""One similarity query at work: what it looks through, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from index.example import Example
from index.matches import Match
from index.neighbours import SearchMode, SimilarityRequest
from index.vectors import Selection, VectorIndex


@dataclass(frozen=True, eq=False)
class Search:
    """What one query looks through, in one state of the catalogue.

    Attributes
    ----------
    index
        Of the frames, or of the series.
    selection
        What of it competes.
    """

    database: Database
    model_id: str
    index: VectorIndex
    example: Example
    selection: Selection
    request: SimilarityRequest


@dataclass(frozen=True, eq=False)
class Found:
    """The best match of each entity, best first, and how they were found.

    Attributes
    ----------
    estimated_recall
        As of `SimilarityAnswer`.
    """

    matches: list[Match]
    mode: SearchMode = SearchMode.EXACT
    estimated_recall: float | None = 1.0
