"""``[[deidentification]]``: named profiles of PS3.15 Annex E, which doors, destinations, rules and the shell apply."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Option(StrEnum):
    """An option of the Basic Application Level Confidentiality Profile (PS3.15 E.3), but those of dates and pixels."""

    RETAIN_SAFE_PRIVATE = "retain_safe_private"
    RETAIN_UIDS = "retain_uids"
    RETAIN_DEVICE_IDENTITY = "retain_device_identity"
    RETAIN_INSTITUTION_IDENTITY = "retain_institution_identity"
    RETAIN_PATIENT_CHARACTERISTICS = "retain_patient_characteristics"
    CLEAN_DESCRIPTORS = "clean_descriptors"
    CLEAN_STRUCTURED_CONTENT = "clean_structured_content"
    CLEAN_GRAPHICS = "clean_graphics"


_ELSEWHERE = {
    "clean_pixel_data": "is what masks do: name rectangles in masks",
    "clean_recognizable_visual_features": "is not offered: this node cannot remove a face",
    "retain_longitudinal_full_dates": 'is written dates = "full"',
    "retain_longitudinal_modified_dates": 'is written dates = "modified"',
}

Edge = Annotated[int, Field(ge=0, le=65535)]
Extent = Annotated[int, Field(ge=1, le=65535)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MaskSettings(_Entry):
    """One of ``masks``: which images, and the rectangles to paint over, (left, top, width, height) in pixels."""

    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    rows: Annotated[int, Field(ge=0, le=65535)] = 0
    columns: Annotated[int, Field(ge=0, le=65535)] = 0
    rectangles: tuple[tuple[Edge, Edge, Extent, Extent], ...] = ()

    @model_validator(mode="after")
    def _selects(self) -> MaskSettings:
        if not (self.modality or self.manufacturer or self.model):
            raise ValueError("a mask has to say of which modality, manufacturer or model the images are")
        return self


class DeidentificationSettings(_Entry):
    """One ``[[deidentification]]``."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$",
            description="up to 32 letters, digits, dots, hyphens and underscores that begin with a letter or a digit",
        ),
    ]
    options: frozenset[Option] = frozenset()
    dates: Literal["remove", "full", "modified"] = "remove"
    burned_in: Literal["refuse", "trust_unmarked"] = "refuse"
    masks: tuple[MaskSettings, ...] = ()

    @field_validator("options", mode="before")
    @classmethod
    def _are_options(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple | set | frozenset) else ():
            if name in _ELSEWHERE:
                raise ValueError(f"{name} {_ELSEWHERE[name]}")
        return value
