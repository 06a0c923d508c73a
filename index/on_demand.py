"""Waiting, for a bounded time, for vectors that the encoder process makes because a query needs them."""

from __future__ import annotations

import time
from collections.abc import Callable

from index import asked
from index.archive import Archive
from index.asked import Part
from index.doorbell import ENCODER_BELL, ring
from index.errors import NotEmbedded, QueryCancelled

_SHORTEST_S, _LONGEST_S = 0.002, 0.02


def never() -> bool:
    """Nobody cancels."""
    return False


class OnDemand:
    """Has things embedded by the encoder process of the node, and waits for it.

    Parameters
    ----------
    timeout_s
        How long to wait, seconds.
    clock
        Seconds, for the waiting; `wall` for what is written into rows.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._archive = archive
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall = wall

    def require(self, model_id: str, part: Part, cancelled: Callable[[], bool] = never) -> None:
        """Have `part` embedded unless it is; when this returns, `index.asked.find` finds its vectors.

        Raises
        ------
        InvalidIdentifier, NotEmbedded, UnknownModel, UnknownQuery
            As `index.asked.outcome`; `NotEmbedded` also when it takes too long.
        QueryCancelled
            `cancelled` said so meanwhile.
        """
        if asked.find(self._archive.database, model_id, part) is None:
            self.wait(asked.ask_part(self._archive, model_id, part, at=self._wall()), cancelled)

    def wait(self, number: int, cancelled: Callable[[], bool] = never) -> None:
        """Wake the encoder process and wait for row `number`; raises as `require`."""
        ring(self._archive.data / ENCODER_BELL)
        deadline, pause = self._clock() + self._timeout_s, _SHORTEST_S
        while not asked.outcome(self._archive.database, number):
            if cancelled():
                raise QueryCancelled("cancelled while it was being embedded")
            if self._clock() >= deadline:
                raise NotEmbedded(f"not embedded within {self._timeout_s:g} s: ask again later")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_S)
