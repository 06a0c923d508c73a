"""Material decomposition, judged: inserts of known concentration through a node of its own, a table and a picture.

    python benchmarks/materials.py --picture docs/images/materials.png

The phantom `contrast-agents` is scanned twice by the simulator at its default dose, with its default thresholds and
with thresholds at the K edges of iodine, gadolinium and gold; archive and workers reconstruct and decompose. Further
lines: the attenuation that the inserts calibrate, and the speed of the fit beside that of scipy.optimize.nnls.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray
from pydicom.uid import ParametricMapStorage
from scipy import ndimage
from scipy.optimize import nnls

from config.settings import load_settings
from index.archive import Archive
from plugins.materials.bins import Bins, read_bins
from plugins.node import Series
from plugins.worker import Worker
from reconstruct.basis import MATERIALS, measured_attenuation
from reconstruct.decomposition import Method, decompose
from reconstruct.geometry import VolumeGrid
from reconstruct.simulate import simulate_scan
from reconstruct.spectral_phantoms import spectral_phantom

PHANTOM = "contrast-agents"
SCANS = (
    ("default thresholds", (18.0, 30.0, 45.0, 60.0), ("water", "hydroxyapatite", "iodine")),
    ("K-edge thresholds", (25.0, 33.2, 50.3, 80.8), ("water", "hydroxyapatite", "iodine", "gadolinium", "gold")),
)
CODES = {"water": "11713004", "hydroxyapatite": "256579008", "iodine": "44588005", "gadolinium": "58281002",
         "gold": "2309006"}  # fmt: skip
SHOWN = {"water": 1100.0, "hydroxyapatite": 900.0, "iodine": 20.0, "gadolinium": 12.0, "gold": 12.0}
SLAB_MM = 2.0
Maps = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Judged:
    """A scan: its bins, what was found and where the inserts are."""

    bins: Bins
    maps: Maps
    labels: NDArray[np.uint8]
    voxel_mm: float

    def core(self, number: int) -> NDArray[np.bool_]:
        """Two voxels within insert `number`, where its diameter is at least 5 mm."""
        slices = self.labels.shape[0]
        z = (np.arange(slices) - (slices - 1) / 2) * self.voxel_mm
        inside = ndimage.binary_erosion(self.labels == number, iterations=2)
        return np.asarray(inside & (np.abs(z) < SLAB_MM)[:, None, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    judged = {}
    for name, thresholds_kev, use in SCANS:
        judged[name] = scan(thresholds_kev, use, options.seed)
        print(f"\n{name} ({', '.join(f'{kev:g}' for kev in thresholds_kev)} keV), mg/ml: mean ± sd of voxels")
        print(table(judged[name]))
        print(calibration(judged[name]))
    print(speed(judged[SCANS[0][0]]))
    if options.picture:
        draw(judged, options.picture)


def scan(thresholds_kev: tuple[float, ...], use: tuple[str, ...], seed: int) -> Judged:
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "archive": {"data": folder, "settle_time_s": 0.0, "reserve_mb": 0}, "similarity": {"enabled": False},
            "segmentation": {"enabled": False}, "materials": {"enabled": True, "use": list(use)},
        }  # fmt: skip
        settings = load_settings(environment={}, overrides=overrides)
        archive = Archive.from_settings(settings.archive)
        for dataset in simulate_scan(PHANTOM, thresholds_kev=thresholds_kev, seed=seed):
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            archive.ingest(buffer.getvalue())
        Worker(archive, settings, "benchmark").run_until_idle()
        failed = [job.error for job in archive.jobs.recent(states=("failed",))]
        if failed:
            raise SystemExit(failed[0])
        judged = read(archive)
        archive.close()
    return judged


def read(archive: Archive) -> Judged:
    rows = archive.database.execute("SELECT series_instance_uid FROM series").fetchall()
    stored = [Series(archive, uid) for (uid,) in rows]
    of_bins = [series for series in stored if series.made_by and series.made_by.kind == "reconstruct"]
    bins = read_bins(sorted(of_bins, key=lambda series: int(series.header.SeriesNumber)))
    maps: Maps = {}
    for series in stored:
        if series.header.SOPClassUID == ParametricMapStorage:
            image = highdicom.imread(series.paths[0])
            item = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
            coded = item.QuantityDefinitionSequence[-1].ConceptCodeSequence[0].CodeValue
            name = next(name for name, value in CODES.items() if value == coded)
            maps[name] = np.asarray(image.get_volume().to_patient_orientation("HPL").array, np.float32)
    voxel_mm = float(bins.first.PixelSpacing[0])
    grid = VolumeGrid(bins.volumes.shape[1:], (voxel_mm,) * 3, (0.0, 0.0, 0.0))
    return Judged(bins, maps, spectral_phantom(PHANTOM).labels(grid), voxel_mm)


def truth(material_name: str) -> dict[str, float]:
    """What an insert holds, mg/ml; its name says so."""
    name, _, rest = material_name.partition(" ")
    if not rest:
        return {"water": 1000.0}
    amount = float(rest.split()[0])
    return {name: amount, "water": 1000 * (1 - amount / 1000 / MATERIALS[name].density_g_per_cm3)}


def table(judged: Judged) -> str:
    names = [name for name in CODES if name in judged.maps]
    lines = [f"{'insert':26}" + "".join(f"{name:>20}" for name in names) + "   error"]
    for number, material in enumerate(spectral_phantom(PHANTOM).materials, start=1):
        core, held = judged.core(number), truth(material.name)
        cells = [f"{judged.maps[name][core].mean():10.2f} ± {judged.maps[name][core].std():7.2f}" for name in names]
        asked = next(iter(held))
        error = f"{judged.maps[asked][core].mean() / held[asked] - 1:+8.1%}" if asked in names else "not used"
        lines.append(f"{material.name:26}" + "".join(cells) + error)
    return "\n".join(lines)


def calibration(judged: Judged) -> str:
    """The attenuation that these inserts show, as a line of settings."""
    names = [name for name in CODES if name in judged.maps]
    values, held = [], []
    for number, material in enumerate(spectral_phantom(PHANTOM).materials, start=1):
        told = truth(material.name)
        if set(told) <= set(names):
            values.append(judged.bins.volumes[:, judged.core(number)].mean(axis=1))
            held.append([told.get(name, 0.0) for name in names])
    measured = measured_attenuation(np.array(values).T, np.array(held).T)
    told = (f"{name} = [{', '.join(f'{v:.4g}' for v in measured[:, k])}]" for k, name in enumerate(names))
    return f"calibration = {{ {', '.join(told)} }}"


def speed(judged: Judged) -> str:
    """Voxels a second of the whole decomposition and of scipy's solver on one problem a voxel."""
    volumes = judged.bins.volumes
    basis = np.array([[0.5, 10.7, 66.0], [0.29, 3.9, 105.0], [0.22, 1.6, 51.0], [0.19, 0.92, 21.7]])
    whole = min(timed(lambda: decompose(volumes, basis, Method())) for _ in range(3))
    some = volumes.reshape(len(volumes), -1)[:, ::500].T.astype(np.float64)
    one = timed(lambda: [nnls(basis, values) for values in some]) / len(some)
    voxels = volumes[0].size
    return (
        f"\n{voxels} voxels, 4 bins, 3 materials: {whole:.2f} s with smoothing and choice among 7 sets, "
        f"{voxels / whole / 1e6:.2f} M voxels/s; scipy.optimize.nnls, one problem each: {1 / one / 1e6:.3f} M voxels/s"
    )


