"""P6: elements that a site mapping of the settings names; and its constants, behind whatever another encoding says."""

from __future__ import annotations

import struct
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from config.site_mappings import UNITS, VECTORS, ElementRule, MomentRule, SiteMapping, VectorRule
from reconstruct.projections.encoding import Encoding
from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes, frame_attributes
from reconstruct.projections.intensities import meaning_of_counts
from reconstruct.projections.moments import later
from reconstruct.projections.places import ISOCENTRE_PLACES, Level, Places, Quantity
from reconstruct.projections.registry import STANDARD, Encodings
from reconstruct.projections.scan import PixelMeaning

_KEYWORDS = {
    "angle": "SiteAngle",
    "secondary_angle": "SiteSecondaryAngle",
    "source_to_isocentre": "SiteSourceToIsocentre",
    "source_to_detector": "SiteSourceToDetector",
    "travel": "SiteTravel",
    "exposure": "FrameAcquisitionDuration",
    "unattenuated": "UnattenuatedValue",
    "water_attenuation": "WaterAttenuation",
    "energy_bin": "EnergyBinIndex",
    "energy_bins": "EnergyBinCount",
    "energy_low": "EnergyThresholdLow",
    "energy_high": "EnergyThresholdHigh",
    "effective_energy": "EffectiveEnergy",
    "expected_frames": "ExpectedFrames",
    "expected_instances": "ExpectedInstances",
}
_GROUPS = {
    "SitePitch": ("pitch_row", "pitch_column"),
    "SitePrincipalPoint": ("principal_column", "principal_row"),
    "SiteTilt": ("tilt_about_columns", "tilt_about_rows", "tilt_about_ray"),
    "CameraPosition": ("camera_column", "camera_row"),
    "TileOrigin": ("tile_column", "tile_row"),
}
_VECTORS = {**dict(zip(VECTORS, ("SourcePosition", "DetectorCentre", "ColumnStep", "RowStep"), strict=True)),
            "matrix": "ProjectionMatrix"}  # fmt: skip
_SIZES = {"ProjectionMatrix": 12}
_DAY, _EPOCH = "19700101", "19700101000000"
"""Only differences of moments count: those without a date are put on any day."""
_FORMATS = {"FD": "d", "FL": "f", "US": "H", "UL": "I", "SS": "h", "SL": "i"}


def encodings_from(mappings: Iterable[SiteMapping]) -> Encodings:
    """Return the encodings of a node: those of the site's mappings that find views, then the standard ones.

    A mapping finds views when it names an element for an angle, a matrix or vectors. Constants also complete what the
    standard encodings find in the instances that a mapping is about.
    """
    rules = tuple(mappings)
    if not rules:
        return STANDARD
    own = [mapped(rule) for rule in rules if rule.finding_views]
    told = "".join(rule.model_dump_json(exclude_defaults=True) for rule in rules)
    return Encodings([*own, *(_completed(encoding, rules) for encoding in STANDARD.encodings)], told)


def mapped(rule: SiteMapping) -> Encoding:
    """Return the encoding that a mapping describes."""
    return Encoding(
        "P6",
        f"instance that the site mapping {rule.name!r} is about",
        lambda dataset: _is_about(rule, dataset) and _says_something(rule, dataset),
        attributes=lambda dataset: _attributes(rule, dataset),
        places=_places(rule),
        transposed=rule.transposed,
        meaning=lambda attributes: PixelMeaning(rule.pixels) if rule.pixels else meaning_of_counts(attributes),
    )


def _completed(encoding: Encoding, rules: Sequence[SiteMapping]) -> Encoding:
    def attributes(dataset: Dataset) -> Sequence[Attributes]:
        frames = encoding.attributes(dataset)
        for rule in rules:
            if _is_about(rule, dataset):
                found = _values(rule, dataset, len(frames))
                frames = [ChainMap(dict(frame), own) for frame, own in zip(frames, found, strict=True)]
        return frames

    return replace(encoding, attributes=attributes)


def _is_about(rule: SiteMapping, dataset: Dataset) -> bool:
    def holds(wanted: str, keyword: str) -> bool:
        return wanted.lower() in str(dataset.get(keyword) or "").lower()

    uid = dataset.get("SOPClassUID")
    of_class = not rule.sop_class or (uid is not None and rule.sop_class in (str(uid), uid.keyword))
    by_creator = not rule.creator or any(_creator(item, tag) == rule.creator for item, tag in _creators(dataset))
    return (
        of_class
        and by_creator
        and holds(rule.manufacturer, "Manufacturer")
        and holds(rule.model, "ManufacturerModelName")
    )


