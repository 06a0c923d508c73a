"""The arc of a linear accelerator in Tomosynthesis-Toolkit: from eleven raw images to slices of a head, as a picture.

    python benchmarks/megavoltage_arc.py "Demo Data/Raw Images/EPID Images" --picture docs/images/megavoltage-arc.png

The images come in by a JSON file, as `tharsis import-scan` reads it, and are reconstructed as a limited arc. Printed is
what `tests/test_megavoltage_arc.py` asks for: how the contrast of parts of the head changes with depth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from reconstruct.imports.tiff_json import read_tiff_json
from reconstruct.imports.writing import instances_of
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.p1 import read_p1

VOXEL_MM, FILTER = 1.25, "hann"
_HALF_MM = 4.0
"""Half the depth over which a slice is averaged."""

Span = tuple[float, float]


def description(folder: Path) -> dict[str, Any]:
    """Return what to write into the JSON file: gantry 340 to 20 degrees, 512 × 512 bytes of an area of 400 mm."""
    return {
        "projections": sorted(map(str, folder.glob("1-*"))),
        "raw": {"rows": 512, "columns": 512, "dtype": "uint8"},
        "angles_deg": {"first": -110, "step": 4},
        "seen_from": "source",
        "unattenuated": 255,
        "source_to_isocentre_mm": 1000,
        "source_to_detector_mm": 1500,
        "pitch_mm": 400 / 512,
    }


@dataclass(frozen=True, eq=False)
class Head:
    """The reconstructed head: attenuation, 1/cm, (z, y, x), and where its voxels are, mm in patient LPS."""

    attenuation: NDArray[np.float64]
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    z_mm: NDArray[np.float64]

    @classmethod
    def of(cls, instances: Iterable[Dataset]) -> Head:
        """Return the head of a CT series, in any order."""
        slices = sorted(instances, key=lambda dataset: float(dataset.ImagePositionPatient[2]))
        values = [ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices]
        x, y, _ = map(float, slices[0].ImagePositionPatient)
        row, column = map(float, slices[0].PixelSpacing)
        return cls(
            np.stack(values),
            x + column * np.arange(slices[0].Columns),
            y + row * np.arange(slices[0].Rows),
            np.array([float(dataset.ImagePositionPatient[2]) for dataset in slices]),
        )

    def mean(self, y_mm: float, x: Span, z: Span) -> float:
        """Return the mean of a box, some mm deep about `y_mm`: behind the axis above 0."""
        axes = ((self.z_mm, z), (self.y_mm, (y_mm - _HALF_MM, y_mm + _HALF_MM)), (self.x_mm, x))
        inside = [np.flatnonzero((axis >= low) & (axis <= high)) for axis, (low, high) in axes]
        return float(self.attenuation[np.ix_(*inside)].mean())

    def sockets(self, y_mm: float) -> float:
        """How much fainter both eye sockets are than the bridge of the nose between them, 1/cm."""
        sides = (self.mean(y_mm, x, (-8, 0)) for x in ((-47, -37), (5, 15)))
        return self.mean(y_mm, (-21, -13), (-8, 0)) - sum(sides) / 2

    def walls(self, y_mm: float) -> tuple[float, float]:
        """How much denser the walls of the skull, right and left, are than the brain beside them, 1/cm."""
        pairs = (((-92, -82), (-72, -62)), ((46, 54), (26, 34)))
        right, left = (self.mean(y_mm, bone, (20, 60)) - self.mean(y_mm, brain, (20, 60)) for bone, brain in pairs)
        return right, left

    def floor(self, y_mm: float) -> tuple[float, float]:
        """How much denser the floor of the skull behind, right and left, is than brain above and neck below, 1/cm."""
        right, left = (
            self.mean(y_mm, x, (-30, -24)) - (self.mean(y_mm, x, (-18, -12)) + self.mean(y_mm, x, (-44, -38))) / 2
            for x in ((-74, -52), (20, 38))
        )
        return right, left

    def slice(self, y_mm: float) -> NDArray[np.float64]:
        """Return the mean of a coronal slab, (z, x)."""
        near = np.abs(self.y_mm - y_mm) <= _HALF_MM
        mean: NDArray[np.float64] = self.attenuation[:, near].mean(axis=1)
        return mean


def reconstructed(folder: Path) -> Head:
    """Return the head of the images in a folder."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "arc.json"
        path.write_text(json.dumps(description(folder)), encoding="utf-8")
        header = Dataset()
        header.PatientID = "PHANTOM"
        scan = read_p1(list(instances_of(read_tiff_json(path), header)))
        parameters = Parameters(voxel_mm=VOXEL_MM, filter=FILTER, limited_arc=True)
        [series] = reconstruct_scan(scan, parameters, lambda _fraction: None, Path(work))
        return Head.of(series.instances)


def table(head: Head) -> str:
    lines = [f"{'mm behind the axis':>18}{'sockets':>10}{'walls':>18}{'floor':>18}   10⁻³ /cm"]
    for depth in range(-80, 81, 20):
        values = (head.sockets(depth), *head.walls(depth), *head.floor(depth))
        sockets, *others = (f"{1000 * value:9.1f}" for value in values)
        lines.append(f"{depth:18}{sockets:>10}{''.join(others)}")
    return "\n".join(lines)


def draw(head: Head, file: Path) -> None:
    """Draw three coronal slices, head up and the patient's right at the left, each in the greys of its middle."""
    from matplotlib import pyplot

    titles = {-60: "60 mm in front of the axis", 0: "through the axis", 60: "60 mm behind the axis"}
    figure, axes = pyplot.subplots(1, len(titles), figsize=(7.2, 2.9))
    rows = np.flatnonzero((head.z_mm > -112) & (head.z_mm < 100))[::-1]
    columns = np.flatnonzero((head.x_mm > -112) & (head.x_mm < 75))
    for axis, (depth, title) in zip(axes, titles.items(), strict=True):
        image = head.slice(depth)[np.ix_(rows, columns)]
        edge = len(image) // 4
        low, high = np.percentile(image[edge:-edge, edge:-edge], (1, 99))
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the eleven files 1-0002 to 1-0012")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    head = reconstructed(options.folder)
    print(table(head))
    if options.picture:
        draw(head, options.picture)


if __name__ == "__main__":
    main()
