"""What an X-ray tube sends into the energy bins of a detector that tells energies apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reconstruct.materials import WATER, Material, mass_attenuation

Numbers = NDArray[np.float64]

_ALUMINIUM_G_PER_CM3 = 2.699
_CHARACTERISTIC_KEV = ((57.98, 0.035), (59.32, 0.06), (67.2, 0.021), (69.1, 0.006))
"""Tungsten K lines, and their photons as a fraction of all at 120 kVp."""
_TUNGSTEN_K_EDGE_KEV = 69.5
_STEP_KEV = 1.0
_GROUPS_PER_BIN = 6


@dataclass(frozen=True, eq=False)
class BinSpectrum:
    """The part of a spectrum that one energy bin sees, in a few groups of energies.

    Attributes
    ----------
    weights
        Share of all photons above the lowest threshold, (group,).
    energies_kev, shares
        The energies of each group and the share of each in it; one array a group.
    """

    weights: Numbers
    energies_kev: tuple[Numbers, ...]
    shares: tuple[Numbers, ...]

    def per_mm(self, material: Material) -> Numbers:
        """Return the attenuation of a material in each group, 1/mm, (group,)."""
        return np.array(
            [float(np.sum(s * material.per_mm(e))) for e, s in zip(self.energies_kev, self.shares, strict=True)]
        )

    def effective_per_mm(self, material: Material, path_mm: float) -> float:
        """Return the attenuation that a slab of `path_mm` shows in this bin, hardening included, 1/mm."""
        passed = float(np.sum(self.weights * np.exp(-self.per_mm(material) * path_mm)) / self.weights.sum())
        return -float(np.log(passed)) / path_mm

    def effective_kev(self, path_mm: float) -> float:
        """Return the energy of a monochromatic beam that a slab of water attenuates alike, keV."""
        energies = np.concatenate(self.energies_kev)
        return float(np.interp(-self.effective_per_mm(WATER, path_mm), -WATER.per_mm(energies), energies))


def tungsten(kvp: float, filtration_mm_al: float) -> tuple[Numbers, Numbers]:
    """Return the energies, keV, and relative numbers of photons of a tungsten tube, both (energy,).

    Bremsstrahlung after Kramers (Philos. Mag. 46 (1923) 836), that is ``kvp / E - 1`` photons, K lines from their edge
    on, behind aluminium. It has the shape of a real spectrum, not its absolute output.

    Raises
    ------
    ValueError
        A tube voltage outside 30 to 150 kV or a negative filtration.
    """
    if not 30 <= kvp <= 150 or filtration_mm_al < 0:
        raise ValueError(f"expected 30 to 150 kVp and 0 mm Al or more, got {kvp:g} kVp and {filtration_mm_al:g} mm Al")
    energies = np.arange(10.0 + _STEP_KEV / 2, kvp, _STEP_KEV)
    photons = kvp / energies - 1.0
    filtered = np.exp(-0.1 * filtration_mm_al * _ALUMINIUM_G_PER_CM3 * mass_attenuation("Al", energies))
    spectrum = photons * filtered
    if kvp > _TUNGSTEN_K_EDGE_KEV:
        # The yield of characteristic radiation grows with the overvoltage to the power of 1.6.
        excess = ((kvp / _TUNGSTEN_K_EDGE_KEV - 1) / (120 / _TUNGSTEN_K_EDGE_KEV - 1)) ** 1.6
        total = spectrum.sum()
        for line_kev, fraction in _CHARACTERISTIC_KEV:
            if line_kev < kvp:
                spectrum[int((line_kev - 10.0) / _STEP_KEV)] += excess * fraction * total
    return energies, spectrum


def bin_spectra(thresholds_kev: Sequence[float], kvp: float, filtration_mm_al: float) -> tuple[BinSpectrum, ...]:
    """Return what each energy bin of an ideal photon-counting detector sees: no charge sharing, no pile-up.

    Parameters
    ----------
    thresholds_kev
        Lower ends of the bins, ascending, within 10 keV and the tube voltage.
    kvp, filtration_mm_al
        See `tungsten`.

    Raises
    ------
    ValueError
        Thresholds that do not ascend within that range.
    """
    edges = [*thresholds_kev, kvp]
    if len(edges) < 2 or edges[0] < 10 or any(b - a < _STEP_KEV for a, b in pairwise(edges)):
        told = ", ".join(f"{threshold:g}" for threshold in thresholds_kev) or "none"
        raise ValueError(f"expected thresholds that ascend from 10 keV to below {kvp:g} keV, got {told}")
    energies, photons = tungsten(kvp, filtration_mm_al)
    total = photons[energies >= edges[0]].sum()
    bins = []
    for low, high in pairwise(edges):
        inside = np.flatnonzero((energies >= low) & (energies < high))
        groups = np.array_split(inside, min(_GROUPS_PER_BIN, len(inside)))
        weights = np.array([photons[group].sum() for group in groups])
        bins.append(
            BinSpectrum(
                weights / total,
                tuple(energies[group] for group in groups),
                tuple(photons[group] / weight for group, weight in zip(groups, weights, strict=True)),
            )
        )
    return tuple(bins)
