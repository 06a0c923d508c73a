"""A query whose rows stop until its C-CANCEL is there: how many come after it is no matter of who is faster."""

from __future__ import annotations

import threading
import time

from scp import query

_LATEST_S = 120.0


def hold_rows(monkeypatch, after):
    """Have nodes make so many answers to a C-FIND, and no more before they know of the C-CANCEL that the test sends.

    A peer's kernel takes rows as fast as they are made, whether the peer itself comes to run or not.
    """
    stock, pause = query.find, threading.Event()

    def held(seen, caller, request):
        for number, answer in enumerate(stock(seen, caller, request), 1):
            yield answer
            if number == after and answer.status.is_pending:
                deadline = time.monotonic() + _LATEST_S
                while not request.cancelled() and time.monotonic() < deadline:
                    pause.wait(0.01)

    monkeypatch.setattr(query, "find", held)
