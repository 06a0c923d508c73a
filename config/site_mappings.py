"""``[[site_mappings]]``: what a scanner's own elements mean, said by the site that has the scanner."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_ELEMENT = re.compile(r"\(?([0-9A-Fa-f]{4}),\s*([xX]{2}|[0-9A-Fa-f]{2})([0-9A-Fa-f]{2})\)?")
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]+")

Unit = Literal["", "deg", "rad", "mm", "cm", "m", "um", "px", "1/cm", "1/mm", "keV"]
_SCALES: dict[str, dict[str, float]] = {
    "deg": {"deg": 1.0, "rad": 57.29577951308232},
    "mm": {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001},
    "px": {"px": 1.0},
    "1/cm": {"1/cm": 1.0, "1/mm": 10.0},
    "keV": {"keV": 1.0},
    "": {"": 1.0},
}
UNITS = {
    "angle": "deg",
    "source_to_isocentre": "mm",
    "source_to_detector": "mm",
    "pitch_row": "mm",
    "pitch_column": "mm",
    "principal_row": "px",
    "principal_column": "px",
    "travel": "mm",
    "unattenuated": "",
    "water_attenuation": "1/cm",
    "energy_bin": "",
    "energy_low": "keV",
    "energy_high": "keV",
}
"""The quantities of a rule and the unit that each is brought to."""


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
    source_to_isocentre: NumberRule | None = None
    source_to_detector: NumberRule | None = None
    pitch_row: NumberRule | None = None
    pitch_column: NumberRule | None = None
    principal_row: NumberRule | None = None
    principal_column: NumberRule | None = None
    travel: NumberRule | None = None
    unattenuated: NumberRule | None = None
    water_attenuation: NumberRule | None = None
    energy_bin: NumberRule | None = None
    energy_low: NumberRule | None = None
    energy_high: NumberRule | None = None
    role: RoleRule | None = None
    pixels: Literal["", "COUNTS", "INTENSITY", "TRANSMISSION", "LINE_INTEGRAL"] = ""
    counters: Literal["", "CUMULATIVE", "DIFFERENTIAL"] = ""
    axes: Literal["table", "patient"] = "table"
    seen_from_source: bool = False
    rows_up: bool = False
    transposed: bool = False

    @model_validator(mode="after")
    def _can_be_applied(self) -> SiteMapping:
        if not (self.manufacturer or self.model or self.sop_class or self.creator):
            raise ValueError(f"{self.name}: name at least one of manufacturer, model, sop_class and creator")
        for first, second in (("pitch_row", "pitch_column"), ("principal_row", "principal_column")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise ValueError(f"{self.name}: {first} and {second} go together")
        for quantity, unit in UNITS.items():
            rule = getattr(self, quantity)
            if rule is not None and rule.unit not in _SCALES[unit]:
                allowed = " or ".join(repr(each) for each in _SCALES[unit])
                raise ValueError(f"{self.name}: the unit of {quantity} is {rule.unit!r}, expected {allowed}")
        return self

    def converted(self, quantity: str, value: float) -> float:
        """Return the number of an element, or the constant, in the unit that `UNITS` names."""
        rule: NumberRule = getattr(self, quantity)
        return (rule.scale * value + rule.offset) * _SCALES[UNITS[quantity]][rule.unit]
