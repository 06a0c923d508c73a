"""After a power cut: the archive as the journal of arrivals says that it was (`index.arrivals`)."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from index.arrival_blocks import Arrived
from index.arrivals import ArrivalJournal, Standing, standings
from index.catalogue import has_instance, is_known
from index.errors import ArchiveError
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
        The journal cannot be read, or a file cannot be written: the journal stays as it is.
    OutOfSpace
        There is no room for a file.
    """
    restored = ingested = 0
    is_resolved = False
    while not is_resolved:
        since = standings(archive.database)
        blocks = journal.doubtful(archive.database)
        for block in blocks:
            for instance in block.instances:
                if is_known(archive.database, instance.path):
                    restored += _restore(archive.files, instance)
                elif block.number > since.get(block.lane, Standing()).number:
                    ingested += _ingest(archive, instance)
        last = {block.lane: block.number for block in blocks}  # in their order
        with archive.transaction() as database:
            is_resolved = journal.resolved(database, since, last)
    if restored or ingested:
        _LOG.warning(
            "the system went down before all was on disk: %d files and %d instances were brought back from the journal",
            restored, ingested,
        )


def _restore(files: FileStore, instance: Arrived) -> bool:
    """Give an instance of the catalogue its file again, unless that is as it was; return whether it was not."""
    final = files.path(instance.path)
    if _is_whole(final, instance):
        return False
    source = _source(files, instance)
    if source is None:
        _LOG.error("%s is lost: neither its file nor what was received for it is whole", instance.path)
        return False
    final.unlink(missing_ok=True)
    files.place(source, instance.path)
    return True


def _ingest(archive: Archive, instance: Arrived) -> bool:
    """Store an instance that the catalogue does not know; return whether it was stored."""
    final = archive.files.path(instance.path)
    is_there = _is_whole(final, instance)
    source = archive.files.borrow(instance.path) if is_there else _source(archive.files, instance)
    if source is None:
        return False  # it was cut short: nobody was told that it is stored
    try:
        if has_instance(archive.database, read_header(source).sop_instance_uid):
            source.unlink()
        else:
            archive.ingest(source, source_aet=instance.source_aet, readmit=True)
    except ArchiveError as error:
        _LOG.warning("%s: %s", instance.path, error)
        source.unlink(missing_ok=True)
        return False
    final.unlink(missing_ok=True)  # no row points there
    return True


def _source(files: FileStore, instance: Arrived) -> Path | None:
    """Return a whole file of the instance in the incoming folder; None where there is none."""
    if instance.content:
        source = files.receive(instance.content)
        files.release(source, is_placed=True)
    else:
        source = files.incoming / instance.incoming
    return source if _is_whole(source, instance) else None


def _is_whole(path: Path, instance: Arrived) -> bool:
    try:
        if path.stat().st_size != instance.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == instance.sha256
    except FileNotFoundError:
        return False
