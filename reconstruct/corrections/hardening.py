"""Beam hardening: line integrals of a polychromatic beam are bent back to what a single energy would give in water.

Water precorrection (Herman, "Correction for beam hardening in computed tomography", Phys. Med. Biol. 24 (1979) 81): a
polynomial without a constant, for each energy bin. It is exact for water; bone and contrast agents keep a rest, which a
decomposition into materials takes care of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.materials import WATER
from reconstruct.spectrum import BinSpectrum
from reconstruct.working_memory import pieces

Image = NDArray[np.float32]

_DEGREE = 4
_MOST = 7.0
"""Line integral up to which the polynomial is fitted: a photon in a thousand."""

_SAMPLES = 200


@dataclass(frozen=True)
class Hardening:
    """A polynomial ``a1 p + a2 p² + …`` of line integrals.

    Attributes
    ----------
    coefficients
        a1, a2, …; 1 alone changes nothing.
    most
        Line integral beyond which it goes on as a straight line, as does the part below 0.
    """

    coefficients: tuple[float, ...]
    most: float = _MOST

    def __post_init__(self) -> None:
        if not self.coefficients or not np.isfinite(self.coefficients).all() or self.coefficients[0] <= 0:
            raise ValueError(f"expected a polynomial that begins with a number above 0, got {list(self.coefficients)}")

    def of(self, integrals: Image) -> Image:
        """Return the polynomial of line integrals of any shape, float32."""
        inside = np.clip(integrals, 0, np.float32(self.most))
        told = np.zeros_like(inside)
        for coefficient in reversed(self.coefficients):
            told += np.float32(coefficient)
            told *= inside
        slope = sum(n * a * self.most ** (n - 1) for n, a in enumerate(self.coefficients, start=1))
        told += np.float32(slope) * np.maximum(integrals - np.float32(self.most), 0)
        told += np.float32(self.coefficients[0]) * np.minimum(integrals, 0)
        return told


def water_polynomial(spectrum: BinSpectrum, water_per_mm: float) -> Hardening:
    """Return the polynomial that makes water of any thickness attenuate by `water_per_mm` for each mm.

    Parameters
    ----------
    spectrum
        What the energy bin sees of the beam.
    water_per_mm
        The attenuation that the image is to show for water, 1/mm: the one that Hounsfield units refer to.

    Raises
    ------
    ValueError
        Water that does not attenuate.
    """
    if not water_per_mm > 0:
        raise ValueError(f"expected water that attenuates, got {water_per_mm:g} 1/mm")
    per_mm = spectrum.per_mm(WATER)
    paths = np.linspace(0, _MOST / float(per_mm.min()), _SAMPLES + 1)[1:]
    passed = np.exp(-np.outer(paths, per_mm)) @ spectrum.weights / spectrum.weights.sum()
    measured = -np.log(passed)
    used = measured <= _MOST
    measured, wanted = measured[used], water_per_mm * paths[used]
    powers = measured[:, None] ** np.arange(1, _DEGREE + 1)
    # Relative errors count: a thin part of the object is to be as right as a thick one.
    fitted = np.linalg.lstsq(powers / wanted[:, None], np.ones_like(wanted), rcond=None)[0]
    return Hardening(tuple(float(value) for value in fitted), float(measured.max()))


def harden_back(integrals: Image, polynomial: Hardening) -> Image:
    """Apply a polynomial to (view, row, column) line integrals, in place; they are returned."""
    for views in pieces(integrals):
        views[...] = polynomial.of(views)
    return integrals


def given_polynomial(polynomials: Sequence[Sequence[float]], bin_number: int, bins: int) -> Hardening:
    """Return the polynomial that settings give for an energy bin, 1-based.

    Raises
    ------
    ValueError
        Not one polynomial for each bin.
    """
    if len(polynomials) != bins:
        raise ValueError(f"expected {bins} polynomials, one for each energy bin, got {len(polynomials)}")
    return Hardening(tuple(polynomials[bin_number - 1]))
