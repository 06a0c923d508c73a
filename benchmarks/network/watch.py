"""What a node's processes take while something is measured: CPU time and resident memory of the whole tree."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
_EVERY_S = 0.05
_PIDS_EVERY = 10
"""Looks between two searches for new processes, which cost more than a look."""


@dataclass
class Taken:
    """CPU seconds; the largest resident memory of all processes together, and of one of them, MiB."""

    cpu_s: float = 0.0
    peak_mb: float = 0.0
    largest_mb: float = 0.0


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of processes, and of those of their children that have ended and were waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / _TICKS


def resident(pids: list[int]) -> list[float]:
    """Return the resident memory of each process that lives, MiB."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found.append(pages * _PAGE_MB)
    return found


@contextmanager
def watched(pids: Callable[[], list[int]]) -> Iterator[Taken]:
    """Fill in what the processes take during the block."""
    taken, done = Taken(), threading.Event()

    def look() -> None:
        looks, known = 0, pids()
        while True:  # once at least: some measurements take less than the time between two looks
            sizes = resident(known)
            taken.peak_mb = max(taken.peak_mb, sum(sizes))
            taken.largest_mb = max([taken.largest_mb, *sizes])
            if done.wait(_EVERY_S):
                return
            looks += 1
            if looks % _PIDS_EVERY == 0:
                known = pids()

    before = cpu_seconds(pids())
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        taken.cpu_s = cpu_seconds(pids()) - before
        done.set()
        thread.join()
