"""What varies over the instances of a series: the raw material of a site mapping."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from reconstruct.projections.registry import read_header

_LONGEST = 64
_NUMBERS = ("DS", "IS", "FD", "FL", "US", "UL", "SS", "SL")
_SHOWN = 3
_STEPS_A_JUMP = 20
"""An angle jumps where it passes 360 degrees, and where the camera goes to its next position."""
_BORING = {"SOPInstanceUID", "InstanceNumber", "ContentTime", "AcquisitionTime", "InstanceCreationTime"}


@dataclass(frozen=True)
class Varying:
    """An element that is not the same in all instances.

    Attributes
    ----------
    element
        As a rule names it: a keyword, or ``(gggg,xxee)``.
    creator
        Of a private element.
    vr
        Value Representation; UN where the sender had no dictionary.
    name
        Keyword, or nothing.
    values
        Of the first instances, as text.
    different
        How many different values there are.
    rises
        Whether it is a number that rises or falls from instance to instance.
    readings
        For UN: what the first value would be as FL, FD, …, by VR.
    """

    element: str
    creator: str
    vr: str
    name: str
    values: tuple[str, ...]
    different: int
    rises: bool
    readings: tuple[tuple[str, str], ...] = ()


def varying_elements(paths: Sequence[Path]) -> list[Varying]:
    """Return the elements whose values differ over Part 10 files, private ones first, those that rise before others.

    Raises
    ------
    ScanError
        A file that cannot be read.
    """
    headers = sorted((read_header(path) for path in paths), key=lambda header: int(header.get("InstanceNumber") or 0))
    seen: dict[tuple[BaseTag, str], list[Any]] = {}
    for header in headers:
        for item in _levels(header):
            for element in item:
                if element.VR == "SQ" or element.tag.is_private_creator or element.keyword in _BORING:
                    continue
                creator = element.private_creator or "" if element.tag.is_private else ""
                seen.setdefault((element.tag, creator), []).append(element)
    found = [_described(elements, creator) for (_, creator), elements in seen.items() if len(elements) > 1]
    varying = [each for each in found if each is not None]
    return sorted(varying, key=lambda each: (not each.creator, not each.rises, each.element))


def skeleton(headers: Sequence[Dataset], varying: Sequence[Varying], name: str) -> str:
    """Return a ``[[site_mappings]]`` to be completed: units and signs are left to who knows the scanner."""
    first = headers[0]
    likely = next((each for each in varying if each.rises), None)
    lines = [
        "[[site_mappings]]",
        f'name = "{name}"',
        f'manufacturer = "{first.get("Manufacturer") or ""}"',
        f'model = "{first.get("ManufacturerModelName") or ""}"',
    ]
    creator = next((each.creator for each in varying if each.creator), "")
    if creator:
        lines.append(f'creator = "{creator}"')
    if likely is None:
        lines.append("# No number rises from file to file, so none looks like the angle of the view.")
        lines.append('# angle = { element = "(gggg,xxee)", creator = "", unit = "deg" }')
    else:
        # Senders without a dictionary pass private elements on as UN: the rule then has to say what they are.
        kind = likely.readings[0][0] if likely.readings else likely.vr
        vr = f', vr = "{kind}"' if likely.creator and kind in _NUMBERS else ""
        of = f', creator = "{likely.creator}"' if likely.creator else ""
        lines.append(
            "# The first number that rises from file to file. Is it the angle? Which unit, which sense, what is 0?"
        )
        lines.append(f'angle = {{ element = "{likely.element}"{of}{vr}, unit = "?", scale = 1.0, offset = 0.0 }}')
    lines += [
        "# Say what no element tells, or name the element as above:",
        '# source_to_isocentre = { value = 0.0, unit = "mm" }',
        '# source_to_detector = { value = 0.0, unit = "mm" }',
        '# pitch_row = { value = 0.0, unit = "mm" }',
        '# pitch_column = { value = 0.0, unit = "mm" }',
        '# unattenuated = { value = 0.0, unit = "" }',
        "# Does the camera move, so that each angle is taken several times? Which element says where it stands?",
        '# camera_column = { element = "(gggg,xxee)", creator = "", unit = "mm" }',
    ]
    return "\n".join(lines) + "\n"


def _levels(header: Dataset) -> Iterator[Dataset]:
    """Yield the top of an instance, and the items of its frames with what nests in them."""
    yield header
    for item in header.get("PerFrameFunctionalGroupsSequence") or []:
        yield item
        for element in item:
            if element.VR == "SQ":
                yield from element.value[:1]


def _described(elements: Sequence[Any], creator: str) -> Varying | None:
    texts = [_text(element.value) for element in elements]
    different = len(set(texts))
    if different < 2:
        return None
    first = elements[0]
    tag = first.tag
    element = (
        f"({tag.group:04X},xx{tag.element & 0xFF:02X})"
        if creator
        else first.keyword or f"({tag.group:04X},{tag.element:04X})"
    )
    readings = _readings(first.value) if isinstance(first.value, bytes) else ()
    values = [_number(each.value, readings[0][0] if readings else "") for each in elements]
    return Varying(
        element, creator, str(first.VR), str(first.keyword or ""), tuple(dict.fromkeys(texts))[:_SHOWN], different,
        _rises(values), readings,
    )  # fmt: skip


def _rises(values: Sequence[float | None]) -> bool:
    """Whether numbers go one way but for a jump now and then, as an angle does."""
    if len(values) < 3 or None in values:
        return False
    steps = [b - a for a, b in pairwise(values) if a is not None and b is not None]
    return min(sum(step <= 0 for step in steps), sum(step >= 0 for step in steps)) <= max(
        1, len(steps) // _STEPS_A_JUMP
    )


def _number(value: Any, vr: str) -> float | None:
    try:
        if isinstance(value, bytes):
            return float(dict(_readings(value))[vr])
        return float(value)
    except (TypeError, ValueError, KeyError):
        return None


def _text(value: Any) -> str:
    text = f"{value.hex(' ')}" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _readings(value: bytes) -> tuple[tuple[str, str], ...]:
    """Return what bytes of unknown kind may mean, by VR: what can be told apart by their number only."""
    text = value.decode("ascii", "replace").strip(" \0")
    if text and all(character in "+-.0123456789eE\\ " for character in text):
        return (("DS", text),)
    kinds = {2: ("US", "SS"), 4: ("FL", "UL"), 8: ("FD",)}.get(len(value), ())
    formats = {"US": "<H", "SS": "<h", "FL": "<f", "UL": "<I", "FD": "<d"}
    told = [(vr, struct.unpack(formats[vr], value)[0]) for vr in kinds]
    # An integer read as a float is next to 0, a float read as an integer is huge: the sensible one goes first.
    told.sort(key=lambda pair: not 1e-6 < abs(pair[1]) < 1e7)
    return tuple((vr, f"{number:g}") for vr, number in told)
