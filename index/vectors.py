"""The vector index of one model and one grain, as a process holds it: a cache of rows of `embedding`, the truth.

It starts from the base that a worker has saved, or from the rows where there is none, and follows `embedding_change` by
sequence number, so that the next search sees rows which other processes added or deleted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from sqlite_utils import Database

from index.archive import Archive
from index.bases import files, rows, searching
from index.bases.files import Base, BaseUnusable, Made
from index.bases.limits import IndexLimits
from index.bases.selection import Grain, Hits, Ids, Selection
from index.bases.state import State
from index.neighbours import SearchMode
from index.unit_vectors import Vectors

logger = logging.getLogger(__name__)


class VectorIndex:
    """Vectors of one model and one grain. Safe to share between threads, which search at the same time.

    Parameters
    ----------
    archive
        Its rows are the truth.
    dimension
        Length d of the vectors.
    """

    def __init__(
        self, archive: Archive, model_id: str, dimension: int, grain: Grain, limits: IndexLimits | None = None
    ) -> None:
        self._archive = archive
        self._model_id = model_id
        self._dimension = dimension
        self._grain = grain
        self._limits = limits or IndexLimits()
        self._state: State | None = None
        self._refreshing = threading.RLock()
        self._own = threading.local()
        self._opening: _Opening | None = None
        self._unusable = ""

    @property
    def ntotal(self) -> int:
        """How many vectors it holds."""
        return self._now().everything.count

    @property
    def exact_up_to(self) -> int:
        """How many vectors are compared one by one where nobody asks for another way."""
        return self._limits.exact_up_to

    @property
    def base(self) -> Made | None:
        """The base that it stands on."""
        base = self._now().base
        return None if base is None else base.made

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep the index as it is for this thread while the block runs, but for a `refresh` of its own."""
        outer = getattr(self._own, "state", None)
        self._own.state = self._now()
        try:
            yield
        finally:
            self._own.state = outer

    def _now(self) -> State:
        pinned: State | None = getattr(self._own, "state", None)
        return pinned or self._state or State.empty(0, self._dimension)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no other thread refresh it while the block runs."""
        with self._refreshing:
            yield

    def refresh(self) -> None:
        """Catch up with the rows: from the base or from all of them at first, then what `embedding_change` tells."""
        with self._refreshing:  # the first read begins the caller's transaction: in this order nobody sees an older one
            database = self._archive.database
            first, last = rows.changes(database)
            state = self._state
            if state is None or first > state.seq + 1:  # never read, or so long ago that changes are forgotten
                state = self._anew(database, first, last)
            elif self._is_replaced(state, files.folder_of(database, self._model_id, self._grain)):
                state = self._on_new_base(database, first) or state
            if last > state.seq:
                changed = rows.changed_ids(database, self._model_id, state.seq, last)
                blocks = rows.read(database, self._model_id, self._grain, changed, self._dimension)
                state = state.followed(last, changed, blocks)
            self._state = state
            if getattr(self._own, "state", None) is not None:
                self._own.state = state

    def _anew(self, database: Database, first: int, last: int) -> State:
        made = files.find(database, self._model_id, self._grain)
        if made is not None and made.seq + 1 >= first:
            base = self._opened(_Opening(self._archive, made))
            if base is not None:
                return State.of_base(base)
        ids = rows.all_ids(database, self._model_id, self._grain)
        blocks = rows.read(database, self._model_id, self._grain, ids, self._dimension)
        return State.empty(last, self._dimension, len(ids)).followed(last, ids, blocks)

    def _is_replaced(self, state: State, folder: str) -> bool:
        own = "" if state.base is None else state.base.made.folder
        return folder not in ("", own, self._unusable)

    def _on_new_base(self, database: Database, first: int) -> State | None:
        """Return the base as a state once it is open; checking its files takes a while, which no query waits for."""
        made = files.find(database, self._model_id, self._grain)
        if made is None or made.seq + 1 < first:
            return None
        if self._opening is None or self._opening.made.folder != made.folder:
            self._opening = _Opening(self._archive, made)
            self._opening.start()
        if self._opening.is_alive():
            return None
        base, self._opening = self._opened(self._opening), None
        return None if base is None else State.of_base(base)

    def _opened(self, opening: _Opening) -> Base | None:
        if opening.ident is None:
            opening.run()
        try:
            return opening.result(self._dimension)
        except BaseUnusable as error:
            self._unusable = opening.made.folder
            files.mark_damaged(self._archive, opening.made)
            logger.warning("the saved index of %s is not used and will be made again: %s", self._model_id, error)
            return None

    def competing(self, selection: Selection) -> Ids:
        """Return the ids, ascending, of the rows that `selection` leaves."""
        state = self._now()
        mask = state.competing(selection).mask
        return np.sort(state.ids(np.arange(len(state.alive)) if mask is None else np.flatnonzero(mask)))

    def count(self, selection: Selection) -> int:
        """Return how many rows `selection` leaves."""
        return self._now().competing(selection).count

    def vectors(self, ids: Ids) -> Vectors:
        """Return the vectors, axes (n, d), of the rows `ids`, in their order; the index has to hold them."""
        state = self._now()
        return state.vectors(state.places(ids))

    def nearest(self, query: Vectors, k: int, selection: Selection, mode: SearchMode | None = None) -> Hits:
        """Return the `k` rows nearest to `query`, axis (d,), and those that tie with the last of them.

        Never fewer than `k` while `selection` leaves as many.

        Parameters
        ----------
        mode
            EXACT: every row is compared. APPROX: by the approximate index where there is one. None: the index's choice.
        """
        return self.nearest_each(query[None, :], k, selection, mode)[0]

    def nearest_each(
        self, queries: Vectors, k: int, selection: Selection, mode: SearchMode | None = None
    ) -> list[Hits]:
        """Return what `nearest` does for each of `queries`, axes (m, d), in less time."""
        return searching.nearest(self._now(), queries, k, selection, mode, self._limits)


def refresh(indexes: Sequence[VectorIndex]) -> None:
    """Bring several indexes to one state of the catalogue; always in the same order, frames before whole series.

    All are held before the first is read: the caller's transaction begins with that, and nobody who has a later one may
    have brought any of them further.
    """
    with ExitStack() as stack:
        for index in indexes:
            stack.enter_context(index.held())
        for index in indexes:
            index.refresh()


class _Opening(threading.Thread):
    """Checks and maps the files of a base, in a thread where somebody else goes on meanwhile."""

    def __init__(self, archive: Archive, made: Made) -> None:
        super().__init__(name="open-base", daemon=True)
        self.made = made
        self._archive = archive
        self._base: Base | None = None
        self._error = BaseUnusable(f"{made.folder} could not be opened")

    def run(self) -> None:
        """Open it; what went wrong is told by `result`."""
        try:
            self._base = files.open_base(self._archive, self.made)
        except BaseUnusable as error:
            self._error = error

    def result(self, dimension: int) -> Base:
        """Return the base; raises `BaseUnusable`, also when its vectors are not of `dimension` values."""
        if self._base is None:
            raise self._error
        if self.made.dimension != dimension:
            raise BaseUnusable(f"expected vectors of {dimension} values, got {self.made.dimension}")
        return self._base


__all__ = ["Grain", "Hits", "Ids", "Selection", "VectorIndex", "refresh"]
