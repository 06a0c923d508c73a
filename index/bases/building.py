"""Making a base: read the rows, build, measure, write, let it count. For a worker; a network process only opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlite_utils import Database

from index.archive import Archive
from index.bases import files, rows
from index.bases.approximate import Growing
from index.bases.files import Made
from index.bases.limits import IndexLimits, Kind
from index.bases.selection import Grain, Ids
from index.bases.tuning import LEVELS, Curve, ground_truth, measure
from index.unit_vectors import Vectors

_MOST_QUERIES = 2000
_QUERIES_SHARE = 0.1
"""Vectors kept out of an index until its recall is measured with them: how many at most, and of all at most."""

_NEXT = {kind: (kind,) for kind in Kind} | {
    Kind.HNSW: (Kind.HNSW, Kind.IVF4, Kind.IVF),
    Kind.IVF4: (Kind.IVF4, Kind.IVF),
}
"""What is tried in turn: vectors in clusters far apart can leave a graph in parts, and lists do not mind; 8 bits a
value tell near ones apart that 4 bits a part do not."""

Progress = Callable[[float], None]
"""Called with the fraction done; may raise to stop: then nothing has happened."""


@dataclass(frozen=True)
class Due:
    """A base that has to be made, and why."""

    model_id: str
    grain: Grain
    why: str


def due(archive: Archive, limits: IndexLimits) -> Iterator[Due]:
    """Yield the bases that are missing, damaged, of another kind than their size asks for, or too far behind."""
    models = [row[0] for row in archive.database.execute("SELECT model_id FROM encoder ORDER BY model_id")]
    for model_id in models:
        for grain in Grain:
            why = _why(archive, model_id, grain, limits)
            if why:
                yield Due(model_id, grain, why)


def _why(archive: Archive, model_id: str, grain: Grain, limits: IndexLimits) -> str:
    made = files.find(archive.database, model_id, grain)
    count, later = archive.database.execute(
        f"SELECT count(*), coalesce(sum(id > ?), 0) FROM embedding WHERE model_id = ? AND {rows.of_grain(grain)}",
        (made.last_id if made else 0, model_id),
    ).fetchone()
    kind = limits.kind(count)
    if made is None:
        return "" if kind is None else f"{count:,} vectors have no base"
    if not files.seems_whole(archive, made):
        return "its files are damaged"
    if kind is None or made.kind not in _NEXT[kind]:
        return f"{count:,} vectors want {kind or 'no base'}, not {made.kind}"
    removed = made.vectors - (count - later)
    if later + removed > limits.rebuild_share * made.vectors:
        return f"{later:,} vectors added to {made.vectors:,}, {removed:,} removed"
    return ""


def advance_unchanged(archive: Archive) -> None:
    """Bring bases whose model has not changed since to the present, so that older changes can be forgotten."""
    _, last = rows.changes(archive.database)
    for made in files.every(archive.database):
        changed = archive.database.execute(
            "SELECT 1 FROM embedding_change WHERE seq > ? AND model_id = ? LIMIT 1", (made.seq, made.model_id)
        ).fetchone()
        if changed is None and last > made.seq:
            files.advance(archive, made, last)


def build(archive: Archive, model_id: str, grain: Grain, limits: IndexLimits, progress: Progress) -> Made | None:
    """Make the base that the rows want now and let it count; None: they want none, and none counts any more.

    Raises
    ------
    OutOfSpace
        The reserve would be touched.
    WrongDimension
        The vectors are not of one length.
    """
    with files.unfinished(archive) as folder:
        copy = _copied(archive, folder, (model_id, grain), limits, progress)
        if copy is not None:
            return _finished(archive, folder, copy, limits.target_recall, progress)
    before = files.find(archive.database, model_id, grain)
    if before is not None:
        files.forget(archive, before)
    return None


@dataclass(frozen=True, eq=False)
class _Copy:
    """The rows of one state of the catalogue, in files of a base to be.

    Attributes
    ----------
    vectors
        Axes (n, d), mapped.
    split
        Where the sample begins with which recall is measured.
    """

    model_id: str
    grain: Grain
    kind: Kind
    seq: int
    last_id: int
    vectors: Vectors
    split: int


def _copied(
    archive: Archive, folder: Path, what: tuple[str, Grain], limits: IndexLimits, progress: Progress
) -> _Copy | None:
    """Copy the rows; None when they want no base. It builds nothing: SQLite's log grows while a state is read."""
    with archive.snapshot() as database, _one_state(database):
        _, seq = rows.changes(database)
        ids = rows.all_ids(database, *what)
        kind = limits.kind(len(ids))
        if kind is None:
            return None
        dimension = _dimension(database, int(ids[0]))
        archive.require_space(2 * len(ids) * dimension * 4)
        split = len(ids) - _queries(kind, len(ids))
        order = _order(len(ids), split)
        np.save(folder / files.IDS, ids[order])
        vectors = np.lib.format.open_memmap(folder / files.VECTORS, "w+", np.float32, (len(ids), dimension))
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.arange(len(ids))
        done = 0
        for _, block in rows.read(database, *what, ids, dimension):
            vectors[place[done : done + len(block)]] = block
            done += len(block)
            progress(0.1 * done / len(ids))
        vectors.flush()
    return _Copy(*what, kind, seq, int(ids[-1]), np.asarray(vectors), split)


