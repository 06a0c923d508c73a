"""When frames were taken: Frame Acquisition DateTime (0018,9074) as seconds, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydicom.valuerep import DT

from reconstruct.projections.functional_groups import Attributes


def acquired_s(attributes: Attributes) -> float | None:
    """Return when a frame was taken, s on a clock that all frames share; None where that is not told or no DT."""
    try:
        moment = _moment(attributes.get("FrameAcquisitionDateTime") or "")
    except ValueError:
        return None
    return None if moment is None else moment.timestamp()


def later(begun: str, seconds: float) -> str:
    """Return the DT (PS3.5 table 6.2-1) that many seconds after another.

    Raises
    ------
    ValueError
        `begun` is no DT.
    """
    moment = _moment(begun)
    if moment is None:
        raise ValueError(f"expected a date and time, got {begun!r}")
    return f"{moment + timedelta(seconds=seconds):%Y%m%d%H%M%S.%f}"


def _moment(value: str) -> datetime | None:
    """A DT; without an offset it is taken as UTC, for only differences count."""
    moment = DT(str(value)) if value else None
    if moment is None:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
