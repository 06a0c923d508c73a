"""Derived objects into the archive: through the same door as everything else, whole series at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset

from config.identity import UID_ROOT
from index import derivations, jobs
from index.archive import Archive
from index.derivations import Output
from index.errors import NotFound, NotRemoved
from index.keys import Level
from plugins.node import CannotProceed

logger = logging.getLogger(__name__)

_DERIVED = f"{UID_ROOT}.3."
"""How the UIDs of derived objects begin, see `config.identity.derived_uid`."""


def publish(archive: Archive, objects: Iterable[Dataset]) -> Output:
    """Store `objects`, in place of all that an earlier run of the same recipe made in their series.

    The series is not announced as stable: `record` does that in the transaction that records the derivation.

    Parameters
    ----------
    objects
        Data sets with File Meta Information, at least one, all of one series.

    Raises
    ------
    CannotProceed
        An instance of that UID is stored in another study.
    ValueError
        There is none, or one of another series, which nobody would ever be told of.
    """
    series, written = "", set()
    for dataset in objects:
        if series and dataset.SeriesInstanceUID != series:
            raise ValueError(f"publish: expected objects of series {series}, got one of {dataset.SeriesInstanceUID}")
        _refuse_other_study(archive, dataset)
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        ingested = archive.ingest(buffer.getvalue(), overwrite="always", announce=False)
        series = ingested.series_instance_uid
        written.add(ingested.sop_instance_uid)
    if not written:
        raise ValueError("publish: expected at least one object, got none")
    _remove_others(archive, series, written)
    return Output(series, len(written))


def is_made(archive: Archive, source: str, recipe: Mapping[str, Any], digest: str) -> bool:
    """Whether (source, recipe) has been carried out on this content of the source, and all it made still exists."""
    derivation = derivations.find(archive.database, source, recipe)
    if derivation is None or derivation.source_digest != digest:
        return False
    return derivations.is_whole(archive.database, source, recipe)


def record(
    archive: Archive, source: str, recipe: Mapping[str, Any], digest: str, outputs: Sequence[Output]
) -> None:
    """Record that (source, recipe) made `outputs`, and announce these; what it made before and now does not is removed.

    Removed first: when this is interrupted, the old record no longer counts as whole and the work is done again.
    """
    for uid in derivations.stale_outputs(archive.database, source, recipe, outputs):
        _remove(archive, Level.SERIES, uid)
    with archive.transaction() as database:
        derivations.record(database, source, recipe, digest, outputs)
        for output in outputs:
            jobs.push(database, jobs.SERIES_STABLE, output.series_instance_uid)


def withdraw(archive: Archive, series_instance_uid: str) -> None:
    """Remove a series that was published, perhaps in part, for work that was given up; one that is recorded stays."""
    if derivations.maker(archive.database, series_instance_uid) is None:
        _remove(archive, Level.SERIES, series_instance_uid)


def _refuse_other_study(archive: Archive, dataset: Dataset) -> None:
    try:
        stored = archive.open_instance(str(dataset.SOPInstanceUID))
    except NotFound:
        return
    if stored.study_instance_uid != dataset.StudyInstanceUID:
        raise CannotProceed(
            f"instance {dataset.SOPInstanceUID} belongs to study {stored.study_instance_uid}: what was made in study "
            f"{dataset.StudyInstanceUID} cannot replace it"
        )


def _remove_others(archive: Archive, series: str, written: set[str]) -> None:
    """Delete what is left of an earlier run that made more instances; nothing that came from outside."""
    rows = archive.database.execute(
        "SELECT instance.sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid = ?",
        (series,),
    ).fetchall()
    for (uid,) in rows:
        if uid not in written and uid.startswith(_DERIVED):
            _remove(archive, Level.IMAGE, uid)


def _remove(archive: Archive, level: Level, uid: str) -> None:
    """Delete what was derived; a file that the disk keeps is no reason to derive it again."""
    try:
        archive.delete(level, uid)
    except NotFound:  # somebody else removed it
        pass
    except NotRemoved as error:
        logger.error("%s", error)  # noqa: TRY400  (the sentence says it all)