@contextmanager
def _one_state(database: Database) -> Iterator[None]:
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("COMMIT")


def _dimension(database: Database, row: int) -> int:
    (size,) = database.execute("SELECT length(vector) FROM embedding WHERE id = ?", (row,)).fetchone()
    return int(size) // 4


def _queries(kind: Kind, count: int) -> int:
    return 0 if kind is Kind.FLAT else max(1, min(_MOST_QUERIES, int(_QUERIES_SHARE * count)))


def _order(count: int, split: int) -> Ids:
    """Return the rows in the order of the base: all but a random sample, ascending, then the sample, ascending."""
    is_sample = np.zeros(count, dtype=np.bool_)
    is_sample[np.random.default_rng(count).choice(count, count - split, replace=False)] = True
    return np.concatenate([np.flatnonzero(~is_sample), np.flatnonzero(is_sample)])


def _finished(archive: Archive, folder: Path, copy: _Copy, target: float, progress: Progress) -> Made:
    """Build the first kind that reaches the target, else the last one tried, and let it count."""
    curve, kinds = None, _NEXT[copy.kind]
    kind = kinds[0]
    if kind is not Kind.FLAT:
        for number, kind in enumerate(kinds):
            share = _Share(progress, 0.1 + 0.88 * number / len(kinds), 0.88 / len(kinds))
            curve = _indexed(folder / files.INDEX, kind, copy.vectors, copy.split, share)
            if curve.reaches(target):
                break
    progress(0.98)
    name, written = files.finish(folder)
    count, dimension = copy.vectors.shape
    made = Made(
        copy.model_id, copy.grain, name, copy.seq, count, dimension, copy.last_id, kind, written, curve
    )
    files.commit(archive, made)
    return made


@dataclass(frozen=True)
class _Share:
    """A part of the progress, from 0 to 1 as the part sees it."""

    whole: Progress
    start: float
    size: float

    def __call__(self, fraction: float) -> None:
        self.whole(self.start + self.size * fraction)


def _indexed(path: Path, kind: Kind, vectors: Vectors, split: int, progress: Progress) -> Curve:
    """Build and write an index of `vectors`, axes (n, d); return what those from `split` on have measured."""
    growing = Growing(kind, vectors.shape[1], len(vectors))
    growing.train(vectors)
    growing.add(vectors[:split], _Share(progress, 0.0, 0.75))
    curve = _measured(growing, vectors[:split], vectors[split:], _Share(progress, 0.75, 0.2))
    growing.add(vectors[split:], _Share(progress, 0.95, 0.05))
    growing.write(path)
    return curve


def _measured(growing: Growing, held: Vectors, queries: Vectors, progress: Progress) -> Curve:
    """Measure with `queries`, axes (m, d), which the index does not hold, what it finds among those `held`."""
    queries = np.ascontiguousarray(queries)
    truth = ground_truth(held, queries, max(LEVELS), lambda fraction: progress(0.5 * fraction))
    searchable = growing.searchable

    def search(asked: Vectors, wanted: int, effort: int) -> Ids:
        candidates = searchable.search(asked, wanted, effort)
        if growing.ranks_exactly:
            return candidates
        pairs = zip(asked, candidates, strict=True)
        return np.stack([_best(held, query, row[row >= 0], wanted) for query, row in pairs])

    return measure(search, queries, truth, searchable.ladder, lambda fraction: progress(0.5 + 0.5 * fraction))


def _best(held: Vectors, query: Vectors, candidates: Ids, wanted: int) -> Ids:
    """Return the best `wanted` of `candidates`, -1 behind them where there are fewer."""
    order = np.argsort(-(held[candidates] @ query), kind="stable")[:wanted]
    return np.pad(candidates[order], (0, wanted - len(order)), constant_values=-1)

