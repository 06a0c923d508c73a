"""A region of interest and any grid of voxels: asked for by options, the same voxels as of the whole volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks.memory import FIELD_MM, write_scan
from config.settings import load_settings
from index.archive import Archive
from plugins.worker import Worker
from reconstruct.phantoms import asymmetric, voxelise
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.registry import read_scan
from reconstruct.projections.scan import ReconstructionRequest, Scan, ScanError
from tharsis import app

SIZE, VIEWS = 64, 120
EDGE = FIELD_MM / SIZE
REGION = ["--matrix", "20", "24", "12", "--centre", "-16", "24", "-20"]
"""The first voxel is (18, 26, 21) voxels after that of the whole volume, for edges of 4 mm."""

CENTRE = (-16.0, 24.0, -20.0)
WATER_PER_MM = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan without noise that asks for a volume of 64³."""
    found = tmp_path_factory.mktemp("scan")
    write_scan("full", SIZE, VIEWS, found)
    return found


@pytest.fixture(scope="module")
def scan(folder: Path) -> Scan:
    return read_scan(sorted(folder.iterdir()))


def instances(scan: Scan, parameters: Parameters) -> list[Any]:
    [series] = reconstruct_scan(scan, parameters, lambda _fraction: None)
    return list(series.instances)


def hounsfield(parts: list[Any]) -> NDArray[np.float64]:
    return np.stack([np.frombuffer(part.PixelData, "<i2").reshape(part.Rows, part.Columns) for part in parts]) * 1.0


def of_phantom(scan: Scan, request: ReconstructionRequest) -> NDArray[np.float64]:
    truth = voxelise(asymmetric(FIELD_MM / 2), replace(scan, request=request).grid(), supersampling=3)
    return 1000 * (truth / WATER_PER_MM - 1)


@pytest.mark.parametrize("memory_mb", [2048, 9])
def test_a_region_of_interest_holds_the_voxels_of_the_whole_volume(scan: Scan, memory_mb: int) -> None:
    region = ReconstructionRequest(matrix_xyz=(20, 24, 12), centre_mm_xyz=CENTRE)
    whole = instances(scan, Parameters())
    parts = instances(scan, Parameters(memory_mb=memory_mb, request=region))
    first, origin = (tuple(map(float, each[0].ImagePositionPatient)) for each in (whole, parts))
    x, y, z = (round((there - here) / EDGE) for here, there in zip(first, origin, strict=True))
    assert origin == pytest.approx([first[0] + x * EDGE, first[1] + y * EDGE, first[2] + z * EDGE])
    assert (x, y, z) == (18, 26, 21)
    same = hounsfield(whole)[z : z + 12, y : y + 24, x : x + 20]
    found = hounsfield(parts)
    assert found.shape == (12, 24, 20)
    assert np.abs(found - same).max() <= 1
    assert np.mean(found != same) < 1e-2
    truth = of_phantom(scan, replace(region, voxel_mm_xyz=(EDGE,) * 3))
    assert np.sqrt(np.mean((found - truth) ** 2)) < 25
    assert parts[0].SeriesInstanceUID != whole[0].SeriesInstanceUID
    assert parts[0].FrameOfReferenceUID == whole[0].FrameOfReferenceUID
    assert "requested_centre_mm_xyz=[-16.0, 24.0, -20.0]" in parts[0].DerivationDescription.replace(": ", "=")


def test_voxels_of_any_shape_and_the_filter_are_as_asked(scan: Scan) -> None:
    asked = ReconstructionRequest((1.5, 2.0, 3.0), (40, 30, 9), CENTRE, "hann", 0.8)
    parts = instances(scan, Parameters(request=asked))
    assert [float(edge) for edge in parts[0].PixelSpacing] == [2.0, 1.5]
    assert (float(parts[0].SpacingBetweenSlices), parts[0].ConvolutionKernel) == (3.0, "HANN")
    assert [float(at) for at in parts[0].ImagePositionPatient] == pytest.approx([-45.25, -5.0, -32.0])
    truth = of_phantom(scan, asked)
    assert np.sqrt(np.mean((hounsfield(parts) - truth) ** 2)) < 35


def test_options_go_before_what_the_scan_asks_for(scan: Scan) -> None:
    own = ReconstructionRequest((1.0, 1.0, 1.0), (8, 8, 8), filter="cosine")
    asked = ReconstructionRequest(matrix_xyz=(5, 6, 7), cutoff=0.5)
    assert asked.over(own) == ReconstructionRequest((1.0, 1.0, 1.0), (5, 6, 7), None, "cosine", 0.5)
    assert Parameters().recipe() == Parameters(request=ReconstructionRequest()).recipe()
    assert Parameters(request=asked).recipe()["requested_matrix_xyz"] == [5, 6, 7]


