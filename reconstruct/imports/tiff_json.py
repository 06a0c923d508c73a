"""A stack of images beside a JSON file that says how they were taken; docs/scans.md describes its keys."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

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
        return None if told.get(key) is None else float(numbers(told[key], f"{path.name}: {key}").reshape(()))

    def word(key: str, allowed: tuple[str, ...]) -> str:
        value = told.get(key, allowed[0])
        if value not in allowed:
            raise ScanError(f"{path.name}: {key} is {value!r}, expected one of {', '.join(allowed)}")
        return str(value)

    return Setup(
        source_to_isocentre_mm=number("source_to_isocentre_mm"),
        source_to_detector_mm=number("source_to_detector_mm"),
        pitch_mm=_pair(told.get("pitch_mm"), f"{path.name}: pitch_mm", square=True),
        principal_point_px=_pair(told.get("principal_point_px"), f"{path.name}: principal_point_px"),
        angles_deg=_series(told, "angles_deg", path, views),
        sample_turns=word("turns", ("source", "sample")) == "sample",
        seen_from_source=word("seen_from", ("detector", "source")) == "source",
        rows_up=bool(told.get("rows_up", False)),
        matrices=_matrices(told.get("matrices"), path),
        pixels=PixelMeaning(word("pixels", ("INTENSITY", "COUNTS", "TRANSMISSION", "LINE_INTEGRAL"))),
        unattenuated=number("unattenuated"),
        energy=EnergyBin(1, number("low_kev"), number("high_kev"), number("effective_kev"), number("water_per_cm")),
        exposure=Exposure(number("kvp"), number("tube_current_ma"), number("view_ms"), number("flat_ms")),
        view_times_s=_times(told, "view_times_s", path, views),
        flat_times_s=_times(told, "flat_times_s", path, flats),
    )


def _raw(told: Any, path: Path) -> RawFormat | None:
    if told is None:
        return None
    try:
        return RawFormat(**told)
    except TypeError as error:
        raise ScanError(
            f"{path.name}: raw needs rows, columns and dtype, and may have offset_bytes: {error}"
        ) from error


def _pair(value: Any, what: str, *, square: bool = False) -> tuple[float, float] | None:
    if value is None:
        return None
    found = numbers(value, what).reshape(-1)
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
        return evenly(count, *(float(numbers(value[part], f"{path.name}: {key}")) for part in ("first", "step")))
    return None if value is None else numbers(value, f"{path.name}: {key}").reshape(-1)


def _times(told: dict[str, Any], key: str, path: Path, count: int) -> tuple[float, ...]:
    found = _series(told, key, path, count)
    return () if found is None else tuple(float(time) for time in found)


def _matrices(told: Any, path: Path) -> Any:
    if told is None:
        return None
    found = numbers(told, f"{path.name}: matrices")
    if found.size % 12:
        raise ScanError(f"{path.name}: matrices have {found.size} numbers, expected 12 for each view")
    return found.reshape(-1, 3, 4)
