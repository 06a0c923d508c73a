"""Reading stored files back, a slice at a time: whoever has not been read for longest comes first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from index.archive import Archive
from index.integrity import COLUMNS, StoredFile, Verdict, examine, record

_PAGE = 100
_SLICE_S = 2.0
"""A slice ends after this, but not in the middle of a file, seconds."""

_KEPT_VECTOR_CHANGES = 100_000
"""A process whose index of vectors is further behind starts again from the saved one, or from all rows."""


@dataclass(frozen=True)
class Slice:
    """What one slice has done.

    Attributes
    ----------
    size
        How much was read, bytes.
    is_all
        Whether no file is due any more.
    """

    size: int
    is_all: bool


def scrub_slice(archive: Archive, *, due_before: float, budget: int, on_fraction: Callable[[float], None]) -> Slice:
    """Read back files that were last read before `due_before`, and note what was found.

    Parameters
    ----------
    due_before
        Seconds since the epoch.
    budget
        The slice ends after so many bytes, but not in the middle of a file.
    on_fraction
        Called with the fraction of the budget that is read; may raise to stop.
    """
    started = time.monotonic()
    rows = archive.database.execute(
        f"SELECT {COLUMNS} FROM instance WHERE verified_at < ? ORDER BY verified_at LIMIT ?", (due_before, _PAGE)
    ).fetchall()
    verdicts: list[tuple[StoredFile, Verdict]] = []
    size = 0

    def on_block(count: int) -> None:
        nonlocal size
        size += count
        on_fraction(min(1.0, size / budget))

    try:
        for file in (StoredFile(*row) for row in rows):
            verdicts.append((file, examine(archive.data, file, on_block=on_block)))
            if size >= budget or time.monotonic() - started > _SLICE_S:
                break
    finally:  # what was read is not read again, even when the worker has to stop
        with archive.transaction() as database:
            for file, verdict in verdicts:
                record(database, file, verdict)
    return Slice(size, is_all=len(verdicts) == len(rows) < _PAGE)


def next_due(archive: Archive, period_s: float) -> float | None:
    """Return when the next file is due, seconds since the epoch; None when nothing is stored."""
    row = archive.database.execute("SELECT min(verified_at) FROM instance").fetchone()
    return None if row[0] is None else float(row[0]) + period_s


def forget_vector_changes(archive: Archive) -> None:
    """Delete old rows of `embedding_change` that every saved index has seen.

    A process that had not seen them yet starts again.
    """
    with archive.transaction() as database:
        database.execute(
            "DELETE FROM embedding_change WHERE seq <= (SELECT max(seq) FROM embedding_change) - ? "
            "AND seq <= coalesce((SELECT min(seq) FROM vector_base), 9e18)",
            (_KEPT_VECTOR_CHANGES,),
        )
