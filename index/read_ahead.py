"""Files that will be sent soon are read by the system while others are on their way.

What an archive receives is not kept in the system's cache (`index.direct_io`), and what is asked for may be old: who
sends the files of a study one after the other would wait for the disk with each of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from index.direct_io import BLOCK_BYTES, LARGE, SMALL
from index.instances import StoredInstance

READ_AHEAD = 4
"""Objects before which a file is brought into the cache."""

_FOLLOWING_BYTES = 4 << 20
"""What is on its way into the cache while a block of a large file is sent."""


def read_ahead(instances: Sequence[StoredInstance]) -> Iterator[StoredInstance]:
    """Yield `instances`; the file of each is on its way into the cache some instances before."""
    coming = iter(instances)
    for later in islice(coming, READ_AHEAD):
        bring_to_cache(later.path, later.size)
    for instance in instances:
        for later in islice(coming, 1):
            bring_to_cache(later.path, later.size)
        yield instance


def bring_to_cache(path: Path, size: int) -> None:
    """Have the system read the begin of a file into its cache, without waiting for that.

    Parameters
    ----------
    size
        Of the file, bytes, as far as is known; nothing is done for a small one, which the cache most often has, and for
        a large one, which is read past the cache (`index.blocks`).
    """
    if not SMALL < size < LARGE or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # it is a wish; whoever reads the file is told what is wrong with it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, BLOCK_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def bring_what_follows(descriptor: int, offset: int) -> None:
    """Have the system read on in an open file, from `offset`, without waiting for that."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, _FOLLOWING_BYTES, os.POSIX_FADV_WILLNEED)
