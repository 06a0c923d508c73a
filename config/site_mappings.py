"""``[[site_mappings]]``: what a scanner's own elements mean, said by the site that has the scanner."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_ELEMENT = re.compile(r"\(?([0-9A-Fa-f]{4}),\s*([xX]{2}|[0-9A-Fa-f]{2})([0-9A-Fa-f]{2})\)?")
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]+")

Unit = Literal["", "deg", "rad", "mm", "cm", "m", "um", "px", "1/cm", "1/mm", "keV", "us", "ms", "s"]
Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
Correction = Literal[
    "DARK", "FLAT", "GAIN", "DEAD_PIXEL", "PILE_UP", "SCATTER", "DRIFT", "RING", "BEAM_HARDENING", "TRUNCATION"
]  # fmt: skip
_SCALES: dict[str, dict[str, float]] = {
    "deg": {"deg": 1.0, "rad": 57.29577951308232},
    "mm": {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001},
    "px": {"px": 1.0},
    "1/cm": {"1/cm": 1.0, "1/mm": 10.0},
    "keV": {"keV": 1.0},
    "ms": {"ms": 1.0, "s": 1000.0, "us": 0.001},
    "": {"": 1.0},
}
UNITS = {
    "angle": "deg",
    "secondary_angle": "deg",
    "source_to_isocentre": "mm",
    "source_to_detector": "mm",
    "pitch_row": "mm",
    "pitch_column": "mm",
    "principal_row": "px",
    "principal_column": "px",
    "tilt_about_columns": "deg",
    "tilt_about_rows": "deg",
    "tilt_about_ray": "deg",
    "travel": "mm",
    "camera_column": "mm",
    "camera_row": "mm",
    "tile_column": "px",
    "tile_row": "px",
    "exposure": "ms",
    "unattenuated": "",
    "water_attenuation": "1/cm",
    "energy_bin": "",
    "energy_bins": "",
    "energy_low": "keV",
    "energy_high": "keV",
    "effective_energy": "keV",
    "expected_frames": "",
    "expected_instances": "",
}
"""The numbers of a rule and the unit that each is brought to."""

VECTORS = ("source_position", "detector_centre", "column_step", "row_step")
"""The vectors of a rule, which describe a view together."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ElementRule(_Part):
    """An element, standard by its keyword or tag, private by ``(gggg,xxee)`` and its creator."""

    element: str = ""
    creator: str = ""
    vr: Literal["", "DS", "IS", "FD", "FL", "US", "UL", "SS", "SL"] = ""

    @field_validator("element")
    @classmethod
    def _is_an_element(cls, value: str) -> str:
        if value and not (_ELEMENT.fullmatch(value) or _KEYWORD.fullmatch(value)):
            raise ValueError(f"expected a keyword such as PositionerPrimaryAngle, or (gggg,xxee), got {value!r}")
        return value

    @model_validator(mode="after")
    def _names_its_creator(self) -> ElementRule:
        parts = self.parts
        if self.element and parts is not None and parts[0] % 2 and not self.creator:
            raise ValueError(f"{self.element} is private, so its creator has to be named")
        return self

    @property
    def parts(self) -> tuple[int, int | None, int] | None:
        """Group, block (None: the one that the creator reserved) and offset; None for a keyword."""
        found = _ELEMENT.fullmatch(self.element)
        if found is None:
            return None
        group, block, offset = found.groups()
        return int(group, 16), None if block.lower() == "xx" else int(block, 16), int(offset, 16)


class NumberRule(ElementRule):
    """A number: quantity = scale × value + offset, then from `unit` to the unit of the quantity."""

    value: float | None = None
    index: Annotated[int, Field(ge=0)] = 0
    unit: Unit
    scale: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def _has_one_source(self) -> NumberRule:
        if bool(self.element) == (self.value is not None):
            raise ValueError("expected either an element or a constant value")
        if self.scale == 0:
            raise ValueError("a scale of 0 makes every value the same")
        return self


class VectorRule(ElementRule):
    """Several numbers of a view in a scanner's own axes: a vector, or a matrix that takes points to column and row.

    `axes` says which of the scanner's axes, and in which sense, are x, y and z of the patient (left, back, head).
    """

    value: tuple[float, ...] | None = None
    index: Annotated[int, Field(ge=0)] = 0
    unit: Literal["mm", "cm", "m", "um"]
    axes: tuple[Axis, Axis, Axis] = ("x", "y", "z")

    @model_validator(mode="after")
    def _can_be_turned(self) -> VectorRule:
        if bool(self.element) == (self.value is not None):
            raise ValueError("expected either an element or a constant value")
        if sorted(axis[-1] for axis in self.axes) != ["x", "y", "z"]:
            raise ValueError(f"axes name each of x, y and z once, got {', '.join(self.axes)}")
        return self

    @property
    def per_mm(self) -> float:
        """How many of its units are one mm."""
        return 1 / _SCALES["mm"][self.unit]

    @property
    def turn(self) -> tuple[tuple[int, float], ...]:
        """For x, y and z of the patient: which of the scanner's axes, from 0, and its sign."""
        return tuple(("xyz".index(axis[-1]), -1.0 if axis.startswith("-") else 1.0) for axis in self.axes)


