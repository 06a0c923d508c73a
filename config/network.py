"""``[network]``: how the network edge works, as opposed to who may do what (``[scp]``)."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from config.sections import Section

_MOST_BY_DEFAULT = 4


class Transport(StrEnum):
    """What carries the associations that peers open."""

    OWN = "own"
    PYNETDICOM = "pynetdicom"


class NetworkSettings(Section):
    """``[network]``."""

    transport: Transport
    acceptors: Annotated[int, Field(ge=0, le=64)]

    def acceptor_names(self) -> list[str]:
        """Return the names of the processes that share the ports: two a processor, four at most, unless told.

        Of two associations in one process one waits while the other runs Python, though a processor may be idle.
        """
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = self.acceptors or min(2 * processors, _MOST_BY_DEFAULT)
        return ["network", *(f"network-{number}" for number in range(2, count + 1))]
