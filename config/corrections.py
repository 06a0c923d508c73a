"""``[corrections]``: what real scans need before they are reconstructed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class CorrectionSettings(BaseModel):
    """``[corrections]``; the names and values are those of `reconstruct.corrections.wanted.Corrections`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dark: bool
    dead_pixels: bool
    flats: Literal["mean", "interpolated"]
    dead_time_ns: NotNegative
    dead_time_model: Literal["nonparalyzable", "paralyzable"]
    saturated: bool
    unsteady_pixels: NotNegative
    scatter_fraction: Annotated[float, Field(ge=0, lt=1)]
    drift: bool
    rings: Literal["none", "sorted", "combined"]
    ring_columns: Annotated[int, Field(ge=0)]
    ring_deviations: Positive
    beam_hardening: Literal["none", "water", "polynomial"]
    beam_hardening_polynomial: tuple[tuple[float, ...], ...]
    filtration_mm_al: NotNegative
    water_path_mm: Positive
    truncation: Literal["none", "cosine", "water"]
    truncation_margin: Annotated[float, Field(gt=0, le=2)]
    principal_point: Literal["given", "missing", "estimated"]

    @field_validator("ring_columns")
    @classmethod
    def _has_a_middle(cls, value: int) -> int:
        if value and (value < 3 or value % 2 == 0):
            raise ValueError(f"expected 0 or an odd number from 3, got {value}")
        return value

    @model_validator(mode="after")
    def _polynomials_are_given(self) -> CorrectionSettings:
        if self.beam_hardening == "polynomial" and not self.beam_hardening_polynomial:
            raise ValueError('beam_hardening = "polynomial" needs beam_hardening_polynomial')
        return self