def _says_something(rule: SiteMapping, dataset: Dataset) -> bool:
    """Whether an instance says where it was taken from, or that it is a flat or dark frame and needs not."""
    if any(_found(each, dataset, 0) is not None for each in rule.finding_views):
        return True
    return any(frame.get("FrameRole") in ("FLAT", "DARK") for frame in _values(rule, dataset, 1))


def _places(rule: SiteMapping) -> Places:
    """Return the places of a rule: what it reads from elements goes first, its constants last."""
    places = replace(
        ISOCENTRE_PLACES,
        seen_from_source=rule.seen_from_source,
        rows_up=rule.rows_up,
        patient_axes=rule.axes == "patient",
    )
    first: dict[str, Any] = {}
    for name, of in (
        ("angle", "angle"),
        ("secondary_angle", "secondary_angle"),
        ("source_to_isocentre", "source_to_isocentre"),
        ("source_to_detector", "source_to_detector"),
        ("pitch", "pitch_row"),
        ("principal_point", "principal_column"),
        ("travel", "travel"),
    ):
        number = getattr(rule, of)
        if number is not None and number.element:
            first[name] = getattr(places, name).preferring(Level.SITE)
    tilts = {name: getattr(rule, name) for name in _GROUPS["SiteTilt"]}
    if any(tilt is not None and tilt.element for tilt in tilts.values()):
        first["tilt"] = places.tilt.preferring(Level.SITE)
        if tilts["tilt_about_ray"] is not None:
            first["turn"] = Quantity()  # of the standard, which would go before it
    return replace(places, **first)


def _attributes(rule: SiteMapping, dataset: Dataset) -> Sequence[Attributes]:
    frames = frame_attributes(dataset)
    found = _values(rule, dataset, len(frames))
    size = {"Rows": dataset.get("Columns"), "Columns": dataset.get("Rows")} if rule.transposed else {}
    return [ChainMap(own | size, dict(frame)) for frame, own in zip(frames, found, strict=True)]


def _values(rule: SiteMapping, dataset: Dataset, frames: int) -> list[dict[str, Any]]:
    return [_of_frame(rule, dataset, frame, frames) for frame in range(frames)]


def _of_frame(rule: SiteMapping, dataset: Dataset, frame: int, frames: int) -> dict[str, Any]:
    numbers = {name: _number(rule, name, dataset, frame, frames) for name in UNITS}
    values: dict[str, Any] = {_KEYWORDS[name]: number for name, number in numbers.items() if name in _KEYWORDS}
    for keyword, names in _GROUPS.items():
        # What the rule does not name is 0; what it names has to be there.
        group = [0.0 if getattr(rule, name) is None else numbers[name] for name in names]
        if None not in group and any(getattr(rule, name) is not None for name in names):
            values[keyword] = group
    for name, keyword in _VECTORS.items():
        values[keyword] = _vector(rule, name, _SIZES.get(keyword, 3), dataset, frame, frames)
    values["FrameAcquisitionDateTime"] = _moment(rule, dataset, frame, frames)
    values["PixelMeaning"], values["CounterKind"] = rule.pixels or None, rule.counters or None
    values["CountingMode"] = rule.counting_mode or None
    values["CorrectionsApplied"] = list(rule.corrections_applied) or None
    if rule.role is not None:
        word = str(_found(rule.role, dataset, frame) or "").strip()
        words = {**dict.fromkeys(rule.role.flat, "FLAT"), **dict.fromkeys(rule.role.dark, "DARK")}
        values["FrameRole"] = words.get(word, "PROJECTION")
    return {keyword: value for keyword, value in values.items() if value is not None}


def _number(rule: SiteMapping, name: str, dataset: Dataset, frame: int, frames: int) -> float | None:
    """Return a quantity of a frame, None where the rule or the instance does not have it."""
    number = getattr(rule, name)
    if number is None:
        return None
    if number.value is not None:
        return rule.converted(name, number.value)
    value = _one(rule, number, number.index, dataset, frame, frames)
    if value is None:
        return None
    try:
        return rule.converted(name, float(value))
    except (TypeError, ValueError) as error:
        raise ScanError(f"site mapping {rule.name!r}: {number.element} is {value!r}, expected a number") from error


