"""The CT series: where each voxel lies, what its value means, where it comes from, and that it is the same again."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from config.identity import UID_ROOT, version
from reconstruct.derived import ct_series, frame_of_reference_uid
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.multi_energy import tube_voltage
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages, Exposure
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.scan import EnergyBin, Scan
from reconstruct.stored_values import attenuation, hounsfield

Validator = Callable[[Path], list[str]]

RECIPE = {"method": "FDK", "filter": "hann", "cutoff": 0.75, "voxel_mm": 0.0}
GRID = VolumeGrid((3, 4, 5), (0.5, 0.25, 0.125), (1.0, -2.0, 3.0))
WATER_PER_CM = 0.25
BIN = EnergyBin(2, 25.0, 38.0, 31.0, WATER_PER_CM)


@pytest.fixture(scope="module")
def scan() -> Scan:
    geometry = ConeBeamGeometry.circular(
        source_to_isocenter_mm=200, source_to_detector_mm=300, view_angles_rad=np.arange(4) * np.pi / 2,
        rows=4, columns=6, row_pitch_mm=1, column_pitch_mm=1,
    )  # fmt: skip
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName, header.PatientID, header.PatientSex = "Müller^Jürgen", "M-1", "M"
    header.PatientSpeciesDescription = "Mus musculus"
    header.StudyInstanceUID, header.StudyDate, header.StudyTime = "1.2.3.4", "20250314", "101500"
    header.StudyDescription, header.AccessionNumber, header.StudyID = "Study", "A1", "S1"
    header.SeriesNumber = 7
    header.Manufacturer, header.ManufacturerModelName = "MARS", "Extremity 5X120"
    header.DeviceSerialNumber, header.SoftwareVersions = "5", ["1.2", "3.4"]
    header.BodyPartExamined = "CHEST"
    flat = np.full((2, 4, 6), 900, np.uint16)
    counters = [CounterImages(EnergyBin(1, 10.0, 25.0), np.full((4, 4, 6), 500, np.uint16), flat),
                CounterImages(BIN, np.full((4, 4, 6), 300, np.uint16), flat // 2)]  # fmt: skip
    return read_p1(
        write_p1(counters, geometry, header, Acquisition(exposure=Exposure(kvp=118.0)), scan_uid="2.25.9")
    )


def volume() -> np.ndarray:
    """Attenuation, 1/mm: water, but air in the first voxel and something dense in the last."""
    values = np.full(GRID.shape_zyx, WATER_PER_CM / 10, np.float32)
    values[0, 0, 0] = 0.0
    values[2, 3, 4] = 3 * WATER_PER_CM / 10
    return values


def series(scan: Scan, energy_bin: EnergyBin = BIN, **changes: Any) -> list[Dataset]:
    arguments: dict[str, Any] = {"volume": volume(), "grid": GRID, "recipe": RECIPE} | changes
    return list(
        ct_series(arguments["volume"], arguments["grid"], scan=scan, energy_bin=energy_bin, recipe=arguments["recipe"])
    )


def modality_values(dataset: Dataset) -> np.ndarray:
    return dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def test_every_voxel_lies_where_the_grid_says(scan: Scan) -> None:
    slices = series(scan)
    assert [ds.InstanceNumber for ds in slices] == [1, 2, 3]
    heights = [float(ds.ImagePositionPatient[2]) for ds in slices]
    assert heights == pytest.approx(GRID.z_mm)
    for ds in slices:
        assert [float(v) for v in ds.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        assert [float(v) for v in ds.ImagePositionPatient[:2]] == pytest.approx([GRID.x_mm[0], GRID.y_mm[0]])
        assert [float(v) for v in ds.PixelSpacing] == [0.25, 0.125]
        assert (float(ds.SliceThickness), ds.Rows, ds.Columns) == (0.5, 4, 5)
        assert ds.SliceLocation == ds.ImagePositionPatient[2]


def test_hounsfield_units_where_water_is_known(scan: Scan) -> None:
    slices = series(scan)
    assert {ds.RescaleType for ds in slices} == {"HU"}
    stack = np.stack([modality_values(ds) for ds in slices])
    assert stack[0, 0, 0] == -1000
    assert stack[2, 3, 4] == 2000
    assert np.count_nonzero(stack) == 2


def test_no_hounsfield_units_where_water_is_not_known(scan: Scan) -> None:
    slices = series(scan, replace(BIN, water_per_cm=None))
    assert {ds.RescaleType for ds in slices} == {"US"}
    stack = np.stack([modality_values(ds) for ds in slices])
    np.testing.assert_allclose(stack, volume() * 10, atol=1e-4)


@pytest.mark.parametrize("water", [WATER_PER_CM, None])
def test_real_world_values_are_attenuation_in_1_per_cm(scan: Scan, water: float | None) -> None:
    for index, ds in enumerate(series(scan, replace(BIN, water_per_cm=water))):
        stored = dcmread(to_file(ds))
        mapping = stored.RealWorldValueMappingSequence[0]
        unit = mapping.MeasurementUnitsCodeSequence[0]
        assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("/cm", "UCUM")
        assert (mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped) == (-32768, 32767)
        values = stored.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
        np.testing.assert_allclose(values, volume()[index] * 10, atol=2e-4)


@pytest.mark.parametrize("densest_per_mm", [0.0, 1e-6, 0.2, 0.4, 5.0, 900.0])
def test_attenuation_steps_fit_the_densest_voxel(densest_per_mm: float) -> None:
    values = np.linspace(0, densest_per_mm, 24, dtype=np.float32).reshape(2, 3, 4)
    mapping = attenuation(values)
    stored = mapping.pixels(values)
    assert stored.max() <= 32767
    np.testing.assert_allclose(stored * mapping.slope, values * 10, atol=mapping.slope * 0.51)


@pytest.mark.parametrize("water", [0.0, -1.0, float("nan"), float("inf")])
def test_hounsfield_needs_water_that_attenuates(water: float) -> None:
    with pytest.raises(ValueError, match="attenuation of water above 0"):
        hounsfield(volume(), water)


@pytest.mark.parametrize(("densest_hu", "slope"), [(3000, 1), (32766, 1), (33000, 2), (57511, 2), (70000, 4)])
def test_steps_of_hounsfield_units_fit_the_densest_voxel(scan: Scan, densest_hu: float, slope: float) -> None:
    """Metal at low energies: Rescale Slope and Real World Value Mapping tell it alike."""
    values = volume()
    values[1, 2, 3] = WATER_PER_CM / 10 * (1 + densest_hu / 1000)
    images = [dcmread(to_file(ds)) for ds in series(scan, volume=values)]
    assert {float(ds.RescaleSlope) for ds in images} == {slope}
    found = np.stack([modality_values(ds) for ds in images])
    np.testing.assert_allclose(found, 1000 * (10 * values / WATER_PER_CM - 1), atol=0.51 * slope)
    mapping = images[1].RealWorldValueMappingSequence[0]
    per_cm = images[1].pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    np.testing.assert_allclose(per_cm, 10 * values[1], atol=0.51 * slope * WATER_PER_CM / 1000)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("water", [WATER_PER_CM, None])
def test_the_slice_that_is_not_finite_is_named(scan: Scan, wrong: float, water: float | None) -> None:
    values = volume()
    values[1, 2, 3] = wrong
    with pytest.raises(ValueError, match="slice 2 of the volume has voxels that are not finite"):
        series(scan, replace(BIN, water_per_cm=water), volume=values)


def test_values_beyond_16_bits_become_their_limit() -> None:
    mapping = hounsfield(volume(), 0.2)
    assert mapping.pixels(np.array([[1e3, -1e3]], np.float32)).tolist() == [[32767, -32768]]


def to_file(dataset: Dataset) -> io.BytesIO:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


def test_doing_it_again_gives_the_same_bytes(scan: Scan) -> None:
    first, second = ([to_file(ds).getvalue() for ds in series(scan)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {**RECIPE, "cutoff": 0.5}},
        {"energy_bin": replace(BIN, index=1)},
    ],
)
def test_another_recipe_or_bin_is_another_series(scan: Scan, changes: dict[str, Any]) -> None:
    usual, other = series(scan), series(scan, **changes)
    assert usual[0].SeriesInstanceUID != other[0].SeriesInstanceUID
    assert not {ds.SOPInstanceUID for ds in usual} & {ds.SOPInstanceUID for ds in other}
    assert usual[0].FrameOfReferenceUID == other[0].FrameOfReferenceUID == frame_of_reference_uid(scan)


def test_another_grid_replaces_the_series(scan: Scan) -> None:
    usual, moved = series(scan), series(scan, grid=replace(GRID, centre_mm_xyz=(0.0, 0.0, 0.0)))
    assert [ds.SOPInstanceUID for ds in usual] == [ds.SOPInstanceUID for ds in moved]


def test_the_same_scan_set_in_another_study_is_another_series_and_frame(scan: Scan) -> None:
    header = copy.deepcopy(scan.header)
    header.StudyInstanceUID, header.PatientID = "1.2.3.5", "M-2"
    usual, other = series(scan)[0], series(replace(scan, header=header))[0]
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        assert usual[keyword].value != other[keyword].value, keyword


@pytest.mark.parametrize(("number", "expected"), [(7, 702), (21474836, 2147483602), (21474837, 2), (-30000000, 2)])
def test_the_number_of_a_series_is_an_is(scan: Scan, number: int, expected: int) -> None:
    header = copy.deepcopy(scan.header)
    header.SeriesNumber = number
    assert series(replace(scan, header=header))[0].SeriesNumber == expected


def test_a_detector_distance_that_nobody_told_is_left_out(scan: Scan) -> None:
    assert float(series(scan)[0].DistanceSourceToDetector) == 300
    assert "DistanceSourceToDetector" not in series(replace(scan, knows_detector_distance=False))[0]


def test_energies_are_told_in_the_elements_of_the_projections(scan: Scan) -> None:
    told = elements.read(dcmread(to_file(series(scan)[0])))
    assert told == {
        "EnergyBinIndex": 2, "EnergyThresholdLow": 25.0, "EnergyThresholdHigh": 38.0, "EffectiveEnergy": 31.0,
        "WaterAttenuation": WATER_PER_CM,
    }  # fmt: skip
    assert "EffectiveEnergy" not in elements.read(series(scan, replace(BIN, effective_kev=None))[0])


def test_the_order_of_the_recipe_does_not_matter(scan: Scan) -> None:
    turned = dict(reversed(RECIPE.items()))
    assert series(scan)[0].SeriesInstanceUID == series(scan, recipe=turned)[0].SeriesInstanceUID


def test_uids_are_unique_and_under_the_root(scan: Scan) -> None:
    slices = series(scan)
    assert len({ds.SOPInstanceUID for ds in slices}) == 3
    for ds in slices:
        assert ds.SOPInstanceUID.startswith(UID_ROOT)
        assert len(ds.SOPInstanceUID) <= 64
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == CTImageStorage


def test_patient_study_and_provenance(scan: Scan) -> None:
    ds = dcmread(to_file(series(scan)[1]))
    assert str(ds.PatientName) == "Müller^Jürgen"
    assert (ds.PatientID, ds.StudyInstanceUID, ds.AccessionNumber) == ("M-1", "1.2.3.4", "A1")
    assert ds.PatientSpeciesDescription == "Mus musculus"
    assert (ds.Modality, ds.SeriesDescription, ds.SeriesNumber) == ("CT", "FDK 25-38 keV", 702)
    assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "AXIAL", "ENERGY_BIN"]
    assert ds.PatientPosition == "HFS"
    for told in ("method=FDK", "filter=hann", "cutoff=0.75", "views=4", "water_per_cm=0.25", "geometry_from=vectors"):
        assert told in ds.DerivationDescription, told
    referenced = {(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in ds.SourceImageSequence}
    assert referenced == {(s.sop_class_uid, s.sop_instance_uid) for s in scan.sources}
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in ds.SourceImageSequence} == {"121358"}
    scanner, node = ds.ContributingEquipmentSequence
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("MARS", "Extremity 5X120")
    assert node.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (node.Manufacturer, node.SoftwareVersions) == ("Tharsis", version())
    assert ds.Manufacturer == "Tharsis"


def test_energies_are_told_in_standard_attributes(scan: Scan) -> None:
    ds = dcmread(to_file(series(scan)[1]))
    assert (ds.MultienergyCTAcquisition, ds.KVP) == ("YES", None)
    (acquisition,) = ds.MultienergyCTAcquisitionSequence
    detectors = acquisition.MultienergyCTXRayDetectorSequence
    assert [(float(d.NominalMinEnergy), float(d.NominalMaxEnergy)) for d in detectors] == [(10, 25), (25, 38)]
    assert [d.get("EffectiveBinEnergy") for d in detectors] == [None, 31.0]
    assert {d.MultienergyDetectorType for d in detectors} == {"PHOTON_COUNTING"}
    paths = acquisition.MultienergyCTPathSequence
    assert [(p.ReferencedXRaySourceIndex, p.ReferencedXRayDetectorIndex) for p in paths] == [(1, 1), (1, 2)]
    assert acquisition.MultienergyAcquisitionDescription.endswith("these images show path 2")
    assert tube_voltage(ds) == 118.0


def test_the_exposure_is_told_as_far_as_the_scan_tells_it(scan: Scan) -> None:
    scan = replace(scan, header=copy.deepcopy(scan.header))
    scan.header.ExposureTimeInms, scan.header.XRayTubeCurrentInmA, scan.header.FocalSpots = 4000.0, 0.5, ["0.05"]
    acquisition = series(scan)[0].MultienergyCTAcquisitionSequence[0]
    (exposure,), (details,) = acquisition.CTExposureSequence, acquisition.CTXRayDetailsSequence
    assert (exposure.ExposureTimeInms, exposure.XRayTubeCurrentInmA, exposure.ExposureInmAs) == (4000.0, 0.5, 2.0)
    assert details.FocalSpots == 0.05


@pytest.mark.parametrize(
    ("told", "milliamperes"),
    [
        ({"XRayTubeCurrentInuA": "80.5"}, 0.0805),
        ({"XRayTubeCurrentInuA": "80.5", "XRayTubeCurrent": 0}, 0.0805),
        ({"XRayTubeCurrentInmA": 0.2, "XRayTubeCurrentInuA": "80.5"}, 0.2),
        ({"XRayTubeCurrent": 120}, 120.0),
    ],
)
def test_the_current_of_a_micro_focus_source_is_told_in_microamperes(
    scan: Scan, told: dict[str, object], milliamperes: float
) -> None:
    scan = replace(scan, header=copy.deepcopy(scan.header))
    for keyword, value in told.items():
        setattr(scan.header, keyword, value)
    (exposure,) = series(scan)[0].MultienergyCTAcquisitionSequence[0].CTExposureSequence
    assert exposure.XRayTubeCurrentInmA == pytest.approx(milliamperes)


@pytest.mark.parametrize("missing", ["another bin", "thresholds", "date"])
def test_nothing_is_claimed_of_energies_that_are_not_known(scan: Scan, missing: str) -> None:
    if missing == "another bin":
        scan = replace(scan, bins=(BIN,))
    elif missing == "thresholds":
        scan = replace(scan, bins=(EnergyBin(1), BIN))
    else:
        scan = replace(scan, header=copy.deepcopy(scan.header))
        del scan.header.AcquisitionDateTime, scan.header.SeriesDate
    ds = series(scan)[0]
    assert "MultienergyCTAcquisition" not in ds
    assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert tube_voltage(ds) == float(ds.KVP) == 118.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"volume": np.zeros((3, 4, 4), np.float32)}, r"expected a volume of shape \(3, 4, 5\), got \(3, 4, 4\)"),
        ({"volume": np.full(GRID.shape_zyx, np.nan, np.float32)}, "not finite"),
    ],
)
def test_volumes_that_cannot_be_written_are_refused(scan: Scan, changes: dict[str, Any], sentence: str) -> None:
    for water in (WATER_PER_CM, None):
        with pytest.raises(ValueError, match=sentence):
            series(scan, replace(BIN, water_per_cm=water), **changes)


def test_progress_goes_to_one(scan: Scan) -> None:
    fractions: list[float] = []
    images = ct_series(volume(), GRID, scan=scan, energy_bin=BIN, recipe=RECIPE, progress=fractions.append)
    assert next(images) is not None
    assert fractions == []
    assert len(list(images)) == 2
    assert fractions == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("body_part", ["CHEST", "LEG", ""])
@pytest.mark.parametrize("water", [WATER_PER_CM, None])
def test_dciodvfy_finds_no_error(
    scan: Scan, tmp_path: Path, validator_errors: Validator, body_part: str, water: float | None
) -> None:
    header = Dataset(scan.header)
    header.BodyPartExamined = body_part
    dataset = series(replace(scan, header=header), replace(BIN, water_per_cm=water))[0]
    path = tmp_path / "slice.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert validator_errors(path) == []
