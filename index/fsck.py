"""``fsck``: files and catalogue compared both ways, and put right where that loses nothing.

Everything is streamed: neither the rows nor the files of an archive are ever in memory. A node may be running: the row
of whatever looks wrong is read again under the write lock, under which no ingest and no deletion is half-done. The file
is not: no path is ever used twice, so that what was read belongs to that row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from index import counts
from index.archive import Archive
from index.errors import ArchiveError, NotFound, NotRemoved
from index.integrity import COLUMNS, Damage, StoredFile, Verdict, examine, is_current, record
from index.keys import Level
from index.orphans import Fate, find_orphans, settle

_PAGE = 500


class Problem(StrEnum):
    """What can be wrong."""

    MISSING = "missing"          # a row without a file
    ALTERED = "altered"          # a file that is not what was received
    UNREADABLE = "unreadable"    # a file that the disk refuses to read
    ORPHANED = "orphaned"        # a file without a row
    STRAY = "stray"              # a file where the archive puts none, or half-received and forgotten
    COUNT = "wrong count"        # a kept count, list or sum
    DATABASE = "database"        # what SQLite itself finds in the catalogue


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    what
        SOP Instance UID, path below the data folder, or the entity whose count is wrong.
    detail
        One sentence.
    action
        What was done about it; empty: nothing.
    is_solved
        Whether nothing is left to do.
    """

    problem: Problem
    what: str
    detail: str
    action: str = ""
    is_solved: bool = False


