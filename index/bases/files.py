"""A base on disk: a folder that is written whole, named last, and counts from the moment that its row is committed.

``<data>/vectors/<random>/``: ``ids.npy`` (int64), ``vectors.npy`` (float32, axes (n, d)), both in two ascending runs,
and ``index.faiss`` where the kind has one. Processes map the files; nobody ever changes one. The row of the table
`vector_base` names the folder, with the checksum of each file: a folder without a row is rubbish.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from sqlite_utils import Database

from index.archive import Archive
from index.bases.approximate import Approximate, IndexBroken, open_file
from index.bases.limits import Kind
from index.bases.selection import Grain, Ids
from index.bases.tuning import Curve
from index.changes import now
from index.durable import flush
from index.unit_vectors import Vectors

FOLDER = "vectors"
IDS, VECTORS, INDEX = "ids.npy", "vectors.npy", "index.faiss"
_UNFINISHED = "unfinished-"
_DAMAGED = "damaged"
_GRACE_S = 600.0
"""A folder that was replaced stays for so long: a process may just be about to open it."""

_READ = 1 << 22


class BaseUnusable(Exception):
    """The files of a base are not what was written; the message says why."""


@dataclass(frozen=True)
class Made:
    """A row of `vector_base`: what a base is.

    Attributes
    ----------
    folder
        Its name below ``<data>/vectors``.
    seq
        The last change of the catalogue that it has seen.
    last_id
        Largest row id in it.
    files
        Name → (size in bytes, CRC-32).
    curve
        Recall that was measured; None for FLAT.
    """

    model_id: str
    grain: Grain
    folder: str
    seq: int
    vectors: int
    dimension: int
    last_id: int
    kind: Kind
    files: dict[str, tuple[int, int]]
    curve: Curve | None
    at: str = ""


@dataclass(frozen=True, eq=False)
class Base:
    """A base that is open, its files mapped.

    Attributes
    ----------
    ids
        Axis (n,).
    vectors
        Axes (n, d).
    split
        Where the second ascending run of `ids` begins.
    """

    made: Made
    ids: Ids
    vectors: Vectors
    split: int
    approximate: Approximate | None


_COLUMNS = "model_id, grain, folder, seq, vectors, dimension, last_id, kind, files, curve, at"


def find(database: Database, model_id: str, grain: Grain) -> Made | None:
    """Return the base that counts for a model and grain."""
    sql = f"SELECT {_COLUMNS} FROM vector_base WHERE model_id = ? AND grain = ?"
    row = database.execute(sql, (model_id, grain.value)).fetchone()
    return None if row is None else _made(row)


def folder_of(database: Database, model_id: str, grain: Grain) -> str:
    """Return the folder of the base that counts, empty when none does: a quick look."""
    sql = "SELECT folder FROM vector_base WHERE model_id = ? AND grain = ?"
    row = database.execute(sql, (model_id, grain.value)).fetchone()
    return "" if row is None else str(row[0])


def every(database: Database) -> list[Made]:
    """Return all bases that count."""
    return [_made(row) for row in database.execute(f"SELECT {_COLUMNS} FROM vector_base ORDER BY model_id, grain")]


def _made(row: tuple[Any, ...]) -> Made:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    values["grain"], values["kind"] = Grain(values["grain"]), Kind(values["kind"])
    values["files"] = {name: (size, crc) for name, (size, crc) in json.loads(values["files"]).items()}
    values["curve"] = Curve.from_json(values["curve"]) if values["curve"] else None
    return Made(**values)


def open_base(archive: Archive, made: Made) -> Base:
    """Check every byte of a base and map it.

    Raises
    ------
    BaseUnusable
        A file is missing, or not what was written.
    """
    folder = archive.data / FOLDER / made.folder
    try:
        _verify(folder, made)
        ids = np.asarray(np.load(folder / IDS, mmap_mode="r"))
        vectors = np.asarray(np.load(folder / VECTORS, mmap_mode="r"))
        if ids.shape != (made.vectors,) or vectors.shape != (made.vectors, made.dimension):
            raise BaseUnusable(f"expected {made.vectors} × {made.dimension} values, got {ids.shape}, {vectors.shape}")
        approximate = None if made.kind is Kind.FLAT else open_file(folder / INDEX, made.kind, vectors)
    except (OSError, ValueError, IndexBroken) as error:
        raise BaseUnusable(f"{made.folder}: {error}") from error
    falls = np.flatnonzero(np.diff(ids) <= 0)
    return Base(made, ids, vectors, int(falls[0]) + 1 if len(falls) else len(ids), approximate)


def _verify(folder: Path, made: Made) -> None:
    if (folder / _DAMAGED).exists():
        raise BaseUnusable(f"{made.folder} was found damaged before")
    for name, (size, _) in made.files.items():
        if (folder / name).stat().st_size != size:
            raise BaseUnusable(f"{name}: expected {size} bytes, got {(folder / name).stat().st_size}")
    with ThreadPoolExecutor(len(made.files)) as pool:
        sums = list(pool.map(checksum, [folder / name for name in made.files]))
    for (name, (_, crc)), found in zip(made.files.items(), sums, strict=True):
        if found != crc:
            raise BaseUnusable(f"{name}: expected CRC-32 {crc:08x}, got {found:08x}")


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file: it guards against damage, not against malice."""
    value = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_READ))
        while count := file.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return value