def timed(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


def draw(judged: dict[str, Judged], file: Path) -> None:
    """Draw the middle slice of every map below the truth."""
    columns = max(len(each.maps) for each in judged.values())
    figure, axes = pyplot.subplots(len(judged) + 1, columns, figsize=(2.7 * columns, 2.9 * (len(judged) + 1)))
    for axis in axes.ravel():
        axis.set_axis_off()
    first = next(iter(judged.values()))
    materials = spectral_phantom(PHANTOM).materials
    rows = [("truth", {name: np.zeros(first.labels.shape[1:], np.float32) for name in CODES})]
    middle = first.labels.shape[0] // 2
    for number, material in enumerate(materials, start=1):
        for name, amount in truth(material.name).items():
            rows[0][1][name][first.labels[middle] == number] = amount
    rows += [(name, {k: v[middle] for k, v in each.maps.items()}) for name, each in judged.items()]
    for row, (title, images) in enumerate(rows):
        names = [name for name in CODES if name in images]
        for column, name in enumerate(names):
            axis = axes[row, column]
            shown = axis.imshow(images[name], cmap="gray", vmin=0, vmax=SHOWN[name], interpolation="nearest")
            axis.set_title(f"{title}: {name}" if column == 0 else name, fontsize=9)
            figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
    figure.suptitle("Concentrations, mg/ml, in the middle slice", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
