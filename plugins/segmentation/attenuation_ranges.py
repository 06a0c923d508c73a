"""Which Hounsfield units belong to which tissue, at the energy of the volume.

A Hounsfield unit is a share of water's attenuation, and what is not water attenuates otherwise at every energy: fat
lies at -100 HU in clinical CT and near -400 HU at the 25 keV of a micro-CT's lowest bin, mineral five times as high.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconstruct.materials import HYDROXYAPATITE, IODINE, LIPID, WATER, Material, solution

CLINICAL_KEV = 70.0
"""Effective energy of a scanner at 120 kVp, assumed where nobody tells it."""

_CLINICAL_FAT_TO_SOFT_HU = -60.0
"""As usual for adipose tissue, which holds some water (Aubrey et al., Acta Physiologica 210, 2014: -190 to -30)."""

_FAT_TO_AIR = 0.15
"""How far the range of fat goes from lipid towards air: -235 HU in clinical CT."""

GAS_HU = -500.0
"""Half of air: the border of the sample and of gas."""

_CONTRAST_HU = 180.0
"""Denser than soft tissue or clotted blood without contrast agent (at most 100 HU) by four times the usual noise."""

_SPONGY_MG_PER_ML = 50.0
"""Hydroxyapatite of trabecular bone in old age, where bone encloses it."""

_MINERAL_MG_PER_ML = 110.0
"""Hydroxyapatite of dense trabecular bone: where bone ends."""

_SURE_MINERAL_MG_PER_ML = 160.0
"""Hydroxyapatite of thin cortical bone: where bone begins to be looked for."""

_IODINE_MG_PER_ML = 20.0
"""What is denser on the average than so much iodine is no vessel full of contrast agent."""


@dataclass(frozen=True)
class Ranges:
    """Borders between tissues, HU.

    Attributes
    ----------
    gas_to_fat, fat_to_soft, soft_to_contrast
        Ascending.
    spongy, mineral, sure_mineral
        Ascending: bone is at least `mineral` (`spongy` where bone is all around), and somewhere `sure_mineral`.
    iodine
        An even object below this on the average may be a vessel with contrast agent.
    """

    gas_to_fat: float
    fat_to_soft: float
    soft_to_contrast: float
    spongy: float
    mineral: float
    sure_mineral: float
    iodine: float

    @classmethod
    def at(cls, effective_kev: float | None) -> Ranges:
        """Return the borders at an effective energy; those of clinical CT when it is not known."""
        kev = CLINICAL_KEV if effective_kev is None else effective_kev
        lipid = _hu(LIPID, kev)
        spongy, mineral, sure = (
            round(_hu(solution("apatite", HYDROXYAPATITE, concentration), kev))
            for concentration in (_SPONGY_MG_PER_ML, _MINERAL_MG_PER_ML, _SURE_MINERAL_MG_PER_ML)
        )
        return cls(
            gas_to_fat=round(lipid + _FAT_TO_AIR * (-1000 - lipid)),
            fat_to_soft=fat_to_soft_hu(effective_kev),
            soft_to_contrast=min(_CONTRAST_HU, mineral),
            spongy=spongy,
            mineral=mineral,
            sure_mineral=sure,
            iodine=round(_hu(solution("iodine", IODINE, _IODINE_MG_PER_ML), kev)),
        )


def fat_to_soft_hu(effective_kev: float | None) -> float:
    """Return the threshold between fat and soft tissue, HU: half-way from water to lipid at that energy."""
    if effective_kev is None:
        return _CLINICAL_FAT_TO_SOFT_HU
    return round(0.5 * _hu(LIPID, effective_kev))


def water_per_cm(effective_kev: float) -> float:
    """Return the attenuation of water, 1/cm: with it attenuation becomes Hounsfield units."""
    return 10 * float(WATER.per_mm(effective_kev))


def _hu(material: Material, kev: float) -> float:
    return 1000 * (float(material.per_mm(kev)) / float(WATER.per_mm(kev)) - 1)
