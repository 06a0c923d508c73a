"""P1 projections: what is written is read back, at every level, split or whole, and what is missing is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from reconstruct.geometry import ConeBeamGeometry
from reconstruct.phantoms import asymmetric, line_integrals
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages, Exposure
from reconstruct.projections.open_field import OpenField
from reconstruct.projections.p1 import is_p1, read_p1
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.registry import read_scan, recognise
from reconstruct.projections.scan import (
    CounterKind,
    EnergyBin,
    PixelMeaning,
    ReconstructionRequest,
    ScanError,
)

Validator = Callable[[Path], list[str]]

VIEWS, ROWS, COLUMNS = 9, 10, 14
BINS = (EnergyBin(1, 20.0, 35.0, 27.5, 0.55), EnergyBin(2, 35.0, 120.0, 60.0, 0.21))


def geometry(**changes: Any) -> ConeBeamGeometry:
    numbers: dict[str, Any] = {
        "source_to_isocenter_mm": 200.0,
        "source_to_detector_mm": 320.0,
        "view_angles_rad": 0.3 + 2 * np.pi * np.arange(VIEWS) / VIEWS,
        "rows": ROWS,
        "columns": COLUMNS,
        "row_pitch_mm": 0.9,
        "column_pitch_mm": 1.1,
        "principal_point_px": (5.25, 5.75),
    }
    return ConeBeamGeometry.circular(**numbers | changes)


def counters(seed: int = 3) -> list[CounterImages]:
    """Cumulative counters with views at a quarter of the flats' counts in bin 1 and a half in bin 2."""
    random = np.random.default_rng(seed)
    shape = (VIEWS, ROWS, COLUMNS)
    low, high = random.poisson(1000, shape), random.poisson(3000, shape)
    flat_low, flat_high = random.poisson(4000, (8, ROWS, COLUMNS)), random.poisson(6000, (8, ROWS, COLUMNS))
    return [
        CounterImages(BINS[0], (low + high).astype(np.uint16), (flat_low + flat_high).astype(np.uint16)),
        CounterImages(BINS[1], high.astype(np.uint16), flat_high.astype(np.uint16)),
    ]


def header() -> Dataset:
    ds = Dataset()
    ds.PatientName, ds.PatientID = "Round^Trip", "RT-1"
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20250314", "101500", "7"
    return ds


def written(acquisition: Acquisition | None = None, **changes: Any) -> list[Dataset]:
    return write_p1(
        changes.pop("counters", counters()), changes.pop("geometry", geometry()), header(),
        acquisition or Acquisition(), **changes,
    )  # fmt: skip


def saved(datasets: list[Dataset], folder: Path) -> list[Path]:
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def same_rays(a: ConeBeamGeometry, b: ConeBeamGeometry, tolerance_px: float) -> bool:
    points = np.array([[x, y, z, 1] for x in (-4, 3) for y in (-2, 5) for z in (-3, 2)], dtype=float)
    seen = []
    for g in (a, b):
        projected = np.einsum("vij,pj->vpi", g.projection_matrices(), points)
        seen.append(projected[..., :2] / projected[..., 2:])
    return bool(np.abs(seen[0] - seen[1]).max() < tolerance_px)


def without_private(dataset: Dataset) -> None:
    for item in [dataset, *dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]:
        for element in list(item.group_dataset(elements.GROUP)):
            del item[element.tag]


def remove(*keywords: str) -> Callable[[Dataset], None]:
    """A change that removes private elements, wherever they stand."""

    def change(dataset: Dataset) -> None:
        offsets = {elements.ELEMENTS[keyword].offset for keyword in keywords}
        for item in [dataset, *dataset.PerFrameFunctionalGroupsSequence]:
            for element in list(item.group_dataset(elements.GROUP)):
                if element.tag.element > 0xFF and element.tag.element & 0xFF in offsets:
                    del item[element.tag]

    return change


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    request = ReconstructionRequest((0.5, 0.6, 0.7), (30, 20, 10), (1.0, -2.0, 3.0), "ram-lak", 0.8)
    acquisition = Acquisition(counting_mode="CSM", exposure=Exposure(120.0, 0.05, 100.0, 100.0), request=request)
    paths = saved(written(acquisition, scan_uid="2.25.77"), tmp_path)
    scan = read_scan(reversed(paths))
    assert scan.uid == "2.25.77"
    assert scan.bins == BINS
    assert (scan.counter_kind, scan.counting_mode) == (CounterKind.CUMULATIVE, "CSM")
    assert scan.request == request
    assert scan.geometry_from == "vectors"
    assert len(scan.notes) == 1, scan.notes
    np.testing.assert_array_equal(scan.geometry.sources, geometry().sources)
    np.testing.assert_array_equal(scan.geometry.detector_centres, geometry().detector_centres)
    assert str(scan.header.PatientName) == "Round^Trip"
    assert len(scan.sources) == 4
    grid = scan.grid()
    assert (grid.shape_zyx, grid.voxel_mm_zyx, grid.centre_mm_xyz) == ((10, 20, 30), (0.7, 0.6, 0.5), (1.0, -2.0, 3.0))


