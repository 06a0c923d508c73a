"""What a scanner or an importer hands over to be written as projections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from reconstruct.projections.scan import CounterKind, EnergyBin, PixelMeaning, ReconstructionRequest


class ImageSource(Protocol):
    """Images of one size: an array (image, row, column), or what reads them one by one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(image, row, column)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one image, (row, column)."""


@dataclass(frozen=True, eq=False)
class CounterImages:
    """What one counter of the detector measured.

    Attributes
    ----------
    bin
        Its energy bin.
    views
        (view, row, column): unsigned counts, or float values of another pixel meaning.
    flats, darks
        Frames without an object and without a beam, (frame, row, column).
    unattenuated
        I0, what a pixel holds without an object, where there are no flats.
    """

    bin: EnergyBin
    views: ImageSource
    flats: ImageSource | None = None
    darks: ImageSource | None = None
    unattenuated: float | None = None


@dataclass(frozen=True)
class Exposure:
    """How the X-ray tube was driven, where known.

    Attributes
    ----------
    kvp
        Peak voltage, kV.
    tube_current_ma
        Current, mA.
    view_ms, flat_ms
        Exposure of a view and of a flat or dark frame, ms; both or neither.
    """

    kvp: float | None = None
    tube_current_ma: float | None = None
    view_ms: float | None = None
    flat_ms: float | None = None


@dataclass(frozen=True)
class Acquisition:
    """How a scan was taken, as far as it concerns the encoding.

    Attributes
    ----------
    pixel_meaning, counter_kind
        What the pixels hold.
    counting_mode
        SPM or CSM; empty for detectors without the choice.
    exposure
        How the tube was driven, and for how long.
    bits_stored
        Depth of the counters; their largest count means that they are full.
    with_matrices
        Whether to write the 3 × 4 matrices as well.
    request
        What the operator asked for.
    view_times_s, flat_times_s
        When each view, and each flat frame, was taken, seconds after the acquisition began; empty: not
        known, and every frame says when the acquisition began.
    """

    pixel_meaning: PixelMeaning = PixelMeaning.COUNTS
    counter_kind: CounterKind = CounterKind.CUMULATIVE
    counting_mode: str = ""
    exposure: Exposure = field(default_factory=Exposure)
    bits_stored: int = 16
    with_matrices: bool = False
    request: ReconstructionRequest = field(default_factory=ReconstructionRequest)
    view_times_s: tuple[float, ...] = ()
    flat_times_s: tuple[float, ...] = ()
