"""What an index holds at one moment: a base, the rows added since, and which of all these are still there.

A state never changes. A search works on one from beginning to end while others move on, so nobody waits for anybody.
Rows are addressed by their position: those of the base first, in its order, then the added ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from index.bases.files import Base
from index.bases.selection import Ids, Selection
from index.unit_vectors import Vectors

Mask = npt.NDArray[np.bool_]
"""For each position."""

_FEW_LOOKUPS = 0.05
"""Below this share of the rows, each is looked up on its own."""

_WORTH_COMPACTING = 4096


@dataclass(frozen=True, eq=False)
class Competing:
    """The positions that a selection leaves.

    Attributes
    ----------
    mask
        None: all of them.
    """

    mask: Mask | None
    count: int


class _Buffer:
    """Rows that are only ever added at the end, so that who holds the first part of it is not disturbed."""

    def __init__(self, dimension: int, capacity: int = 0) -> None:
        self.ids: Ids = np.empty(capacity, dtype=np.int64)
        self.vectors: Vectors = np.empty((capacity, dimension), dtype=np.float32)
        self.filled = 0

    def extended(self, ids: Ids, vectors: Vectors) -> _Buffer:
        """Add rows, and return the buffer that has them all."""
        end, buffer = self.filled + len(ids), self
        if end > len(self.ids):
            buffer = _Buffer(self.vectors.shape[1], max(end, 2 * len(self.ids)))
            buffer.ids[: self.filled] = self.ids[: self.filled]
            buffer.vectors[: self.filled] = self.vectors[: self.filled]
        buffer.ids[self.filled : end], buffer.vectors[self.filled : end] = ids, vectors
        buffer.filled = end
        return buffer


@dataclass(frozen=True, eq=False)
class State:
    """Base and additions up to a change of the catalogue.

    Attributes
    ----------
    seq
        The last change that it has seen.
    alive
        Which rows are still in the catalogue.
    """

    seq: int
    base: Base | None
    alive: Mask
    _buffer: _Buffer
    _added: int

    @classmethod
    def empty(cls, seq: int, dimension: int, capacity: int = 0) -> State:
        """Return the state of an index without rows, but with room for so many."""
        return cls(seq, None, np.zeros(0, np.bool_), _Buffer(dimension, capacity), 0)

    @classmethod
    def of_base(cls, base: Base) -> State:
        """Return what a base holds, as of the change that it has seen."""
        return cls(base.made.seq, base, np.ones(len(base.ids), np.bool_), _Buffer(base.vectors.shape[1]), 0)

    @property
    def in_base(self) -> int:
        """How many positions are those of the base."""
        return 0 if self.base is None else len(self.base.ids)

    @property
    def added_ids(self) -> Ids:
        """Rows beyond the base, ascending."""
        return self._buffer.ids[: self._added]

    @property
    def added_vectors(self) -> Vectors:
        """Their vectors, axes (n, d)."""
        return self._buffer.vectors[: self._added]

    @cached_property
    def everything(self) -> Competing:
        """What competes where nothing is selected."""
        count = int(np.count_nonzero(self.alive))
        return Competing(None if count == len(self.alive) else self.alive, count)

    @cached_property
    def in_base_alive(self) -> int:
        """How many rows of the base are still there."""
        return int(np.count_nonzero(self.alive[: self.in_base]))

    def ids(self, positions: npt.NDArray[np.intp]) -> Ids:
        """Return the rows at `positions`."""
        if self.base is not None and not self._added:
            return self.base.ids[positions]
        out = np.empty(len(positions), dtype=np.int64)
        inside = positions < self.in_base
        if self.base is not None:
            out[inside] = self.base.ids[positions[inside]]
        out[~inside] = self.added_ids[positions[~inside] - self.in_base]
        return out

    def vectors(self, positions: npt.NDArray[np.intp]) -> Vectors:
        """Return the vectors, axes (n, d), at `positions`."""
        if self.base is None:
            return self.added_vectors[positions]
        inside = positions < self.in_base
        if inside.all():
            return np.take(self.base.vectors, positions, axis=0)
        out = np.empty((len(positions), self.added_vectors.shape[1]), dtype=np.float32)
        out[inside] = self.base.vectors[positions[inside]]
        out[~inside] = self.added_vectors[positions[~inside] - self.in_base]
        return out

    def places(self, ids: Ids) -> npt.NDArray[np.intp]:
        """Return the position of each of the rows `ids`, alive or not; -1 for one that is not held."""
        found = np.full(len(ids), -1, dtype=np.intp)
        for first, run in self._runs():
            if len(run):
                places = np.searchsorted(run, ids)
                places[places == len(run)] = 0
                here = run[places] == ids
                found[here] = first + places[here]
        return found

    def positions(self, ids: Ids) -> npt.NDArray[np.intp]:
        """Return the positions of those of the rows `ids` that are held, alive or not."""
        places = self.places(ids)
        return places[places >= 0]

    def _runs(self) -> Iterable[tuple[int, Ids]]:
        """Yield each ascending run of ids, and the position at which it begins."""
        if self.base is not None:
            yield 0, self.base.ids[: self.base.split]
            yield self.base.split, self.base.ids[self.base.split :]
        yield self.in_base, self.added_ids

    def competing(self, selection: Selection) -> Competing:
        """Return what `selection` leaves."""
        if selection.among is None and not len(selection.without):
            return self.everything
        mask = self.alive.copy() if selection.among is None else self.alive & self._held(selection.among)
        mask[self.positions(selection.without)] = False
        return Competing(mask, int(np.count_nonzero(mask)))

    def _held(self, ids: Ids) -> Mask:
        mask = np.zeros(len(self.alive), dtype=np.bool_)
        if len(ids) < _FEW_LOOKUPS * len(mask):
            mask[self.positions(ids)] = True
        else:
            for first, run in self._runs():
                mask[first : first + len(run)] = np.isin(run, ids)
        return mask

    def followed(self, seq: int, changed: Ids, blocks: Iterable[tuple[Ids, Vectors]]) -> State:
        """Return the state after the changes up to `seq`.

        Parameters
        ----------
        changed
            Rows that came or went, ascending.
        blocks
            Those of them that are there now, in ascending blocks. Ids are never used twice, so a row that is not held
            yet has a larger one than all that are.
        """
        held = self.positions(changed)
        buffer, added = self._buffer, self._added
        present = []
        for ids, vectors in blocks:
            present.append(ids)
            is_new = ids > self._last_id
            if buffer.filled != added:  # somebody went on from here already, and was given up
                buffer = _Buffer(buffer.vectors.shape[1]).extended(buffer.ids[:added], buffer.vectors[:added])
            buffer = buffer.extended(ids[is_new], vectors[is_new])
            added = buffer.filled
        alive = np.ones(self.in_base + added, dtype=np.bool_)
        alive[: len(self.alive)] = self.alive
        alive[held] = np.isin(self.ids(held), np.concatenate(present)) if present else False
        return _compacted(replace(self, seq=seq, alive=alive, _buffer=buffer, _added=added))

    @cached_property
    def _last_id(self) -> int:
        last = [self.base.made.last_id] if self.base is not None else []
        last += [int(self.added_ids[-1])] if self._added else []
        return max(last, default=0)

    def without_dead_additions(self) -> State:
        """Return the same rows in less memory."""
        kept = self.alive[self.in_base :]
        buffer = _Buffer(self.added_vectors.shape[1]).extended(self.added_ids[kept], self.added_vectors[kept])
        alive = np.concatenate([self.alive[: self.in_base], np.ones(buffer.filled, np.bool_)])
        return replace(self, alive=alive, _buffer=buffer, _added=buffer.filled)


def _compacted(state: State) -> State:
    """Drop added rows that are gone when they are the larger part."""
    kept = state.alive[state.in_base :]
    is_worth_it = len(kept) >= _WORTH_COMPACTING and np.count_nonzero(kept) < len(kept) // 2
    return state.without_dead_additions() if is_worth_it else state
