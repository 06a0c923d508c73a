"""How materials attenuate X-rays of 10 to 150 keV.

Mass attenuation coefficients of the elements come from xraylib (T. Schoonjans et al., Spectrochim. Acta B 66 (2011)
776), whose total cross sections are those of NIST's XCOM within 0.1 %; compounds follow by the mixture rule.
Compositions: ICRU Report 44 (cortical bone), ICRU Report 33 (soft tissue, four components), chemical formulas for the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xraylib
import xraylib_np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

_LOWEST_KEV, _HIGHEST_KEV = 10.0, 150.0


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
    """Return the mass attenuation coefficient of an element, cm²/g; at an edge, that above it.

    Raises
    ------
    ValueError
        A symbol that is no element's, or an energy outside 10 to 150 keV.
    """
    energies = np.asarray(energies_kev, dtype=np.float64)
    if energies.size and (energies.min() < _LOWEST_KEV or energies.max() > _HIGHEST_KEV):
        raise ValueError(f"expected energies of 10 to 150 keV, got {energies.min():g} to {energies.max():g}")
    number = np.array([_atomic_number(element)])
    values: Numbers = xraylib_np.CS_Total(number, energies.ravel())
    return values.reshape(energies.shape)


def k_edge_kev(element: str) -> float:
    """Return the energy at which the K shell of an element begins to absorb, keV."""
    return float(xraylib.EdgeEnergy(_atomic_number(element), xraylib.K_SHELL))


def _atomic_number(element: str) -> int:
    try:
        return int(xraylib.SymbolToAtomicNumber(element))
    except ValueError as error:
        raise ValueError(f"expected the symbol of an element, got {element!r}") from error


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
GADOLINIUM = Material("gadolinium", 7.90, (("Gd", 1.0),))
GOLD = Material("gold", 19.3, (("Au", 1.0),))
