"""How many threads the kernels run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba


@contextmanager
def kernel_threads(threads: int) -> Iterator[int]:
    """Run the kernels on that many threads (0: all), and leave numba's setting as it was.

    Yields
    ------
    int
        How many there are: no more than the machine has.

    Raises
    ------
    ValueError
        Less than none.
    """
    available = numba.config.NUMBA_NUM_THREADS
    if threads < 0:
        raise ValueError(f"expected a number of threads from 0 (all) to {available}, got {threads}")
    before = numba.get_num_threads()
    workers = min(threads or available, available)
    numba.set_num_threads(workers)
    try:
        yield workers
    finally:
        numba.set_num_threads(before)
