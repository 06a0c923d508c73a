"""What reading and correcting projections takes in memory, besides the line integrals themselves."""

from __future__ import annotations

from reconstruct.corrections.rings import ROWS_AT_ONCE, SINOGRAM_BYTES
from reconstruct.corrections.wanted import Corrections
from reconstruct.projections.scan import Scan
from reconstruct.working_memory import AT_ONCE, mapped_bytes

_VIEW_BYTES, _COUNTER_BYTES = 40, 40
"""For each pixel of a view that is read, and of each counter that it is a difference of."""

_FLAT_BYTES, _FLATS_BYTES = 15, 60
"""For each pixel of a flat frame, all of which are held, and of what is made of them."""

_CURVED_BYTES = 48
"""For each pixel that is brought from a cylinder to a plane."""

_UNSTEADY_BYTES = 80
"""For each pixel of a view, while unsteady ones are looked for."""

_SCATTER_BYTES = 20
_PIECES = 5
"""Arrays of the size of a piece that a correction holds at once, and the piece itself."""

_CONJUGATE_BYTES = 64
"""For each pixel of the sinogram of the plane of the source, while the principal point is looked for."""


def preparing_bytes(scan: Scan, corrections: Corrections, rows_at_once: int = 1) -> int:
    """Return the most that is taken at once while the line integrals of an energy bin are made.

    Parameters
    ----------
    corrections
        What is left to do.
    rows_at_once
        As `remove_rings` takes it.
    """
    views, rows, columns = scan.shape
    pixels, sinogram = rows * columns, views * columns
    counters = len(scan.counters) if len(scan.counters) < 2 else 2
    flats = max(len(counter.flats) for counter in scan.counters)
    reading = pixels * max(
        _VIEW_BYTES + _COUNTER_BYTES * counters + (_CURVED_BYTES if scan.curved is not None else 0),
        _FLATS_BYTES + _FLAT_BYTES * flats,
    )
    whole = rows * (columns + sum(corrections.margins(scan)))
    piece = min(4 * whole * views, max(AT_ONCE, 4 * whole))
    steps = [reading, _PIECES * piece]
    if corrections.unsteady_pixels > 0:
        steps.append(_UNSTEADY_BYTES * pixels)
    if corrections.scatter_fraction > 0:
        steps.append(_SCATTER_BYTES * pixels)
    if corrections.rings != "none":
        steps.append(sinogram * (SINOGRAM_BYTES + 4 * rows_at_once))
    if corrections.principal_point != "given":
        steps.append(_CONJUGATE_BYTES * sinogram)
    return max(steps) + mapped_bytes(piece, 4 * whole * views)


def sinograms_at_once(scan: Scan, corrections: Corrections, budget: int) -> int:
    """Return for how many detector rows rings may be removed at once within so many bytes: one at least."""
    return next(
        (n for n in range(ROWS_AT_ONCE, 1, -1) if preparing_bytes(scan, corrections, n) <= budget), 1
    )
