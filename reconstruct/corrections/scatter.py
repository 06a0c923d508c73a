"""Scatter as a constant fraction: in every view the same share of its mean light, spread evenly, is taken away.

Scattered photons arrive from everywhere, so that their background is smooth; behind dense parts it is most of what
arrives, which draws dark bands and cups the slice. A constant per view is the simplest estimate (Glover, "Compton
scatter effects in CT reconstructions", Med. Phys. 9 (1982) 860; for cone beams Bertram et al., "Potential of software-
based scatter corrections in cone-beam volume CT", Proc. SPIE 5745 (2005) 259).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconstruct.working_memory import pieces

Image = NDArray[np.float32]

MOST = 0.9
"""Largest share of what a pixel measured that can be scatter."""


def remove_scatter(integrals: Image, fraction: float) -> Image:
    """Remove scatter from line integrals, in place.

    Parameters
    ----------
    integrals
        (view, row, column) float32, of which one view is read at a time.
    fraction
        Scatter over the mean transmission of a view, 0 to below 1; measured, for example, behind a strip of lead.

    Returns
    -------
    `integrals`.

    Raises
    ------
    ValueError
        A fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"expected a fraction of scatter from 0 to below 1, got {fraction}")
    if fraction == 0:
        return integrals
    for views in pieces(integrals):
        for view in views:
            transmission = np.exp(-view)
            scatter = np.float32(fraction * transmission.mean(dtype=np.float64))
            primary = np.maximum(transmission - scatter, np.float32(1 - MOST) * transmission)
            view[...] = -np.log(primary)
    return integrals
