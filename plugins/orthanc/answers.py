"""What the node answers to the script in Orthanc: similar cases, how things stand, and that it has taken notes."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from config.identity import version
from config.settings import Settings
from index import derivations, elsewhere, jobs
from index.archive import Archive
from index.catalogue import has_series
from index.errors import InvalidIdentifier, NotEmbedded, NotFound
from index.keys import Level
from index.neighbours import Exclude, Neighbour, SimilarityRequest
from index.similarity import Similarity
from plugins.orthanc.comparing import ONCE, SUBJECT

AUDIT = logging.getLogger("tharsis.audit")

_ORTHANC_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_MOST_NOTES = 10_000
_FIRST = 0.0
"""Due date of what has just become stable: before all that a comparison has queued."""


class Answers:
    """Answers from one archive. Safe to share between threads.

    Parameters
    ----------
    search
        Finds similar cases.
    """

    def __init__(self, archive: Archive, settings: Settings, search: Similarity) -> None:
        self._archive = archive
        self._settings = settings
        self._search = search

    def take(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        """Queue what the script has noted: series that became stable, series and instances that were deleted.

        When this returns, the jobs are on disk.

        Raises
        ------
        InvalidIdentifier
            The notes are not two lists of Orthanc's identifiers.
        """
        stable, deleted = _identifiers(notes, "stable"), _identifiers(notes, "deleted")
        with self._archive.transaction() as database:
            series = {*stable, *elsewhere.series_by_instances(database, deleted)}
            series.update(each for each in deleted if elsewhere.find_series(database, each) is not None)
            for orthanc_id in sorted(series):
                jobs.push(database, jobs.ORTHANC_PULL, orthanc_id, not_before=_FIRST)
        return {"taken": len(stable) + len(deleted)}

    def greet(self) -> dict[str, Any]:
        """Orthanc has started: what waited for it is due, and the lists are compared."""
        for kind in (jobs.ORTHANC_PULL, jobs.ORTHANC_PUSH):
            self._archive.jobs.hasten(kind, {})
        self._archive.jobs.push(jobs.ORTHANC_COMPARE, SUBJECT, ONCE)
        return {"node": self._settings.scp.aet, "version": version()}

    def again(self, orthanc_id: str) -> dict[str, Any]:
        """Look at a series again: fetch what has changed, and do what is to be done with it.

        Raises
        ------
        NotFound
            There is no such series here.
        """
        series = self._series(orthanc_id)
        with self._archive.transaction() as database:
            if _ORTHANC_ID.fullmatch(orthanc_id):
                jobs.push(database, jobs.ORTHANC_PULL, orthanc_id, not_before=_FIRST)
            jobs.push(database, jobs.SERIES_STABLE, series, not_before=time.time())
        return {"queued": series}

    def status(self, orthanc_id: str = "") -> dict[str, Any]:
        """Return how the node stands and, of a series, what was made of it and what waits."""
        queue = self._archive.jobs
        told: dict[str, Any] = {
            "node": self._settings.scp.aet,
            "version": version(),
            "jobs": queue.counts(),
            "waiting": self._waiting(),
        }
        if orthanc_id:
            told["series"] = self._of_series(orthanc_id)
        return told

    def similar(
        self, name: str, *, k: int | None = None, exclude: Sequence[str] = (), asker: str = ""
    ) -> dict[str, Any]:
        """Return the neighbours of a series or a study, best first.

        Parameters
        ----------
        name
            Orthanc's identifier of a series or study, or a Series Instance UID.
        k
            Most neighbours; as ``default_k`` says when None.
        exclude
            SAME_SERIES, SAME_STUDY, SAME_PATIENT; the first when empty.
        asker
            Who asks, for the audit log.

        Raises
        ------
        NotFound, NotEmbedded, InvalidIdentifier, UnknownModel
            As `index.similarity.Similarity.search`.
        """
        if not self._settings.similarity.enabled:
            raise NotEmbedded("similarity is switched off in the settings of this node")
        study = elsewhere.study_uid(self._archive.database, name) if _ORTHANC_ID.fullmatch(name) else ""
        level = Level.STUDY if study else Level.SERIES
        series = "" if study else self._series(name)
        excluded = frozenset(Exclude.parse(term) for term in exclude) or frozenset({Exclude.SAME_SERIES})
        count = self._settings.similarity.default_k if k is None else k
        request = SimilarityRequest(
            level=level, series_instance_uid=series, study_instance_uid=study, k=count, exclude=excluded
        )
        answer = self._search.search(request)
        AUDIT.info(
            "similar cases asked in Orthanc by %s: %s like %s, k=%d, model %s: %d neighbours",
            asker or "somebody", level, name, count, answer.model_id, len(answer.neighbours),
        )  # fmt: skip
        return {
            "query": {
                "level": level.value,
                "seriesInstanceUid": series,
                "studyInstanceUid": study,
                **self._described(series or elsewhere.pictured_series(self._archive.database, study)),
            },
            "model": answer.model_id,
            "searchMode": answer.mode.value,
            "estimatedRecall": answer.estimated_recall,
            "neighbours": [told for each in answer.neighbours if (told := self._neighbour(each))],
        }

    def _neighbour(self, neighbour: Neighbour) -> dict[str, Any] | None:
        """A neighbour for a program and for a page; None when it was deleted meanwhile."""
        facts = self._described(neighbour.series_instance_uid, neighbour.sop_instance_uid)
        if not facts:
            return None
        return {
            "rank": neighbour.rank,
            "score": round(neighbour.score, 6),
            "distance": round(neighbour.distance, 6),
            "studyInstanceUid": neighbour.study_instance_uid,
            "seriesInstanceUid": neighbour.series_instance_uid,
            "frame": neighbour.frame,
            **facts,
        }

    def _described(self, series: str, image: str = "") -> dict[str, Any]:
        facts = elsewhere.described(self._archive.database, series, image)
        return {_camel_case(name): value for name, value in facts.items()}

    def _series(self, name: str) -> str:
        """Return the Series Instance UID of what is named; raises `NotFound`."""
        if _ORTHANC_ID.fullmatch(name):
            noted = elsewhere.find_series(self._archive.database, name)
            if noted is None:
                raise NotFound(
                    f"this node has not taken in Orthanc's series {name}: it does so when the series is stable"
                )
            name = noted.series_instance_uid
        if not has_series(self._archive.database, name):
            raise NotFound(f"no series {name[:64]} in the archive of this node")
        return name

    def _waiting(self) -> str:
        """What the oldest job waits for that cannot be done now; "" when none does."""
        row = self._archive.database.execute(
            "SELECT error FROM job WHERE state = 'queued' AND error <> '' AND kind IN (SELECT value FROM json_each(?)) "
            "ORDER BY id LIMIT 1",
            (json.dumps(jobs.ORTHANC_KINDS),),
        ).fetchone()
        return "" if row is None else str(row[0])

    def _of_series(self, orthanc_id: str) -> dict[str, Any]:
        database = self._archive.database
        noted = elsewhere.find_series(database, orthanc_id)
        uid = "" if noted is None else noted.series_instance_uid
        rows = database.execute(
            "SELECT kind, state, error FROM job WHERE subject IN (?, ?) ORDER BY id DESC LIMIT 20", (orthanc_id, uid)
        ).fetchall()
        made = database.execute(
            "SELECT json_extract(recipe, '$.kind'), json_array_length(outputs) FROM derivation WHERE source = ?", (uid,)
        ).fetchall()
        embedded = database.execute(
            "SELECT count(*) FROM embedding JOIN series ON series.id = embedding.series "
            "WHERE series.series_instance_uid = ? AND embedding.instance IS NOT NULL",
            (uid,),
        ).fetchone()[0]
        totals: Counter[str] = Counter()
        for kind, series in made:
            totals[str(kind)] += int(series)
        maker = derivations.maker(database, uid) if uid else None
        return {
            "seriesInstanceUid": uid,
            "isTakenIn": noted is not None,
            "madeFrom": maker.source if maker else None,
            "seriesMade": dict(totals),
            "imagesEmbedded": embedded,
            "jobs": [{"kind": kind, "state": state, "error": error} for kind, state, error in rows],
        }


def _identifiers(notes: Mapping[str, Any], key: str) -> list[str]:
    found = notes.get(key, [])
    if not isinstance(found, list) or len(found) > _MOST_NOTES:
        raise InvalidIdentifier(f"{key}: expected a list of at most {_MOST_NOTES} identifiers")
    for each in found:
        if not isinstance(each, str) or not _ORTHANC_ID.fullmatch(each):
            raise InvalidIdentifier(f"{key}: {str(each)[:64]!r} is no identifier of Orthanc's")
    return found


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)
