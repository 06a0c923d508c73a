"""When frames were taken and for how long, from whichever attributes tell it of all of them alike.

Frames of enhanced objects have a date and time, and a duration, of their own (PS3.3 C.7.6.16.2.2). Single images have
those of the instance (C.7.6.1), and X-Ray images their exposure (C.8.7.2, C.8.8.2); frames of a cine follow each other
in Frame Time (C.7.6.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydicom.valuerep import DT

from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.roles import RoledFrame

_Told = Callable[[RoledFrame], float | None]

_CLOCKS = (("AcquisitionDateTime",), ("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"))
"""What tells when an instance was taken, the best first."""

_EXPOSURES = (("ExposureTimeInuS", 1000), ("ExposureTime", 1))
"""What tells for how long a single image was exposed, and how many of its unit are 1 ms."""


def timed(frames: Sequence[RoledFrame]) -> list[RoledFrame]:
    """Return the frames with when they were taken, and for how long where no Frame Acquisition Duration tells it.

    A clock counts where projections and flat fields all have it and it tells one projection from another: the
    time at which a scan began, repeated in each frame, is none. An exposure counts where all frames have it.
    """
    taken = _first_told(
        [frame for frame in frames if frame.role != "DARK"],
        [_of_frame, *(_of_instance(keywords) for keywords in _CLOCKS)],
        _tells_projections_apart,
    )
    frames = [replace(each, frame=replace(each.frame, acquired_s=taken.get(id(each)))) for each in frames]
    if any(each.frame.duration_ms is not None for each in frames):
        return frames
    exposed = _first_told(frames, [_exposure(*told) for told in _EXPOSURES])
    return [replace(each, frame=replace(each.frame, duration_ms=exposed.get(id(each)))) for each in frames]


def later(begun: str, seconds: float) -> str:
    """Return the DT (PS3.5 table 6.2-1) that many seconds after another.

    Raises
    ------
    ValueError
        `begun` is no DT.
    """
    return f"{_moment(begun) + timedelta(seconds=seconds):%Y%m%d%H%M%S.%f}"


def _first_told(
    frames: Sequence[RoledFrame],
    ways: Iterable[_Told],
    counts: Callable[[Sequence[RoledFrame], Sequence[float]], bool] = lambda _frames, _values: True,
) -> dict[int, float]:
    """Return what the first way that tells it of all frames says of each, by the identity of the frame."""
    for way in ways:
        values = []
        for frame in frames:
            value = way(frame)
            if value is None:
                break
            values.append(value)
        if len(values) == len(frames) and counts(frames, values):
            return {id(frame): value for frame, value in zip(frames, values, strict=True)}
    return {}


def _tells_projections_apart(frames: Sequence[RoledFrame], moments: Sequence[float]) -> bool:
    of_views = {moment for frame, moment in zip(frames, moments, strict=True) if frame.role == "PROJECTION"}
    return len(of_views) > 1


def _of_frame(frame: RoledFrame) -> float | None:
    return _seconds(str(frame.attributes.get("FrameAcquisitionDateTime") or ""))


def _of_instance(keywords: Sequence[str]) -> _Told:
    """Return what tells when a frame was taken from when its instance was."""

    def told(frame: RoledFrame) -> float | None:
        parts = [str(frame.attributes.get(keyword) or "") for keyword in keywords]
        begun = _seconds("".join(parts)) if all(parts) else None
        after = _after_first_s(frame.attributes, frame.frame.index)
        return None if begun is None or after is None else begun + after

    return told


def _after_first_s(attributes: Attributes, index: int) -> float | None:
    """Return when a frame was taken after the first of its instance, s; None where nothing tells it."""
    if _is_single(attributes):
        return 0.0
    try:
        if attributes.get("FrameTime") is not None:
            return index * float(attributes["FrameTime"]) / 1000
        increments = attributes.get("FrameTimeVector")
        return None if increments is None else sum(float(step) for step in increments[: index + 1]) / 1000
    except (TypeError, ValueError):
        return None


def _exposure(keyword: str, per_ms: int) -> _Told:
    def told(frame: RoledFrame) -> float | None:
        # Of several frames it is not said whether it is the exposure of one or of all.
        if not _is_single(frame.attributes):
            return None
        try:
            exposed = float(frame.attributes[keyword]) / per_ms
        except (KeyError, TypeError, ValueError):
            return None
        return exposed if exposed > 0 else None

    return told


def _is_single(attributes: Attributes) -> bool:
    return int(attributes.get("NumberOfFrames") or 1) == 1


def _seconds(value: str) -> float | None:
    """Return a DT on a clock that all frames share, s; None for what is none."""
    try:
        return _moment(value).timestamp()
    except ValueError:
        return None


def _moment(value: str) -> datetime:
    """A DT; without an offset it is taken as UTC, for only differences count."""
    moment = DT(value) if value else None
    if moment is None:
        raise ValueError(f"expected a date and time, got {value!r}")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
