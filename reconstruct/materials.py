"""How materials attenuate X-rays of 10 to 150 keV.

Mass attenuation coefficients of the elements are those of J. H. Hubbell and S. M. Seltzer, "Tables of X-Ray Mass
Attenuation Coefficients", NIST Standard Reference Database 126 (NISTIR 5632); compounds follow by the mixture rule of
its section 2. Compositions: ICRU Report 44 (cortical bone), ICRU Report 33 (soft tissue, four components), chemical
formulas for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

_ENERGIES_KEV = (10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_CM2_PER_G: Mapping[str, tuple[float, ...]] = {
    "H": (0.3854, 0.3764, 0.3695, 0.3570, 0.3458, 0.3355, 0.3260, 0.3091, 0.2944, 0.2651),
    "C": (2.373, 0.8071, 0.4420, 0.2562, 0.2076, 0.1871, 0.1753, 0.1610, 0.1514, 0.1347),
    "N": (3.879, 1.236, 0.6178, 0.3066, 0.2288, 0.1980, 0.1817, 0.1639, 0.1529, 0.1353),
    "O": (5.952, 1.836, 0.8651, 0.3779, 0.2585, 0.2132, 0.1907, 0.1678, 0.1551, 0.1361),
    "Al": (26.23, 7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378),
    "P": (40.35, 12.39, 5.352, 1.700, 0.8096, 0.4916, 0.3494, 0.2324, 0.1865, 0.1432),
    "Ca": (93.41, 29.79, 13.06, 4.080, 1.830, 1.019, 0.6578, 0.3656, 0.2571, 0.1674),
}
_IODINE_KEV = (10.0, 15.0, 20.0, 30.0, 33.1694, 33.1694, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
"""The K edge of iodine is in the table twice, below and above."""
_IODINE_CM2_PER_G = (162.6, 55.12, 25.43, 8.561, 6.553, 35.82, 22.10, 12.32, 7.579, 3.510, 1.942, 0.6978)


@dataclass(frozen=True)
class Material:
    """A homogeneous material.

    Attributes
    ----------
    name
        What it is called.
    density_g_per_cm3
        Mass density.
    mass_fractions
        Element symbol and its share of the mass; they sum to 1.
    """

    name: str
    density_g_per_cm3: float
    mass_fractions: tuple[tuple[str, float], ...]

    def per_mm(self, energies_kev: ArrayLike) -> Numbers:
        """Return the linear attenuation coefficient at the given energies, 1/mm, (energy,)."""
        mass = sum(
            (fraction * mass_attenuation(element, energies_kev) for element, fraction in self.mass_fractions),
            start=np.zeros_like(np.asarray(energies_kev, dtype=np.float64)),
        )
        linear: Numbers = 0.1 * self.density_g_per_cm3 * mass
        return linear


def mass_attenuation(element: str, energies_kev: ArrayLike) -> Numbers:
    """Return the mass attenuation coefficient of an element, cm²/g, interpolated on log-log axes.

    Raises
    ------
    ValueError
        An element that is not in the table, or an energy outside 10 to 150 keV.
    """
    energies = np.asarray(energies_kev, dtype=np.float64)
    if energies.size and (energies.min() < _ENERGIES_KEV[0] or energies.max() > _ENERGIES_KEV[-1]):
        raise ValueError(f"expected energies of 10 to 150 keV, got {energies.min():g} to {energies.max():g}")
    if element == "I":
        above_edge = energies >= _IODINE_KEV[5]
        below = _log_log(energies, _IODINE_KEV[:5], _IODINE_CM2_PER_G[:5])
        above = _log_log(energies, _IODINE_KEV[5:], _IODINE_CM2_PER_G[5:])
        return np.where(above_edge, above, below)
    if element not in _CM2_PER_G:
        raise ValueError(f"expected an element of {', '.join([*_CM2_PER_G, 'I'])}, got {element}")
    return _log_log(energies, _ENERGIES_KEV, _CM2_PER_G[element])


def _log_log(energies: Numbers, table_kev: tuple[float, ...], table: tuple[float, ...]) -> Numbers:
    values: Numbers = np.exp(np.interp(np.log(energies), np.log(table_kev), np.log(table)))
    return values


def _compound(name: str, density: float, **fractions: float) -> Material:
    total = sum(fractions.values())
    return Material(name, density, tuple((element, share / total) for element, share in fractions.items()))


def solution(name: str, solute: Material, mg_per_ml: float) -> Material:
    """Return water with `mg_per_ml` of a solute in it, volumes adding up.

    Parameters
    ----------
    name
        What to call it.
    solute
        What is dissolved or suspended.
    mg_per_ml
        Mass of the solute in 1 ml of the mixture.
    """
    grams = mg_per_ml / 1000
    water_grams = WATER.density_g_per_cm3 * (1 - grams / solute.density_g_per_cm3)
    shares: dict[str, float] = {}
    for material, mass in ((solute, grams), (WATER, water_grams)):
        for element, fraction in material.mass_fractions:
            shares[element] = shares.get(element, 0.0) + mass * fraction
    return _compound(name, grams + water_grams, **shares)


AIR = _compound("air", 0.001205, C=0.0001, N=0.7553, O=0.2446)
"""Dry air at sea level without its argon, which would add a tenth to what is next to nothing."""
WATER = _compound("water", 1.0, H=0.1119, O=0.8881)
SOFT_TISSUE = _compound("soft tissue", 1.0, H=0.1012, C=0.1110, N=0.0260, O=0.7618)
LUNG = _compound("lung", 0.30, H=0.1012, C=0.1110, N=0.0260, O=0.7618)
"""Soft tissue with two thirds of air in it."""
LIPID = _compound("lipid", 0.913, H=0.1184, C=0.7732, O=0.1084)
"""Triolein."""
BONE = _compound("bone", 1.92, H=0.034, C=0.155, N=0.042, O=0.435, P=0.109, Ca=0.225)
"""Cortical; sodium, magnesium and sulphur (0.6 %) counted as phosphorus."""
PMMA = _compound("PMMA", 1.18, H=0.0805, C=0.5998, O=0.3196)
HYDROXYAPATITE = _compound("hydroxyapatite", 3.16, H=0.0020, O=0.4141, P=0.1850, Ca=0.3989)
CALCIUM_OXALATE = _compound("calcium oxalate", 2.12, H=0.0138, C=0.1644, O=0.5475, Ca=0.2743)
"""Monohydrate (whewellite)."""
URIC_ACID = _compound("uric acid", 1.87, H=0.0240, C=0.3572, N=0.3333, O=0.2855)
IODINE = Material("iodine", 4.93, (("I", 1.0),))
