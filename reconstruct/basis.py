"""The materials of a decomposition, and how each attenuates in the energy bins of a scan.

A bin's reconstruction shows the attenuation that a little of a material adds behind what the beam has passed already:
the spectrum of the bin, hardened by so much water, weights the material's attenuation (`tabulated`). Where the true
spectrum is not known well enough, a measured table takes its place (`calibrated`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from reconstruct.materials import BONE, GADOLINIUM, GOLD, HYDROXYAPATITE, IODINE, LIPID, WATER, Material
from reconstruct.spectrum import BinSpectrum, bin_spectra

Numbers = NDArray[np.float64]

MATERIALS: Mapping[str, Material] = {
    material.name: material for material in (WATER, LIPID, HYDROXYAPATITE, BONE, IODINE, GADOLINIUM, GOLD)
}
"""What can be decomposed into, by name."""

_MOST_FILTRATION_MM_AL = 30.0
_LARGEST_MISFIT = 0.05
"""Of the attenuation of water in any bin, as a fraction, beyond which a spectrum is not the scan's."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Materials and their attenuation.

    Attributes
    ----------
    materials
        What is decomposed into.
    per_cm
        Attenuation of each pure material, 1/cm, (bin, material).
    """

    materials: tuple[Material, ...]
    per_cm: Numbers

    @property
    def mg_per_ml(self) -> Numbers:
        """Concentration of each pure material, mg/ml, (material,)."""
        return np.array([1000 * material.density_g_per_cm3 for material in self.materials])


@dataclass(frozen=True)
class Beam:
    """What is known of the spectrum of each bin.

    Attributes
    ----------
    thresholds_kev
        Lower ends of the energy bins, ascending.
    kvp
        Tube voltage, kV: the upper end of the last bin.
    filtration_mm_al
        Filtration of the beam, mm aluminium.
    """

    thresholds_kev: tuple[float, ...]
    kvp: float
    filtration_mm_al: float

    @classmethod
    def fitted(
        cls, thresholds_kev: Sequence[float], kvp: float, water_per_cm: Sequence[float], water_path_mm: float
    ) -> Beam:
        """Return the beam whose filtration fits the attenuation of water best.

        Parameters
        ----------
        water_per_cm
            Attenuation of water in each bin, 1/cm, as the scan tells it.
        water_path_mm
            Path in water to which that belongs.

        Raises
        ------
        ValueError
            Thresholds without a spectrum, or water that attenuates otherwise than any of these beams, by 5 % or more.
        """
        told = np.asarray(water_per_cm, dtype=np.float64)

        def misfit(filtration_mm_al: float) -> Numbers:
            spectra = bin_spectra(thresholds_kev, kvp, filtration_mm_al)
            return np.array([10 * each.effective_per_mm(WATER, water_path_mm) for each in spectra]) / told - 1

        found = scipy.optimize.minimize_scalar(
            lambda filtration: float(np.sum(misfit(filtration) ** 2)), bounds=(0.0, _MOST_FILTRATION_MM_AL),
            method="bounded",
        )  # fmt: skip
        worst = float(np.abs(misfit(found.x)).max())
        if worst > _LARGEST_MISFIT:
            values = ", ".join(f"{value:.3g}" for value in told)
            raise ValueError(
                f"no tungsten spectrum of {kvp:g} kVp gives water {values} 1/cm in the energy bins "
                f"(off by {worst:.0%}): the materials have to be calibrated"
            )
        return cls(tuple(thresholds_kev), kvp, round(float(found.x), 2))

    def spectra(self) -> tuple[BinSpectrum, ...]:
        """Return the spectrum of each bin."""
        return bin_spectra(self.thresholds_kev, self.kvp, self.filtration_mm_al)


def tabulated(materials: Sequence[Material], beam: Beam, hardening_mm: float) -> Basis:
    """Return materials with the attenuation that the beam's spectra give, hardened by so much water, mm."""
    columns = []
    for spectrum in beam.spectra():
        weights = spectrum.weights * np.exp(-spectrum.per_mm(WATER) * hardening_mm)
        columns.append([10 * float(weights @ spectrum.per_mm(m)) / float(weights.sum()) for m in materials])
    return Basis(tuple(materials), np.array(columns))


def calibrated(basis: Basis, measured: Iterable[tuple[str, Sequence[float]]]) -> Basis:
    """Return the basis with measured attenuation in place of that of some materials.

    Parameters
    ----------
    measured
        Name of a material, and what 1 mg/ml of it adds in each bin, 1/cm; of water, 1000 mg/ml are pure water.

    Raises
    ------
    ValueError
        A material that is not in the basis, another number of bins, or values that are not above 0.
    """
    per_cm = basis.per_cm.copy()
    names = [material.name for material in basis.materials]
    for name, values in measured:
        if name not in names:
            raise ValueError(f"{name} is calibrated but not used; used are {', '.join(names)}")
        if len(values) != len(per_cm) or min(values) <= 0:
            raise ValueError(
                f"expected {len(per_cm)} values above 0 for {name}, one for each energy bin, got {list(values)}"
            )
        number = names.index(name)
        per_cm[:, number] = np.asarray(values) * basis.mg_per_ml[number]
    return Basis(basis.materials, per_cm)


def measured_attenuation(values: Numbers, mg_per_ml: Numbers) -> Numbers:
    """Return what 1 mg/ml of each material adds in each bin, 1/cm, (bin, material), from inserts of known composition.

    Parameters
    ----------
    values
        Mean attenuation of each insert in each bin, 1/cm, (bin, insert).
    mg_per_ml
        What each insert holds, (material, insert): at least as many inserts as materials, of different compositions.

    Raises
    ------
    ValueError
        The inserts do not tell the materials apart.
    """
    if np.linalg.matrix_rank(mg_per_ml) < len(mg_per_ml):
        raise ValueError(f"{mg_per_ml.shape[1]} inserts do not tell {len(mg_per_ml)} materials apart")
    return np.linalg.lstsq(mg_per_ml.T, values.T, rcond=None)[0].T.astype(np.float64)


def water_path_mm(attenuation: NDArray[np.float32], water_per_cm: float, pixel_mm2: float) -> float:
    """Return the mean path of rays through the object, as mm of water.

    Half of the attenuation of water divides object and air. A slice with the area A of object is taken for a disc; the
    mean chord through its points is 8/(3 pi) of the diameter. Slices are weighted by their area.

    Parameters
    ----------
    attenuation
        Of one energy bin, 1/cm, (z, y, x).
    water_per_cm
        Attenuation of water in it, 1/cm.
    pixel_mm2
        Area of a voxel within a slice, mm².
    """
    object_ = attenuation > 0.5 * water_per_cm
    areas = object_.sum(axis=(1, 2)) * pixel_mm2
    if not areas.any():
        return 0.0
    diameter = float(np.average(2 * np.sqrt(areas / np.pi), weights=areas))
    return 8 / (3 * np.pi) * diameter * float(attenuation[object_].mean()) / water_per_cm
