"""Puts right what a node, or one of its processes, left half-done: in a process of its own, for it may take minutes."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Collection

from commands.forked import CannotStart, Ties
from commands.state import STATE_FILE
from config.settings import Settings
from index import deliveries
from index.archive import Archive
from index.errors import ArchiveError, NotRemoved
from index.orphans import settle_orphans

logger = logging.getLogger(__name__)


def run(settings: Settings, dead: Collection[int], ties: Ties) -> int:
    """Tidy up before the start (nobody is `dead`), or after processes that died, by their numbers; return 0.

    Raises
    ------
    CannotStart
        As `before_the_start`.
    """
    ties.on_stop(lambda: os._exit(0))  # whoever starts next does what is left
    if dead:
        after(settings, dead)
    else:
        ties.tell({"ready": True, "has_deliveries": before_the_start(settings)})
    return 0


def before_the_start(settings: Settings) -> bool:
    """Remove what the last run left half-done: nothing of it was ever acknowledged or found.

    What cannot be tidied up hides nothing that the catalogue knows: it is told, and keeps no node down.

    Returns
    -------
    bool
        Whether rules of before have queued something to be sent on.

    Raises
    ------
    CannotStart
        The catalogue cannot be used.
    """
    data = settings.archive.data
    try:
        archive = Archive.from_settings(settings.archive)
    except sqlite3.Error as error:
        raise CannotStart(
            f"the catalogue in {data} cannot be used: {error}; `tharsis rebuild` makes it again"
        ) from error
    except ArchiveError as error:
        raise CannotStart(str(error)) from error
    has_deliveries = False
    try:
        has_deliveries = bool(deliveries.queued_for(archive))
        received, removed = archive.clear_incoming(), _finish_removals(archive)
        if (data / STATE_FILE).exists():
            logger.warning(
                "the last run did not stop cleanly: %d half-received files removed, %d deletions finished, "
                "files without a row: %s", received, removed, _settle(archive),
            )
    except (sqlite3.Error, OSError, ArchiveError):
        logger.exception("what the last run left was not tidied up; `tharsis fsck --repair` does so")
    finally:
        archive.close()
    return has_deliveries


def after(settings: Settings, dead: Collection[int]) -> None:
    """Put right what processes left half-done when they died, while the others go on."""
    names = ", ".join(map(str, sorted(dead)))
    try:
        archive = Archive.from_settings(settings.archive)
        received = sum(archive.clear_incoming(pid) for pid in dead)
        _finish_removals(archive)
        told = _settle(archive)
        archive.close()
    except Exception:  # whatever it is, the next death is tidied up after
        logger.exception("what process %s left was not tidied up; `tharsis fsck` finds it", names)
        return
    logger.warning("process %s left %d half-received files, files without a row: %s", names, received, told)


def _finish_removals(archive: Archive) -> int:
    """Finish the deletions, and return how many files that were; what the disk refuses to remove is told."""
    try:
        return archive.finish_removals()
    except NotRemoved as error:
        logger.error("%s", error)  # noqa: TRY400  (the sentence says it all)
        return error.done


def _settle(archive: Archive) -> str:
    """Settle the files without a row, and say in words what became of them."""
    fates = Counter(settled.fate.value for settled in settle_orphans(archive))
    return ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "none"