def seems_whole(archive: Archive, made: Made) -> bool:
    """Whether the files of a base are there, of their sizes, and nobody has found them damaged: a quick look."""
    folder = archive.data / FOLDER / made.folder
    try:
        sizes = all((folder / name).stat().st_size == size for name, (size, _) in made.files.items())
    except FileNotFoundError:
        return False
    return sizes and not (folder / _DAMAGED).exists()


def mark_damaged(archive: Archive, made: Made) -> None:
    """Leave word for the worker that the base has to be made again."""
    with suppress(OSError):  # a folder that is gone speaks for itself
        (archive.data / FOLDER / made.folder / _DAMAGED).touch()


@contextmanager
def unfinished(archive: Archive) -> Iterator[Path]:
    """Give an empty folder to write a base into; what is left of it after the block is removed."""
    parent = archive.data / FOLDER
    parent.mkdir(mode=0o700, exist_ok=True)
    folder = parent / f"{_UNFINISHED}{uuid4().hex}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path) -> tuple[str, dict[str, tuple[int, int]]]:
    """Flush the files of an unfinished folder to disk and give it its name; return name and the files.

    Until `commit` it belongs to nobody: when the process dies here, `tidy` removes it.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = (path.stat().st_size, checksum(path))
        flush(path)
    flush(folder)
    final = folder.with_name(folder.name.removeprefix(_UNFINISHED))
    folder.rename(final)
    flush(final.parent)
    return final.name, files


def commit(archive: Archive, made: Made) -> None:
    """Let this base count from now on, in the place of the one before."""
    with archive.transaction() as database:
        before = find(database, made.model_id, made.grain)
        values = (
            made.model_id, made.grain.value, made.folder, made.seq, made.vectors, made.dimension, made.last_id,
            made.kind.value, json.dumps(made.files), made.curve.to_json() if made.curve else "", now(),
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        database.execute(f"INSERT OR REPLACE INTO vector_base ({_COLUMNS}) VALUES ({marks})", values)
    if before is not None:
        with suppress(OSError):
            os.utime(archive.data / FOLDER / before.folder)  # its grace begins


def forget(archive: Archive, made: Made) -> None:
    """Let no base count for this model and grain any more."""
    with archive.transaction() as database:
        database.execute("DELETE FROM vector_base WHERE folder = ?", (made.folder,))


def advance(archive: Archive, made: Made, seq: int) -> None:
    """Note that nothing of this base has changed up to `seq`."""
    with archive.transaction() as database:
        database.execute("UPDATE vector_base SET seq = ? WHERE folder = ? AND seq < ?", (seq, made.folder, seq))


def tidy(archive: Archive, *, grace_s: float = _GRACE_S) -> int:
    """Remove folders that do not count, unless they did a moment ago; return how many.

    Nobody may be making a base meanwhile: the jobs that make one, and the one that calls this, have one subject.
    """
    parent = archive.data / FOLDER
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    counting = {made.folder for made in every(archive.database)}
    removed = 0
    for folder in folders:
        is_recent = time.time() - folder.stat().st_mtime < grace_s
        if folder.name not in counting and (folder.name.startswith(_UNFINISHED) or not is_recent):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
