"""The job `decompose`: from the CT series of the energy bins to a series for each material."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import derived_uid
from config.settings import MaterialSettings
from index import derivations
from plugins import reconstruction
from plugins.materials import material_codes
from plugins.materials.bins import Bins, read_bins
from plugins.materials.material_ct import MaterialImages, material_ct, refuse_without_energies
from plugins.materials.parametric_map import MapValues, parametric_map
from plugins.node import CannotProceed, Series, Task
from plugins.publish import is_made, publish, record
from reconstruct.basis import MATERIALS, Basis, Beam, calibrated, tabulated, water_path_mm
from reconstruct.decomposition import Allocate, Decomposition, Method, decompose
from reconstruct.provenance import in_words
from reconstruct.working_memory import file_array

VERSION = 4
"""Part of every recipe: raised when the same settings would give other values or other headers than before."""

_MAP_NUMBERS, _CT_NUMBERS = 5000, 6000
"""Added to the series number of the lowest energy bin, and the number of the material. SEG, reports and pictures have
1000 to 3999 (`reconstruct.provenance.number_after`)."""
_READ, _DECOMPOSED = 0.2, 0.7
"""Shares of the work that are done after reading and after decomposition."""


def decompose_bins(task: Task, kind: str) -> None:
    """Decompose the energy bins that were reconstructed with the task's series; store a series for each material.

    Parameters
    ----------
    kind
        Of the job; part of the recipe.

    Raises
    ------
    CannotProceed
        The bins do not tell what the settings need, or cannot tell the materials apart.
    """
    settings = task.settings.materials
    recipe = recipe_of(settings, kind)
    made_by = task.series().made_by
    if made_by is None or made_by.kind != reconstruction.KIND:
        raise CannotProceed(f"series {task.job.subject} is no energy bin that this node reconstructed")
    digest = derivations.source_digest(task.archive.database, *made_by.outputs)
    source = made_by.outputs[0]
    if is_made(task.archive, source, recipe, digest):
        return
    series = [Series(task.archive, uid) for uid in made_by.outputs]
    allocate = _allocation(series, task)
    bins = read_bins(series, allocate)
    if "ct" in settings.objects:
        refuse_without_energies(bins)
    task.progress(_READ)
    try:
        found = materials_in(bins, settings, threads=task.settings.reconstruct.threads, allocate=allocate)
    except ValueError as error:
        raise CannotProceed(str(error)) from error
    task.progress(_DECOMPOSED)
    outputs = []
    for objects in _objects(found, bins, settings, (source, derivations.canonical(recipe))):
        outputs.append(publish(task.archive, objects))
        task.progress(_DECOMPOSED + (1 - _DECOMPOSED) * len(outputs) / (2 * len(found.basis.materials) + 1))
    record(task.archive, source, recipe, digest, outputs)


def _allocation(series: Sequence[Series], task: Task) -> Allocate:
    """Return what makes the large arrays: in memory while all together fit ``[reconstruct] memory_mb``, else in files.

    Together they are the bins twice, as they are and smoothed, the materials and the residual.
    """
    header, settings = series[0].header, task.settings
    volumes = 2 * len(series) + len(settings.materials.use) + 1
    needed = 4 * volumes * len(series[0].instances) * int(header.Rows) * int(header.Columns)
    if needed <= settings.reconstruct.memory_mb << 20:
        return lambda shape: np.empty(shape, np.float32)
    folder = task.archive.data / "work"
    folder.mkdir(exist_ok=True)
    return lambda shape: file_array(shape, folder)


def recipe_of(settings: MaterialSettings, kind: str) -> dict[str, Any]:
    """Return everything that determines the objects."""
    told = settings.model_dump(mode="json", exclude={"enabled"})
    return {"kind": kind, "version": VERSION, **{k: sorted(v) if isinstance(v, list) else v for k, v in told.items()}}


@dataclass(frozen=True, eq=False)
class Found:
    """Materials in the voxels of a scan.

    Attributes
    ----------
    told
        Parameters of the decomposition, those that were measured among them.
    """

    basis: Basis
    decomposition: Decomposition
    told: Mapping[str, Any]

    def mg_per_ml(self, number: int) -> NDArray[np.float32]:
        """Return the concentration of a material, (z, y, x)."""
        values: NDArray[np.float32] = self.decomposition.fractions[number] * np.float32(self.basis.mg_per_ml[number])
        return values


def materials_in(
    bins: Bins, settings: MaterialSettings, *, threads: int = 0, allocate: Allocate | None = None
) -> Found:
    """Decompose the bins as the settings say; threads and where the arrays go are those of `decompose`.

    Raises
    ------
    CannotProceed, ValueError
        The bins or the settings do not allow it; the sentence says why.
    """
    basis, told = _basis(bins, settings)
    method = Method(
        together=min(settings.most_together, len(bins.bins), len(basis.materials)),
        penalty=settings.penalty,
        model_error=settings.model_error,
        most_filled=settings.most_filled,
        smoothing_voxels=settings.smoothing_voxels,
        choice_voxels=settings.choice_voxels,
    )
    names = [material.name for material in basis.materials]
    decomposition = decompose(
        bins.volumes, basis.per_cm, method, admissible=_sets(settings, names), threads=threads, allocate=allocate
    )
    return Found(basis, decomposition, {"materials": "+".join(names), **told, **vars(method)})


def _sets(settings: MaterialSettings, names: list[str]) -> list[tuple[int, ...]]:
    chosen = []
    for text in sorted(settings.sets):
        parts = [part.strip() for part in text.split("+")]
        unknown = [part for part in parts if part not in names]
        if unknown:
            raise CannotProceed(f"sets in [materials] name {unknown[0]!r}, which is not among use: {', '.join(names)}")
        chosen.append(tuple(names.index(part) for part in parts))
    return chosen


def _basis(bins: Bins, settings: MaterialSettings) -> tuple[Basis, dict[str, Any]]:
    materials = tuple(material for name, material in MATERIALS.items() if name in settings.use)
    if settings.use <= settings.calibration.keys():
        nothing = Basis(materials, np.ones((len(bins.bins), len(materials))))
        return calibrated(nothing, settings.calibration.items()), {"attenuation": "calibrated"}
    beam = _beam(bins, settings)
    water = bins.bins[0].water_per_cm or 10 * beam.spectra()[0].effective_per_mm(
        MATERIALS["water"], settings.water_path_mm
    )
    hardening = settings.hardening_mm or water_path_mm(bins.volumes[0], water, bins.pixel_mm2)
    told = {
        "attenuation": "tabulated", "kvp": beam.kvp, "filtration_mm_al": beam.filtration_mm_al,
        "hardening_mm": round(hardening, 1),
    }  # fmt: skip
    if settings.calibration:
        told["calibrated"] = "+".join(sorted(settings.calibration))
    return calibrated(tabulated(materials, beam, hardening), settings.calibration.items()), told


def _beam(bins: Bins, settings: MaterialSettings) -> Beam:
    if settings.filtration_mm_al:
        return Beam(bins.thresholds_kev, bins.kvp, settings.filtration_mm_al)
    return Beam.fitted(bins.thresholds_kev, bins.kvp, bins.water_per_cm, settings.water_path_mm)


def _objects(
    found: Found, bins: Bins, settings: MaterialSettings, named_by: tuple[str, str]
) -> Iterator[Iterator[Dataset]]:
    """Yield the objects of each series."""
    derivation = f"Decomposition of {len(bins.bins)} energy bins into materials: {in_words(found.told)}"[:1024]
    number = int(bins.first.get("SeriesNumber") or 0)
    headers = [each.slices for each in bins.bins]
    codes = tuple(material_codes.MATERIALS[material.name] for material in found.basis.materials)
    for index, material in enumerate(found.basis.materials):
        values = found.mg_per_ml(index)
        if "map" in settings.objects:
            shown = MapValues(
                values, f"{material.name.capitalize()} mg/ml", material.name.upper()[:16], material_codes.MG_PER_ML,
                material_codes.CONCENTRATION, codes[index],
            )  # fmt: skip
            yield iter([
                parametric_map(
                    shown, headers, series_uid=derived_uid(*named_by, material.name, "map"),
                    series_number=_number(number, _MAP_NUMBERS + index), derivation=derivation,
                )
            ])  # fmt: skip
        if "ct" in settings.objects:
            yield material_ct(
                MaterialImages(values, material.name.capitalize(), codes[index], codes), bins,
                series_uid=derived_uid(*named_by, material.name, "ct"),
                series_number=_number(number, _CT_NUMBERS + index), derivation=derivation,
            )  # fmt: skip
    if settings.residual:
        chi_square = np.float32(len(bins.bins)) * found.decomposition.residual**2
        shown = MapValues(
            chi_square, "Unexplained by the materials (chi-square)", "CHI_SQUARE", material_codes.NO_UNITS,
            material_codes.CHI_SQUARE,
        )  # fmt: skip
        yield iter([
            parametric_map(
                shown, headers, series_uid=derived_uid(*named_by, "residual", "map"),
                series_number=_number(number, _MAP_NUMBERS + len(codes)), derivation=derivation,
            )
        ])  # fmt: skip


def _number(of_bin: int, added: int) -> int:
    """Number a series after that of the lowest bin; by the offset alone where that would be no IS (PS3.5 6.2)."""
    return of_bin + added if abs(of_bin + added) < 1 << 31 else added
