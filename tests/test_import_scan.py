"""Scans that are no DICOM: every format gives the same object, and says in one sentence what it lacks."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pydicom.dataset import Dataset
from scan_encodings import HALF_WIDTH_MM, phantom
from typer.testing import CliRunner

from reconstruct.corrections.counts import CountCorrections
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.imports.image_files import listed, meta_image
from reconstruct.imports.ini_logs import read_bruker, read_nikon
from reconstruct.imports.raw_scan import Images, RawScan, Setup
from reconstruct.imports.rtk import read_rtk
from reconstruct.imports.tiff_json import read_tiff_json
from reconstruct.imports.writing import instances_of
from reconstruct.phantoms import line_integrals
from reconstruct.projections.frames import ScanError
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.scan import Scan
from tharsis import app

VIEWS, ROWS, COLUMNS, PITCH, OPEN = 60, 36, 44, 1.25, 50_000
GRID = VolumeGrid((32, 32, 32), (0.8, 0.8, 0.8))
ANGLES = 360.0 * np.arange(VIEWS) / VIEWS
STEP = 360.0 / VIEWS


def stage(source: float, detector: float, *, sense: float = -1.0, column: float | None = None) -> ConeBeamGeometry:
    """A sample that turns counter-clockwise before a source to its left: the source goes round it clockwise.

    Seen from the detector with the head up, columns run to the right and rows down.
    """
    phi = np.deg2rad(sense * ANGLES)
    zero = np.zeros(VIEWS)
    towards = np.stack([np.cos(phi), np.sin(phi), zero], 1)
    right = np.cross(towards, [0.0, 0.0, 1.0])
    shift = 0.0 if column is None else (COLUMNS - 1) / 2 - column
    return ConeBeamGeometry.from_vectors(
        source * towards, (source - detector) * towards + shift * PITCH * right, PITCH * right,
        np.tile([0.0, 0.0, -PITCH], (VIEWS, 1)), rows=ROWS, columns=COLUMNS,
    )  # fmt: skip


def counts(geometry: ConeBeamGeometry) -> np.ndarray:
    return np.rint(OPEN * np.exp(-line_integrals(phantom(), geometry))).astype(np.uint16)


def scan_from(raw: RawScan) -> Scan:
    header = Dataset()
    header.PatientID = "RAW"
    return read_p1(list(instances_of(raw, header)))


def shows_the_phantom(scan: Scan) -> bool:
    volume = fdk(scan.line_integrals(1), scan.geometry, GRID, threads=1)
    dense = volume > 0.04
    axes = ((GRID.x_mm, (0, 1)), (GRID.y_mm, (0, 2)), (GRID.z_mm, (1, 2)))
    marker = [np.average(axis, weights=dense.sum(axis=over)) for axis, over in axes]
    return bool(np.allclose(marker, np.multiply((0.35, 0.25, 0.20), HALF_WIDTH_MM), atol=0.4))


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    return counts(stage(200.0, 320.0))


def write_json(folder: Path, views: np.ndarray, **changes: Any) -> Path:
    (folder / "views").mkdir()
    for number, view in enumerate(views):
        tifffile.imwrite(folder / "views" / f"{number:04d}.tif", view)
    tifffile.imwrite(folder / "flats.tif", np.full((3, ROWS, COLUMNS), OPEN, np.uint16), photometric="minisblack")
    told = {
        "projections": "views/*.tif", "flats": "flats.tif", "angles_deg": {"first": 0, "step": STEP}, "turns": "sample",
        "source_to_isocentre_mm": 200, "source_to_detector_mm": 320, "pitch_mm": PITCH, "water_per_cm": 0.2,
    } | changes  # fmt: skip
    path = folder / "scan.json"
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    return path


def test_tiff_with_json(views: np.ndarray, tmp_path: Path) -> None:
    scan = scan_from(read_tiff_json(write_json(tmp_path, views)))
    assert shows_the_phantom(scan)
    assert scan.bins[0].water_per_cm == pytest.approx(0.2)


@pytest.mark.parametrize("pattern", ["views/p{}.tif", "views/p{:04d}.tif", "turn{}/p.tif", "views/{}_of_12.tif"])
def test_images_of_a_pattern_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path, pattern: str) -> None:
    for number in range(12):
        file = tmp_path / pattern.format(number)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = listed(tmp_path, "*/*.tif", "projections")
    assert found == [tmp_path / pattern.format(number) for number in range(12)]


def test_raw_pixels_with_json_and_matrices(views: np.ndarray, tmp_path: Path) -> None:
    """Files without a header, and measured geometry."""
    for number, view in enumerate(views):
        (tmp_path / f"p{number:03d}").write_bytes(b"head" + view.astype(">u2").tobytes())
    path = tmp_path / "scan.json"
    matrices = stage(200.0, 320.0).projection_matrices().reshape(VIEWS, 12).tolist()
    path.write_text(json.dumps({
        "projections": "p*", "raw": {"rows": ROWS, "columns": COLUMNS, "dtype": ">u2", "offset_bytes": 4},
        "matrices": matrices, "unattenuated": OPEN,
    }))  # fmt: skip
    assert shows_the_phantom(scan_from(read_tiff_json(path)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"angles_deg": None}, r"does not say an angle for each view \(angles\)"),
        ({"angles_deg": [0, 1, 2]}, r"60 views and 3 angles"),
        ({"source_to_isocentre_mm": None}, r"source to isocentre distance \(--source-to-isocentre\)"),
        ({"source_to_detector_mm": None}, r"source to detector distance \(--source-to-detector\)"),
        ({"source_to_detector_mm": "far"}, r"source_to_detector_mm are no numbers: 'far'"),
        ({"pitch_mm": None}, r"detector pitch \(--pitch\)"),
        ({"flats": None}, r"neither flat fields nor an unattenuated value"),
        ({"flats": "nothing*.tif"}, r"no file in .* is meant by flats"),
        ({"projections": ["views/0000.tif", "views/lost.tif"]}, r"lost\.tif is missing"),
        ({"projections": None}, r"does not say where the projections are"),
        ({"view_times_s": [0, 1]}, r"60 views and 2 times of them"),
        ({"view_times_s": {"first": 0, "step": 1}}, r"when the views were taken, and not when the flat fields were"),
        ({"flat_times_s": [0, 1, 2]}, r"when the flat fields were taken, and not when the views were"),
        ({"flat_times_s": ["early"]}, r"flat_times_s are no numbers"),
        ({"distance": 5}, r"unknown key 'distance'; the nearest is 'darks'|unknown key 'distance'"),
        ({"pixels": "GREY"}, r"pixels is 'GREY', expected one of INTENSITY"),
        ({"rows_up": "false"}, r"rows_up is 'false', expected true or false"),
        ({"pitch_mm": "0.5"}, r"pitch_mm are no numbers: '0.5'"),
        ({"source_to_isocentre_mm": True}, r"source_to_isocentre_mm are no numbers: True"),
        ({"source_to_isocentre_mm": [200, 300]}, r"source_to_isocentre_mm has 2 values, expected one number"),
        ({"angles_deg": ["0", "6"]}, r"angles_deg are no numbers"),
        ({"raw": {"rows": "36", "columns": 44, "dtype": "<u2"}}, r"rows of raw is '36', expected a whole number"),
        ({"raw": {"rows": 36, "columns": 44, "dtype": "grey"}}, r"raw needs rows, columns and dtype"),
        ({"pitch_mm": [0.5, -0.5]}, r"the detector pitch is -0.5, expected a number above 0"),
        ({"water_per_cm": 0}, r"attenuation of water \(water_per_cm\) is 0, expected a number above 0"),
        ({"water_per_cm": -0.2}, r"is -0.2, expected a number above 0"),
        ({"unattenuated": 0}, r"the unattenuated value is 0"),
        ({"flats": None, "unattenuated": -5}, r"the unattenuated value is -5"),
        ({"view_ms": 0, "flat_ms": 10}, r"exposure of a view \(view_ms\) is 0"),
        ({"view_ms": 10, "flat_ms": 0}, r"exposure of a flat frame \(flat_ms\) is 0"),
        ({"view_ms": 10}, r"given together or not at all"),
        ({"effective_kev": -3}, r"effective energy \(effective_kev\) is -3"),
        ({"low_kev": 60, "high_kev": 20}, r"the energy bin begins at 60 keV"),
        ({"matrices": [0] * 12 * VIEWS}, r"matrices say all of the geometry, and source_to_isocentre_mm would change"),
        ({"source_to_isocentre_mm": -200}, r"impossible: expected distances above 0 mm"),
    ],
)
def test_what_a_json_lacks_is_named(views: np.ndarray, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScanError, match=sentence):
        scan_from(read_tiff_json(write_json(tmp_path, views, **changes)))


INTERPOLATED = CountCorrections(interpolated_flats=True)


def test_flats_follow_a_source_that_drifts_where_the_json_tells_the_times(views: np.ndarray, tmp_path: Path) -> None:
    output = 1 - 0.3 * np.arange(VIEWS + 2) / (VIEWS + 1)
    drifting = np.rint(views * output[1:-1, None, None]).astype(np.uint16)
    told = {"view_times_s": {"first": 2, "step": 2}, "flat_times_s": [0, 2 * (VIEWS + 1)]}
    path = write_json(tmp_path, drifting, **told)
    ends = np.rint(OPEN * output[[0, -1]])[:, None, None] * np.ones((2, ROWS, COLUMNS))
    tifffile.imwrite(tmp_path / "flats.tif", ends.astype(np.uint16), photometric="minisblack")
    scan, truth = scan_from(read_tiff_json(path)), line_integrals(phantom(), stage(200.0, 320.0))
    assert np.abs(scan.line_integrals(1) - truth).max() > 0.1
    assert np.abs(scan.line_integrals(1, corrections=INTERPOLATED) - truth).max() < 5e-3


def test_without_times_interpolated_flats_are_refused_and_do_not_become_their_mean(
    views: np.ndarray, tmp_path: Path
) -> None:
    scan = scan_from(read_tiff_json(write_json(tmp_path, views)))
    with pytest.raises(ScanError, match=r"\(0018,9074\) is missing of some frames, or the same in all projections"):
        scan.line_integrals(1, corrections=INTERPOLATED)


def test_images_that_are_cut_off_or_of_another_size_are_named(views: np.ndarray, tmp_path: Path) -> None:
    path = write_json(tmp_path, views)
    spoilt = tmp_path / "views" / "0007.tif"
    spoilt.write_bytes(spoilt.read_bytes()[:500])
    with pytest.raises(ScanError, match=r"0007\.tif"):
        scan_from(read_tiff_json(path))
    tifffile.imwrite(spoilt, views[7][:5])
    with pytest.raises(ScanError, match=r"0007\.tif has \(5, 44\) rows and columns"):
        scan_from(read_tiff_json(path))


def test_bruker(tmp_path: Path) -> None:
    geometry = stage(150.0, 300.0)
    for number, view in enumerate(counts(geometry)):
        tifffile.imwrite(tmp_path / f"bone_{number:08d}.tif", view)
    log = tmp_path / "bone_.log"
    text = (
        "[System]\nScanner=SkyScan1172\n[Acquisition]\nFilename Prefix=bone_\nFilename Index Length=8\n"
        f"Number of Files= {VIEWS}\nSource Voltage (kV)= 80\nSource Current (uA)= 124\nObject to Source (mm)=150.0\n"
        f"Camera to Source (mm)=300.0\nImage Pixel Size (um)={1000 * PITCH / 2}\nRotation Step (deg)={STEP}\n"
        "Rotation Direction=CC\nOptical Axis (line)= 18\n"
    )
    log.write_text(text)
    raw = read_bruker(log)
    assert raw.notes
    with pytest.raises(ScanError, match="--unattenuated"):
        scan_from(raw)
    from dataclasses import replace

    raw = replace(raw, setup=raw.setup.with_told(unattenuated=float(OPEN)))
    assert raw.setup.exposure.tube_current_ma == pytest.approx(0.124)
    assert shows_the_phantom(scan_from(raw))
    log.write_text(text.replace("Rotation Step", "Rotation Stop"))
    with pytest.raises(ScanError, match=r"bone_\.log does not say 'Rotation Step \(deg\)'"):
        read_bruker(log)


def write_nikon(folder: Path, geometry: ConeBeamGeometry, **changes: Any) -> Path:
    for number, view in enumerate(counts(geometry), start=1):
        tifffile.imwrite(folder / f"stone_{number:04d}.tif", view)
    told = {
        "Name": "stone", "InputSeparator": "_", "InputDigits": 4, "Projections": VIEWS, "SrcToObject": 200,
        "SrcToDetector": 320, "DetectorPixelSizeX": PITCH, "DetectorPixelSizeY": PITCH, "AngularStep": STEP,
        "InitialAngle": 0, "WhiteLevel": OPEN, "XraykV": 120, "XrayuA": 80,
    } | changes  # fmt: skip
    log = folder / "stone.xtekct"
    log.write_text("[XTekCT]\n" + "".join(f"{key}={value}\n" for key, value in told.items()))
    return log


def clockwise(**changes: Any) -> ConeBeamGeometry:
    """A stage of Nikon: seen from above the sample turns clockwise, so that the source goes the other way."""
    return stage(200.0, 320.0, sense=1.0, **changes)


@pytest.mark.parametrize("read", [read_bruker, read_nikon])
def test_a_log_that_is_none_is_told_in_one_line(tmp_path: Path, read: Any) -> None:
    (tmp_path / "notes.log").write_text("Tuesday\nno section\n")
    with pytest.raises(ScanError) as told:
        read(tmp_path / "notes.log")
    assert str(told.value) == "notes.log is no log of sections and keys: File contains no section headers"


@pytest.mark.parametrize("told", [{"ObjectOffsetX": 0.5}, {"CentreOfRotationTop": 0.8, "CentreOfRotationBottom": 0.8}])
def test_nikon(tmp_path: Path, told: dict[str, float]) -> None:
    """The axis is 0.5 mm beside the central ray, 0.8 mm on the detector: it is seen in later columns."""
    log = write_nikon(tmp_path, clockwise(column=(COLUMNS - 1) / 2 + 0.8 / PITCH), **told)
    raw = read_nikon(log)
    assert raw.notes == ()
    assert shows_the_phantom(scan_from(raw))
    log.write_text(log.read_text().replace(f"Projections={VIEWS}", f"Projections={VIEWS + 1}"))
    with pytest.raises(ScanError, match=r"stone_0061\.tif is missing"):
        read_nikon(log)


def test_nikon_angles_of_a_table_go_before_the_step(tmp_path: Path) -> None:
    """Every other view first, then those between: no step tells that."""
    order = [*range(0, VIEWS, 2), *range(1, VIEWS, 2)]
    log = write_nikon(tmp_path, clockwise().select(order))
    table = tmp_path / "_ctdata.txt"
    lines = [f"{number}\t{ANGLES[view]:.4f}\t{0.5 * number}" for number, view in enumerate(order, start=1)]
    table.write_text("\n".join(["Acquisition", "x", "Projection\tAngle(deg)\tTime(s)", *lines]) + "\n")
    scan = scan_from(read_nikon(log))
    assert shows_the_phantom(scan)
    np.testing.assert_allclose(np.diff([frame.acquired_s for frame in scan.counters[0].views]), 0.5, atol=1e-6)
    table.write_text("x\nProjection\tAngle(deg)\tTime(s)\n1\t0.0\t0.1\n")
    with pytest.raises(ScanError, match="1 angles for 60 projections"):
        read_nikon(log)


HEIGHT_3 = float(np.rad2deg(np.arctan(3 / (ROWS * PITCH))))
"""Roll of an axis that is seen 3 mm further on at the bottom of the detector than at its top, degrees."""


@pytest.mark.parametrize(
    ("told", "offset", "roll", "tilt"),
    [
        ({"ObjectOffsetX": 2.0}, 2.0, 0.0, 0.0),
        ({"ObjectRoll": 3.0}, 0.0, 3.0, 0.0),
        ({"ObjectTilt": -4.0}, 0.0, 0.0, -4.0),
        ({"ObjectOffsetX": -1.5, "ObjectRoll": 3.0, "ObjectTilt": -4.0}, -1.5, 3.0, -4.0),
        ({"CentreOfRotationTop": -1.0, "CentreOfRotationBottom": 2.0}, 0.5 * 200 / 320, HEIGHT_3, 0.0),
    ],
)
def test_nikon_axis_that_leans(
    tmp_path: Path, told: dict[str, float], offset: float, roll: float, tilt: float
) -> None:
    """Points of a sample on a leaning axis, cast upon the detector in the laboratory: x right, y forward, z up."""
    geometry = read_nikon(write_nikon(tmp_path, clockwise(), **told)).geometry()
    points = np.array([[5.0, 0.0, 8.0], [-4.0, 7.0, -6.0], [0.0, 0.0, 10.0]])
    r, t = np.deg2rad(roll), np.deg2rad(tilt)
    rolled = np.array([[np.cos(r), 0, np.sin(r)], [0, 1, 0], [-np.sin(r), 0, np.cos(r)]])
    tilted = np.array([[1, 0, 0], [0, np.cos(t), np.sin(t)], [0, -np.sin(t), np.cos(t)]])
    in_lab = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # the sample's x points to the source
    for view in (0, 7, 31):
        turn = np.deg2rad(-ANGLES[view])
        turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        x, y, z = tilted @ rolled @ turned @ in_lab @ points.T + [[-offset], [200], [0]]
        expected = [(n - 1) / 2 - where * 320 / y / PITCH for n, where in ((COLUMNS, x), (ROWS, z))]
        seen = geometry.projection_matrices()[view] @ np.vstack([points.T, np.ones(len(points))])
        np.testing.assert_allclose(seen[:2] / seen[2], expected, atol=1e-9)


def test_nikon_scan_on_a_leaning_axis_is_reconstructed(tmp_path: Path) -> None:
    told = {"ObjectOffsetX": -1.0, "ObjectRoll": 3.0, "ObjectTilt": -4.0}
    geometry = read_nikon(write_nikon(tmp_path, clockwise(), **told)).geometry()
    assert shows_the_phantom(scan_from(read_nikon(write_nikon(tmp_path, geometry, **told))))


def test_nikon_offsets_of_the_detector_are_told(tmp_path: Path) -> None:
    raw = read_nikon(write_nikon(tmp_path, clockwise(), DetectorOffsetX=0, DetectorOffsetY=-1.5))
    assert raw.notes == (
        "DetectorOffsetY of -1.5 mm left out: say with --principal-point where the axis is seen, if not in the middle",
    )


def test_notes_are_told_whether_the_scan_is_stored_or_written(tmp_path: Path) -> None:
    file = write_nikon(tmp_path, clockwise(), DetectorOffsetX=3)
    for where in ("--out", "--data"):
        told = CliRunner().invoke(app, ["import-scan", str(file), where, str(tmp_path / where)])
        assert told.exit_code == 0, told.output
        assert "DetectorOffsetX of 3 mm left out" in " ".join(told.output.split())


def write_meta_image(path: Path, stack: np.ndarray, spacing: float, more: str = "", before: bytes = b"") -> None:
    origin = [-(size - 1) / 2 * spacing for size in stack.shape[:0:-1]]
    header = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {stack.shape[2]} {stack.shape[1]} {stack.shape[0]}\n"
        f"ElementSpacing = {spacing} {spacing} 1\nOffset = {origin[0]} {origin[1]} 0\nElementType = MET_FLOAT\n"
        f"{more}ElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + before + stack.astype("<f4").tobytes())


def test_what_turns_or_precedes_the_pixels_of_a_meta_image_counts(tmp_path: Path) -> None:
    stack, path = np.arange(24, dtype=np.float32).reshape(2, 3, 4), tmp_path / "p.mha"
    for more, before in (("HeaderSize = -1\n", bytes(16)), ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"")):
        write_meta_image(path, stack, 1.0, more, before)
        np.testing.assert_array_equal(meta_image(path)[0][1], stack[1])
    for more, sentence in (
        ("TransformMatrix = -1 0 0 0 1 0 0 0 1\n", "turns its images: TransformMatrix is '-1 0 0 0 1 0 0 0 1'"),
        ("Orientation = 1 0 0\n", "turns its images"),
        ("HeaderSize = -7\n", "HeaderSize is '-7', expected -1 or a number of bytes"),
        ("HeaderSize = 999999\n", "bytes, expected 1000095"),
    ):
        write_meta_image(path, stack, 1.0, more)
        with pytest.raises(ScanError, match=sentence):
            meta_image(path)


def write_rtk(folder: Path, more: str = "") -> Path:
    """A geometry file of two views, and their images."""
    matrix = " ".join(map(str, (-320, 0, 0, 0, 0, -320, 0, 0, 0, 0, 1, -200)))
    turned = " ".join(map(str, (0, 0, 320, 0, 0, -320, 0, 0, 1, 0, 0, -200)))
    views = "".join(f"<Projection><Matrix>{each}</Matrix></Projection>" for each in (matrix, turned))
    path = folder / "geometry.xml"
    path.write_text(f"<RTKThreeDCircularGeometry version='3'>{more}{views}</RTKThreeDCircularGeometry>")
    write_meta_image(folder / "p.mha", np.full((2, ROWS, COLUMNS), 0.5), PITCH)
    tifffile.imwrite(folder / "p.tif", np.full((2, ROWS, COLUMNS), 0.5, np.float32), photometric="minisblack")
    return path


def test_a_cylindrical_detector_of_rtk_is_refused(tmp_path: Path) -> None:
    for radius, refused in (("0", False), ("", False), ("160", True)):
        path = write_rtk(tmp_path, f"<RadiusCylindricalDetector>{radius}</RadiusCylindricalDetector>")
        if refused:
            with pytest.raises(ScanError, match="the detector is a cylinder"):
                read_rtk(path, tmp_path / "p.mha")
        else:
            assert len(read_rtk(path, tmp_path / "p.mha").views) == 2


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ("p.mha", (), ""),
        ("p.tif", ("--pitch", "1.25"), ""),
        ("p.mha", ("--source-to-detector", "320"), ""),
        ("p.mha", ("--pitch", "1.25"), "p.mha says the detector pitch itself"),
        ("p.mha", ("--principal-point", "30,5"), "--principal-point would change nothing"),
        ("p.mha", ("--source-to-isocentre", "500"), "--source-to-isocentre would change nothing"),
    ],
)
def test_options_that_would_change_nothing_beside_matrices_are_refused(
    tmp_path: Path, images: str, options: tuple[str, ...], sentence: str
) -> None:
    file, folder = write_rtk(tmp_path), tmp_path / "dicom"
    told = CliRunner().invoke(
        app, ["import-scan", str(file), "--projections", str(tmp_path / images), "--out", str(folder), *options]
    )
    assert told.exit_code == bool(sentence), told.output
    assert sentence in " ".join(told.output.split())


def test_rtk_geometry(tmp_path: Path) -> None:
    """The gantry's matrix, composed as RTK's documentation has it: rotation about y, then the source above at z."""
    source, detector = 200.0, 320.0
    projections, matrices = [], []
    to_lps = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # RTK's x, y, z in patient LPS, head first and supine
    for angle in np.deg2rad(ANGLES):
        turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
        magnify = np.array([[-detector, 0, 0, 0], [0, -detector, 0, 0], [0, 0, 1, -source]])
        matrices.append(magnify @ np.vstack([np.column_stack([turn, np.zeros(3)]), [0, 0, 0, 1]]))
        axes = [to_lps @ turn.T @ np.array(axis, float) for axis in ((0, 0, 1), (1, 0, 0), (0, 1, 0))]
        projections.append(axes)
    axes = np.array(projections)
    geometry = ConeBeamGeometry.from_vectors(
        source * axes[:, 0], (source - detector) * axes[:, 0], PITCH * axes[:, 1], PITCH * axes[:, 2],
        rows=ROWS, columns=COLUMNS,
    )  # fmt: skip
    write_meta_image(tmp_path / "projections.mha", line_integrals(phantom(), geometry), PITCH)
    numbers = [" ".join(map(repr, matrix.reshape(-1).tolist())) for matrix in matrices]
    xml = "".join(
        f"<Projection><GantryAngle>{angle}</GantryAngle><Matrix>\n{told}\n</Matrix></Projection>"
        for angle, told in zip(ANGLES, numbers, strict=True)
    )
    path = tmp_path / "geometry.xml"
    path.write_text(
        '<?xml version="1.0"?><!DOCTYPE RTKGEOMETRY><RTKThreeDCircularGeometry version="3">'
        f"<SourceToDetectorDistance>{detector}</SourceToDetectorDistance>{xml}</RTKThreeDCircularGeometry>"
    )
    scan = scan_from(read_rtk(path, tmp_path / "projections.mha"))
    assert shows_the_phantom(scan)
    with pytest.raises(ScanError, match="--projections"):
        read_rtk(path, None)
    path.write_text("<Other/>")
    with pytest.raises(ScanError, match="<Other>, expected <RTKThreeDCircularGeometry>"):
        read_rtk(path, tmp_path / "projections.mha")


def test_data_exchange(views: np.ndarray, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from reconstruct.imports.data_exchange import read_data_exchange

    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = views
        file["exchange/data_white"] = np.full((3, ROWS, COLUMNS), OPEN, np.uint16)
        file["exchange/theta"] = np.deg2rad(ANGLES)
        file["exchange/theta"].attrs["units"] = "rad"
        file["measurement/instrument/detector/pixel_size"] = 1000 * PITCH
        file["measurement/instrument/detector/pixel_size"].attrs["units"] = "microns"
    raw = read_data_exchange(path)
    with pytest.raises(ScanError, match="--source-to-isocentre"):
        scan_from(raw)
    from dataclasses import replace

    told = raw.setup.with_told(source_to_isocentre_mm=200.0, source_to_detector_mm=320.0)
    assert shows_the_phantom(scan_from(replace(raw, setup=told)))
    other = tmp_path / "other.h5"
    other.write_bytes(b"no HDF5")
    with pytest.raises(ScanError, match=r"other\.h5 cannot be read as HDF5"):
        read_data_exchange(other)


def test_memory_does_not_grow_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the views, hardly more memory: images are read when their instance is written."""
    from reconstruct.imports import writing

    monkeypatch.setattr(writing, "_MOST_PIXELS_BYTES", 1 << 20)

    def peak_mb(count: int) -> float:
        images = Images(lambda index: np.full((256, 256), index, np.uint16), count, lambda index: f"image {index}")
        setup = Setup(
            source_to_isocentre_mm=200, source_to_detector_mm=300, pitch_mm=(1, 1), unattenuated=1e4,
            angles_deg=np.linspace(0, 360, count),
        )  # fmt: skip
        tracemalloc.start()
        try:
            for _ in instances_of(RawScan(images, setup), Dataset()):
                pass
            return tracemalloc.get_traced_memory()[1] / (1 << 20)
        finally:
            tracemalloc.stop()

    assert peak_mb(160) < peak_mb(40) + 2


