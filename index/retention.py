"""Which studies the settings no longer let the archive keep, and their deletion, each one told.

Nothing goes silently: each deletion is a row of the change feed with its reason, a line of the log ``tharsis.audit``,
and counted. While ``dry_run`` is set nothing goes at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlite_utils import Database

from config.settings import RetentionSettings
from index.archive import Archive
from index.errors import NotFound, NotRemoved
from index.jobs import ROUTING_KINDS, SERIES_STABLE
from index.keys import Level
from index.tally import STUDIES_DELETED_BY_RETENTION, stored_bytes

audit = logging.getLogger("tharsis.audit")

BEGIN, END = 0.95, 0.90
"""Of the quota: above the first, studies go until no more than the second is in use."""

_UNTOUCHED = timedelta(hours=1)
"""A study of which something was received more recently may still be arriving: it stays."""


_SENDING = ", ".join(repr(kind) for kind in (SERIES_STABLE, *ROUTING_KINDS))
_TO_BE_SENT = (
    "EXISTS (SELECT 1 FROM series AS waiting JOIN job ON job.subject = waiting.series_instance_uid "
    f"WHERE waiting.study = study.id AND job.kind IN ({_SENDING}) AND job.state IN ('queued', 'running'))"
)
"""Condition: somebody is, or may be, still to be sent something of the study: no rule has seen a series of it yet, it
waits to be sent, or a destination has not yet said that it keeps it. A job that has failed keeps nothing."""


@dataclass(frozen=True)
class Due:
    """A study that is to go.

    Attributes
    ----------
    received_at
        When the last of its instances was received, ISO 8601 in UTC.
    size
        Of its files, bytes.
    reason
        One sentence.
    """

    study_instance_uid: str
    patient_id: str
    received_at: str
    instances: int
    size: int
    reason: str


def due(archive: Archive, settings: RetentionSettings, *, at: datetime | None = None) -> Iterator[Due]:
    """Yield the studies that are to go now, those first of which nothing was received for longest.

    A study of which a destination is still to be sent something, or has to confirm something, stays.

    Parameters
    ----------
    at
        Instead of the present moment.
    """
    moment = at or datetime.now(UTC)
    too_old = _too_old(moment, settings.keep_days)
    too_much = _excess(archive.database, settings)
    if not too_old and too_much <= 0:
        return
    latest = _text(moment - _UNTOUCHED)
    with archive.snapshot() as database:
        rows = database.execute(
            "SELECT study.study_instance_uid, patient.patient_id, max(instance.received_at) AS last, count(*), "
            "sum(instance.size) FROM instance JOIN series ON series.id = instance.series "
            "JOIN study ON study.id = series.study JOIN patient ON patient.id = study.patient "
            f"WHERE NOT {_TO_BE_SENT} GROUP BY study.id HAVING last < ? ORDER BY last, study.id",
            (latest,),
        )
        for uid, patient, last, instances, size in rows:
            if last < too_old:
                reason = f"retention: nothing received since {last[:10]}, kept for {settings.keep_days:g} days"
            elif too_much > 0:
                reason = f"retention: the quota of {settings.quota_gb:g} GB is used up, received {last[:10]}"
            else:
                return
            too_much -= size
            yield Due(uid, patient, last, instances, size, reason)


def _too_old(moment: datetime, keep_days: float) -> str:
    """Return what was received before that is too old; "": nothing is, as when it would be before all dates."""
    if not keep_days:
        return ""
    try:
        return _text(moment - timedelta(days=keep_days))
    except OverflowError:
        return ""


def _excess(database: Database, settings: RetentionSettings) -> float:
    """Return how many bytes have to go for the sake of the quota."""
    quota = settings.quota_gb * 1e9
    stored = stored_bytes(database)
    if not quota or settings.when_full == "refuse" or stored <= BEGIN * quota:
        return 0.0
    return stored - END * quota


def delete(archive: Archive, study: Due) -> bool:
    """Delete the study and tell it; False when something was received of it meanwhile, so that it stays.

    Files of it that the disk refuses to remove are told as well.
    """
    left = ""
    try:
        deleted = archive.delete(
            Level.STUDY,
            study.study_instance_uid,
            reason=study.reason,
            only_if=lambda database: _is_unchanged(database, study),
            counted_as=STUDIES_DELETED_BY_RETENTION,
        )
    except NotFound:  # somebody else deleted it
        return False
    except NotRemoved as error:
        deleted, left = error.done, str(error)
    if not deleted:
        return False
    audit.warning(
        "deleted study %s of patient %r: %d instances, %d bytes (%s)",
        study.study_instance_uid, study.patient_id, study.instances, study.size, study.reason,
    )
    if left:
        audit.error("study %s: %s", study.study_instance_uid, left)
    return True


def _is_unchanged(database: Database, study: Due) -> bool:
    """Whether nothing was received of the study, and nothing is to be sent of it, since it was found due."""
    row = database.execute(
        "SELECT max(instance.received_at) FROM instance JOIN series ON series.id = instance.series "
        f"JOIN study ON study.id = series.study WHERE study.study_instance_uid = ? AND NOT {_TO_BE_SENT}",
        (study.study_instance_uid,),
    ).fetchone()
    return str(row[0] or "") == study.received_at


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