def _one(rule: SiteMapping, element: ElementRule, index: int, dataset: Dataset, frame: int, frames: int) -> Any:
    """Return one value of an element, None where the instance does not have it."""
    value = _found(element, dataset, frame)
    if not isinstance(value, list | tuple | MultiValue):
        return value
    # An element at the top of a multi-frame image may hold one value for each frame.
    index = frame if len(value) == frames > 1 else index
    if index >= len(value):
        raise ScanError(
            f"site mapping {rule.name!r}: {element.element} has {len(value)} values, and no number {index}"
        )
    return value[index]


def _vector(
    rule: SiteMapping, name: str, size: int, dataset: Dataset, frame: int, frames: int
) -> list[float] | None:
    """Return a vector of a frame, mm, or its matrix, in the axes of the patient; None where it does not have it."""
    told: VectorRule | None = getattr(rule, name)
    # Constants alone describe no view, and stay behind what other encodings say.
    if told is None or not rule.finding_views:
        return None
    found = told.value if told.value is not None else _found(told, dataset, frame)
    if found is None:
        return None
    values = list(found) if isinstance(found, list | tuple | MultiValue) else [found]
    start = frame * size if len(values) == frames * size > size else told.index
    if start + size > len(values):
        raise ScanError(
            f"site mapping {rule.name!r}: {told.element} has {len(values)} values, expected {size} from number {start}"
        )
    try:
        own = [float(value) for value in values[start : start + size]]
    except (TypeError, ValueError) as error:
        raise ScanError(f"site mapping {rule.name!r}: {told.element} is {found!r}, expected numbers") from error
    if size == 3:
        return [sign * own[axis] / told.per_mm for axis, sign in told.turn]
    rows = (own[row : row + 4] for row in range(0, size, 4))
    return [entry for row in rows for entry in (*(told.per_mm * sign * row[axis] for axis, sign in told.turn), row[3])]


def _moment(rule: SiteMapping, dataset: Dataset, frame: int, frames: int) -> str | None:
    """Return the DT at which a frame was taken, None where the rule or the instance does not have it."""
    told: MomentRule | None = rule.acquired
    value = None if told is None else _one(rule, told, 0, dataset, frame, frames)
    if told is None or value is None:
        return None
    moment = f"{_DAY if told.unit == 'TM' else ''}{value}".strip()
    try:
        if told.seconds is not None:
            return later(_EPOCH, told.seconds * float(value))
        later(moment, 0.0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ScanError(f"site mapping {rule.name!r}: {told.element} is {value!r}, expected {told.unit}") from error
    return moment


def _found(rule: ElementRule, dataset: Dataset, frame: int) -> Any:
    """Return the value of an element: from the frame's item, the shared item or the top, and what nests in them."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    items = [*per_frame[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1], dataset]
    for item in items:
        nested = (macro for e in item if e.VR == "SQ" and item is not dataset for macro in e.value[:1])
        for place in (item, *nested):
            value = _value(rule, place)
            if value is not None:
                return value
    return None


def _value(rule: ElementRule, item: Dataset) -> Any:
    parts = rule.parts
    if parts is None:
        tag = Tag(rule.element)
    else:
        group, block, offset = parts
        if rule.creator:
            block = next(
                (t.element for own, t in _creators(item) if t.group == group and _creator(own, t) == rule.creator), None
            )
        if block is None:
            return None
        tag = Tag(group, (block << 8) | offset)
    element = item.get(tag)
    if element is None or element.is_empty:
        return None
    return _decoded(element.value, rule.vr) if isinstance(element.value, bytes) else element.value


def _decoded(value: bytes, vr: str) -> Any:
    """Decode an element that came as UN; without a VR in the rule it can only be text."""
    if vr not in _FORMATS:
        parts: list[Any] = [part.strip(" \0") for part in value.decode("ascii", "replace").split("\\")]
    else:
        width = struct.calcsize(f"<{_FORMATS[vr]}")
        count = len(value) // width
        parts = list(struct.unpack(f"<{count}{_FORMATS[vr]}", value[: count * width]))
    return parts[0] if len(parts) == 1 else parts


def _creators(item: Dataset) -> Iterator[tuple[Dataset, Any]]:
    for tag in item.keys():  # noqa: SIM118
        if tag.group % 2 and 0x10 <= tag.element <= 0xFF:
            yield item, tag


def _creator(item: Dataset, tag: Any) -> str:
    value = item[tag].value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")
