"""The last step of ingest: rows and the file's name, committed together with those of others who come then."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlite_utils import Database

from index import catalogue, changes, deletion, jobs
from index.admission import Arrival, Policy, Stored, compare, is_same_row, refusal
from index.arrivals import ArrivalJournal
from index.changes import ChangeKind
from index.database import Connections
from index.errors import ArchiveError, NotRemoved, OutOfSpace
from index.files import FileStore, is_valid_uid
from index.group_commit import NOTHING, GroupCommit, Written
from index.header import Header
from index.instances import Ingested, Outcome
from index.keys import Level
from index.senders import with_sender
from index.tally import require_quota

_LOG = logging.getLogger(__name__)

_MOST_SLACK_S = 1.0
"""How much later than after the settle time, or a tenth of it, a series may become stable, seconds."""

_JUST_NOW = timedelta(minutes=1)
"""A duplicate of what was received so short a time ago, from one who is known to have sent it, changes nothing."""


class Intake:
    """Brings arrivals into the catalogue.

    Parameters
    ----------
    settle_time_s
        A series is stable when nothing came for it in this time, seconds.
    quota_bytes
        Most that the stored files may take together; 0: no limit.
    journal
        Of arrivals.
    """

    def __init__(
        self,
        connections: Connections,
        files: FileStore,
        settle_time_s: float,
        quota_bytes: int,
        journal: ArrivalJournal,
    ) -> None:
        self._connections = connections
        self._files = files
        self._settle_time_s = settle_time_s
        self._quota_bytes = quota_bytes
        self._commits = GroupCommit(connections, journal)

    def store(self, arrival: Arrival, policy: Policy, *, announce: bool, within_quota: bool) -> Ingested:
        """Store an arrival whose bytes are flushed by and by, or go to the journal: see `index.archive.Archive.ingest`.

        Raises
        ------
        InstanceConflict, PatientMismatch, OutOfSpace
            As there.
        """
        header = arrival.header
        relative = self._files.new_path(*header.uids)
        before = catalogue.find_instance(self._connections.get(), header.sop_instance_uid)
        # Files are read here, where no other writer waits for it.
        entry = _Entry(before, compare(self._files, before, arrival))

        def work(database: Database) -> Written:
            return self._enter(
                database, arrival, policy, relative, entry, announce=announce, within_quota=within_quota
            )

        try:
            self._commits.run(work, arrival.arrived(relative) if arrival.is_journaled else None, arrival.wait)
        except BaseException:
            self._remove_unless_known(relative)
            raise
        if entry.standing is Stored.SAME:
            return _ingested(header, Outcome.DUPLICATE)
        if entry.refused is not None:
            raise entry.refused
        if entry.stored is not None:
            self._put_away(entry.replaced, entry.standing)
        return _ingested(header, Outcome.REPLACED if entry.replaced else Outcome.STORED)

    def _enter(
        self,
        database: Database,
        arrival: Arrival,
        policy: Policy,
        relative: str,
        entry: _Entry,
        *,
        announce: bool,
        within_quota: bool,
    ) -> Written:
        """Write what becomes of an arrival, inside the transaction; return what has to be on disk before its end."""
        header = arrival.header
        entry.look_again(self._files, catalogue.find_instance(database, header.sop_instance_uid), arrival)
        if entry.standing is Stored.SAME:
            _note_again(database, entry.stored, arrival)
            return NOTHING
        entry.refused = refusal(database, policy, arrival, entry.stored, entry.standing)
        if entry.refused is not None:
            return NOTHING
        if entry.stored is not None:
            entry.replaced = catalogue.remove_instance(database, header.sop_instance_uid)
            if entry.standing is Stored.OTHER:
                deletion.promise_removal(database, [entry.replaced])
        if within_quota:
            require_quota(database, self._quota_bytes, arrival.size)
        kind = ChangeKind.REPLACED if entry.replaced else ChangeKind.STORED
        self._insert(database, arrival, relative, kind, _senders(entry, arrival))
        if announce:
            self._announce(database, header, entry.stored)
        # Last, inside the transaction: the file has its name before the rows that promise it are committed. And not
        # before it is on disk: without rows, it is taken for one that is whole.
        arrival.wait()
        folders = self._files.place(arrival.incoming, relative, flushed=not arrival.is_journaled)
        if not arrival.is_journaled:
            return Written(folders)
        return Written(is_new=entry.stored is None)

    def remove_files(self, paths: Sequence[str]) -> dict[str, str]:
        """Remove files that no row points to any more, and, when that is on disk, the note that says so.

        Returns
        -------
        dict
            Path of each file that the disk refuses to remove, whose note stays, and why.
        """
        left = self._files.remove_all(paths)
        with self._connections.transaction() as database:
            deletion.keep_promise(database, [path for path in paths if path not in left])
        return left

    def _put_away(self, replaced: str, standing: Stored) -> None:
        """Remove the file of a replaced version; one that was damaged may still be of use to somebody."""
        if standing is Stored.OTHER:
            if left := self.remove_files([replaced]):
                _LOG.error("%s", not_removed(left))
        elif self._files.path(replaced).exists():
            self._files.quarantine(replaced)

    def _insert(
        self, database: Database, arrival: Arrival, relative: str, kind: ChangeKind, senders: str
    ) -> None:
        header, uid = arrival.header, arrival.header.sop_instance_uid
        catalogue.add_instance(
            database,
            header,
            path=relative,
            size=arrival.size,
            sha256=arrival.sha256,
            source_aet=senders,
        )
        changes.append(database, kind, Level.IMAGE, uid, arrival.source_aet)
        for wrong in (each for each in header.uids if not is_valid_uid(each)):
            changes.append(database, ChangeKind.UID_NONCONFORMING, Level.IMAGE, uid, wrong[:80])
        if arrival.cut_off:
            changes.append(database, ChangeKind.CUT_OFF, Level.IMAGE, uid, arrival.cut_off)

    def _announce(self, database: Database, header: Header, replaced: dict[str, Any] | None) -> None:
        due = time.time() + self._settle_time_s
        slack_s = min(_MOST_SLACK_S, self._settle_time_s / 10)
        jobs.postpone(database, jobs.SERIES_STABLE, header.series_instance_uid, due=due, slack_s=slack_s)
        left = replaced["series_instance_uid"] if replaced else header.series_instance_uid
        if left != header.series_instance_uid and catalogue.has_series(database, left):
            jobs.push(database, jobs.SERIES_STABLE, left, not_before=due)  # without its instance it has changed as well

    def _remove_unless_known(self, relative: str) -> None:
        """Clean up after a transaction that failed, unless it was committed after all."""
        if not self._files.path(relative).exists():
            return
        # When even this fails, the file stays behind, unknown to the catalogue: the first error is the one to report.
        with suppress(sqlite3.Error, OSError, OutOfSpace), self._connections.transaction() as database:
            if not catalogue.is_known(database, relative):
                self._files.remove(relative)


def not_removed(left: Mapping[str, str], done: int = 0) -> NotRemoved:
    """Return the error that says which files `remove_files` has left, and why the first of them."""
    path, why = next(iter(left.items()))
    more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
    return NotRemoved(
        f"the disk refuses to remove {path}{more} ({why}), whose rows are deleted: the next start of a node tries "
        "again, and so does `tharsis fsck --repair`",
        done=done,
    )


def _note_again(database: Database, stored: dict[str, Any] | None, arrival: Arrival) -> None:
    """Note that what is stored was received once more, and from whom: one small statement, and none most often."""
    if stored is None:
        return
    senders = with_sender(stored["source_aet"], arrival.source_aet)
    just_now = (datetime.now(UTC) - _JUST_NOW).isoformat(timespec="milliseconds")
    if senders != stored["source_aet"] or stored["received_at"] < just_now:
        catalogue.note_received_again(database, stored["id"], senders)


class _Entry:
    """What is known of an arrival on its way.

    Parameters
    ----------
    stored
        The row of the instance of the same UID, None when there is none.
    standing
        What `compare` says of it.
    """

    def __init__(self, stored: dict[str, Any] | None, standing: Stored) -> None:
        self.stored = stored
        self.standing = standing
        self.refused: ArchiveError | None = None
        self.replaced = ""

    def look_again(self, files: FileStore, stored: dict[str, Any] | None, arrival: Arrival) -> None:
        """Compare once more when the row has become another one meanwhile."""
        if not is_same_row(self.stored, stored):
            self.standing = compare(files, stored, arrival)
        self.stored = stored


def _senders(entry: _Entry, arrival: Arrival) -> str:
    """Return who has sent what is to be stored: a file that replaces a damaged one was sent by others before."""
    if entry.stored is None or entry.standing is not Stored.DAMAGED:
        return arrival.source_aet
    return with_sender(entry.stored["source_aet"], arrival.source_aet)


def _ingested(header: Header, outcome: Outcome) -> Ingested:
    return Ingested(header.sop_instance_uid, header.series_instance_uid, header.study_instance_uid, outcome)
