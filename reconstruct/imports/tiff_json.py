"""A stack of images beside a JSON file that says how they were taken; docs/scans.md describes its keys."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruct.imports.image_files import RawFormat, images_in, listed
from reconstruct.imports.raw_scan import RawScan, Setup, evenly, numbers, text_of
from reconstruct.projections.acquisition import Exposure
from reconstruct.projections.frames import ScanError
from reconstruct.projections.scan import EnergyBin, PixelMeaning

_KEYS = (
    "projections", "flats", "darks", "raw", "angles_deg", "turns", "source_to_isocentre_mm", "source_to_detector_mm",
    "pitch_mm", "principal_point_px", "matrices", "seen_from", "rows_up", "pixels", "unattenuated", "low_kev",
    "high_kev", "effective_kev", "water_per_cm", "kvp", "tube_current_ma", "view_ms", "flat_ms", "view_times_s",
    "flat_times_s", "description",
)  # fmt: skip


_INSTEAD = {
    "source_to_isocentre_mm": "source_to_isocentre_mm", "pitch_mm": "pitch_mm",
    "principal_point_px": "principal_point_px", "turns": "sample_turns", "seen_from": "seen_from_source",
    "rows_up": "rows_up",
}  # fmt: skip
"""Keys that projection matrices stand for, and what they are in a `Setup`; angles may be told for the record."""


def read_tiff_json(path: Path) -> RawScan:
    """Return the scan that a JSON file describes.

    Raises
    ------
    ScanError
        No JSON, an unknown key, or something missing; the sentence names it.
    """
    try:
        told = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise ScanError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ScanError(f"{path.name} is a JSON {type(told).__name__}, expected an object")
    for key in told:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.0)[0]
            raise ScanError(f"{path.name}: unknown key {key!r}; the nearest is {near!r}")
    if "projections" not in told:
        raise ScanError(f'{path.name} does not say where the projections are: "projections"')
    raw = _raw(told.get("raw"), path)
    folder = path.parent
    views = images_in(listed(folder, told["projections"], "projections"), raw)
    frames = {
        key: images_in(listed(folder, told[key], key), raw) for key in ("flats", "darks") if told.get(key) is not None
    }
    return RawScan(
        views,
        _setup(told, path, len(views), len(frames.get("flats", ()))),
        frames.get("flats"),
        frames.get("darks"),
        str(told.get("description") or ""),
    )


def _setup(told: dict[str, Any], path: Path, views: int, flats: int) -> Setup:
    def number(key: str) -> float | None:
        return None if told.get(key) is None else _number(told[key], f"{path.name}: {key}")

    def word(key: str, allowed: tuple[str, ...]) -> str:
        value = told.get(key, allowed[0])
        if value not in allowed:
            raise ScanError(f"{path.name}: {key} is {value!r}, expected one of {', '.join(allowed)}")
        return str(value)

    setup = Setup(
        source_to_isocentre_mm=number("source_to_isocentre_mm"),
        source_to_detector_mm=number("source_to_detector_mm"),
        pitch_mm=_pair(told.get("pitch_mm"), f"{path.name}: pitch_mm", square=True),
        principal_point_px=_pair(told.get("principal_point_px"), f"{path.name}: principal_point_px"),
        angles_deg=_series(told, "angles_deg", path, views),
        sample_turns=word("turns", ("source", "sample")) == "sample",
        seen_from_source=word("seen_from", ("detector", "source")) == "source",
        rows_up=_truth(told.get("rows_up"), f"{path.name}: rows_up"),
        matrices=_matrices(told.get("matrices"), path),
        pixels=PixelMeaning(word("pixels", ("INTENSITY", "COUNTS", "TRANSMISSION", "LINE_INTEGRAL"))),
        unattenuated=number("unattenuated"),
        energy=EnergyBin(1, number("low_kev"), number("high_kev"), number("effective_kev"), number("water_per_cm")),
        exposure=Exposure(number("kvp"), number("tube_current_ma"), number("view_ms"), number("flat_ms")),
        view_times_s=_times(told, "view_times_s", path, views),
        flat_times_s=_times(told, "flat_times_s", path, flats),
    )
    if setup.matrices is not None:
        for key, name in _INSTEAD.items():
            value, untold = getattr(setup, name), getattr(Setup(), name)
            if value is not untold and value != untold:
                raise ScanError(f"{path.name}: matrices say all of the geometry, and {key} would change nothing")
    return setup


def _raw(told: Any, path: Path) -> RawFormat | None:
    if told is None:
        return None
    try:
        raw = RawFormat(**told)
        np.dtype(raw.dtype)
    except TypeError as error:
        raise ScanError(
            f"{path.name}: raw needs rows, columns and dtype, and may have offset_bytes: {error}"
        ) from error
    for key, least in (("rows", 1), ("columns", 1), ("offset_bytes", 0)):
        value = getattr(raw, key)
        if type(value) is not int or value < least:
            raise ScanError(f"{path.name}: {key} of raw is {value!r}, expected a whole number from {least}")
    return raw


def _truth(value: Any, what: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ScanError(f"{what} is {value!r}, expected true or false")


def _number(value: Any, what: str) -> float:
    found = _numbers(value, what)
    if found.size != 1:
        raise ScanError(f"{what} has {found.size} values, expected one number")
    return float(found.reshape(()))


def _numbers(value: Any, what: str) -> NDArray[np.float64]:
    """Return numbers; words and truths are none, also where they could be read as such."""
    if _has_words(value):
        raise ScanError(f"{what} are no numbers: {value!r}")
    return numbers(value, what)


def _has_words(value: Any) -> bool:
    return any(map(_has_words, value)) if isinstance(value, list) else isinstance(value, str | bool)


def _pair(value: Any, what: str, *, square: bool = False) -> tuple[float, float] | None:
    if value is None:
        return None
    found = _numbers(value, what).reshape(-1)
    if square and len(found) == 1:
        return float(found[0]), float(found[0])
    if len(found) != 2:
        raise ScanError(f"{what} has {len(found)} values, expected 2")
    return float(found[0]), float(found[1])


def _series(told: dict[str, Any], key: str, path: Path, count: int) -> Any:
    """Return a number for each of the images, None where nothing is told."""
    value = told.get(key)
    if isinstance(value, dict):
        if set(value) != {"first", "step"}:
            raise ScanError(
                f"{path.name}: {key} has {', '.join(value) or 'nothing'}, expected first and step, or a list"
            )
        return evenly(count, *(_number(value[part], f"{path.name}: {key}") for part in ("first", "step")))
    return None if value is None else _numbers(value, f"{path.name}: {key}").reshape(-1)


def _times(told: dict[str, Any], key: str, path: Path, count: int) -> tuple[float, ...]:
    found = _series(told, key, path, count)
    return () if found is None else tuple(float(time) for time in found)


def _matrices(told: Any, path: Path) -> Any:
    if told is None:
        return None
    found = _numbers(told, f"{path.name}: matrices")
    if found.size % 12:
        raise ScanError(f"{path.name}: matrices have {found.size} numbers, expected 12 for each view")
    return found.reshape(-1, 3, 4)