def test_line_integrals_are_those_of_the_differences_of_counters() -> None:
    source = counters()
    scan = read_p1(written())
    low = source[0].views.astype(float) - source[1].views
    flat = (source[0].flats.astype(float) - source[1].flats).mean(axis=0)
    np.testing.assert_allclose(scan.line_integrals(1), -np.log(low / flat), atol=2e-5)
    high = source[1].views / source[1].flats.mean(axis=0)
    np.testing.assert_allclose(scan.line_integrals(2), -np.log(high), atol=2e-5)


def test_progress_reaches_one_and_stops_the_work_when_it_raises() -> None:
    scan = read_p1(written())
    fractions: list[float] = []
    scan.line_integrals(2, fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan.line_integrals(1, stop)


@pytest.mark.parametrize("flat_ms", [25.0, 100.0, 800.0])
def test_exposures_are_normalised_by_the_duration(flat_ms: float) -> None:
    same = read_p1(written()).line_integrals(1)
    scan = read_p1(written(Acquisition(exposure=Exposure(view_ms=100.0, flat_ms=flat_ms))))
    np.testing.assert_allclose(scan.line_integrals(1), same + np.log(100.0 / flat_ms), atol=1e-4)


def flats_of(exposures_ms: list[float], noise: int = 5) -> list[Dataset]:
    """A scan of views of 100 ms whose flat frames were exposed for different times, with noise and a dead pixel."""
    rng = np.random.default_rng(noise)
    many = [
        replace(c, flats=np.stack([rng.poisson(c.flats[0] * (ms / 100)) for ms in exposures_ms]).astype(np.uint16))
        for c in counters()
    ]
    for counter in many:
        counter.flats[:, 3, 4] = 0
    datasets = written(Acquisition(exposure=Exposure(view_ms=100.0, flat_ms=100.0)), counters=many)
    for dataset in datasets:
        if elements.read(dataset)["FrameRole"] == "FLAT":
            for item, ms in zip(dataset.PerFrameFunctionalGroupsSequence, exposures_ms, strict=True):
                item.FrameContentSequence[0].FrameAcquisitionDuration = ms
    return datasets


@pytest.mark.parametrize("exposures_ms", [[100.0, 100.0, 300.0, 300.0], [300.0, 300.0, 100.0, 20.0]])
def test_each_flat_frame_counts_by_its_own_exposure(exposures_ms: list[float]) -> None:
    same, scan = (read_p1(flats_of(times)) for times in ([100.0] * 4, exposures_ms))
    for number in (1, 2):
        difference = scan.line_integrals(number) - same.line_integrals(number)
        np.testing.assert_allclose(difference.mean(axis=0), 0, atol=0.1)
        assert abs(difference.mean()) < 0.003
    field = OpenField.of(scan.counters, counting=True, keep_dead=False)
    assert np.argwhere(field.dead).tolist() == [[3, 4]]


def test_an_exposure_of_some_flat_frames_is_refused() -> None:
    datasets = flats_of([100.0, 300.0])
    for dataset in datasets:
        if elements.read(dataset)["FrameRole"] == "FLAT":
            del dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0].FrameAcquisitionDuration
    with pytest.raises(ScanError, match=r"Duration \(0018,9220\) is given for only some of the flat fields"):
        read_p1(datasets)


@pytest.mark.parametrize("angle_deg", [0.0, 90.0, 180.0, 217.0])
@pytest.mark.parametrize("row_pitch", [0.9, -0.9])
def test_standard_attributes_alone_give_the_same_geometry(angle_deg: float, row_pitch: float) -> None:
    angles = np.deg2rad(angle_deg) + 2 * np.pi * np.arange(VIEWS) / VIEWS
    for column_pitch in (1.1, -1.1):
        original = geometry(view_angles_rad=angles, row_pitch_mm=row_pitch, column_pitch_mm=column_pitch)
        datasets = written(geometry=original)
        for dataset in datasets:
            remove("SourcePosition", "DetectorCentre", "ColumnStep", "RowStep")(dataset)
        scan = read_p1(datasets)
        assert scan.geometry_from == "angles and distances"
        assert same_rays(scan.geometry, original, 1e-3)
        np.testing.assert_allclose(scan.geometry.sources, original.sources, atol=1e-3)