def test_a_volume_that_the_scan_does_not_see_is_refused(scan: Scan) -> None:
    for centre, told in (((900.0, 0.0, 0.0), "x = 772 to 1028 mm is out of sight"), ((0.0, 0.0, -900.0), "z = -1028")):
        request = replace(scan.request, centre_mm_xyz=centre)
        with pytest.raises(ScanError, match=told):
            replace(scan, request=request).grid()


def test_the_command_makes_a_region_of_a_folder_and_beside_the_whole_of_a_stored_series(
    folder: Path, archive: Archive, tmp_path: Path
) -> None:
    run = CliRunner().invoke
    done = run(app, ["reconstruct", str(folder), "--out", str(tmp_path / "ct"), "--voxel-mm", "2,2,4", *REGION])
    assert done.exit_code == 0, done.output
    parts = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct" / "bin1").iterdir())]
    assert (len(parts), parts[0].Rows, parts[0].Columns, list(parts[0].PixelSpacing)) == (12, 24, 20, [2, 2])
    assert [float(at) for at in parts[0].ImagePositionPatient] == pytest.approx([-35, 1, -42])

    for path in folder.iterdir():
        archive.ingest(path.read_bytes(), announce=False)
    uid = str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
    off: dict[str, Any] = {name: {"enabled": False} for name in ("segmentation", "scan_quality", "similarity")}
    settings = load_settings(environment={}, overrides={"archive": {"data": archive.data}, **off})
    config = tmp_path / "off.toml"
    config.write_text("\n".join(f"[{name}]\nenabled = false" for name in off))
    archive.jobs.push("reconstruct", uid)
    Worker(archive, settings, "w").run_until_idle()
    again = ["reconstruct", uid, "--data", str(archive.data), "--config", str(config), *REGION, "--filter", "hann"]
    for _ in range(2):
        done = run(app, again)
        assert done.exit_code == 0, done.output
    sizes = archive.database.execute(
        "SELECT count(*) FROM instance JOIN series ON series.id = instance.series WHERE modality = 'CT' "
        "GROUP BY series.id ORDER BY count(*)"
    ).fetchall()
    assert sizes == [(12,), (SIZE,)]


def test_the_command_leaves_no_slices_of_another_reconstruction_among_the_new(folder: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "ct", CliRunner().invoke
    command = ["reconstruct", str(folder), "--out", str(out), "--matrix", "8", "8"]
    assert run(app, [*command, "6"]).exit_code == 0
    (out / "bin1" / "notes.txt").write_text("mine")
    (out / "bin1" / "0003.dcm").unlink()

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "bin1").iterdir()}

    before = contents()
    refused = run(app, [*command, "4"])
    assert refused.exit_code == 2
    told = " ".join(refused.output.split())
    uid = str(pydicom.dcmread(out / "bin1" / "0001.dcm").SeriesInstanceUID)
    assert f"holds slices that would stay beside the new ones (0001.dcm of series {uid})" in told
    assert contents() == before
    assert [path.name for path in out.iterdir()] == ["bin1"]

    assert run(app, [*command, "6"]).exit_code == 0, "the same series is written again"
    assert contents().keys() == before.keys() | {"0003.dcm"}
    (out / "bin1").rename(out / "bin2")
    assert run(app, [*command, "6"]).exit_code == 2, "a bin that the scan does not have"
    assert not (out / "bin1").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--voxel-mm", "0"], "--voxel-mm is 0, expected a number above 1e-06"),
        (["--voxel-mm", "wide"], "--voxel-mm is 'wide', expected one number, or three separated by commas"),
        (["--voxel-mm", "1,2"], "--voxel-mm has 2 values, expected 3"),
        (["--matrix", "10", "0", "10"], "--matrix is 0, expected a number above 0"),
        (["--centre", "0", "nan", "0"], "--centre is nan, expected a finite number"),
        (["--filter", "box"], "--filter is 'box', expected one of ram-lak, shepp-logan, cosine, hamming, hann"),
        (["--cutoff", "1.5"], "--cutoff is 1.5, expected at most 1"),
    ],
)
def test_nonsense_is_told_in_one_sentence(folder: Path, tmp_path: Path, options: list[str], said: str) -> None:
    told = CliRunner().invoke(app, ["reconstruct", str(folder), "--out", str(tmp_path / "ct"), *options])
    assert told.exit_code == 2
    assert said in told.output
    assert not (tmp_path / "ct").exists()


def test_sizes_that_cannot_be_are_told_by_the_command(folder: Path, tmp_path: Path) -> None:
    for options, said in ((["--matrix", "70000", "9", "9"], "too large"), (["--centre", "0", "0", "9e9"], "out of si")):
        told = CliRunner().invoke(app, ["reconstruct", str(folder), "--out", str(tmp_path), *options])
        assert told.exit_code == 1
        assert said in told.output