@dataclass(frozen=True)
class Options:
    """How to check.

    Attributes
    ----------
    repair
        Put right what can be; else nothing is changed.
    forget
        With `repair`: delete the rows of instances whose content is lost, so that nobody is promised them any more.
    quick
        Existence and size of the files only, not their content.
    idle_s
        A half-received file that was not written to for so long is a stray, seconds.
    """

    repair: bool = False
    forget: bool = False
    quick: bool = False
    idle_s: float = 0.0


Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done and how much there is (0: not known)."""


def check(archive: Archive, options: Options, progress: Progress) -> Iterator[Finding]:
    """Yield what is wrong, as it is found; what `options` lets repair is repaired before it is yielded.

    Raises
    ------
    ArchiveError
        Rows are to be forgotten, and no file of the archive is found at all. Nothing was changed.
    """
    if options.repair and options.forget:
        _require_files(archive)
    yield from _database(archive, options, progress)
    yield from _files(archive, options, progress)
    yield from _instances(archive, options, progress)
    yield from _counts(archive, options, progress)


def _require_files(archive: Archive) -> None:
    """No file at all is a file system that is not mounted rather than an archive whose every instance is lost."""
    (instances,) = archive.database.execute("SELECT count(*) FROM instance").fetchone()
    if instances and not archive.files.holds_any():
        raise ArchiveError(
            f"of none of the {instances:,} instances there is a file in {archive.files.path('files')}: is it mounted? "
            "Nothing was forgotten"
        )


def _database(archive: Archive, options: Options, progress: Progress) -> Iterator[Finding]:
    progress("Catalogue", 0, 0)
    check = "quick_check" if options.quick else "integrity_check"
    for (told,) in archive.database.execute(f"PRAGMA {check}"):
        if told != "ok":
            yield Finding(Problem.DATABASE, "catalogue.sqlite", f"{told}; `tharsis rebuild` makes the catalogue again")
    for table, row, parent, _ in archive.database.execute("PRAGMA foreign_key_check"):
        yield Finding(Problem.DATABASE, f"{table} {row}", f"points to a row of {parent} that there is not")


def _files(archive: Archive, options: Options, progress: Progress) -> Iterator[Finding]:
    """Files without a row, folder by folder."""
    if options.repair:
        try:
            archive.finish_removals()
        except NotRemoved as error:
            yield Finding(Problem.UNREADABLE, "files", str(error))
    (folders,) = archive.database.execute("SELECT count(*) FROM series").fetchone()
    try:
        for done, orphans in enumerate(find_orphans(archive)):
            progress("Files", min(done, folders), folders)
            for path in orphans:
                yield from _orphan(archive, path, options)
    except OSError as error:
        what = str(error.filename or "files")
        yield Finding(Problem.UNREADABLE, what, f"cannot be listed: {error.strerror or error}")
    for path in archive.files.strays(options.idle_s):
        action = f"moved to {archive.files.quarantine(path)}" if options.repair else ""
        yield Finding(Problem.STRAY, path, "the archive puts no file there", action, is_solved=bool(action))


def _orphan(archive: Archive, path: str, options: Options) -> Iterator[Finding]:
    if not options.repair:
        yield Finding(Problem.ORPHANED, path, "no row of the catalogue points to it")
        return
    settled = settle(archive, path)
    if settled.fate is not Fate.KNOWN:
        is_solved = settled.fate is not Fate.LEFT
        action = f"{settled.fate.value}: {settled.detail}"
        yield Finding(Problem.ORPHANED, path, "no row of the catalogue points to it", action, is_solved=is_solved)


def _instances(archive: Archive, options: Options, progress: Progress) -> Iterator[Finding]:
    """Rows without their file as it was, page by page: a page is read before any of its files is."""
    step = "Sizes" if options.quick else "Content"
    (total,) = archive.database.execute("SELECT count(*) FROM instance").fetchone()
    last, done = 0, 0
    while page := archive.database.execute(
        f"SELECT {COLUMNS} FROM instance WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)
    ).fetchall():
        for file in (StoredFile(*row) for row in page):
            verdict = examine(archive.data, file, quick=options.quick)
            yield from _judge(archive, file, verdict, options)
            done += 1
            progress(step, min(done, total), total)
        last = page[-1][0]


def _judge(archive: Archive, file: StoredFile, verdict: Verdict, options: Options) -> Iterator[Finding]:
    if verdict.damage is None and not options.repair:
        return
    if verdict.damage is None and (options.quick or not file.damage):
        return
    action = ""
    with archive.transaction() as database:
        if not is_current(database, file):  # replaced or deleted since its row was read
            return
        if options.repair:
            record(database, file, verdict)
            if verdict.damage is Damage.ALTERED:
                aside = archive.files.quarantine(file.path)
                gone = Verdict(Damage.MISSING, f"the altered file is now {aside}")
                record(database, replace(file, damage=Damage.ALTERED.value), gone)
                action = f"moved to {aside}; the instance is replaced when it is sent again"
    if verdict.damage is None:
        return
    if options.repair and options.forget and verdict.damage is not Damage.UNREADABLE:
        yield _forget(archive, file, verdict, action)
        return
    if options.repair and not action:
        action = "noted; the instance is replaced when it is sent again"
    yield Finding(Problem(verdict.damage.value), file.sop_instance_uid, verdict.detail, action)


def _forget(archive: Archive, file: StoredFile, verdict: Verdict, action: str) -> Finding:
    told = f"{action.partition(';')[0]}; row deleted" if action else "row deleted"
    is_solved = True
    try:
        archive.delete(
            Level.IMAGE,
            file.sop_instance_uid,
            reason=f"its content is lost: {verdict.detail}",
            only_if=lambda database: is_current(database, file),
        )
    except NotFound:  # somebody else deleted it
        pass
    except NotRemoved as error:
        told, is_solved = f"{told}; {error}", False
    return Finding(Problem(str(verdict.damage)), file.sop_instance_uid, verdict.detail, told, is_solved=is_solved)


def _counts(archive: Archive, options: Options, progress: Progress) -> Iterator[Finding]:
    progress("Counts", 0, 0)
    with archive.snapshot() as database:
        for wrong in counts.wrong_counts(database):
            if options.repair:
                with archive.transaction() as writable:
                    counts.recount(writable, wrong)
            detail = f"{wrong.keyword}: expected {wrong.true or 'nothing'}, got {wrong.kept or 'nothing'}"
            what = f"{wrong.level.value.lower()} {wrong.uid}"
            yield Finding(
                Problem.COUNT, what, detail, "counted again" if options.repair else "", is_solved=options.repair
            )
    wrong_sum = counts.wrong_sum(archive.database)
    if wrong_sum is not None:
        if options.repair:
            with archive.transaction() as writable:
                counts.resum(writable)
        detail = f"stored bytes: expected {wrong_sum[1]:,}, got {wrong_sum[0]:,}"
        yield Finding(
            Problem.COUNT, "archive", detail, "added up again" if options.repair else "", is_solved=options.repair
        )