def test_standard_angles_follow_the_isocentre_system_of_the_standard() -> None:
    """At primary angle 0 the source is posterior, columns run to the patient's left, rows to the feet."""
    datasets = written(geometry=geometry(principal_point_px=None))
    for dataset in datasets:
        without_private(dataset)
        for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            isocentre = item.IsocenterReferenceSystemSequence[0]
            isocentre.PositionerIsocenterPrimaryAngle = 90.0 * (frame % 4)
            isocentre.PositionerIsocenterDetectorRotationAngle = 0.0
    scan = read_p1([datasets[0], as_flat(datasets[1])])
    left, posterior, head = np.eye(3)
    expected = [(posterior, left), (-left, posterior), (-posterior, -left), (left, -posterior)]
    for view, (source, column) in enumerate(expected):
        np.testing.assert_allclose(scan.geometry.sources[view], 200 * source, atol=1e-4)
        np.testing.assert_allclose(scan.geometry.detector_centres[view], -120 * source, atol=1e-4)
        np.testing.assert_allclose(scan.geometry.column_steps[view], 1.1 * column, atol=1e-5)
        np.testing.assert_allclose(scan.geometry.row_steps[view], -0.9 * head, atol=1e-5)


def as_flat(dataset: Dataset) -> Dataset:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "FLAT"]
    for item in dataset.SharedFunctionalGroupsSequence:
        item.FramePixelDataPropertiesSequence[0].FrameType = dataset.ImageType
    return dataset


def test_angulated_and_turned_detectors_are_described_by_the_three_angles() -> None:
    """Caudal and cranial sources, a detector turned by 12°: what is written as angles is read as the same rays."""
    primary = 0.4 + 2 * np.pi * np.arange(VIEWS) / VIEWS
    secondary = np.deg2rad(np.linspace(-20, 25, VIEWS))
    towards = np.stack(
        [-np.sin(primary) * np.cos(secondary), np.cos(primary) * np.cos(secondary), -np.sin(secondary)], axis=1
    )
    right = np.stack([np.cos(primary), np.sin(primary), 0 * primary], axis=1)
    up = np.cross(right, towards)
    turn = np.deg2rad(12.0)
    columns, rows = np.cos(turn) * right - np.sin(turn) * up, -np.sin(turn) * right - np.cos(turn) * up
    original = ConeBeamGeometry.from_vectors(
        200 * towards, -120 * towards, 1.1 * columns, 0.9 * rows, rows=ROWS, columns=COLUMNS
    )
    datasets = written(geometry=original)
    isocentre = datasets[0].PerFrameFunctionalGroupsSequence[0].IsocenterReferenceSystemSequence[0]
    assert isocentre.PositionerIsocenterSecondaryAngle == pytest.approx(-20)
    assert isocentre.PositionerIsocenterDetectorRotationAngle == pytest.approx(12)
    for dataset in datasets:
        without_vectors(dataset)
    assert same_rays(read_p1(datasets).geometry, original, 1e-3)


def test_private_scalars_stand_in_for_standard_attributes() -> None:
    datasets = written()
    angles = []
    for dataset in datasets:
        without_vectors(dataset)
        elements.put(dataset, PrincipalPoint=[5.25, 5.75], DetectorTilt=[0.0, 0.0, 180.0])
        del dataset.PositionOfIsocenterProjection
        for item in dataset.PerFrameFunctionalGroupsSequence:
            isocentre = item.IsocenterReferenceSystemSequence[0]
            angles.append(isocentre.PositionerIsocenterPrimaryAngle)
            elements.put(item, ViewAngle=angles[-1])
            del isocentre.PositionerIsocenterPrimaryAngle
            del isocentre.PositionerIsocenterDetectorRotationAngle
    assert same_rays(read_p1(datasets).geometry, geometry(), 1e-3)


def test_a_sample_that_travels_sees_the_source_travel_the_other_way() -> None:
    datasets = written()
    for dataset in datasets:
        without_vectors(dataset)
        for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item.IsocenterReferenceSystemSequence[0].TableZPositionToIsocenter = 500.0 + 2.0 * frame
    scan = read_p1(datasets)
    np.testing.assert_allclose(scan.geometry.sources[:, 2], -2.0 * np.arange(VIEWS), atol=1e-4)


