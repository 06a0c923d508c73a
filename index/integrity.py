"""Whether a stored file is still what was received: read it back, compare, note what was found."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from sqlite_utils import Database

from index import changes
from index.changes import ChangeKind
from index.keys import Level

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20


class Damage(StrEnum):
    """What can be wrong with the file of an instance."""

    MISSING = "missing"
    ALTERED = "altered"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StoredFile:
    """What the catalogue promises of the file of one instance."""

    instance: int
    sop_instance_uid: str
    path: str
    size: int
    sha256: str
    damage: str


COLUMNS = "id, sop_instance_uid, path, size, sha256, damage"
"""Of the table ``instance``, in the order of `StoredFile`."""


@dataclass(frozen=True)
class Verdict:
    """What reading a file back has shown.

    Attributes
    ----------
    damage
        None: it is what was received.
    detail
        One sentence, naming both values; empty when nothing is wrong.
    """

    damage: Damage | None
    detail: str = ""


def examine(
    root: Path, file: StoredFile, *, quick: bool = False, on_block: Callable[[int], None] | None = None
) -> Verdict:
    """Compare a file with what the catalogue says of it.

    Parameters
    ----------
    root
        The data folder.
    quick
        Existence and size only.
    on_block
        Called with the number of bytes after each block that was read; may raise to stop.
    """
    try:
        with (root / file.path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != file.size:
                return Verdict(Damage.ALTERED, f"expected {file.size:,} bytes, got {size:,}")
            found = file.sha256 if quick else _digest(stream, on_block)
    except FileNotFoundError:
        return Verdict(Damage.MISSING, f"no file {file.path}")
    except OSError as error:
        return Verdict(Damage.UNREADABLE, f"{file.path}: {error.strerror or error}")
    if found != file.sha256:
        return Verdict(Damage.ALTERED, f"expected SHA-256 {file.sha256[:16]}…, got {found[:16]}…")
    return Verdict(None)


def _digest(stream: BinaryIO, on_block: Callable[[int], None] | None) -> str:
    """Return the SHA-256 of what is on the disk: not of what the system still holds of it in memory."""
    forget = getattr(os, "posix_fadvise", None)  # Linux and the BSDs
    os.fsync(stream.fileno())  # what came a moment ago may be safe by the journal of arrivals only
    if forget is not None:
        forget(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
        if on_block is not None:
            on_block(len(block))
    if forget is not None:  # nor does reading back push out what others are using
        forget(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def is_current(database: Database, file: StoredFile) -> bool:
    """Whether the catalogue still says the same of the instance: it may have been replaced or deleted meanwhile."""
    row = database.execute(
        "SELECT 1 FROM instance WHERE id = ? AND path = ? AND sha256 = ?", (file.instance, file.path, file.sha256)
    ).fetchone()
    return row is not None


def record(database: Database, file: StoredFile, verdict: Verdict) -> bool:
    """Note when the file was read back and what was found, inside the caller's transaction; whether that is news.

    News goes to the change feed and to the log. Of a file that was replaced or deleted meanwhile nothing is noted.
    """
    if not is_current(database, file):
        return False
    damage = verdict.damage.value if verdict.damage else ""
    database.execute(
        "UPDATE instance SET verified_at = ?, damage = ? WHERE id = ?", (time.time(), damage, file.instance)
    )
    if damage == file.damage:
        return False
    uid = file.sop_instance_uid
    if verdict.damage is None:
        changes.append(database, ChangeKind.REPAIRED, Level.IMAGE, uid, f"was {file.damage}")
        logger.warning("instance %s, which was %s, is whole again", uid, file.damage)
    else:
        changes.append(database, ChangeKind(damage), Level.IMAGE, uid, verdict.detail)
        logger.error("instance %s is %s: %s", uid, damage, verdict.detail)
    return True


def damaged(database: Database) -> int:
    """Return how many instances are known to be damaged."""
    return int(database.execute("SELECT count(*) FROM instance WHERE damage <> ''").fetchone()[0])


def all_verified_since(database: Database) -> float | None:
    """Return the moment since which every stored file has been read once, seconds since the epoch.

    Returns
    -------
    float or None
        0: there are files that were never read back. None: nothing is stored.
    """
    row = database.execute("SELECT min(verified_at) FROM instance").fetchone()
    return None if row[0] is None else float(row[0])
