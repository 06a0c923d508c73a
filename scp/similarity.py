"""Similar cases over DICOM, through two doors: the private block in an Identifier, and an AE title of its own.

Door 1 is the block of `scp.private_elements`, in the node's own SOP classes or in any Query/Retrieve Identifier. Door 2
is ``<AET>_SIM``, where a reference (``~<ref>``) in an ordinary key asks, or an image that was sent there before
(`scp.asking`), for viewers that know nothing of this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from config.application_entities import Right
from config.settings import SimilaritySettings
from index import query as catalogue_query
from index.answers import with_edge
from index.archive import StoredInstance
from index.errors import ArchiveError, InvalidIdentifier, SimilarityError, UnknownQuery
from index.keys import Level
from index.query import Model, QueryOptions
from index.questions import Questions
from index.similarity import (
    Aggregation,
    Exclude,
    Neighbour,
    Reference,
    SearchMode,
    Sent,
    Similarity,
    SimilarityAnswer,
    SimilarityRequest,
)
from index.views import Whole
from scp.caller import Caller
from scp.errors import ScpError
from scp.messages import Answer, FindRequest, RetrieveRequest
from scp.private_elements import put_block
from scp.query import edge
from scp.question import Question
from scp.status import CANCELLED, PENDING, PENDING_WARNING, SUCCESS

AUDIT = logging.getLogger("tharsis.audit")

MOST_RETRIEVED = 50
"""Similarity reveals that other patients exist; a retrieve sends no more neighbours than this."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_READ_BY = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")
"""What says how an Identifier is read, and selects nothing."""

_LONGEST_LO = 64


@dataclass(frozen=True)
class Desk:
    """Who answers similarity queries, by which settings, and what is stored as the caller sees it."""

    seen: Whole
    search: Similarity
    questions: Questions
    settings: SimilaritySettings


def find(desk: Desk, caller: Caller, request: FindRequest, asked: Question) -> Iterator[Answer]:
    """Yield one Pending answer a neighbour, in rank order, then the final one.

    Raises
    ------
    NotAuthorized
        The caller lacks the right ``similar`` (0124).
    InvalidIdentifier, UnknownQuery, NotEmbedded, UnknownModel, WrongDimension
        A900, C001, C002, C003, C004.
    QueryCancelled
        C-CANCEL came while something was being embedded (FE00).
    """
    answer, wanted = _search(desk, caller, request, asked, desk.settings.default_k)
    all_supported = wanted.filter is None or wanted.filter.all_supported
    options = _options(caller, request)
    identifiers = _identifiers(desk.seen, request.identifier, wanted.level, answer.neighbours, options)
    desk.seen.note(neighbour.sop_instance_uid for neighbour in answer.neighbours if neighbour.sop_instance_uid)
    for neighbour in answer.neighbours:
        if request.cancelled():
            yield Answer(CANCELLED)
            return
        identifier = identifiers.get(tuple(map(desk.seen.tell, _entity(wanted.level, neighbour))))
        if identifier is None:
            continue
        if asked.is_private:
            put_block(identifier, _block(neighbour, answer, desk.seen))
        else:
            _show(identifier, neighbour, asked, desk.settings)
        yield Answer(PENDING if all_supported else PENDING_WARNING, with_edge(identifier, edge(caller)))
    if wanted.sent is not None:
        desk.questions.close(caller.title)
    yield Answer(SUCCESS)


def matches(desk: Desk, caller: Caller, request: RetrieveRequest, asked: Question) -> list[StoredInstance]:
    """Return the instances of the neighbours, the best neighbour's first, at most those of `MOST_RETRIEVED`."""
    most = min(desk.settings.default_k, MOST_RETRIEVED)
    if int(asked.block.get("MaximumResults", 1)) > MOST_RETRIEVED:
        raise InvalidIdentifier(f"a retrieve sends at most {MOST_RETRIEVED} neighbours", element="MaximumResults")
    answer, wanted = _search(desk, caller, request, asked, most)
    found = []
    for neighbour in answer.neighbours:
        parsed = catalogue_query.parse_identifier(_uids(wanted.level, [neighbour]), Model.STUDY_ROOT, retrieve=True)
        found.extend(desk.seen.instances(parsed))
    return found


def _search(
    desk: Desk, caller: Caller, request: FindRequest | RetrieveRequest, asked: Question, default_k: int
) -> tuple[SimilarityAnswer, SimilarityRequest]:
    """Answer and leave an audit record: who, what, by which model, how many, or why not."""
    what = "asked" if isinstance(request, FindRequest) else f"retrieved to {request.destination or caller.title}"
    try:
        caller.require(Right.SIMILAR)
        wanted = _request(desk, caller, request, asked, default_k)
        try:
            answer = desk.search.search(wanted, request.cancelled)
        except SimilarityError as error:
            raise desk.seen.without_identity(error) from error
    except (ArchiveError, ScpError) as error:
        AUDIT.info(
            "similar cases refused to %s, called %s: %s: %s: %s", caller, caller.called, what, asked, error
        )
        raise
    AUDIT.info(
        "similar cases %s by %s, called %s: %s like %s, k=%d, model %s: %d neighbours",
        what, caller, caller.called, wanted.level, asked, wanted.k, answer.model_id, len(answer.neighbours),
    )  # fmt: skip
    return answer, wanted