@pytest.mark.parametrize(
    ("gantry", "modifier", "source_of_primary_angle_0"),
    [
        ("102540008", "40199007", (0, 200, 0)),  # head first, supine: from posterior
        ("102540008", "1240000", (0, -200, 0)),  # prone: from anterior
        ("102541007", "40199007", (0, 200, 0)),  # feet first, supine
        ("102540008", "102535000", (-200, 0, 0)),  # lying on the right side: from the right
        ("102541007", "102536004", (200, 0, 0)),  # feet first, lying on the left side: from the left
    ],
)
def test_the_patients_position_turns_standard_angles_into_patient_axes(
    gantry: str, modifier: str, source_of_primary_angle_0: tuple[int, int, int]
) -> None:
    datasets = written(geometry=geometry(view_angles_rad=np.pi / 2 + 2 * np.pi * np.arange(VIEWS) / VIEWS))
    for dataset in datasets:
        remove("SourcePosition", "DetectorCentre", "ColumnStep", "RowStep")(dataset)
        dataset.PatientGantryRelationshipCodeSequence[0].CodeValue = gantry
        dataset.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence[0].CodeValue = modifier
    scan = read_p1(datasets)
    np.testing.assert_allclose(scan.geometry.sources[0], source_of_primary_angle_0, atol=1e-3)
    handedness = np.sum(np.cross(scan.geometry.column_steps, scan.geometry.row_steps) * scan.geometry.sources, axis=1)
    original = geometry()
    expected = np.sum(np.cross(original.column_steps, original.row_steps) * original.sources, axis=1)
    assert (np.sign(handedness) == np.sign(expected)).all()


def test_matrices_go_before_vectors_and_vectors_before_angles() -> None:
    datasets = written(Acquisition(with_matrices=True))
    assert read_p1(datasets).geometry_from == "projection matrices"
    for dataset in datasets:
        remove("ProjectionMatrix")(dataset)
    assert read_p1(datasets).geometry_from == "vectors"


@pytest.mark.parametrize(
    ("turn_deg", "is_reported"), [(0.0, False), (0.05, False), (0.2, True)]
)
def test_angles_that_disagree_with_the_vectors_are_reported(turn_deg: float, is_reported: bool) -> None:
    datasets = written()
    for dataset in datasets:
        for item in dataset.PerFrameFunctionalGroupsSequence:
            item.IsocenterReferenceSystemSequence[0].PositionerIsocenterPrimaryAngle += turn_deg
    notes = " ".join(read_p1(datasets).notes)
    assert ("differ" in notes) is is_reported, notes


@pytest.mark.parametrize(("shift_px", "is_reported"), [(0.3, False), (0.8, True)])
def test_a_principal_point_that_disagrees_is_reported(shift_px: float, is_reported: bool) -> None:
    datasets = written()
    for dataset in datasets:
        row, column = dataset.PositionOfIsocenterProjection
        dataset.PositionOfIsocenterProjection = [row, column + shift_px]
    assert ("differ" in " ".join(read_p1(datasets).notes)) is is_reported


def test_binned_detector_elements_lead_to_the_pixel_of_the_isocentre() -> None:
    """2 × 2 elements a pixel: the centre of pixel (r, c) lies at element (2r + 0.5, 2c + 0.5)."""
    datasets = written()
    for dataset in datasets:
        remove("SourcePosition", "DetectorCentre", "ColumnStep", "RowStep")(dataset)
        dataset.DetectorElementSpacing = [0.45, 0.55]
        dataset.PositionOfIsocenterProjection = [2 * 5.75 + 0.5 + 6, 2 * 5.25 + 0.5 + 8]
        view = dataset.SharedFunctionalGroupsSequence[0].FieldOfViewSequence[0]
        view.FieldOfViewOrigin = [6, 8]
    assert same_rays(read_p1(datasets).geometry, geometry(), 1e-3)


LEVELS = ("top", "shared", "frame")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("block", [0x10, 0x23, 0xFF])
def test_private_elements_are_found_at_every_level_and_in_every_block(level: str, block: int) -> None:
    datasets = written()
    for dataset in datasets:
        items = {
            "top": [dataset],
            "shared": dataset.SharedFunctionalGroupsSequence,
            "frame": dataset.PerFrameFunctionalGroupsSequence,
        }[level]
        values = elements.read(dataset)
        for element in list(dataset.group_dataset(elements.GROUP)):
            del dataset[element.tag]
        for item in items:
            mine = elements.read(item) | values
            for element in list(item.group_dataset(elements.GROUP)):
                del item[element.tag]
            item.add_new((elements.GROUP, 0x10 if block != 0x10 else 0x11), "LO", "SOMEBODY ELSE 1.0")
            item.add_new((elements.GROUP, block), "LO", elements.CREATOR)
            elements.put(item, **mine)
    scan = read_p1(datasets)
    assert scan.bins == BINS
    assert same_rays(scan.geometry, geometry(), 1e-9)


def test_the_item_of_a_frame_goes_before_the_top_of_the_data_set() -> None:
    datasets = written()
    for dataset in datasets:
        elements.put(dataset, FrameRole="PROJECTION", WaterAttenuation=9.0)
        for item in dataset.PerFrameFunctionalGroupsSequence:
            role = "PROJECTION" if dataset.NumberOfFrames == VIEWS else "FLAT"
            elements.put(item, FrameRole=role, WaterAttenuation=0.4)
    scan = read_p1(datasets)
    assert scan.geometry.views == VIEWS
    assert {b.water_per_cm for b in scan.bins} == {0.4}