class MomentRule(ElementRule):
    """The element that says when a frame was taken: DT, TM, or a number of seconds since any fixed moment."""

    unit: Literal["DT", "TM", "us", "ms", "s"]

    @model_validator(mode="after")
    def _has_an_element(self) -> MomentRule:
        if not self.element:
            raise ValueError("expected an element")
        return self

    @property
    def seconds(self) -> float | None:
        """How long its unit is, s; None for DT and TM."""
        scale = _SCALES["ms"].get(self.unit)
        return None if scale is None else scale / 1000


class RoleRule(ElementRule):
    """The element that tells projections from flat and dark frames, and the words that it uses."""

    flat: tuple[str, ...] = ()
    dark: tuple[str, ...] = ()


class SiteMapping(_Part):
    """One ``[[site_mappings]]``: which instances it is about, and where they keep what."""

    name: Annotated[str, Field(min_length=1)]
    manufacturer: str = ""
    model: str = ""
    sop_class: str = ""
    creator: str = ""
    angle: NumberRule | None = None
    secondary_angle: NumberRule | None = None
    source_to_isocentre: NumberRule | None = None
    source_to_detector: NumberRule | None = None
    pitch_row: NumberRule | None = None
    pitch_column: NumberRule | None = None
    principal_row: NumberRule | None = None
    principal_column: NumberRule | None = None
    tilt_about_columns: NumberRule | None = None
    tilt_about_rows: NumberRule | None = None
    tilt_about_ray: NumberRule | None = None
    travel: NumberRule | None = None
    camera_column: NumberRule | None = None
    camera_row: NumberRule | None = None
    tile_column: NumberRule | None = None
    tile_row: NumberRule | None = None
    source_position: VectorRule | None = None
    detector_centre: VectorRule | None = None
    column_step: VectorRule | None = None
    row_step: VectorRule | None = None
    matrix: VectorRule | None = None
    exposure: NumberRule | None = None
    acquired: MomentRule | None = None
    unattenuated: NumberRule | None = None
    water_attenuation: NumberRule | None = None
    energy_bin: NumberRule | None = None
    energy_bins: NumberRule | None = None
    energy_low: NumberRule | None = None
    energy_high: NumberRule | None = None
    effective_energy: NumberRule | None = None
    expected_frames: NumberRule | None = None
    expected_instances: NumberRule | None = None
    role: RoleRule | None = None
    pixels: Literal["", "COUNTS", "INTENSITY", "TRANSMISSION", "LINE_INTEGRAL"] = ""
    counters: Literal["", "CUMULATIVE", "DIFFERENTIAL"] = ""
    counting_mode: Literal["", "SPM", "CSM"] = ""
    corrections_applied: tuple[Correction, ...] = ()
    axes: Literal["table", "patient"] = "table"
    seen_from_source: bool = False
    rows_up: bool = False
    transposed: bool = False

    @model_validator(mode="after")
    def _can_be_applied(self) -> SiteMapping:
        if not (self.manufacturer or self.model or self.sop_class or self.creator):
            raise ValueError(f"{self.name}: name at least one of manufacturer, model, sop_class and creator")
        for together in (
            ("pitch_row", "pitch_column"), ("principal_row", "principal_column"), ("tile_row", "tile_column"), VECTORS
        ):  # fmt: skip
            told = [getattr(self, name) is not None for name in together]
            if any(told) and not all(told):
                raise ValueError(f"{self.name}: {', '.join(together[:-1])} and {together[-1]} go together")
        self._check_vectors()
        for quantity, unit in UNITS.items():
            rule = getattr(self, quantity)
            if rule is not None and rule.unit not in _SCALES[unit]:
                allowed = " or ".join(repr(each) for each in _SCALES[unit])
                raise ValueError(f"{self.name}: the unit of {quantity} is {rule.unit!r}, expected {allowed}")
        return self

    def _check_vectors(self) -> None:
        for name, size in (*dict.fromkeys(VECTORS, 3).items(), ("matrix", 12)):
            rule: VectorRule | None = getattr(self, name)
            if rule is not None and rule.value is not None and len(rule.value) != size:
                raise ValueError(f"{self.name}: {name} has {len(rule.value)} values, expected {size}")
        if self.source_position is not None and not any(getattr(self, name).element for name in VECTORS):
            raise ValueError(f"{self.name}: expected an element for one of {', '.join(VECTORS)}: views differ")
        if self.matrix is not None and not self.matrix.element:
            raise ValueError(f"{self.name}: expected an element for matrix: views differ")

    @property
    def finding_views(self) -> tuple[ElementRule, ...]:
        """The elements by which a frame says where it was taken from: an angle, a matrix or vectors."""
        rules = (self.angle, self.matrix, *(getattr(self, name) for name in VECTORS))
        return tuple(rule for rule in rules if rule is not None and rule.element)

    def converted(self, quantity: str, value: float) -> float:
        """Return the number of an element, or the constant, in the unit that `UNITS` names."""
        rule: NumberRule = getattr(self, quantity)
        return (rule.scale * value + rule.offset) * _SCALES[UNITS[quantity]][rule.unit]
