"""Files that no row points to: taken back in, removed or put aside, so that no content is ever lost.

A crash between the two halves of an ingest leaves one, a catalogue that was restored from an older copy leaves many.
Those that a deletion had left are known (table ``removal``) and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from pydicom.filereader import read_file_meta_info

from index import catalogue, deletion
from index.admission import is_same_object
from index.archive import Archive
from index.errors import ArchiveError, InvalidInstance
from index.files import flush_and_digest
from index.header import read_header
from index.integrity import Damage, StoredFile, Verdict, examine, record


class Fate(StrEnum):
    """What becomes of a file that no row points to."""

    KNOWN = "known"              # it is no orphan: a row points to it by now
    TAKEN_IN = "taken back in"
    RESTORED = "put back"        # it is what a damaged instance was
    REMOVED = "removed"          # its content is stored, or was deleted
    QUARANTINED = "quarantined"
    LEFT = "left"                # there is no room to take it in, or the disk refuses


@dataclass(frozen=True)
class Settled:
    """What became of one file.

    Attributes
    ----------
    path
        Where it was, below the data folder.
    detail
        Why, in a few words.
    """

    path: str
    fate: Fate
    detail: str


def find_orphans(archive: Archive) -> Iterator[list[str]]:
    """Yield, folder by folder, the stored files that no row points to (most often an empty list).

    A file that is being ingested has its name before its row is committed, but only under the write lock: under that
    lock there is no such file. One that the catalogue knows is to be removed is none either: it may be going right now.
    """
    for paths in archive.files.all_paths():
        suspects = [path for path in paths if not catalogue.is_known(archive.database, path)]
        if suspects:
            with archive.transaction() as database:
                suspects = [
                    path
                    for path in suspects
                    if not catalogue.is_known(database, path)
                    and not deletion.is_promised(database, path)
                    and archive.files.path(path).exists()
                ]
        yield suspects


def settle_orphans(archive: Archive) -> Iterator[Settled]:
    """Settle every stored file that no row points to."""
    for paths in find_orphans(archive):
        for path in paths:
            yield settle(archive, path)


def settle(archive: Archive, path: str) -> Settled:
    """Take the orphan in when its instance is not stored, remove it when it is a second copy, else quarantine it.

    One that the disk refuses to read or to move is left where it is: the others are settled all the same.
    """
    try:
        return _settle(archive, path)
    except FileNotFoundError:
        return Settled(path, Fate.KNOWN, "gone meanwhile")
    except OSError as error:
        return Settled(path, Fate.LEFT, error.strerror or str(error))


def _settle(archive: Archive, path: str) -> Settled:
    with archive.transaction() as database:
        if catalogue.is_known(database, path):
            return Settled(path, Fate.KNOWN, "")
        if deletion.is_promised(database, path):
            archive.files.remove(path)
            deletion.keep_promise(database, [path])
            return Settled(path, Fate.REMOVED, "its instance was deleted or replaced")
    try:
        header = read_header(archive.files.path(path))
    except InvalidInstance as error:
        return _quarantine(archive, path, str(error))
    stored = catalogue.find_instance(archive.database, header.sop_instance_uid)
    if stored is None:
        return _take_in(archive, path, Fate.TAKEN_IN, f"instance {header.sop_instance_uid}")
    digest = flush_and_digest(archive.files.path(path))
    file = StoredFile(*(stored[name] for name in ("id", "sop_instance_uid", "path", "size", "sha256", "damage")))
    verdict = examine(archive.data, file)
    if verdict.damage is None:
        if digest == file.sha256 or is_same_object(archive.files, stored, archive.files.path(path), header):
            archive.files.remove(path)
            return Settled(path, Fate.REMOVED, "a second copy of a stored instance")
        return _quarantine(archive, path, f"instance {header.sop_instance_uid} is stored with other content")
    # Another version of what is missing is the only good file, as when the catalogue is older than a replacement. An
    # altered or unreadable file is still there for a person to compare.
    if digest != file.sha256 and verdict.damage is not Damage.MISSING:
        return _quarantine(archive, path, f"another version of {header.sop_instance_uid}, which is {verdict.damage}")
    _note(archive, file, verdict)
    return _take_in(archive, path, Fate.RESTORED, f"instance {header.sop_instance_uid} was {verdict.damage}")


def _note(archive: Archive, file: StoredFile, verdict: Verdict) -> None:
    with archive.transaction() as database:
        record(database, file, verdict)


def _take_in(archive: Archive, path: str, fate: Fate, detail: str) -> Settled:
    """Ingest the file by a second name, and only then remove the first: a crash in between loses nothing."""
    meta = read_file_meta_info(archive.files.path(path))
    source = str(meta.get("SourceApplicationEntityTitle", "") or "").strip()
    try:
        archive.ingest(archive.files.borrow(path), source_aet=source, readmit=True)
    except (ArchiveError, OSError) as error:
        return Settled(path, Fate.LEFT, str(error))
    archive.files.remove(path)
    return Settled(path, fate, detail)


def _quarantine(archive: Archive, path: str, why: str) -> Settled:
    return Settled(path, Fate.QUARANTINED, f"{why}; now {archive.files.quarantine(path)}")