def test_implicit_vr_keeps_the_private_elements(tmp_path: Path) -> None:
    datasets = written()
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(tmp_path / f"{number}.dcm")
        plain = Dataset(copy.deepcopy(dataset))
        plain.file_meta = dataset.file_meta
        plain.save_as(paths[-1], implicit_vr=True, little_endian=True, enforce_file_format=True)
    scan = read_scan(paths)
    assert scan.bins == BINS
    assert scan.geometry_from == "vectors"


def test_values_that_came_as_un_are_decoded() -> None:
    """A peer without the dictionary relays private elements of Implicit VR as UN (PS3.5 6.2.2)."""
    item = Dataset()
    item.add_new((elements.GROUP, 0x42), "LO", elements.CREATOR)
    item.add_new((elements.GROUP, 0x4212), "UN", np.array([1.5, -2.0, 3.25]).astype("<f8").tobytes())
    item.add_new((elements.GROUP, 0x4220), "UN", (3).to_bytes(2, "little"))
    item.add_new((elements.GROUP, 0x4210), "UN", b"FLAT")
    assert elements.read(item) == {"SourcePosition": [1.5, -2.0, 3.25], "EnergyBinIndex": 3, "FrameRole": "FLAT"}


def test_one_instance_may_hold_all_counters_and_roles() -> None:
    parts = written()
    whole = copy.deepcopy(parts[0])
    items, pixels = [], b""
    for part in parts:
        for item in part.PerFrameFunctionalGroupsSequence:
            elements.put(item, **{k: v for k, v in elements.read(part).items() if k not in ("ExpectedInstances",)})
            items.append(item)
        pixels += part.PixelData
    remove("ExpectedInstances")(whole)
    whole.PerFrameFunctionalGroupsSequence = items
    whole.NumberOfFrames = len(items)
    whole.PixelData = pixels
    apart = read_p1(written())
    together = read_p1([whole])
    assert together.bins == apart.bins
    np.testing.assert_array_equal(together.line_integrals(1), apart.line_integrals(1))


def test_views_are_split_over_instances_that_would_grow_too_large(tmp_path: Path) -> None:
    frame_bytes = 2 * ROWS * COLUMNS
    datasets = written(largest_pixel_data=4 * frame_bytes + 1)
    assert max(len(ds.PixelData) for ds in datasets) == 4 * frame_bytes
    assert len(datasets) == 2 * (3 + 2)
    scan = read_scan(saved(datasets[::-1], tmp_path))
    np.testing.assert_array_equal(scan.geometry.sources, geometry().sources)
    np.testing.assert_array_equal(scan.line_integrals(1), read_p1(written()).line_integrals(1))


def test_an_instance_given_twice_counts_once() -> None:
    datasets = written()
    assert read_p1([*datasets, *datasets]).geometry.views == VIEWS


@pytest.mark.parametrize("meaning", [PixelMeaning.LINE_INTEGRAL, PixelMeaning.TRANSMISSION, PixelMeaning.INTENSITY])
def test_other_pixel_meanings(meaning: PixelMeaning) -> None:
    integrals = line_integrals(asymmetric(3.0), geometry())
    values = {
        PixelMeaning.LINE_INTEGRAL: integrals,
        PixelMeaning.TRANSMISSION: np.exp(-integrals),
        PixelMeaning.INTENSITY: 812.5 * np.exp(-integrals),
    }[meaning]
    counter = CounterImages(BINS[0], values, unattenuated=812.5 if meaning is PixelMeaning.INTENSITY else None)
    acquisition = Acquisition(pixel_meaning=meaning, counter_kind=CounterKind.DIFFERENTIAL)
    scan = read_p1(written(acquisition, counters=[counter]))
    assert scan.pixel_meaning is meaning
    np.testing.assert_allclose(scan.line_integrals(1), integrals, atol=2e-3)


@pytest.mark.parametrize("meaning", [PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL])
def test_cumulative_counters_that_hold_no_counts_are_called_what_they_hold(meaning: PixelMeaning) -> None:
    """They cannot be subtracted from each other: a counter holds all above its threshold."""
    values = np.full((VIEWS, ROWS, COLUMNS), 0.5, np.float32) + np.arange(COLUMNS, dtype=np.float32) / 100
    for top, labels in ((None, ["20+ keV", "35+ keV"]), (120.0, ["20-120 keV", "35-120 keV"])):
        bins = (EnergyBin(1, 20.0, 35.0), EnergyBin(2, 35.0, top))
        many = [CounterImages(bin_, values) for bin_ in bins]
        scan = read_p1(written(Acquisition(pixel_meaning=meaning), counters=many))
        assert [bin_.label for bin_ in scan.bins] == labels
        assert any("each energy bin holds all above its threshold" in note for note in scan.notes)
        expected = values if meaning is PixelMeaning.LINE_INTEGRAL else -np.log(values)
        np.testing.assert_allclose(scan.line_integrals(1), expected, atol=1e-4)
    assert [bin_.label for bin_ in read_p1(written()).bins] == ["20-35 keV", "35-120 keV"], "counts are subtracted"


