"""Tiles and camera positions: stitched to one detector, recognised as scanners tell them, refused if they disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scan_encodings import CT, FLATS, OPEN_BEAM, THARSIS, image, phantom, private

from reconstruct.corrections.tiles import VirtualDetector
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.phantoms import line_integrals
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.assembly import assemble
from reconstruct.projections.registry import STANDARD
from reconstruct.projections.scan import CounterKind, EnergyBin, Scan, ScanError
from reconstruct.projections.tiled_writer import TileImages, write_tiles
from reconstruct.quality import rmse
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.simulated_scanner import Scanner

VIEWS, ROWS, COLUMNS = 60, 36, 49
MEETS = (22.75, 18.25)
CIRCLE = ConeBeamGeometry.circular(
    source_to_isocenter_mm=200.0,
    source_to_detector_mm=320.0,
    view_angles_rad=0.3 + 2 * np.pi * np.arange(VIEWS) / VIEWS,
    rows=ROWS,
    columns=COLUMNS,
    row_pitch_mm=1.2,
    column_pitch_mm=1.2,
    principal_point_px=MEETS,
)
GRID = VolumeGrid((30, 36, 36), (0.9, 0.9, 0.9))


# stitching


def whole(views: int = 3) -> np.ndarray:
    return line_integrals(phantom(), CIRCLE.select(slice(0, views)))


def parts(projections: np.ndarray, origins: Sequence[tuple[int, int]], rows: int, columns: int) -> list[np.ndarray]:
    return [projections[:, r : r + rows, c : c + columns] for c, r in origins]


def test_tiles_become_the_virtual_detector() -> None:
    origins = [(0, 0), (15, 0), (27, 0), (0, 14), (15, 14), (27, 14)]
    detector = VirtualDetector.around((22, 22), origins)
    projections = whole()
    stitched = detector.stitch(parts(projections, origins, 22, 22), np.full_like(projections, 7.0))
    np.testing.assert_allclose(stitched, projections, atol=1e-6)
    assert not detector.gap.any()


def test_levels_that_differ_blend_without_a_step() -> None:
    low = np.zeros((2, 12, 40), np.float32)
    blended = VirtualDetector.around((12, 40), [(0, 0), (24, 0)]).stitch([low, low + 1], np.empty((2, 12, 64), "f4"))
    row = blended[0, 6]
    assert (row[:24] == 0).all()
    assert (row[40:] == 1).all()
    assert np.diff(row).max() < 0.2


def test_a_tile_between_pixels_is_interpolated() -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32), (2, 5, 20)).copy()
    detector = VirtualDetector.around((5, 12), [(0.0, 0.0), (8.5, 0.0)])
    stitched = detector.stitch([ramp[:, :, :12], ramp[:, :, :12] + 8.5], np.empty((2, 5, 20), np.float32))
    np.testing.assert_allclose(stitched, ramp, atol=1e-5)


def test_a_cross_of_gaps_between_chips_is_filled_from_its_sides() -> None:
    """On a plane interpolation is exact, but for the middle of the cross, which follows from what was filled."""
    row, column = np.mgrid[:43, :63].astype(np.float32)
    plane = (2 * row + column)[None]
    origins = [(0, 0), (33, 0), (0, 22), (33, 22)]
    detector = VirtualDetector.around((21, 30), origins)
    assert int(detector.gap.sum()) == 3 * 43 + 63 - 3
    stitched = detector.stitch(parts(plane, origins, 21, 30), np.empty_like(plane))
    np.testing.assert_allclose(stitched, plane, atol=1e-3)


@pytest.mark.parametrize(
    ("origins", "sentence"),
    [
        ([(0, 0), (40, 0)], "a gap of 10 pixels, of which at most 3 can be .*row 0, column 30 of the .* 12 × 70"),
        ([(-3, 0), (20, 0)], "at \\(-3.0, 0.0\\) reaches beyond the virtual detector of 12 × 50"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(origins: list[tuple[int, int]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VirtualDetector.around((12, 30), origins)
    with pytest.raises(ValueError, match=r"expected tiles of shape \(2, 12, 30\), got \(3, 12, 30\)"):
        VirtualDetector.around((12, 30), [(0, 0)]).stitch([np.empty((3, 12, 30), "f4")], np.empty((2, 12, 30), "f4"))


# scans


def measured(place: ConeBeamGeometry, number: int, dead: tuple[int, int] | None = None) -> CounterImages:
    """A camera whose pixels differ, in a beam that differs from place to place."""
    gains = 0.8 + 0.02 * number + 0.05 * np.sin(np.arange(place.columns) / 3)
    field = np.tile(OPEN_BEAM * gains, (place.rows, 1))
    if dead is not None:
        field[dead] = 0
    views = np.rint(field * np.exp(-line_integrals(phantom(), place)))
    flats = np.broadcast_to(np.rint(field), (3, *field.shape))
    return CounterImages(EnergyBin(1), views.astype(np.uint16), flats.astype(np.uint16))


def header() -> Dataset:
    told = Dataset()
    told.StudyInstanceUID, told.SeriesInstanceUID, told.PatientID = "2.25.11", "2.25.12", "GOLD"
    told.StudyDate, told.StudyTime = "20250314", "101500"
    return told


def p1(positions: Positions) -> list[Dataset]:
    tiles = [
        TileImages([measured(place.geometry, number)], place.geometry, place.origin_px, place.camera_mm)
        for number, place in enumerate(positions.places(CIRCLE))
    ]
    return write_tiles(tiles, header(), Acquisition(counter_kind=CounterKind.DIFFERENTIAL))


def p4_by_angles(positions: Positions) -> list[Dataset]:
    """One image a view, with angles and distances that are the same for all tiles: what is told without vectors.

    As the standard looks at images, their columns run against those of the circle, and their rows towards the feet.
    """
    datasets: list[Dataset] = []
    virtual = next(iter(positions.places(CIRCLE))).origin_px is not None
    degrees = np.rad2deg(CIRCLE.view_angles_rad) - 90
    for number, place in enumerate(positions.places(CIRCLE)):
        counter = measured(place.geometry, number)
        rows, columns = place.geometry.rows, place.geometry.columns
        # The whole detector, or the camera at position 0, which is in its middle.
        size = (COLUMNS, ROWS) if virtual else (columns, rows)
        point = [(n - 1) / 2 - (c - (whole - 1) / 2) for n, c, whole in zip(size, MEETS, (COLUMNS, ROWS), strict=True)]
        if virtual:
            column, row = place.corner_px
            where = {"origin": (0x30, "FD", [COLUMNS - columns - column, ROWS - rows - row])}
        else:
            where = {"camera": (0x1A, "FD", -place.camera_mm[0])}
        roles = [("PROJECTION", frame) for frame in counter.views] + [("FLAT", frame) for frame in counter.flats]
        for view, (role, frame) in enumerate(roles):
            ds = image(
                np.ascontiguousarray(frame[::-1, ::-1]), CT, len(datasets) + 1, PatientPosition="HFS",
                DistanceSourceToPatient=200.0, DistanceSourceToDetector=320.0, ImagerPixelSpacing=[1.2, 1.2],
            )  # fmt: skip
            private(ds, *THARSIS, role=(0x10, "CS", role), angle=(0x11, "FD", float(degrees[view % VIEWS])),
                    point=(0x17, "FD", point), **where)  # fmt: skip
            datasets.append(ds)
    return datasets


ACROSS, CAMERA = Positions((3, 1)), Positions(camera_positions=3)


@cache
def one_detector() -> np.ndarray:
    return fdk(line_integrals(phantom(), CIRCLE), CIRCLE, GRID)


def volume(scan: Scan) -> np.ndarray:
    return fdk(scan.line_integrals(1), scan.geometry, GRID)


@pytest.mark.parametrize(
    ("datasets", "most"),
    [
        (lambda: p1(Positions((3, 2))), 1e-5),
        (lambda: p1(CAMERA), 2.5e-4),
        (lambda: p4_by_angles(ACROSS), 1e-5),
        (lambda: p4_by_angles(CAMERA), 2.5e-4),
    ],
    ids=["P1 tiles", "P1 camera positions", "P4 tiles by angles", "P4 camera positions by angles"],
)
def test_tiles_give_the_volume_of_one_large_detector(datasets: Callable[[], list[Dataset]], most: float) -> None:
    """Of 0.02 /mm of water: whole pixels to the rounding of counts, fractions to what interpolation blurs."""
    scan = read(datasets())
    assert scan.shape == (VIEWS, ROWS, COLUMNS)
    assert rmse(volume(scan), one_detector()) < most
    assert "stitched from" in scan.notes[-1]


def read(datasets: Sequence[Dataset]) -> Scan:
    encoding = STANDARD.of(datasets[0])
    assert encoding is not None
    return assemble(encoding, datasets)


def test_a_dead_pixel_of_the_camera_is_mended_in_every_tile() -> None:
    tiles = [
        TileImages([measured(place.geometry, number, (7, 5))], place.geometry, place.origin_px)
        for number, place in enumerate(ACROSS.places(CIRCLE))
    ]
    scan = read(write_tiles(tiles, header(), Acquisition(counter_kind=CounterKind.DIFFERENTIAL)))
    off = np.abs(scan.line_integrals(1) - line_integrals(phantom(), CIRCLE)).max(axis=0)
    assert set(map(tuple, np.argwhere(off > 2e-3))) <= {(7, 5), (7, 19), (7, 32)}
    assert off.max() < 0.1


def test_flats_that_name_no_tile_serve_all() -> None:
    datasets = p4_by_angles(ACROSS)
    kept = []
    for ds in datasets:
        if _told(ds, 0x10) == "PROJECTION":
            kept.append(ds)
        elif str(_told(ds, 0x30)) == "[27.0, 0.0]":
            del ds.private_block(*THARSIS)[0x30]
            kept.append(ds)
    scan = read(kept)
    integrals = scan.line_integrals(1)
    # The first tile, whose flats they are, is right; the beam was 2 % stronger in each further one.
    truth = line_integrals(phantom(), scan.geometry)
    assert np.abs(integrals - truth)[..., 36:].max() < 2e-3
    assert np.abs(integrals - truth)[..., :10].max() == pytest.approx(0.04 / 0.8, rel=0.2)


def test_views_of_a_tile_are_found_by_their_angle() -> None:
    """The camera turns back and forth: the second tile is taken against the sense of the first."""
    tiles = []
    for number, place in enumerate(ACROSS.places(CIRCLE)):
        order = np.arange(VIEWS)[::-1] if number == 1 else np.arange(VIEWS)
        turned = place.geometry.select(order)
        tiles.append(TileImages([measured(turned, number)], turned, place.origin_px))
    scan = read(write_tiles(tiles, header(), Acquisition(counter_kind=CounterKind.DIFFERENTIAL)))
    assert rmse(volume(scan), one_detector()) < 1e-5


def test_a_gap_between_chips_is_named() -> None:
    """Two cameras side by side, whose chips leave a column between them."""
    tiles = []
    for number, first in enumerate((0, 25)):
        centres = CIRCLE.first_pixels() + (first + 11.5) * CIRCLE.column_steps + (ROWS - 1) / 2 * CIRCLE.row_steps
        place = ConeBeamGeometry.from_vectors(
            CIRCLE.sources, centres, CIRCLE.column_steps, CIRCLE.row_steps, rows=ROWS, columns=24
        )
        tiles.append(TileImages([measured(place, number)], place, (float(first), 0.0)))
    scan = read(write_tiles(tiles, header(), Acquisition(counter_kind=CounterKind.DIFFERENTIAL)))
    assert scan.notes[-1] == (
        "the virtual detector of 36 × 49 pixels is stitched from 2 tiles of 36 × 24; 36 pixels between them "
        "(column 24) are interpolated"
    )
    assert rmse(volume(scan), one_detector()) < 6e-4
    (made,) = reconstruct_scan(scan, Parameters(voxel_mm=4.0), lambda _fraction: None)
    told = next(iter(made.instances)).DerivationDescription
    assert "tiles=2 of 36x24 stitched to 36x49, gap_pixels_interpolated=36" in told


def _without(datasets: list[Dataset], role: str, place: str, index: int) -> list[Dataset]:
    """Leave out the views or flats of a tile, or one of them."""
    chosen = [ds for ds in datasets if _told(ds, 0x10) == role and str(_told(ds, 0x30)) == place]
    left_out = chosen[index : index + 1] if index >= 0 else chosen
    return [ds for ds in datasets if not any(ds is each for each in left_out)]


def _told(ds: Dataset, offset: int) -> object:
    return ds.private_block(*THARSIS)[offset].value


def _of_another_size() -> Dataset:
    ds = image(FLATS[0], CT, 999)
    private(ds, *THARSIS, role=(0x10, "CS", "FLAT"), origin=(0x30, "FD", [0.0, 0.0]))
    return ds


def _exposed(datasets: list[Dataset]) -> list[Dataset]:
    for ds in datasets:
        ds.FrameAcquisitionDuration = 100.0
    datasets[VIEWS + 3].FrameAcquisitionDuration = 90.0
    return datasets


def _moved(datasets: list[Dataset]) -> list[Dataset]:
    for ds in datasets[: VIEWS // 2]:
        ds.private_block(*THARSIS)[0x17].value = [30.0, 17.0]
    return datasets


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda ds: _without(ds, "PROJECTION", "[13.0, 0.0]", 4), "column 13, row 0 lacks the view at 41.2 degrees"),
        (lambda ds: _without(ds, "FLAT", "[13.0, 0.0]", -1), "the tile at column 13, row 0 has no flat fields"),
        (lambda ds: _exposed(ds), "exposed unequally: .* is 100 ms and 90 ms"),
        (lambda ds: _moved(ds), "does not keep its place from view to view"),
        (lambda ds: [*ds, _of_another_size()], "the frames have several sizes, rows × columns: 36 × 22 and 36 × 44"),
    ],
    ids=["a view", "flats", "exposure", "place", "size"],
)
def test_tiles_that_contradict_each_other_are_refused(
    broken: Callable[[list[Dataset]], list[Dataset]], sentence: str
) -> None:
    datasets = p4_by_angles(ACROSS)
    with pytest.raises(ScanError, match=sentence):
        read(broken(datasets))


def test_a_place_that_the_geometry_contradicts_is_refused() -> None:
    datasets = p1(ACROSS)
    for ds in datasets:
        if _told(ds, 0x30) == [14.0, 0.0]:
            ds.private_block(*THARSIS)[0x30].value = [16.0, 0.0]
    with pytest.raises(ScanError, match=r"the tile at column 16, row 0 is 2\.0 pixels from there by the geometry"):
        read(datasets)


def test_a_simulated_camera_is_valid_dicom(validator_errors: Callable[[Path], list[str]], tmp_path: Path) -> None:
    objects = simulate_scan(
        "plaque", views=10, rows=24, columns=60, thresholds_kev=(25.0, 50.0), scanner=Scanner(dead_pixels=2),
        positions=Positions(camera_positions=2, axial_mm=(-4.0, 4.0)),
    )  # fmt: skip
    assert len(objects) == 8
    scan = read(objects)
    assert len(scan.notes) == 2, scan.notes
    assert scan.shape == (20, 24, 60)
    for number, dataset in enumerate(objects[::3]):
        path = tmp_path / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        assert not validator_errors(path)
    with pytest.raises(ValueError, match="too small for tiles"):
        simulate_scan("plaque", rows=24, columns=20, positions=Positions((3, 1)))
