"""The peers of `benchmarks/fdk.py`: the same reconstruction by RTK and by plastimatch."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.rtk_peer import PeerMissing, Rtk

if TYPE_CHECKING:
    from benchmarks.fdk import Problem

Volume = np.ndarray


def rtk(problem: Problem) -> tuple[str, Callable[[], Volume]]:
    """Return name and reconstruction of RTK's FDKConeBeamReconstructionFilter, in this process.

    RTK's axes (X, Y, Z) are our (y, z, x), its Y being the rotation axis.
    """
    peer = Rtk()
    geometry = peer.circle(
        problem.source_to_isocenter_mm, problem.source_to_detector_mm, np.rad2deg(problem.geometry.view_angles_rad)
    )
    size, pitch, edge = problem.geometry.rows, problem.pitch, problem.grid.voxel_mm_zyx[0]
    first_pixel = (-problem.principal_column * pitch, -(size - 1) / 2 * pitch, 0.0)
    projections = peer.image(problem.projections, (pitch, pitch, 1.0), first_pixel)

    def run() -> Volume:
        volume = peer.reconstructed(projections, geometry, problem.scan, (size,) * 3, (edge,) * 3)
        return volume.transpose(1, 2, 0)

    return peer.name, run


def plastimatch(problem: Problem) -> tuple[str, Callable[[], Volume]]:
    """Return name and reconstruction of ``plastimatch fdk``, in a process of its own that reads and writes files.

    It has no scale of 1/mm and axes of its own: its volume is turned as the truth is and fitted to it by a line, which
    can only make its error smaller.
    """
    if shutil.which("plastimatch") is None:
        raise PeerMissing("plastimatch: not installed (apt-get install plastimatch)")
    if problem.scan != "full":
        raise PeerMissing("plastimatch: knows full scans only")
    folder = tempfile.TemporaryDirectory()  # kept by `run`
    images, views, size = Path(folder.name) / "images", problem.geometry.views, problem.geometry.rows
    images.mkdir()
    side = f"{problem.pitch * size:g}"
    distances = [
        "--sad", f"{problem.source_to_isocenter_mm:g}", "--sid", f"{problem.source_to_detector_mm:g}",
        "-r", f"{size} {size}", "-z", f"{side} {side}",
    ]  # fmt: skip
    _call("drr", "-G", "-N", f"{360 / views}", "-a", f"{views}", *distances, "-O", f"{images}/img_")
    for view in range(views):  # it turns the other way, and its rows run downwards
        pixels = np.ascontiguousarray(problem.projections[-view % views][::-1])
        (images / f"img_{view:04d}.pfm").write_bytes(f"Pf\n{size} {size}\n-1\n".encode() + pixels.tobytes())
    out = Path(folder.name) / "volume.mha"
    field = f"{problem.grid.voxel_mm_zyx[0] * size:g}"
    version = subprocess.run(["plastimatch", "--version"], capture_output=True, text=True, check=True).stdout.split()

    def run() -> Volume:
        _call(
            "fdk", "-I", str(Path(folder.name) / "images"), "-O", str(out), "-r", f"{size} {size} {size}",
            "-z", f"{field} {field} {field}", "-f", "ramp", "-X", "c", "-A", "cpu",
        )  # fmt: skip
        voxels = np.frombuffer(out.read_bytes().split(b"ElementDataFile = LOCAL\n", 1)[1], np.float32)
        return voxels.reshape(size, size, size)

    return f"plastimatch {version[-1]}", run


def fitted(volume: Volume, truth: Volume, inside: np.ndarray) -> Volume:
    """Return a volume with its axes turned, mirrored and its values scaled as fits the truth best."""
    coarse = slice(None, None, 4), slice(None, None, 4), slice(None, None, 4)

    def likeness(candidate: Volume) -> float:
        return float(np.corrcoef(candidate[coarse].ravel(), truth[coarse].ravel())[0, 1])

    turned = (
        np.flip(volume.transpose(axes), mirrored)
        for axes in itertools.permutations(range(3))
        for count in range(4)
        for mirrored in itertools.combinations(range(3), count)
    )
    best = max(turned, key=likeness)
    slope, offset = np.polyfit(best[inside].astype(np.float64), truth[inside], 1)
    return np.asarray(best * np.float32(slope) + np.float32(offset))


def _call(*arguments: str) -> None:
    subprocess.run(["plastimatch", *arguments], capture_output=True, check=True)


PEERS = {"rtk": rtk, "plastimatch": plastimatch}