def test_the_unattenuated_value_serves_where_there_are_no_flats() -> None:
    plain = [replace(c, flats=None, unattenuated=i0) for c, i0 in zip(counters(), (10_000.0, 6_000.0), strict=True)]
    scan = read_p1(written(counters=plain))
    low = plain[0].views.astype(float) - plain[1].views
    np.testing.assert_allclose(scan.line_integrals(1), -np.log(low / 4_000), atol=2e-5)


def test_dark_frames_are_subtracted() -> None:
    offset = [
        replace(c, views=c.views + 50, flats=c.flats + 50, darks=np.full((4, ROWS, COLUMNS), 50, np.uint16))
        for c in counters()
    ]
    darkened = read_p1(written(counters=offset))
    np.testing.assert_allclose(darkened.line_integrals(2), read_p1(written()).line_integrals(2), atol=1e-5)


def test_flat_fields_that_ran_over_their_counter_are_repaired() -> None:
    source = counters()
    flats = [(c.flats.astype(np.int64) * 7) % 65536 for c in source]
    assert (flats[0].astype(int) < flats[1]).any(), "the case must run over"
    rolled = [replace(c, flats=f.astype(np.uint16)) for c, f in zip(source, flats, strict=True)]
    scan = read_p1(written(Acquisition(exposure=Exposure(view_ms=10.0, flat_ms=70.0)), counters=rolled))
    np.testing.assert_allclose(scan.line_integrals(1), read_p1(written()).line_integrals(1), atol=1e-4)


def test_overexposed_flat_fields_are_refused() -> None:
    full = [replace(c, flats=np.full_like(c.flats, 4095), views=np.minimum(c.views, 4000)) for c in counters()]
    with pytest.raises(ScanError, match="overexposed"):
        read_p1(written(Acquisition(bits_stored=12), counters=full)).line_integrals(2)


