"""The change feed: everything that happened to what is stored, append-only, in order.

A row is written in the transaction that makes it true, so a reader that remembers its last `seq` misses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from sqlite_utils import Database

from index.keys import Level

_PAGE = 500


class ChangeKind(StrEnum):
    """What happened."""

    STORED = "stored"
    REPLACED = "replaced"
    CONFLICT = "conflict"                    # same SOP Instance UID, other content: refused
    PATIENT_MISMATCH = "patient_mismatch"    # an instance names another patient than its study
    UID_NONCONFORMING = "uid_nonconforming"  # a UID with letters, or longer than 64
    CUT_OFF = "cut_off"                      # the data set goes on behind its end: stored as it was sent
    STABLE = "stable"
    DERIVED = "derived"
    DELETED = "deleted"
    MISSING = "missing"                      # the file of an instance is not there
    ALTERED = "altered"                      # its bytes are not those that were received
    UNREADABLE = "unreadable"                # the disk refuses to read it
    REPAIRED = "repaired"                    # a damaged instance is whole again
    REBUILT = "rebuilt"                      # the catalogue was made again from the files


@dataclass(frozen=True)
class Change:
    """One row of the feed."""

    seq: int
    kind: ChangeKind
    level: Level
    uid: str
    detail: str
    at: str


def now() -> str:
    """The present moment, ISO 8601 in UTC."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}+00:00"


@lru_cache(1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def append(database: Database, kind: ChangeKind, level: Level, uid: str, detail: str = "") -> None:
    """Add a row, inside the caller's transaction."""
    database.execute(
        "INSERT INTO change (kind, level, uid, detail, at) VALUES (?, ?, ?, ?, ?)",
        (kind.value, level.value, uid, detail, now()),
    )


def since(database: Database, seq: int = 0) -> Iterator[Change]:
    """Yield the changes after `seq`, oldest first; the reader may write to the same database between two of them."""
    while page := database.execute(
        "SELECT seq, kind, level, uid, detail, at FROM change WHERE seq > ? ORDER BY seq LIMIT ?", (seq, _PAGE)
    ).fetchall():
        for seq, kind, level, uid, detail, at in page:
            yield Change(seq, ChangeKind(kind), Level(level), uid, detail, at)
