"""The router: a lane for each application entity that can be sent to, in threads of one process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from config.settings import Settings
from index import deliveries
from index.archive import Archive
from plugins.routing.lane import Lane
from plugins.routing.outgoing import Deidentifies
from plugins.routing.rules import require_rules
from plugins.routing.sender import Sender

logger = logging.getLogger(__name__)

_STOP_S = 5.0
"""A lane that waits for its peer longer than this when the router stops is left; its job is taken back at the start."""

_TIDY_S = 3600.0


class Router:
    """Sends on what the rules want sent.

    Parameters
    ----------
    archive
        Whose jobs and objects they are.
    settings
        Of the node.
    sender
        Brings objects to peers.
    deidentifier
        Gives what de-identifies by the profile of a name.
    clock
        Seconds since the epoch.

    Raises
    ------
    RouteError
        A rule cannot be used.
    """

    def __init__(
        self,
        archive: Archive,
        settings: Settings,
        sender: Sender,
        *,
        deidentifier: Callable[[str], Deidentifies],
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_rules(settings)
        self._archive = archive
        self._keep_s = settings.jobs.keep_days * 86400.0
        self._stop = threading.Event()

        def lane(title: str) -> Lane:
            return Lane(
                archive, settings, sender, title, deidentifier=deidentifier, stop=self._stop, clock=clock
            )

        titles = [entity.title for entity in settings.entity_table().entities if entity.is_destination]
        self._lanes = {title: lane(title) for title in titles}
        self._make_lane = lane

    def stop(self) -> None:
        """Ask the router to stop (safe in another thread); each lane stops behind the instance under way."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop` is called."""
        for title in deliveries.queued_for(self._archive) - set(self._lanes):
            why = f"[[application_entities]] has no {title} with host and port any more"
            self._make_lane(title).give_up(why)
        threads = [
            threading.Thread(target=lane.run, name=f"lane {title}", daemon=True) for title, lane in self._lanes.items()
        ]
        for thread in threads:
            thread.start()
        while not self._stop.wait(_TIDY_S):
            if self._keep_s:
                deliveries.forget(self._archive, self._keep_s)
        deadline = time.monotonic() + _STOP_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