def drop_standard(keyword: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        without_vectors(dataset)
        for item in [dataset, *dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]:
            for macro in [item, *(m for e in item if e.VR == "SQ" for m in e.value)]:
                if keyword in macro:
                    delattr(macro, keyword)

    return change


without_vectors = remove("SourcePosition", "DetectorCentre", "ColumnStep", "RowStep")


def without_pitch(dataset: Dataset) -> None:
    drop_standard("ImagerPixelSpacing")(dataset)
    drop_standard("DetectorElementSpacing")(dataset)


def wrong(keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda dataset: elements.put(dataset, **{keyword: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_standard("PositionerIsocenterPrimaryAngle"), r"angle .* missing in view 1.*\(0018,9463\).*\(0071,xx11\)"),
        (drop_standard("DistanceSourceToIsocenter"), r"source to isocentre distance is missing.*\(0018,9402\)"),
        (drop_standard("DistanceSourceToDetector"), r"source to detector distance is missing.*\(0018,1110\)"),
        (without_pitch, r"detector pitch is missing.*\(0018,1164\), .*\(0018,7022\)"),
        (remove("CounterKind"), r"no Counter Kind \(0071,xx25\)"),
        (wrong("CounterKind", "SIDEWAYS"), r"Counter Kind \(0071,xx25\) is SIDEWAYS, expected one of CUMULATIVE"),
        (wrong("PixelMeaning", "COLOUR"), r"Pixel Meaning \(0071,xx07\) is COLOUR, expected one of COUNTS"),
        (wrong("WaterAttenuation", 0.0), r"Water Attenuation \(0071,xx29\) is 0, expected a number above 0"),
        (wrong("WaterAttenuation", -0.2), r"\(0071,xx29\) is -0.2, expected a number above 0"),
        (wrong("EffectiveEnergy", 0.0), r"Effective Energy \(0071,xx28\) is 0"),
        (wrong("UnattenuatedValue", 0.0), r"Unattenuated Value \(0071,xx09\) is 0, expected a number above 0"),
        (wrong("UnattenuatedValue", [1.0, 2.0]), r"\(0071,xx09\) has 2 values, expected 1"),
        (wrong("RequestedFilter", "BUTTERWORTH"), r"Requested Filter \(0071,xx53\) is 'BUTTERWORTH', expected one"),
        (wrong("RequestedCutoff", 1.5), r"\(0071,xx54\) is 1.5, expected at most 1"),
        (wrong("RequestedCutoff", 0.0), r"\(0071,xx54\) is 0, expected a number above 0"),
        (wrong("RequestedMatrix", [64, 64]), r"Requested Matrix \(0071,xx51\) has 2 values, expected 3"),
        (wrong("RequestedMatrix", [64, 0, 64]), r"\(0071,xx51\) is 0, expected a number above 0"),
        (wrong("RequestedVoxelSize", 0.5), r"Requested Voxel Size \(0071,xx50\) has 1 values, expected 3"),
        (wrong("RequestedVoxelSize", [0.5, 0.5, -1.0]), r"\(0071,xx50\) is -1, expected a number above"),
        (wrong("RequestedCentre", [0.0, 0.0, float("nan")]), r"\(0071,xx52\) is nan, expected a finite number"),
        (wrong("FrameRole", "DESSERT"), r"Frame Role \(0071,xx10\) is 'DESSERT'"),
        (wrong("EnergyBinCount", 3), r"2 of 3 energy bins \(0071,xx21\)"),
        (wrong("ExpectedInstances", 5), r"4 of 5 instances \(0071,xx06\)"),
        (wrong("ExpectedFrames", 99), r"34 of 99 frames \(0071,xx05\)"),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_one_sentence(change: Callable[[Dataset], None], sentence: str) -> None:
    datasets = written()
    for dataset in datasets:
        change(dataset)
    with pytest.raises(ScanError, match=sentence):
        read_p1(datasets)


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (slice(0, 0), "no instances"),
        (slice(0, 2), r"2 of 4 instances"),
    ],
)
def test_incomplete_scans_are_refused_with_the_counts(keep: slice, sentence: str) -> None:
    with pytest.raises(ScanError, match=sentence):
        read_p1(written()[keep])


def test_counts_without_any_reference_are_refused() -> None:
    datasets = written(counters=[replace(c, flats=None) for c in counters()])
    with pytest.raises(ScanError, match=r"neither flat fields .* nor an unattenuated value"):
        read_p1(datasets)


def test_flats_of_another_size_are_refused() -> None:
    datasets = written()
    other = written(geometry=geometry(rows=5), counters=[
        replace(c, views=c.views[:, :5], flats=c.flats[:, :5]) for c in counters()
    ])  # fmt: skip
    elements.put(other[1], ScanSetUID=elements.read(datasets[0])["ScanSetUID"])
    other[1].StudyInstanceUID = datasets[0].StudyInstanceUID
    with pytest.raises(ScanError, match="5 × 14 and 10 × 14"):
        read_p1([datasets[0], other[1], *datasets[2:]])


def test_two_scans_are_not_mixed() -> None:
    one, other = written(), written()
    with pytest.raises(ScanError, match="2 studies"):
        read_p1([*one, *other])
    for dataset in other:
        dataset.StudyInstanceUID = one[0].StudyInstanceUID
    with pytest.raises(ScanError, match="2 scans"):
        read_p1([*one, *other])


def test_durations_of_the_projections_alone_are_refused() -> None:
    datasets = written(Acquisition(exposure=Exposure(view_ms=10.0, flat_ms=10.0)))
    for dataset in datasets:
        if elements.read(dataset)["FrameRole"] == "FLAT":
            for item in dataset.PerFrameFunctionalGroupsSequence:
                del item.FrameContentSequence[0].FrameAcquisitionDuration
    with pytest.raises(ScanError, match=r"\(0018,9220\)"):
        read_p1(datasets)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"views": np.full((VIEWS, ROWS, COLUMNS), 70_000)}, r"70000 do not fit into 16 bits"),
        ({"views": np.full((VIEWS, ROWS, COLUMNS), 1.5)}, "whole numbers"),
        ({"views": np.zeros((VIEWS, ROWS, 3), np.uint16)}, r"expected projections of shape \(9, 10, 14\)"),
        ({"flats": np.zeros((2, ROWS, 3), np.uint16)}, "flat and dark frames of shape"),
    ],
)
def test_the_writer_refuses_what_it_cannot_encode(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScanError, match=sentence):
        written(counters=[replace(counters()[0], **change)])


def test_no_element_outgrows_explicit_vr(tmp_path: Path) -> None:
    """The vectors stand in the items of the frames, not in one element over 64 KiB."""
    path = saved(written(Acquisition(with_matrices=True)), tmp_path)[0]
    for item in dcmread(path).PerFrameFunctionalGroupsSequence:
        assert len(elements.read(item)["ProjectionMatrix"]) == 12
        assert len(elements.read(item)["SourcePosition"]) == 3