def _request(
    desk: Desk, caller: Caller, request: FindRequest | RetrieveRequest, asked: Question, default_k: int
) -> SimilarityRequest:
    if len(asked.references) > 1:
        raise InvalidIdentifier(f"one reference (~...) can be asked about, got {len(asked.references)}")
    if asked.references and asked.names_something:
        raise InvalidIdentifier("ask by a reference (~...) or by the private block, not by both")
    issuer = str(request.identifier.get("IssuerOfPatientID") or "").strip()
    reference = desk.seen.reference(asked.references[0].text, issuer) if asked.references else Reference()
    sent = None
    if reference.is_bare and asked.about_sent and not asked.names_something:
        sent = _sent(desk, caller)
    block, options = asked.block, _options(caller, request)
    named = SimilarityRequest(
        level=catalogue_query.parse_level(request.identifier, Model.STUDY_ROOT, options=options),
        sop_instance_uid=reference.sop_instance_uid or _original(desk, block, "QuerySOPInstanceUID"),
        series_instance_uid=reference.series_instance_uid or _original(desk, block, "QuerySeriesInstanceUID"),
        study_instance_uid=reference.study_instance_uid or _original(desk, block, "QueryStudyInstanceUID"),
        vector=block.get("QueryVector"),
        frame_number=block.get("QueryFrameNumber"),
        region=block.get("QueryRegion"),
        sent=sent,
        k=reference.k or block.get("MaximumResults", default_k),
        minimum_score=block.get("MinimumScore", 0.0),
        model_id=block.get("ModelID", "" if sent is None else sent.model_id),
        aggregation=Aggregation.parse(block["Aggregation"]) if "Aggregation" in block else None,
        mode=SearchMode.parse(block["SearchMode"]) if "SearchMode" in block else None,
        filter=desk.seen.parse(request.identifier, Model.STUDY_ROOT, options=options),
    )
    if "Exclude" in block:
        return replace(named, exclude=frozenset(Exclude.parse(term) for term in block["Exclude"]))
    return named


def _options(caller: Caller, request: FindRequest | RetrieveRequest) -> QueryOptions:
    """Return how the filter is read: as every query of this caller, and without unique keys of higher levels."""
    return replace(request.options, relational=True, lenient=caller.lenient)


def _sent(desk: Desk, caller: Caller) -> Sent:
    sent = desk.questions.current(caller.title)
    if sent is None:
        raise UnknownQuery(f"{caller.title} has sent no image in the last {desk.settings.question_minutes:g} minutes")
    return desk.seen.sent(sent)


def _original(desk: Desk, block: dict[str, Any], keyword: str) -> str:
    """Return the UID by which the archive knows what the block names; empty when it does not name it."""
    told = str(block.get(keyword, ""))
    original = desk.seen.original(told) if told else ""
    if original is None:
        raise UnknownQuery(f"{keyword} is not one that was told here", element=keyword)
    return original


def _uids(level: Level, neighbours: Sequence[Neighbour]) -> Dataset:
    """Identifier that selects just these neighbours."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.value
    for place, keyword in enumerate(_UIDS[: level.depth]):
        setattr(identifier, keyword, [_entity(level, neighbour)[place] for neighbour in neighbours])
    return identifier


def _entity(level: Level, neighbour: Neighbour) -> tuple[str, ...]:
    """The UIDs of what is answered, from the study down to `level`."""
    uids = (neighbour.study_instance_uid, neighbour.series_instance_uid, neighbour.sop_instance_uid)
    return uids[: level.depth]


def _identifiers(
    seen: Whole, asked: Dataset, level: Level, neighbours: Sequence[Neighbour], options: QueryOptions
) -> dict[tuple[str, ...], Dataset]:
    """The answers with the keys asked for, by the UIDs that they tell; what was deleted meanwhile is missing."""
    if not neighbours:
        return {}
    identifier = Dataset()
    for element in asked:
        identifier.add_new(element.tag, element.VR, _unmatched(element))
    identifier.update(_uids(level, neighbours))
    for keyword in _READ_BY:
        if keyword in asked:
            identifier[keyword] = asked[keyword]
    parsed = catalogue_query.parse_identifier(identifier, Model.STUDY_ROOT, options=options)
    found = seen.find(parsed)
    return {tuple(str(answer[keyword].value) for keyword in _UIDS[: level.depth]): answer for answer in found}


def _unmatched(element: DataElement) -> list[Dataset] | None:
    """Return what asks for the same attribute, or the same attributes of items, whatever they are."""
    if element.VR != "SQ":
        return None
    items = []
    for asked in element.value or []:
        item = Dataset()
        for inner in asked:
            item.add_new(inner.tag, inner.VR, _unmatched(inner))
        items.append(item)
    return items


def _block(neighbour: Neighbour, answer: SimilarityAnswer, seen: Whole) -> dict[str, Any]:
    return {
        "Rank": neighbour.rank,
        "Score": neighbour.score,
        "Distance": neighbour.distance,
        "MatchedSOPInstanceUID": seen.tell(neighbour.sop_instance_uid) if neighbour.sop_instance_uid else None,
        "MatchedFrameNumber": neighbour.frame or None,
        "MatchedModelID": answer.model_id,
        "IndexSize": answer.index_size,
        "UsedSearchMode": answer.mode.value,
        "EstimatedRecall": answer.estimated_recall,
    }


def _show(identifier: Dataset, neighbour: Neighbour, asked: Question, settings: SimilaritySettings) -> None:
    """Show rank and score in the columns that every viewer has, and what was typed; only the response is touched."""
    if settings.decorate:
        if "StudyDescription" in identifier:
            told = identifier.StudyDescription or ""  # a backslash in it makes two values, here as in the Identifier
            original = told if isinstance(told, str) else "\\".join(told)
            shown = f"#{neighbour.rank:02d} {neighbour.score:.3f} | {original}"
            identifier.StudyDescription = shown[:_LONGEST_LO].rstrip()
        if "StudyID" in identifier:
            identifier.StudyID = f"SIM-{neighbour.rank:02d}"
    if settings.echo:
        for reference in asked.references:
            setattr(identifier, reference.keyword, reference.text.strip("* "))
