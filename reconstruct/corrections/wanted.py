"""Which corrections are wanted, what of them a scan still needs, and how a recipe tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from reconstruct.corrections.counts import CountCorrections
from reconstruct.corrections.truncation import margins
from reconstruct.projections.scan import PixelMeaning, Scan

APPLIED: Mapping[str, tuple[str, ...]] = {
    "PILE_UP": ("dead_time_ns", "dead_time_model"),
    "DEAD_PIXEL": ("unsteady_pixels",),
    "SCATTER": ("scatter_fraction",),
    "DRIFT": ("drift",),
    "RING": ("rings", "ring_columns", "ring_deviations"),
    "BEAM_HARDENING": ("beam_hardening", "beam_hardening_polynomial", "filtration_mm_al", "water_path_mm"),
    "TRUNCATION": ("truncation", "truncation_margin"),
    "FLAT": ("flats",),
    "DARK": (),
    "GAIN": (),
}
"""What Corrections Applied (0071,xx08) may say, and which settings then change nothing.

Dark and flat fields are told of each frame: `projections.open_field` leaves them, and `projections.reference` refuses
flat fields whose gain was not corrected as that of the projections."""


@dataclass(frozen=True)
class Corrections:
    """What is corrected; the defaults are what each scan needs. ``[corrections]`` of the settings says what each means.

    Attributes
    ----------
    dark, dead_pixels
        Whether dark frames are subtracted, and pixels that the flats show to be dead or noisy are replaced.
    flats
        "mean" or "interpolated".
    dead_time_ns, dead_time_model
        Of the counters; 0: no pile-up.
    saturated
        Whether full counters are replaced by their neighbours.
    unsteady_pixels
        Robust standard deviations; 0: not looked for.
    scatter_fraction
        Scatter over the mean transmission of a view.
    drift
        Whether views are scaled to the air beside the object.
    rings, ring_columns, ring_deviations
        As `remove_rings` takes them.
    beam_hardening
        "none", "water" (a polynomial computed from the spectrum) or "polynomial" (the given ones).
    beam_hardening_polynomial
        Coefficients of p, p², …, for each energy bin.
    filtration_mm_al, water_path_mm
        Of the beam (0: what fits the attenuation of water), and the path to which that belongs.
    truncation, truncation_margin
        As `extrapolate` and `margins` take them.
    principal_point
        "given", "missing" (estimated where the scan does not tell it) or "estimated".
    """

    dark: bool = True
    dead_pixels: bool = True
    flats: str = "mean"
    dead_time_ns: float = 0.0
    dead_time_model: str = "nonparalyzable"
    saturated: bool = False
    unsteady_pixels: float = 0.0
    scatter_fraction: float = 0.0
    drift: bool = False
    rings: str = "none"
    ring_columns: int = 0
    ring_deviations: float = 3.0
    beam_hardening: str = "none"
    beam_hardening_polynomial: tuple[tuple[float, ...], ...] = ()
    filtration_mm_al: float = 0.0
    water_path_mm: float = 15.0
    truncation: str = "none"
    truncation_margin: float = 0.25
    principal_point: str = "given"

    def recipe(self) -> dict[str, Any]:
        """Return what is not as it is by default, so that corrections nobody uses change no recipe."""
        told: dict[str, Any] = {}
        for switch, also in _TOLD.items():
            if getattr(self, switch) != _OFF[switch]:
                told |= {name: _plain(getattr(self, name)) for name in (switch, *also)}
        return told

    def left_to_do(self, scan: Scan) -> Corrections:
        """Return what remains when what the scanner has done already, or counts that are none, are left out."""
        done = {name for word in scan.corrections for name in APPLIED.get(word, ())}
        if scan.pixel_meaning is not PixelMeaning.COUNTS:
            done |= {"dead_time_ns", "dead_time_model"}
        if scan.pixel_meaning in (PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL):
            done |= {"flats", "saturated"}
        off: dict[str, Any] = {name: _OFF[name] for name in done}
        return replace(self, **off)

    @property
    def of_counts(self) -> CountCorrections:
        """The part that `Scan.line_integrals` applies."""
        return CountCorrections(
            self.dead_time_ns,
            self.dead_time_model,
            self.saturated,
            self.flats == "interpolated",
            self.dark,
            self.dead_pixels,
        )

    def margins(self, scan: Scan) -> tuple[int, int]:
        """Return the columns that are added before the first and behind the last."""
        return (0, 0) if self.truncation == "none" else margins(scan.geometry, self.truncation_margin)


_OFF: Mapping[str, Any] = {field.name: field.default for field in fields(Corrections)}

_TOLD: Mapping[str, tuple[str, ...]] = {
    "dark": (),
    "dead_pixels": (),
    "flats": (),
    "dead_time_ns": ("dead_time_model",),
    "saturated": (),
    "unsteady_pixels": (),
    "scatter_fraction": (),
    "drift": (),
    "rings": ("ring_columns", "ring_deviations"),
    "beam_hardening": ("beam_hardening_polynomial", "filtration_mm_al", "water_path_mm"),
    "truncation": ("truncation_margin",),
    "principal_point": (),
}
"""What switches a correction on or off, and what else determines its result."""


def _plain(value: Any) -> Any:
    """Return tuples as lists, as they come back from JSON."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
