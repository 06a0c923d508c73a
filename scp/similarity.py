"""Similar cases over DICOM, through two doors: the private block in an Identifier, and an AE title of its own.

Door 1 is the block of `scp.private_elements`, in the node's own SOP classes or in any Query/Retrieve Identifier. Door 2
is ``<AET>_SIM``, where a reference (``~<ref>``) in an ordinary key asks, for viewers that know nothing of this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from config.application_entities import Right
from config.settings import SimilaritySettings
from index import query as catalogue_query
from index.archive import Archive, StoredInstance
from index.errors import ArchiveError, InvalidIdentifier
from index.keys import Level
from index.query import Model, QueryOptions
from index.similarity import (
    Aggregation,
    Exclude,
    Neighbour,
    SearchMode,
    Similarity,
    SimilarityAnswer,
    SimilarityRequest,
    resolve_reference,
)
from scp.caller import Caller
from scp.errors import ScpError
from scp.messages import Answer, FindRequest, RetrieveRequest
from scp.private_elements import put_block
from scp.query import complete
from scp.question import Question
from scp.status import CANCELLED, PENDING, PENDING_WARNING, SUCCESS

AUDIT = logging.getLogger("tharsis.audit")

MOST_RETRIEVED = 50
"""Similarity reveals that other patients exist; a retrieve sends no more neighbours than this."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_LONGEST_LO = 64


def find(
    search: Similarity,
    archive: Archive,
    settings: SimilaritySettings,
    caller: Caller,
    request: FindRequest,
    asked: Question,
) -> Iterator[Answer]:
    """Yield one Pending answer a neighbour, in rank order, then the final one.

    Raises
    ------
    NotAuthorized
        The caller lacks the right ``similar`` (0124).
    InvalidIdentifier, UnknownQuery, NotEmbedded, UnknownModel, WrongDimension
        A900, C001, C002, C003, C004.
    """
    answer, wanted = _search(search, archive, caller, request, asked, settings.default_k)
    all_supported = wanted.filter is None or wanted.filter.all_supported
    for neighbour in answer.neighbours:
        if request.cancelled():
            yield Answer(CANCELLED)
            return
        identifier = _identifier(archive, request.identifier, wanted.level, neighbour)
        if identifier is None:
            continue
        if asked.references:
            if settings.decorate:
                _decorate(identifier, neighbour)
        else:
            put_block(identifier, _block(neighbour, answer))
        yield Answer(PENDING if all_supported else PENDING_WARNING, complete(identifier, caller))
    yield Answer(SUCCESS)


def matches(
    search: Similarity,
    archive: Archive,
    settings: SimilaritySettings,
    caller: Caller,
    request: RetrieveRequest,
    asked: Question,
) -> list[StoredInstance]:
    """Return the instances of the neighbours, the best neighbour's first, at most those of `MOST_RETRIEVED`."""
    most = min(settings.default_k, MOST_RETRIEVED)
    if int(asked.block.get("MaximumResults", 1)) > MOST_RETRIEVED:
        raise InvalidIdentifier(f"a retrieve sends at most {MOST_RETRIEVED} neighbours")
    answer, wanted = _search(search, archive, caller, request, asked, most)
    found = []
    for neighbour in answer.neighbours:
        parsed = catalogue_query.parse_identifier(_uids(wanted.level, neighbour), Model.STUDY_ROOT, retrieve=True)
        found.extend(catalogue_query.instances(archive, parsed))
    return found


def _search(
    search: Similarity,
    archive: Archive,
    caller: Caller,
    request: FindRequest | RetrieveRequest,
    asked: Question,
    default_k: int,
) -> tuple[SimilarityAnswer, SimilarityRequest]:
    what = ", ".join([*asked.references, *(f"{key}={value!s:.80}" for key, value in asked.block.items())])
    try:
        caller.require(Right.SIMILAR)
        wanted = _request(archive, request, asked, default_k)
        answer = search.search(wanted)
    except (ArchiveError, ScpError) as error:
        AUDIT.info("similar cases refused to %s, called %s: %s: %s", caller, caller.called, what, error)
        raise
    AUDIT.info(
        "similar cases asked by %s, called %s: %s like %s, k=%d: %d neighbours",
        caller, caller.called, wanted.level, what, wanted.k, len(answer.neighbours),
    )  # fmt: skip
    return answer, wanted