@pytest.mark.slow
def test_the_command_stores_a_scan_that_reconstructs(
    tharsis, views: np.ndarray, tmp_path: Path, validator_errors
) -> None:
    path = write_json(tmp_path, views, kvp=80, tube_current_ma=0.1, view_ms=200, flat_ms=200)
    data = tmp_path / "data"
    done = tharsis("import-scan", path, "--patient-id", "B-17", "--data", data)
    assert done.returncode == 0, done.stderr
    assert "60 views stored in 2 instances" in done.stdout
    from index.archive import Archive

    archive = Archive(data)
    ((patient,),) = archive.database.execute(
        "SELECT patient_id FROM series JOIN study ON study.id = series.study "
        "JOIN patient ON patient.id = study.patient"
    ).fetchall()
    assert patient == "B-17"
    assert [job.kind for job in archive.jobs.recent()] == ["series_stable"]
    made = tharsis("import-scan", path, "--out", tmp_path / "dicom")
    assert made.returncode == 0, made.stderr
    files = list((tmp_path / "dicom").iterdir())
    assert len(files) == 2
    assert [validator_errors(file) for file in files] == [[], []]
    spoilt = tmp_path / "views" / "0031.tif"
    spoilt.write_bytes(b"no TIFF")
    failed = tharsis("import-scan", path, "--data", data)
    assert failed.returncode == 1
    assert "0031.tif cannot be read as TIFF" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert archive.database.execute("SELECT count(*) FROM series").fetchone() == (1,), "nothing of it stays"
