"""The archive: the one door in and out of what is stored.

C-STORE, imports, derived objects and every later door go through `Archive.ingest`: one atomic file write, then one
transaction that makes the instance findable, appends to the change feed and puts the work due into the job queue. What
a C-STORE brings is safe by the journal of arrivals before its file has reached the disk.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from config.settings import ArchiveSettings
from index import changes, deletion, jobs, recovery
from index.admission import Arrival, Policy, require_expected
from index.alike import Alike
from index.arrivals import FOLDER, ArrivalJournal
from index.catalogue import find_instance
from index.changes import ChangeKind
from index.database import CATALOGUE_FILE, Connections, first_in_line
from index.durable import flush
from index.errors import ArchiveError, CatalogueLost, NotFound, NotRecovered
from index.files import FileStore, flush_and_digest, incoming_prefix
from index.header import WANTED, Header, header_of, read_header
from index.instances import Ingested, Outcome, Received, StoredInstance
from index.intake import Intake, not_removed
from index.keys import Level
from index.structure import DEEPEST, scan
from index.tally import count, require_quota

_PAGE = 1000


class Archive:
    """Files, catalogue, change feed and job queue below one data folder. Safe to share between threads.

    Parameters
    ----------
    data
        The data folder; made when absent.
    settle_time_s
        A series is stable when nothing came for it in this time, seconds.
    overwrite
        What to do with the same SOP Instance UID and other content: ``never``, ``same_source`` or ``always``.
    reserve_mb
        MiB that stay free on the file system.
    quota_bytes
        Most that the stored files may take together; 0: no limit.
    patient_mismatch
        What to do with an instance of a study that belongs to another patient: ``accept`` or ``reject``.
    max_nesting
        Sequences that may lie inside each other.

    Raises
    ------
    CatalogueLost
        The folder has stored files and no catalogue: starting with an empty one would hide all of them.
    NotRecovered
        After a power cut, what the journal of arrivals has cannot be brought back now.
    """

    def __init__(
        self,
        data: Path,
        *,
        settle_time_s: float = 10.0,
        overwrite: str = "never",
        reserve_mb: int = 0,
        quota_bytes: int = 0,
        patient_mismatch: str = "accept",
        max_nesting: int = 64,
    ) -> None:
        self.data = data.resolve()
        self._files = FileStore(self.data, reserve_mb)
        if not (self.data / CATALOGUE_FILE).exists() and self._files.holds_any():
            raise CatalogueLost(
                f"{self.data} has stored files, but no {CATALOGUE_FILE}: `tharsis rebuild` makes it again from them"
            )
        self._connections = Connections(self.data / CATALOGUE_FILE)
        self._settle_time_s = settle_time_s
        self._policy = Policy(overwrite, patient_mismatch)
        self._quota_bytes = quota_bytes
        self._max_nesting = max_nesting
        self._alike = Alike()
        self.jobs = jobs.JobQueue(self._connections)
        self._journal = ArrivalJournal(self.data, self._connections)
        self._intake = Intake(self._connections, self._files, settle_time_s, quota_bytes, self._journal)
        if self._journal.is_in_doubt(self.database):
            self._recover()

    @classmethod
    def from_settings(cls, settings: ArchiveSettings, *, quota_gb: float = 0.0) -> Archive:
        """Open the archive that the settings describe.

        Parameters
        ----------
        quota_gb
            Of ``[retention]``, GB; 0: no limit.
        """
        return cls(
            settings.data,
            settle_time_s=settings.settle_time_s,
            overwrite=settings.overwrite,
            reserve_mb=settings.reserve_mb,
            quota_bytes=int(quota_gb * 1e9),
            patient_mismatch=settings.patient_mismatch,
            max_nesting=settings.max_nesting,
        )

    def expect_arrivals(self) -> None:
        """Make ready for instances to be stored, behind what else is done: the first hardly waits for the disk then."""
        self._journal.begin()

    @property
    def database(self) -> Database:
        """The connection of the calling thread, for reading."""
        return self._connections.get()

    def snapshot(self) -> AbstractContextManager[Database]:
        """Give a connection of its own, for rows that are read at leisure; see `Connections.snapshot`."""
        return self._connections.snapshot()

    def reading(self) -> AbstractContextManager[Database]:
        """Give a connection for one query, whose cursor is closed behind it; see `Connections.reading`."""
        return self._connections.reading()

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """Run a block as one write transaction."""
        with self._connections.transaction() as database:
            yield database

    def write_catalogue(self) -> None:
        """Write to the catalogue's file, and flush, what its log has; raises `CatalogueBusy` when others keep it."""
        self._connections.write_log()

    @property
    def incoming(self) -> Path:
        """Folder for half-received files, on the file system of the archive."""
        return self._files.incoming

    def require_space(self, size: int = 0) -> None:
        """Raise `OutOfSpace` when `size` more bytes would eat into the reserve, or the quota is used up."""
        self._files.require_space(size)
        require_quota(self.database, self._quota_bytes, size)

    def require_reserve(self, size: int) -> None:
        """Raise `OutOfSpace` when `size` more bytes of a file that is under way would eat into the reserve."""
        self._files.require_space(size)

    def new_file(self, size: int) -> Path:
        """Return the path of a file in `incoming` for an object to be received; raises `OutOfSpace`.

        Parameters
        ----------
        size
            Of an object that is there already and ingested with its content (`Received.content`), bytes: it is for the
            caller to write. 0 for one that is still to come: its file is there, empty, and that name is on disk, so
            that its bytes alone have to be flushed; there has to be room for them (`require_reserve`).
        """
        self.require_space(size)
        return self._files.new_name() if size else self._files.named_file()

    def scratch_file(self, size: int) -> Path:
        """Make an empty file in `incoming` for `size` bytes that do not stay; raises `OutOfSpace`."""
        self._files.require_space(size)
        handle, name = tempfile.mkstemp(dir=self.incoming, prefix=incoming_prefix(), suffix=".scratch")
        os.close(handle)
        return Path(name)

    def clear_incoming(self, process: int | None = None) -> int:
        """Delete what an earlier run left half-received (call once, before anything is received).

        Parameters
        ----------
        process
            Only what the process with that ID, which has died, left.
        """
        return self._files.clear_incoming(process)

    def finish_removals(self) -> int:
        """Remove the files that a deletion or replacement left because its process died; return how many.

        Raises
        ------
        NotRemoved
            The disk refuses to remove some; all others have gone.
        """
        removed, last = 0, ""
        left: dict[str, str] = {}
        with self.transaction() as database:
            deletion.revoke_promises(database)
        while paths := deletion.promised(self.database, _PAGE, last):
            left.update(self._intake.remove_files(paths))
            removed, last = removed + len(paths), paths[-1]
        if left:
            raise not_removed(left, removed - len(left))
        return removed

    @property
    def files(self) -> FileStore:
        """The files below the data folder, for those who check and repair them."""
        return self._files

    def close(self) -> None:
        """Close this thread's connection."""
        self._connections.close()

    def ingest(
        self,
        source: Path | bytes,
        *,
        source_aet: str = "",
        overwrite: str | None = None,
        expected: tuple[str, str] | None = None,
        announce: bool = True,
        readmit: bool = False,
        within_reserve: bool = True,
        received: Received | None = None,
    ) -> Ingested:
        """Store one instance. When this returns, neither a crash nor a power cut takes it away.

        Parameters
        ----------
        source
            A whole Part 10 file: bytes, a path in `incoming` (moved) or any other path (copied).
        source_aet
            AE title that sent it; empty for an import.
        overwrite
            Instead of the archive's own policy; derived objects use ``always``.
        expected
            (SOP Class UID, SOP Instance UID) that the C-STORE command named.
        announce
            Let the series become stable after the settle time. False for one who makes a whole series and queues
            `series_stable` when it is whole.
        readmit
            It was accepted once and its file is stored already: neither the quota nor what the settings say by now of
            other patients and of nesting keeps it out.
        within_reserve
            False: nor does what is to stay free.
        received
            What is known of `source`, a path in `incoming`, already: it is not read again to find out.

        Raises
        ------
        InvalidInstance
            Unreadable, nested too deeply, without its UIDs, or not what the command named.
        InstanceConflict
            Same SOP Instance UID with other content, and the policy keeps the old one.
        PatientMismatch
            The study belongs to another patient, and the policy refuses that.
        OutOfSpace
            The reserve or the quota would be exceeded, or the disk is full.
        """
        self._refuse_outer_transaction()
        content = received.content if received is not None else b""
        if content and isinstance(source, Path):
            incoming = source
        else:
            incoming = self._files.receive(source, within_reserve=within_reserve)
        is_placed = False
        try:
            nesting = DEEPEST if readmit else self._max_nesting
            header, cut_off = self._read(incoming, received, nesting, named_by_meta=expected is None)
            require_expected(header, expected)
            arrival = _arrival(incoming, header, source_aet, cut_off, received)
            policy = replace(self._policy, overwrite=overwrite) if overwrite else self._policy
            if readmit:
                policy = replace(policy, patient_mismatch="accept")
            ingested = self._intake.store(arrival, policy, announce=announce, within_quota=not readmit)
            is_placed = ingested.outcome is not Outcome.DUPLICATE
            return replace(ingested, cut_off=cut_off) if cut_off else ingested
        finally:
            self._files.release(incoming, is_placed=is_placed)

    def _read(
        self, incoming: Path, received: Received | None, most_nesting: int, *, named_by_meta: bool
    ) -> tuple[Header, str]:
        """Return the header, and where the data set is cut off; raises `InvalidInstance`."""
        begin = (received.offset, received.transfer_syntax_uid) if received is not None else None
        memory = received.memory if received is not None else None
        if memory is not None and begin is not None:
            header = self._alike.header(memory, begin, most_nesting)
            if header is not None:
                return header, ""
        found = scan(incoming, most_nesting, WANTED, begin, memory)
        header = header_of(found)
        if header is not None:
            if memory is not None:
                self._alike.keep(memory, found, header, most_nesting)
            return header, found.cut_off
        if received is not None:
            received.wait()
        return read_header(incoming, named_by_meta=named_by_meta), found.cut_off

    def _recover(self) -> None:
        """Bring back what the journal of arrivals has and the disk has lost; one process does."""
        with first_in_line(self.data / "arrivals"):
            if not self._journal.is_in_doubt(self.database):
                return
            try:
                recovery.recover(self, self._journal)
            except (OSError, ArchiveError, sqlite3.Error) as error:
                raise NotRecovered(
                    f"{self.data}: not all that was stored has reached the disk, and what the journal in {FOLDER}/ has "
                    f"cannot be brought back now ({error}); the journal is kept, so put that right and start again"
                ) from error

    def _refuse_outer_transaction(self) -> None:
        if self._connections.in_transaction:
            raise RuntimeError("files cannot be rolled back: ingest and delete make a transaction of their own")

    def open_instance(self, sop_instance_uid: str) -> StoredInstance:
        """Return the stored instance; raises `NotFound`."""
        row = find_instance(self.database, sop_instance_uid)
        if row is None:
            raise NotFound(f"no instance {sop_instance_uid}", element="SOPInstanceUID")
        return self.stored(row)

    def stored(self, row: dict[str, Any]) -> StoredInstance:
        """Return the instance that a row of the catalogue describes."""
        return StoredInstance(
            sop_instance_uid=row["sop_instance_uid"],
            sop_class_uid=row["sop_class_uid"],
            transfer_syntax_uid=row["transfer_syntax_uid"],
            series_instance_uid=row["series_instance_uid"],
            study_instance_uid=row["study_instance_uid"],
            path=self._files.path(row["path"]),
            size=row["size"],
            sha256=row["sha256"],
            damage=row["damage"],
        )

    def delete(
        self,
        level: Level,
        uid: str,
        *,
        reason: str = "",
        only_if: Callable[[Database], bool] | None = None,
        counted_as: str = "",
    ) -> int:
        """Delete a patient, study, series or instance: rows first, then files.

        Everything that bears the unique key `uid` goes: the patients of every issuer of that Patient ID, the series of
        every study that uses that Series Instance UID. Its vectors, the records of what was made from it and the jobs
        on it go in the same transaction; what was made from it stays. When the process dies before all files are
        removed, `finish_removals` goes on.

        Parameters
        ----------
        reason
            For the change feed.
        only_if
            Asked inside the transaction; when it says no, nothing is deleted.
        counted_as
            Name of the tally that counts such deletions.

        Returns
        -------
        int
            How many instances that were.

        Raises
        ------
        NotFound
            There is none, or `uid` is empty.
        NotRemoved
            It is deleted, but the disk refuses to remove some of its files; `finish_removals` goes on.
        """
        self._refuse_outer_transaction()
        self._journal.settle()  # while others go on
        with self.transaction() as database:
            if only_if is not None and not only_if(database):
                return 0
            removed = deletion.remove_rows(database, level, uid)
            detail = f"{removed.instances} instances" + (f": {reason}" if reason else "")
            changes.append(database, ChangeKind.DELETED, level, uid, detail)
            for series in removed.shortened:  # its vector is that of instances which are no longer there
                jobs.push(database, jobs.SERIES_STABLE, series, not_before=time.time() + self._settle_time_s)
            if counted_as:
                count(database, counted_as, 1)
            self._journal.empty(database)  # last: what fails before has taken nothing from it
        if left := self._intake.remove_files(removed.paths):
            raise not_removed(left, removed.instances)
        return removed.instances


def _arrival(incoming: Path, header: Header, source_aet: str, cut_off: str, received: Received | None) -> Arrival:
    """Return the arrival; what has to be on disk before its rows are written is there, or under way."""
    if received is None:
        return Arrival(incoming, header, flush_and_digest(incoming), incoming.stat().st_size, source_aet, cut_off)
    is_journaled = bool(received.content) or received.is_named
    if not received.content and not received.is_flushed:
        flush(incoming)
    return Arrival(
        incoming, header, received.sha256, received.size, source_aet, cut_off, is_journaled, received.content,
        received.wait,
    )  # fmt: skip


__all__ = ["Archive", "Ingested", "Outcome", "StoredInstance"]
