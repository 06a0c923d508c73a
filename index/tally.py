"""Sums that are kept with each change and never computed when they are asked for.

``stored_bytes`` follows the rows by triggers of the schema; the others are counted where what they count happens.
"""

from __future__ import annotations

from sqlite_utils import Database

from index.errors import OutOfSpace

STUDIES_DELETED_BY_RETENTION = "studies_deleted_by_retention"


def value(database: Database, name: str) -> int:
    """Return a sum; 0 for one that nobody has counted yet."""
    row = database.execute("SELECT value FROM tally WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def stored_bytes(database: Database) -> int:
    """Return the size of all stored files, bytes."""
    return value(database, "stored_bytes")


def require_quota(database: Database, quota_bytes: int, size: int) -> None:
    """Raise `OutOfSpace` when a quota, 0 for none, is used up or has no room for `size` more bytes."""
    if not quota_bytes:
        return
    stored = stored_bytes(database)
    if stored >= quota_bytes or stored + size > quota_bytes:
        raise OutOfSpace(f"quota: {stored / 1e9:.3g} of {quota_bytes / 1e9:.3g} GB are in use: nothing stored")


def count(database: Database, name: str, more: int) -> None:
    """Add `more` to a sum, inside the caller's transaction."""
    database.execute(
        "INSERT INTO tally (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, more),
    )
