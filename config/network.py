"""``[network]``: how the network edge works, as opposed to who may do what (``[scp]``)."""

from __future__ import annotations

from enum import StrEnum

from config.sections import Section


class Transport(StrEnum):
    """What carries the associations that peers open."""

    OWN = "own"
    PYNETDICOM = "pynetdicom"


class NetworkSettings(Section):
    """``[network]``."""

    transport: Transport