def _request(
    archive: Archive, request: FindRequest | RetrieveRequest, asked: Question, default_k: int
) -> SimilarityRequest:
    if len(asked.references) > 1:
        raise InvalidIdentifier(f"one reference (~...) can be asked about, got {len(asked.references)}")
    if asked.references and asked.block:
        raise InvalidIdentifier("ask by a reference (~...) or by the private block, not by both")
    level = catalogue_query.parse_level(request.identifier, Model.STUDY_ROOT)
    keys = catalogue_query.parse_identifier(request.identifier, Model.STUDY_ROOT, options=QueryOptions(relational=True))
    if asked.references:
        found = resolve_reference(archive, asked.references[0])
        return SimilarityRequest(
            level=level,
            sop_instance_uid=found.sop_instance_uid,
            series_instance_uid=found.series_instance_uid,
            study_instance_uid=found.study_instance_uid,
            k=found.k or default_k,
            filter=keys,
        )
    block = asked.block
    plain = SimilarityRequest(
        level=level,
        sop_instance_uid=block.get("QuerySOPInstanceUID", ""),
        series_instance_uid=block.get("QuerySeriesInstanceUID", ""),
        study_instance_uid=block.get("QueryStudyInstanceUID", ""),
        vector=block.get("QueryVector"),
        frame_number=block.get("QueryFrameNumber"),
        region=block.get("QueryRegion"),
        k=block.get("MaximumResults", default_k),
        minimum_score=block.get("MinimumScore", 0.0),
        model_id=block.get("ModelID", ""),
        aggregation=Aggregation.parse(block["Aggregation"]) if "Aggregation" in block else None,
        mode=SearchMode.parse(block["SearchMode"]) if "SearchMode" in block else None,
        filter=keys,
    )
    if "Exclude" in block:
        return replace(plain, exclude=frozenset(Exclude.parse(term) for term in block["Exclude"]))
    return plain


def _uids(level: Level, neighbour: Neighbour) -> Dataset:
    """Identifier that selects just this neighbour."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.value
    values = (neighbour.study_instance_uid, neighbour.series_instance_uid, neighbour.sop_instance_uid)
    for keyword, value in zip(_UIDS[: level.depth], values, strict=False):
        setattr(identifier, keyword, value)
    return identifier


def _identifier(archive: Archive, asked: Dataset, level: Level, neighbour: Neighbour) -> Dataset | None:
    """The catalogue's answer for this neighbour with the keys asked for; None when it was deleted meanwhile."""
    identifier = Dataset()
    for element in asked:
        identifier.add_new(element.tag, element.VR, None)
    identifier.update(_uids(level, neighbour))
    if "SpecificCharacterSet" in asked:
        identifier.SpecificCharacterSet = asked.SpecificCharacterSet
    parsed = catalogue_query.parse_identifier(identifier, Model.STUDY_ROOT)
    return next(catalogue_query.find(archive, parsed), None)


def _block(neighbour: Neighbour, answer: SimilarityAnswer) -> dict[str, Any]:
    return {
        "Rank": neighbour.rank,
        "Score": neighbour.score,
        "Distance": neighbour.distance,
        "MatchedSOPInstanceUID": neighbour.sop_instance_uid or None,
        "MatchedFrameNumber": neighbour.frame or None,
        "MatchedModelID": answer.model_id,
        "IndexSize": answer.index_size,
        "UsedSearchMode": answer.mode.value,
        "EstimatedRecall": answer.estimated_recall,
    }


def _decorate(identifier: Dataset, neighbour: Neighbour) -> None:
    """Show rank and score in the columns that every viewer has; only the response is touched."""
    if "StudyDescription" in identifier:
        original = str(identifier.StudyDescription or "")
        shown = f"#{neighbour.rank:02d} {neighbour.score:.3f} | {original}"
        identifier.StudyDescription = shown[:_LONGEST_LO].rstrip()
    if "StudyID" in identifier:
        identifier.StudyID = f"SIM-{neighbour.rank:02d}"