def test_the_block_is_declared_safe() -> None:
    declared = written()[0].PrivateDataElementCharacteristicsSequence[0]
    assert declared.PrivateGroupReference == 0x0071
    assert declared.PrivateCreatorReference == "THARSIS PROJECTION 1.0"
    assert declared.BlockIdentifyingInformationStatus == "SAFE"


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (ReconstructionRequest(matrix_xyz=(70_000, 10, 10)), "70000 × 10 × 10"),
        (ReconstructionRequest(matrix_xyz=(10, 65_536, 10)), "10 × 65536 × 10"),
        (ReconstructionRequest(matrix_xyz=(10, 10, 4_294_967_295)), "expected at most 65535 columns, rows and slices"),
        (ReconstructionRequest(voxel_mm_xyz=(1e-5, 1e-5, 1e-5)), "is too large"),
    ],
)
def test_a_volume_that_nobody_can_mean_is_refused(asked: ReconstructionRequest, size: str) -> None:
    with pytest.raises(ScanError, match=size):
        read_p1(written(Acquisition(request=asked))).grid()


@pytest.mark.parametrize("edge", [2048, 25_500, 65_535])
def test_a_volume_of_a_whole_body_can_be_asked_for(edge: int) -> None:
    scan = read_p1(written(Acquisition(request=ReconstructionRequest(matrix_xyz=(edge,) * 3))))
    assert scan.grid().shape_zyx == (edge,) * 3


def test_i0_of_a_cumulative_counter_exceeds_that_of_the_next() -> None:
    plain = [replace(c, flats=None, unattenuated=i0) for c, i0 in zip(counters(), (6_000.0, 6_000.0), strict=True)]
    with pytest.raises(ScanError, match=r"I0 \(0071,xx09\) of energy bin 1 is 6000 and that of bin 2 is 6000"):
        read_p1(written(counters=plain))


@pytest.mark.parametrize(("keyword", "value"), [("RescaleSlope", 0.0), ("FrameAcquisitionDuration", 0.0)])
def test_a_rescale_or_exposure_of_nothing_is_refused(keyword: str, value: float) -> None:
    datasets = written(Acquisition(exposure=Exposure(view_ms=10.0, flat_ms=10.0)))
    for dataset in datasets:
        setattr(dataset, keyword, value)
        elements_of = [dataset, *dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]
        for macro in [m for item in elements_of for e in item if e.VR == "SQ" for m in e.value]:
            if keyword in macro:
                setattr(macro, keyword, value)
    with pytest.raises(ScanError, match=r" is 0|instance .* is 0"):
        read_p1(datasets)


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsStored"])
def test_images_without_a_size_are_refused(keyword: str) -> None:
    datasets = written()
    for dataset in datasets:
        del dataset[keyword]
    with pytest.raises(ScanError, match=f"has no {keyword.replace('sS', 's S')}"):
        read_p1(datasets)


def test_flats_need_no_geometry(tmp_path: Path) -> None:
    """Flats and darks that say by their private role alone what they are; they may also come first."""
    datasets = written()
    for dataset in datasets:
        if elements.read(dataset)["FrameRole"] == "FLAT":
            for item in dataset.PerFrameFunctionalGroupsSequence:
                del item.IsocenterReferenceSystemSequence
            assert recognise(dataset) == "P1"
            dataset.InstanceNumber = 0
    scan = read_scan(saved(datasets[::-1], tmp_path))
    np.testing.assert_array_equal(scan.line_integrals(1), read_p1(written()).line_integrals(1))
    assert elements.read(scan.header)["FrameRole"] == "PROJECTION"


@pytest.mark.parametrize(("distance", "is_known"), [(320.0, True), (None, False)])
def test_matrices_alone_do_not_hold_the_distance_of_the_detector(distance: float | None, is_known: bool) -> None:
    datasets = written(Acquisition(with_matrices=True))
    for dataset in datasets:
        without_vectors(dataset)
        if distance is None:
            drop_standard("DistanceSourceToDetector")(dataset)
    assert read_p1(datasets).knows_detector_distance is is_known


def test_recognition() -> None:
    dataset = written()[0]
    assert is_p1(dataset)
    assert recognise(dataset) == "P1"
    for item in dataset.PerFrameFunctionalGroupsSequence:
        del item.IsocenterReferenceSystemSequence
    assert not is_p1(dataset)
    assert recognise(dataset) == "P4", "the private block speaks for itself"
    without_private(dataset)
    assert recognise(dataset) is None
    assert recognise(Dataset()) is None


def test_files_that_are_no_projections_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not DICOM")
    with pytest.raises(ScanError, match=r"notes.txt is no DICOM file"):
        read_scan([text])
    other = written()[0]
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    without_private(other)
    with pytest.raises(ScanError, match="no projections in any of P1"):
        read_scan(saved([other], tmp_path))


def test_dciodvfy_finds_no_error_in_what_is_written(tmp_path: Path, validator_errors: Validator) -> None:
    acquisition = Acquisition(exposure=Exposure(120.0, 0.05, 100.0, 100.0), with_matrices=True)
    for path in saved(written(acquisition), tmp_path):
        assert validator_errors(path) == []
