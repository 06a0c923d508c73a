"""The router, put together: the jobs and rules of `plugins.routing`, the network of `scp`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

from config.settings import Settings
from index.archive import Archive
from index.deidentification.deidentifier import Deidentifier
from plugins.routing.outgoing import Deidentifies
from plugins.routing.router import Router
from scp.forwarding import Forwarder


def make_router(archive: Archive, settings: Settings, *, clock: Callable[[], float] = time.time) -> Router:
    """Return the router of a node.

    Raises
    ------
    RouteError
        A rule cannot be used.
    TlsError
        What peers are to be reached with over TLS cannot be used.
    """

    @lru_cache
    def deidentifier(profile: str) -> Deidentifies:
        return Deidentifier.from_settings(settings, archive.data, profile)

    return Router(archive, settings, Forwarder(archive, settings), deidentifier=deidentifier, clock=clock)
