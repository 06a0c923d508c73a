"""FDK of a real torso, projected by RTK: full circle, short scan, offset detector. Error of this node and of RTK.

    python benchmarks/torso.py SHARED_DATA --scans full short offset --json

RTK projects the truth of `torso_full` (Joseph's method), writes each scan as its geometry file and a MetaImage, and
reconstructs it, behind its Parker and displaced-detector filters. This node reads what was written and reconstructs it
with weights of its own. Errors are within the body. The exit code is 1 where this node's RMSE is above RTK's × 1.01.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.rtk_peer import PeerMissing, Rtk, further_than_rtk
from reconstruct.fdk import fdk
from reconstruct.geometry import VolumeGrid
from reconstruct.imports.rtk import read_rtk
from reconstruct.quality import bias, rmse

Row = dict[str, Any]
Volume = np.ndarray

SKIN_VOXELS = 2
"""Around the body, where blur is all there is to see."""
SEEN_ALONG_MM = 36.0
"""From the middle plane on, the cone is steep and the body ends."""


@dataclass(frozen=True)
class Trajectory:
    """Which views are taken, and which columns of the detector are there: all from the first one on."""

    views: int
    step_deg: float
    columns_share: float = 1.0


SCANS = {
    "full": Trajectory(180, 2.0),
    "short": Trajectory(106, 2.0),  # 210 degrees; half a turn and the fan are 204.7
    "offset": Trajectory(180, 2.0, 0.6),
}


class Torso:
    """The truth, (z, y, x) in patient LPS, where it is compared, and how it was scanned."""

    def __init__(self, shared: Path) -> None:
        folder = shared / "projections" / "torso_full"
        self.scan = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
        stored = np.load(folder / "truth.npz")  # 1/mm × 100,000 and HU, (x, y, z)
        self.attenuation = stored["mu_per_mm_bin3"].T.astype(np.float32) / np.float32(1e5)
        self.grid = VolumeGrid(self.attenuation.shape, tuple(reversed(self.scan["voxel_mm"])))
        self.body = inside_the_body(stored["hu"].T, self.grid)


def inside_the_body(hounsfield: Volume, grid: VolumeGrid) -> Volume:
    """Return where volumes are compared: the body without its skin, away from the ends of the cone."""
    slices = (ndimage.binary_fill_holes(plane) for plane in hounsfield > -500)
    inside = np.stack([ndimage.binary_erosion(plane, iterations=SKIN_VOXELS) for plane in slices])
    inside[np.abs(grid.z_mm) > SEEN_ALONG_MM] = False
    return inside


def to_rtk(volume: Volume) -> Volume:
    """Return a volume (z, y, x) with RTK's axes (Z, Y, X) = (-y, z, x)."""
    return volume.transpose(1, 0, 2)[::-1]


def from_rtk(volume: Volume) -> Volume:
    return volume[::-1].transpose(1, 0, 2)


def compared(torso: Torso, rtk: Rtk, name: str) -> Row:
    """Scan the torso, reconstruct it twice, and return the errors."""
    told, trajectory = torso.scan, SCANS[name]
    rows, columns = told["detector_rows"], round(trajectory.columns_share * told["detector_columns"])
    pitch = (told["column_pitch_mm"], told["row_pitch_mm"], 1.0)
    first_pixel = (-(told["detector_columns"] - 1) / 2 * pitch[0], -(rows - 1) / 2 * pitch[1], 0.0)
    circle = rtk.circle(
        told["source_to_isocenter_mm"],
        told["source_to_detector_mm"],
        told["first_angle_deg"] + trajectory.step_deg * np.arange(trajectory.views),
    )
    spacing = tuple(told["voxel_mm"][axis] for axis in (0, 2, 1))
    blank = rtk.image(np.zeros((trajectory.views, rows, columns)), pitch, first_pixel)
    projections = rtk.projected(rtk.image(to_rtk(torso.attenuation), spacing), blank, circle)
    shape = to_rtk(torso.attenuation).shape
    theirs = from_rtk(rtk.reconstructed(projections, circle, name, shape, spacing))
    with tempfile.TemporaryDirectory() as folder:
        raw = read_rtk(*rtk.write(projections, circle, Path(folder)))
        integrals = np.stack([raw.views[view] for view in range(len(raw.views))])
    ours = fdk(integrals, raw.geometry(), torso.grid)
    return {
        "scan": name,
        "views": trajectory.views,
        "columns": columns,
        "rmse": rmse(ours, torso.attenuation, torso.body),
        "rtk_rmse": rmse(theirs, torso.attenuation, torso.body),
        "bias": bias(ours, torso.attenuation, torso.body),
        "rtk_bias": bias(theirs, torso.attenuation, torso.body),
        "between": rmse(ours, theirs, torso.body),
    }


def show(rows: list[Row]) -> None:
    """Print the table of docs/performance.md; errors in 10⁻⁴/mm, the difference of the two in 1/mm."""
    print("| scan | views | columns | RMSE | RTK's | ratio | bias | RTK's | between the two |\n|" + "---|" * 9)
    for row in rows:
        errors = [f"{row[name] * 1e4:.3f}" for name in ("rmse", "rtk_rmse", "bias", "rtk_bias")]
        errors.insert(2, f"{row['rmse'] / row['rtk_rmse']:.4f}")
        print(f"| {row['scan']} | {row['views']} | {row['columns']} | {' | '.join(errors)} | {row['between']:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder of the shared test data")
    parser.add_argument("--scans", nargs="+", choices=list(SCANS), default=list(SCANS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        rtk = Rtk()
    except PeerMissing as missing:
        sys.exit(str(missing))
    torso = Torso(arguments.shared)
    rows = [compared(torso, rtk, name) for name in arguments.scans]
    if arguments.json:
        print(json.dumps({"peer": rtk.name, "rows": rows}, indent=1))
    else:
        show(rows)
    sentences = [line for row in rows for line in further_than_rtk(row["scan"], row["rmse"], row["rtk_rmse"])]
    sys.exit("\n".join(sentences) or None)


if __name__ == "__main__":
    main()
