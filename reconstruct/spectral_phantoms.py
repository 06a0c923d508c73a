"""Named objects made of materials, the size of a mouse: what the simulated scanner scans.

Every object is a nest of ellipsoids, asymmetric in each direction, so that a flipped or turned reconstruction cannot
pass for a right one. A part lies wholly inside the part that it names and takes its place there. Axes are patient LPS,
mm, origin at the isocentre; everything lies within 17 mm of the axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconstruct.geometry import VolumeGrid
from reconstruct.materials import (
    AIR,
    BONE,
    CALCIUM_OXALATE,
    GADOLINIUM,
    GOLD,
    HYDROXYAPATITE,
    IODINE,
    LIPID,
    LUNG,
    PMMA,
    SOFT_TISSUE,
    URIC_ACID,
    WATER,
    Material,
    solution,
)
from reconstruct.phantoms import Ellipsoid, voxelise

Triple = tuple[float, float, float]

IODINE_9 = solution("iodine 9 mg/ml", IODINE, 9)
IODINE_18 = solution("iodine 18 mg/ml", IODINE, 18)
APATITE_200 = solution("hydroxyapatite 200 mg/ml", HYDROXYAPATITE, 200)
APATITE_400 = solution("hydroxyapatite 400 mg/ml", HYDROXYAPATITE, 400)
APATITE_800 = solution("hydroxyapatite 800 mg/ml", HYDROXYAPATITE, 800)
GADOLINIUM_8 = solution("gadolinium 8 mg/ml", GADOLINIUM, 8)
GOLD_8 = solution("gold 8 mg/ml", GOLD, 8)


@dataclass(frozen=True)
class Part:
    """An ellipsoid of one material.

    Attributes
    ----------
    label
        Its name within the phantom.
    material
        What it is made of.
    centre_mm_xyz, semi_axes_mm, rotation_deg
        Where it lies; the rotation is about z, from x towards y.
    inside
        Label of the part that it lies in; empty: in the air around.
    """

    label: str
    material: Material
    centre_mm_xyz: Triple
    semi_axes_mm: Triple
    rotation_deg: float = 0.0
    inside: str = ""


@dataclass(frozen=True)
class SpectralPhantom:
    """A named object.

    Attributes
    ----------
    name
        By which it is asked for.
    body_part
        Body Part Examined (0018,0015), PS3.16 annex L; empty where none fits.
    parts
        Its ellipsoids, each after the one that it lies in.
    """

    name: str
    body_part: str
    parts: tuple[Part, ...]

    @property
    def materials(self) -> tuple[Material, ...]:
        """Its materials, each once, in order of appearance."""
        return tuple(dict.fromkeys(part.material for part in self.parts))

    def presence(self, material: Material) -> tuple[Ellipsoid, ...]:
        """Return ellipsoids whose values add up to 1 where `material` is and to 0 elsewhere."""
        made_of = {part.label: part.material for part in self.parts}
        ellipsoids = []
        for part in self.parts:
            value = float(part.material == material) - float(made_of.get(part.inside) == material)
            if value:
                turn = float(np.deg2rad(part.rotation_deg))
                ellipsoids.append(Ellipsoid(part.centre_mm_xyz, part.semi_axes_mm, turn, value))
        return tuple(ellipsoids)

    def fractions(self, grid: VolumeGrid, *, supersampling: int = 1) -> NDArray[np.float32]:
        """Return the share of each material in each voxel, (material, z, y, x), materials as in `materials`."""
        return np.stack(
            [voxelise(self.presence(m), grid, supersampling=supersampling) for m in self.materials]
        )

    def labels(self, grid: VolumeGrid) -> NDArray[np.uint8]:
        """Return which material is at the centre of each voxel, (z, y, x): 0 air around, k the k-th of `materials`."""
        fractions = self.fractions(grid)
        labels: NDArray[np.uint8] = np.where(fractions.max(axis=0) > 0.5, fractions.argmax(axis=0) + 1, 0).astype(
            np.uint8
        )
        return labels

    def attenuation(
        self, grid: VolumeGrid, per_mm: Mapping[str, float], *, supersampling: int = 2
    ) -> NDArray[np.float32]:
        """Return the attenuation of each voxel, 1/mm, (z, y, x), given that of each material by its name."""
        values = np.array([per_mm[material.name] for material in self.materials], dtype=np.float32)
        return np.tensordot(values, self.fractions(grid, supersampling=supersampling), axes=1)


def _calibration() -> tuple[Part, ...]:
    """Rods in a block of PMMA; two of the nine places are left out, so that it has a front and a top."""
    rods: tuple[tuple[Material, float, float, float], ...] = (
        (WATER, 0.0, 10.0, 2.6),
        (LIPID, 40.0, 10.0, 2.4),
        (APATITE_200, 80.0, 10.0, 1.8),
        (APATITE_400, 120.0, 10.0, 1.8),
        (APATITE_800, 160.0, 10.0, 1.6),
        (IODINE_9, 200.0, 10.0, 2.0),
        (IODINE_18, 240.0, 10.0, 2.0),
        (AIR, 310.0, 8.5, 1.5),
    )
    parts = [Part("block", PMMA, (0.0, 0.0, 0.0), (15.0, 14.0, 12.0))]
    for material, degrees, radius, size in rods:
        angle = np.deg2rad(degrees)
        centre = (float(radius * np.cos(angle)), float(0.9 * radius * np.sin(angle)), degrees / 240 - 0.5)
        parts.append(Part(f"rod of {material.name}", material, centre, (size, size, 5.5), 0.0, "block"))
    return tuple(parts)


def _contrast_agents() -> tuple[Part, ...]:
    """Rods of 5.4 mm in water; one of the eight places is left out, so that it has a front and a top."""
    rods = (IODINE_9, APATITE_200, GADOLINIUM_8, APATITE_400, IODINE_18, APATITE_800, GOLD_8)
    parts = [Part("water", WATER, (0.0, 0.0, 0.0), (15.0, 14.0, 12.0))]
    for number, material in enumerate(rods):
        angle = np.deg2rad(45 * number)
        centre = (float(10.0 * np.cos(angle)), float(9.2 * np.sin(angle)), 0.2 * number - 0.6)
        parts.append(Part(f"rod of {material.name}", material, centre, (2.7, 2.7, 7.0), 0.0, "water"))
    return tuple(parts)


_THIGH = (
    Part("muscle", SOFT_TISSUE, (0.5, 0.0, 0.0), (11.0, 8.5, 12.0), 15.0),
    Part("fat pad", LIPID, (4.5, 4.2, 1.0), (3.2, 1.8, 5.0), -25.0, "muscle"),
    Part("femur", BONE, (-2.0, -1.0, 0.0), (2.0, 1.7, 9.5), 0.0, "muscle"),
    Part("marrow", LIPID, (-2.0, -1.0, 0.5), (1.2, 1.0, 8.0), 0.0, "femur"),
    Part("patella", BONE, (-3.5, -5.0, 4.5), (1.3, 0.8, 1.6), 20.0, "muscle"),
    Part("femoral artery", IODINE_9, (3.2, -3.2, -0.5), (0.9, 0.9, 8.0), 0.0, "muscle"),
    Part("tumour", WATER, (5.5, -0.5, -4.0), (1.6, 1.3, 1.8), 0.0, "muscle"),
)

_THORAX = (
    Part("chest", SOFT_TISSUE, (0.0, 0.0, 0.0), (14.0, 11.0, 12.5)),
    Part("right lung", LUNG, (-6.0, -0.5, 0.5), (4.8, 6.8, 8.5), 8.0, "chest"),
    Part("left lung", LUNG, (6.4, 0.3, 0.0), (3.9, 5.9, 7.5), -8.0, "chest"),
    Part("right main bronchus", AIR, (-3.4, 0.0, 2.0), (0.6, 0.6, 2.5), 0.0, "right lung"),
    Part("heart", IODINE_9, (0.9, -3.4, -1.5), (1.4, 2.8, 3.4), 5.0, "chest"),
    Part("aorta", IODINE_9, (1.0, 3.8, 0.0), (0.7, 0.7, 9.0), 0.0, "chest"),
    Part("spine", BONE, (0.0, 8.0, 0.0), (2.0, 1.6, 7.5), 0.0, "chest"),
    Part("spinal canal", SOFT_TISSUE, (0.0, 8.2, 0.0), (0.8, 0.7, 7.0), 0.0, "spine"),
    Part("sternum", BONE, (0.3, -9.0, 1.0), (1.5, 0.6, 4.5), 0.0, "chest"),
    *(
        Part(f"{side} rib {number}", BONE, (sign * 12.0, 0.6, -4.0 + 2.6 * number), (0.5, 2.6, 0.5), 0.0, "chest")
        for side, sign, count in (("right", -1, 4), ("left", 1, 3))
        for number in range(count)
    ),
    Part("nodule", WATER, (-7.2, 2.2, 4.0), (1.1, 1.0, 1.2), 0.0, "right lung"),
)

_PLAQUE = (
    Part("gel", WATER, (0.0, 0.0, 0.0), (11.0, 12.0, 11.5)),
    Part("artery wall", SOFT_TISSUE, (1.0, -0.5, 0.0), (6.0, 5.4, 10.0), 30.0, "gel"),
    Part("lumen", IODINE_18, (2.6, -1.4, 0.0), (2.2, 1.9, 8.0), 30.0, "artery wall"),
    Part("lipid core", LIPID, (-1.6, 0.9, 1.5), (1.6, 2.2, 4.0), 20.0, "artery wall"),
    Part("calcification", APATITE_800, (-0.9, -2.9, -2.5), (1.6, 0.8, 2.0), 10.0, "artery wall"),
    Part("speck", APATITE_400, (2.6, 2.4, 4.0), (0.7, 0.6, 0.8), 0.0, "artery wall"),
    Part("suture marker", APATITE_400, (-7.5, 3.0, -4.0), (0.6, 0.6, 2.0), 0.0, "gel"),
)

_STONE = (
    Part("fat", LIPID, (0.0, 0.0, 0.0), (15.5, 12.5, 12.0)),
    Part("abdomen", SOFT_TISSUE, (0.0, 0.3, 0.0), (13.5, 10.6, 11.4), 0.0, "fat"),
    Part("right kidney", IODINE_9, (-6.8, 3.4, -1.0), (2.8, 2.2, 4.6), -20.0, "abdomen"),
    Part("left kidney", SOFT_TISSUE, (6.6, 3.4, 1.0), (2.9, 2.3, 4.8), 20.0, "abdomen"),
    Part("whewellite stone", CALCIUM_OXALATE, (6.4, 3.2, 2.2), (1.2, 1.0, 1.4), 0.0, "left kidney"),
    Part("urate stone", URIC_ACID, (-6.8, 3.6, -2.0), (1.1, 0.9, 1.2), 0.0, "right kidney"),
    Part("spine", BONE, (0.0, 7.2, 0.0), (2.2, 1.8, 8.5), 0.0, "abdomen"),
    Part("bowel gas", AIR, (2.8, -5.0, -3.0), (2.6, 1.8, 2.2), 25.0, "abdomen"),
    Part("bladder", WATER, (-2.6, -4.8, -4.5), (2.4, 2.0, 2.4), 0.0, "abdomen"),
)

_HEAD = (
    Part("head", SOFT_TISSUE, (0.0, 0.0, 0.0), (9.5, 13.0, 9.0)),
    Part("skull", BONE, (0.0, 3.0, 0.8), (7.4, 8.4, 6.4), 0.0, "head"),
    Part("brain", SOFT_TISSUE, (0.0, 3.0, 0.8), (6.6, 7.6, 5.6), 0.0, "skull"),
    Part("ventricle", WATER, (1.6, 2.6, 1.5), (0.9, 2.4, 1.2), 12.0, "brain"),
    Part("haemorrhage", IODINE_9, (-2.8, 4.6, 0.5), (1.2, 1.0, 1.3), 0.0, "brain"),
    Part("nasal cavity", AIR, (0.3, -9.0, -0.6), (1.5, 2.4, 1.3), 0.0, "head"),
    Part("right incisor", APATITE_800, (-1.0, -9.0, -4.2), (0.6, 1.5, 0.7), 0.0, "head"),
    Part("left incisor", APATITE_800, (1.0, -8.6, -4.2), (0.6, 1.2, 0.7), 0.0, "head"),
    Part("left ear", AIR, (7.9, 1.5, -1.8), (0.5, 0.8, 0.7), 0.0, "head"),
)

PHANTOMS: Mapping[str, SpectralPhantom] = {
    phantom.name: phantom
    for phantom in (
        SpectralPhantom("calibration", "", _calibration()),
        SpectralPhantom("contrast-agents", "", _contrast_agents()),
        SpectralPhantom("mouse-thigh", "THIGH", _THIGH),
        SpectralPhantom("mouse-thorax", "CHEST", _THORAX),
        SpectralPhantom("mouse-head", "HEAD", _HEAD),
        SpectralPhantom("plaque", "CAROTID", _PLAQUE),
        SpectralPhantom("kidney-stone", "ABDOMEN", _STONE),
    )
}


def spectral_phantom(name: str) -> SpectralPhantom:
    """Return the phantom called `name`.

    Raises
    ------
    ValueError
        There is none; the sentence lists those that there are.
    """
    if name not in PHANTOMS:
        raise ValueError(f"there is no phantom {name!r}; there are {', '.join(PHANTOMS)}")
    return PHANTOMS[name]
