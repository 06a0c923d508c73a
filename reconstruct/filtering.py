"""Weights and filters projections, and leaves them as the back-projection wants them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruct.backprojection import BackProjector, RowsAlongAxisInVectors
from reconstruct.filters import Transform, filter_rows, frequency_response, padded_size, transform
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.kernels import weigh
from reconstruct.kernels_fourier import filter_into_columns
from reconstruct.redundancy import Redundancy
from reconstruct.weights import view_factors
from reconstruct.working_memory import is_mapped, release


@dataclass(frozen=True, eq=False)
class Filtering:
    """Weights and filters the views of a scan.

    Attributes
    ----------
    geometry
        Of the detector that there is.
    symmetric
        The same with the columns that an offset detector lacks.
    measured
        What the measurements count for.
    name, cutoff
        Window of the ramp; see `reconstruct.filters`.
    """

    geometry: ConeBeamGeometry
    symmetric: ConeBeamGeometry
    measured: Redundancy
    name: str
    cutoff: float

    @cached_property
    def _factors(self) -> NDArray[np.float64]:
        return view_factors(self.geometry, self.measured.arc.shares_rad)

    @cached_property
    def _first_pixels(self) -> NDArray[np.float64]:
        return self.geometry.first_pixels()

    @cached_property
    def _response(self) -> NDArray[np.float32]:
        return frequency_response(self.symmetric.columns, self.name, self.cutoff)

    @cached_property
    def _transform(self) -> Transform:
        return transform(self._response, padded_size(self.symmetric.columns))

    def store(
        self, raw: Any, views: slice, projector: BackProjector, buffer: NDArray[np.float32], workers: int
    ) -> None:
        """Weigh and filter the scan's `views` and leave them in their `buffer` of the projector.

        Parameters
        ----------
        raw
            Line integrals (view, row, column), any real type; may be a memory map.
        workers
            Threads.

        Raises
        ------
        ValueError
            A view is not finite.
        """
        if isinstance(projector, RowsAlongAxisInVectors):
            self._store_columns(_in_memory(raw), views, projector, buffer)
        else:
            projector.store(self._rows(_in_memory(raw), views, workers), buffer, views)

    def _weights(self, views: slice) -> tuple[Any, ...]:
        geometry = self.geometry
        return (
            self._factors[views],
            self.measured.weights(views),
            self.measured.missing_columns[0],
            geometry.sources[views],
            self._first_pixels[views],
            geometry.column_steps[views],
            geometry.row_steps[views],
        )

    def _rows(self, pixels: NDArray[np.float32], views: slice, workers: int) -> NDArray[np.float32]:
        """Return filtered rows, (view, row, padded_size), with the columns of `symmetric` first."""
        padded = np.empty((*pixels.shape[:2], padded_size(self.symmetric.columns)), dtype=np.float32)
        weigh(pixels, *self._weights(views), padded)
        _require_finite(np.isfinite(padded.sum(axis=(1, 2))), views)
        return filter_rows(padded, self._response, workers)

    def _store_columns(
        self,
        pixels: NDArray[np.float32],
        views: slice,
        projector: RowsAlongAxisInVectors,
        buffer: NDArray[np.float32],
    ) -> None:
        plan, finite = self._transform, np.ones(len(pixels), dtype=bool)
        filter_into_columns(
            pixels,
            *self._weights(views),
            plan.radices,
            plan.gains,
            plan.roots,
            projector.reversed_rows(views),
            *projector.first_pixel,
            self.symmetric.columns,
            buffer,
            finite,
        )
        _require_finite(finite, views)


def _require_finite(finite: NDArray[np.bool_], views: slice) -> None:
    if not finite.all():
        raise ValueError(f"expected finite line integrals, view {views.start + int(np.argmin(finite))} is not")


def _in_memory(raw: Any) -> NDArray[np.float32]:
    """Return projections (view, row, column) as float32, C-contiguous; what a file maps is copied and released."""
    if not is_mapped(raw):
        return np.ascontiguousarray(raw, dtype=np.float32)
    pixels = np.empty(raw.shape, dtype=np.float32)
    for view, image in zip(pixels, raw, strict=True):
        view[...] = image
        release(image)
    return pixels
