"""The peers of `benchmarks/fdk.py`: the same reconstruction by RTK and by plastimatch."""

from __future__ import annotations

import importlib.metadata
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.fdk import Problem

Volume = np.ndarray


class PeerMissing(Exception):
    """A peer is not installed, or cannot do this; the message says what to do."""


def rtk(problem: Problem) -> tuple[str, Callable[[], Volume]]:
    """Return name and reconstruction of RTK's FDKConeBeamReconstructionFilter, in this process.

    RTK's axes (X, Y, Z) are our (y, z, x), its Y being the rotation axis.
    """
    if next(importlib.metadata.distributions(name="itk-rtk"), None) is None:
        raise PeerMissing("rtk: not installed (pip install itk-rtk)")
    import itk
    from itk import RTK as rtk  # noqa: N811 - the name its documentation uses

    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in problem.geometry.view_angles_rad:
        geometry.AddProjection(
            problem.source_to_isocenter_mm, problem.source_to_detector_mm, float(np.rad2deg(angle)), 0, 0
        )
    size, pitch = problem.geometry.rows, problem.pitch
    projections = itk.image_from_array(problem.projections)
    projections.SetSpacing([pitch, pitch, 1.0])
    projections.SetOrigin([-problem.principal_column * pitch, -(size - 1) / 2 * pitch, 0.0])
    image = itk.Image[itk.F, 3]
    weighting: dict[str, list[Any]] = {
        "full": [], "short": [rtk.ParkerShortScanImageFilter], "offset": [rtk.DisplacedDetectorImageFilter],
    }  # fmt: skip

    def run() -> Volume:
        source = rtk.ConstantImageSource[image].New()
        edge = problem.grid.voxel_mm_zyx[0]
        source.SetOrigin([-(size - 1) / 2 * edge] * 3)
        source.SetSpacing([edge] * 3)
        source.SetSize([size] * 3)
        filter_ = rtk.FDKConeBeamReconstructionFilter[image].New()
        filter_.SetInput(0, source.GetOutput())
        weighted = projections
        for kind in weighting[problem.scan]:
            weight = kind[image].New()
            weight.SetInput(weighted)
            weight.SetGeometry(geometry)
            weight.InPlaceOff()
            weight.Update()
            weighted = weight.GetOutput()
        filter_.SetInput(1, weighted)
        filter_.SetGeometry(geometry)
        filter_.Update()
        return np.asarray(itk.array_from_image(filter_.GetOutput())).transpose(1, 2, 0)

    return f"rtk {importlib.metadata.version('itk-rtk')}", run


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
