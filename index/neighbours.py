"""What is asked of the similarity query, and what it answers: values only, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from index.errors import InvalidIdentifier
from index.keys import Level
from index.query import Query
from index.unit_vectors import Vectors

MOST_RESULTS = 500
"""Largest Maximum Results of a query."""


Region = tuple[int, int, int, int]
"""x and y of the upper left pixel, from 0, width and height: a rectangle of pixels."""


class _Choice(StrEnum):
    """A defined term of the similarity request."""

    @classmethod
    def parse(cls, value: str) -> Self:
        """Return the term that `value` is; raises `InvalidIdentifier` and names the terms there are."""
        try:
            return cls(value.strip())
        except ValueError as error:
            terms = ", ".join(term.value for term in cls)
            raise InvalidIdentifier(f"{cls.__name__}: expected one of {terms}, got {value[:20]!r}") from error


class Aggregation(_Choice):
    """How two series are compared by the vectors of their frames."""

    INSTANCE = "INSTANCE"
    """The query's vector with each frame; what contains the frame ranks by its best one."""
    SERIES_MEAN = "SERIES_MEAN"
    """The query's vector with the mean of the series."""
    SERIES_MAX = "SERIES_MAX"
    """The best pair of a frame of the query and a frame of the series."""
    LATE_INTERACTION = "LATE_INTERACTION"
    """For each frame of the query its best partner in the series, averaged (Khattab and Zaharia, SIGIR 2020)."""


class Exclude(_Choice):
    """What of the query's own surroundings is not answered."""

    SAME_SERIES = "SAME_SERIES"
    SAME_STUDY = "SAME_STUDY"
    SAME_PATIENT = "SAME_PATIENT"


class SearchMode(_Choice):
    """How the index is searched."""

    EXACT = "EXACT"
    APPROX = "APPROX"


@dataclass(frozen=True, eq=False)
class Sent:
    """Images of one series that were sent to ask about them, and are not archived.

    Attributes
    ----------
    model_id
        Encoder of the vectors.
    vectors
        Of all frames, axes (n, d).
    patient_id, study_instance_uid, series_instance_uid, sop_instance_uids
        Whose images they are: should the archive hold that series, it is the query's own one.
    """

    model_id: str
    vectors: Vectors
    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SimilarityRequest:
    """A similarity query.

    Attributes
    ----------
    level
        What is returned: STUDY, SERIES or IMAGE.
    sop_instance_uid, series_instance_uid, study_instance_uid, vector, sent
        What is asked about: exactly one of them. `vector`, axis (d,), of any length but zero.
    frame_number
        Of `sop_instance_uid`, from 1; None: all of its frames.
    k
        Most neighbours answered.
    minimum_score
        0 to 1.
    model_id
        Empty: the active encoder.
    aggregation
        None: INSTANCE for images; LATE_INTERACTION for series and studies, of a shortlist where many frames compete and
        the mode is not EXACT. A study ranks by its best series.
    mode
        EXACT: every vector is compared. APPROX: by the approximate index, where there is one. None: the index's own
        choice.
    filter
        Ordinary matching that applies before the search. Conditions on images select, at the other levels, the
        series that have such an image.
    region
        Of `sop_instance_uid`, or of that frame of it.

    Raises
    ------
    InvalidIdentifier
        Conflicting, or not possible (Status A900).
    """

    level: Level
    sop_instance_uid: str = ""
    series_instance_uid: str = ""
    study_instance_uid: str = ""
    vector: Vectors | None = None
    frame_number: int | None = None
    k: int = 20
    minimum_score: float = 0.0
    model_id: str = ""
    aggregation: Aggregation | None = None
    exclude: frozenset[Exclude] = frozenset({Exclude.SAME_SERIES})
    mode: SearchMode | None = None
    filter: Query | None = None
    region: Region | None = None
    sent: Sent | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be answered."""
        self._check_what_is_asked_about()
        if self.level is Level.PATIENT:
            raise InvalidIdentifier(
                "similar STUDY, SERIES or IMAGE can be asked, not PATIENT", element="QueryRetrieveLevel"
            )
        if self.level is Level.IMAGE and self.how is not Aggregation.INSTANCE:
            raise InvalidIdentifier(f"{self.how} ranks series: ask at level SERIES or STUDY", element="Aggregation")
        if not 1 <= self.k <= MOST_RESULTS:
            raise InvalidIdentifier(f"1 to {MOST_RESULTS} results can be asked, got {self.k}", element="MaximumResults")
        if not 0.0 <= self.minimum_score <= 1.0:
            raise InvalidIdentifier(f"a score lies in 0 to 1, got {self.minimum_score}", element="MinimumScore")

    def _check_what_is_asked_about(self) -> None:
        named = [self.sop_instance_uid, self.series_instance_uid, self.study_instance_uid]
        given = sum(map(bool, named)) + (self.vector is not None) + (self.sent is not None)
        if given != 1:
            raise InvalidIdentifier(f"one query instance, series, study or vector is required, got {given}")
        if self.frame_number is not None and not self.sop_instance_uid:
            raise InvalidIdentifier("a query frame needs its query instance", element="QueryFrameNumber")
        if self.frame_number is not None and self.frame_number < 1:
            raise InvalidIdentifier(f"frames count from 1, got {self.frame_number}", element="QueryFrameNumber")
        if self.region is not None:
            self._check_region(self.region)

    def _check_region(self, region: Region) -> None:
        if not self.sop_instance_uid:
            raise InvalidIdentifier("a query region needs its query instance", element="QueryRegion")
        if len(region) != 4 or min(region) < 0 or min(region[2:]) < 1:
            raise InvalidIdentifier(
                f"a region is x, y, width and height in pixels, got {', '.join(map(str, region))[:40]}",
                element="QueryRegion",
            )

    @property
    def how(self) -> Aggregation | None:
        """The aggregation; where none is named INSTANCE for images, and None for series and studies."""
        if self.aggregation is not None:
            return self.aggregation
        return Aggregation.INSTANCE if self.level is Level.IMAGE else None


@dataclass(frozen=True)
class Neighbour:
    """One similar image, series or study.

    Attributes
    ----------
    rank
        From 1.
    score
        (1 + cosine) / 2: 0 to 1, 1 is identical.
    distance
        Euclidean, of the unit vectors: 0 to 2.
    sop_instance_uid
        The image, or the one by which the series or study ranks; empty where it ranks by its mean.
    frame
        Of that image, from 1; 0 when it has one frame only, or where there is no such image.
    series_instance_uid
        The series, or the best one of the study.
    """

    rank: int
    score: float
    distance: float
    sop_instance_uid: str
    frame: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str


@dataclass(frozen=True)
class SimilarityAnswer:
    """The neighbours, best first, and how they were found.

    Attributes
    ----------
    index_size
        Vectors that competed, after filters and exclusions: of frames, or of whole series for SERIES_MEAN.
    mode
        How they were found, whatever was asked: EXACT where nothing better can have been missed.
    estimated_recall
        Share of the true nearest that such a search finds: the lower 95 % confidence bound that was measured when the
        approximate index was made; for a shortlist, the share of these neighbours that are proved to be of the true
        ones. 1.0 for an exact search; None where no bound is known.
    """

    neighbours: tuple[Neighbour, ...]
    model_id: str
    index_size: int
    mode: SearchMode
    estimated_recall: float | None
