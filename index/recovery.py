"""After a power cut: the archive as the journal of arrivals says that it was (`index.arrivals`)."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from index.arrival_blocks import Arrived
from index.arrivals import ArrivalJournal, Standing, standings
from index.catalogue import find_instance, is_known
from index.errors import InvalidInstance
from index.files import FileStore
from index.header import read_header

if TYPE_CHECKING:
    from index.archive import Archive

_LOG = logging.getLogger(__name__)


def recover(archive: Archive, journal: ArrivalJournal) -> None:
    """Give instances their files again, and ingest those that the catalogue has lost; then the journal is empty.

    Raises
    ------
    OSError
        The journal cannot be read, or a file cannot be written: the journal stays as it is, and what it points to.
    ArchiveError, sqlite3.Error
        So it does where there is no room, or somebody keeps the catalogue.
    """
    restored = ingested = 0
    is_resolved = False
    journal.ask_the_disk()
    while not is_resolved:
        since = standings(archive.database)
        blocks = journal.doubtful(archive.database)
        for block in blocks:
            for instance in block.instances:
                if is_known(archive.database, instance.path):
                    restored += _restore(archive.files, instance, trusts_files=not journal.is_failed)
                elif block.number > since.get(block.lane, Standing()).number:
                    ingested += _ingest(archive, instance, trusts_files=not journal.is_failed)
        last = {block.lane: block.number for block in blocks}  # in their order
        if journal.is_failed:  # the system may show a log that the disk has not got
            archive.write_catalogue()
        with archive.transaction() as database:
            is_resolved = journal.resolved(database, since, last)
    if restored or ingested:
        _LOG.warning(
            "not all that was stored had reached the disk: %d files and %d instances came back from the journal",
            restored, ingested,
        )


def _restore(files: FileStore, instance: Arrived, *, trusts_files: bool) -> bool:
    """Give an instance of the catalogue its file again, unless that is as it was; return whether it was not.

    Parameters
    ----------
    trusts_files
        Whether what can be read of a file is on the disk. Where the disk has refused to take it, the system may show
        what it has in its memory alone; a large one was flushed by itself, and is on disk for sure.
    """
    final = files.path(instance.path)
    if _is_whole(final, instance) and (trusts_files or not instance.content):
        return False
    held = _received(files, instance)
    if not held:
        _LOG.error("%s is lost: neither its file nor what was received for it is whole", instance.path)
        return False
    files.place(files.path(held), instance.path)
    return True


def _ingest(archive: Archive, instance: Arrived, *, trusts_files: bool) -> bool:
    """Store an instance that the catalogue does not know; return whether it was stored.

    Whatever raises leaves what there is of it where it is.

    Parameters
    ----------
    trusts_files
        As for `_restore`.
    """
    files = archive.files
    is_trusted = trusts_files or not instance.content
    is_there = is_trusted and _is_whole(files.path(instance.path), instance)
    held = instance.path if is_there else _received(files, instance)
    if not held:
        return False  # it was cut short: nobody was told that it is stored
    is_stored = False
    try:
        stored = find_instance(archive.database, read_header(files.path(held)).sop_instance_uid)
        if stored is not None and stored["sha256"] != instance.sha256:  # nobody knows which one was answered for
            aside = files.quarantine(held, f"{instance.sha256}.dcm")
            _LOG.warning("%s: another object of its SOP Instance UID is stored; this one is now %s", held, aside)
            return False
        if stored is None:
            archive.ingest(
                files.borrow(held), source_aet=instance.source_aet, readmit=True, within_reserve=False
            )
            is_stored = True
        elif not is_trusted or not _is_whole(files.path(stored["path"]), instance):
            files.place(files.borrow(held), stored["path"])
            is_stored = True
    except InvalidInstance as error:
        _LOG.warning("%s: %s", instance.path, error)
    except BaseException:
        if instance.content and held != instance.path:  # the journal has it still
            files.path(held).unlink(missing_ok=True)
        raise
    with archive.transaction() as database:
        for path in {held, instance.path}:
            if not is_known(database, path):
                files.path(path).unlink(missing_ok=True)
    return is_stored


def _received(files: FileStore, instance: Arrived) -> str:
    """Return where below the data folder what was received of an instance lies, whole; "" where it does not."""
    if instance.content:
        source = files.receive(instance.content, within_reserve=False)
        files.release(source, is_placed=True)
    else:
        source = files.incoming / instance.incoming
    return source.relative_to(files.root).as_posix() if _is_whole(source, instance) else ""


def _is_whole(path: Path, instance: Arrived) -> bool:
    try:
        if path.stat().st_size != instance.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == instance.sha256
    except FileNotFoundError:
        return False
