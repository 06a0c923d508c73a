"""The measurement report (TID 1500) of a stored SEG: right numbers, in the words of the standard, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.sr.codedict import codes
from segmented import (
    BONE,
    CT,
    FRAME,
    LABELS,
    LIVER,
    SEG,
    SHAPE,
    SPACING,
    STUDY,
    paths_of,
    report_settings,
    seg_of,
    slices,
    store,
    truth,
    work,
)  # fmt: skip

from index.keys import Level
from plugins.measurement.report import finding_sites
from plugins.measurement.segments import segments_of
from plugins.measurement.subject import read_source
from plugins.node import Series
from plugins.segmentation.plugin import read_volume
from plugins.segmentation.seg_object import read_labels
from reconstruct.dicom_items import code, item_of
from reconstruct.simulate import simulate_scan

MEASURES = {
    codes.SCT.Mean: np.mean, codes.SCT.StandardDeviation: np.std, codes.SCT.Minimum: np.min, codes.SCT.Maximum: np.max,
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return report_settings(tmp_path)


@pytest.fixture
def measured(archive, settings):
    """An archive with a CT and the SEG of another program, and its report."""
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, settings)
    return archive


def groups_of(path: Path) -> list:
    return highdicom.sr.srread(path).content.get_volumetric_roi_measurement_groups()


def numbers_of(group) -> dict:
    return {(item.name, item.derivation): (item.value, item.unit) for item in group.get_measurements()}


def test_the_numbers_are_those_of_the_voxels(measured):
    values, masks = truth()
    (path,) = paths_of(measured, "SR")
    groups = groups_of(path)
    assert len(groups) == 2
    for group, mask in zip(groups, masks, strict=True):
        numbers = numbers_of(group)
        volume, unit = numbers.pop((codes.SCT.Volume, None))
        assert volume == pytest.approx(mask.sum() * np.prod(SPACING), rel=1e-12)
        assert unit == codes.UCUM.CubicMillimeter
        assert len(numbers) == len(MEASURES)
        for derivation, expected in MEASURES.items():
            value, unit = numbers[codes.DCM.AttenuationCoefficient, derivation]
            assert value == pytest.approx(expected(values[mask].astype(np.float64)), rel=1e-9)
            assert unit == codes.UCUM.HounsfieldUnit


def test_a_group_says_which_segment_of_what(measured):
    (path,) = paths_of(measured, "SR")
    for number, (group, kind) in enumerate(zip(groups_of(path), (LIVER, BONE), strict=True), start=1):
        assert group.finding_type == kind
        assert group.finding_category in (codes.SCT.Organ, codes.SCT.Tissue)
        assert (group.tracking_identifier, group.tracking_uid) == (f"lesion {number}", f"{SEG}.9.{number}")
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == f"{SEG}.1"
        assert list(segment.referenced_segment_numbers) == [number]
        assert segment.source_series_for_segmentation.value == CT


def test_the_report_says_who_measured_and_what_there_was_to_see(measured):
    (path,) = paths_of(measured, "SR")
    report = pydicom.dcmread(path)
    text = str(report.ContentSequence)
    assert str(report.PatientName) == "Müller^Jörg"
    assert report.StudyInstanceUID == STUDY
    for expected in ("Device Observer Name", "'THARSIS'", "CT unspecified body region", "Image Library", FRAME):
        assert expected in text
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    reached = np.flatnonzero(truth()[1].any(axis=(0, 2, 3)))
    assert named == {f"{SEG}.1", *(f"{CT}.{z}" for z in reached)}


def test_validator_and_dcmtk_read_it(measured, validator_errors, dcmtk):
    (path,) = paths_of(measured, "SR")
    assert validator_errors(path) == []
    told = dcmtk("dsrdump", "+Pc", path).stdout
    assert "Imaging Measurement Report" in told
    assert told.count('"Measurement Group"') == 2


LEFT, RIGHT = code("7771000", "SCT", "Left"), code("24028007", "SCT", "Right")
UPPER, G_A101 = code("261183002", "SCT", "Upper"), code("G-A101", "SRT", "Left")


@pytest.mark.parametrize(
    ("region", "of_region", "of_type", "site"),
    [
        ("Abdomen", [LEFT], [], ("Abdomen", codes.SCT.Left, None)),
        ("Abdomen", [UPPER, RIGHT], [], ("Abdomen", codes.SCT.Right, "Upper")),
        ("Abdomen", [], [RIGHT], ("Abdomen", codes.SCT.Right, None)),
        ("", [], [LEFT], ("Kidney", codes.SCT.Left, None)),
        ("", [], [G_A101], ("Kidney", codes.SCT.Left, None)),
        ("Abdomen", [], [], ("Abdomen", None, None)),
        ("", [], [], None),
    ],
    ids=["region", "region and place", "type beside region", "type", "SNOMED-RT", "no side", "nothing"],
)
def test_a_group_says_on_which_side_the_segment_is(region, of_region, of_type, site):
    values, masks = truth()
    item = seg_of(slices(values), masks).SegmentSequence[0]
    (kind,) = item.SegmentedPropertyTypeCodeSequence = [code("64033007", "SCT", "Kidney")]
    kind.SegmentedPropertyTypeModifierCodeSequence = of_type
    if region:
        (place,) = item.AnatomicRegionSequence = [code("818983003", "SCT", region)]
        place.AnatomicRegionModifierSequence = of_region
    found = finding_sites(segments_of(item_of(SegmentSequence=[item]))[0])
    assert [told(each) for each in found or []] == ([] if site is None else [site])


def told(site) -> tuple:
    """The place, the side and the topographical modifier of a Finding Site."""
    said = {item.name: item.value for item in site.get("ContentSequence", [])}
    modifier = said.get(codes.SCT.TopographicalModifier)
    return site.value.meaning, said.get(codes.SCT.Laterality), modifier and modifier.meaning


def test_left_and_right_kidney_are_two_findings(archive, settings, validator_errors, dcmtk):
    values, masks = truth()
    images = slices(values)
    seg = seg_of(images, masks)
    for item, side in zip(seg.SegmentSequence, (LEFT, RIGHT), strict=True):
        (kind,) = item.SegmentedPropertyTypeCodeSequence = [code("64033007", "SCT", "Kidney")]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    store(archive, *images, seg)
    assert not work(archive, settings)
    (path,) = paths_of(archive, "SR")
    assert validator_errors(path) == []
    lines = dcmtk("dsrdump", "+Pc", path).stdout.splitlines()
    assert [line.split('"')[-2] for line in lines if "Laterality" in line] == ["Left", "Right"]
    assert "version=2" in "".join(lines)


def test_dcmqi_reads_the_same_numbers(measured, tmp_path):
    dcmqi = pytest.importorskip("dcmqi")
    tool = Path(dcmqi.__file__).with_name("bin") / "tid1500reader"
    (path,) = paths_of(measured, "SR")
    target = tmp_path / "report.json"
    subprocess.run([tool, "--inputDICOM", path, "--outputMetadata", target], check=True, capture_output=True)
    values, masks = truth()
    groups = json.loads(target.read_text())["Measurements"]
    assert [group["ReferencedSegment"] for group in groups] == [1, 2]
    for group, mask in zip(groups, masks, strict=True):
        assert group["SourceSeriesForImageSegmentation"] == CT
        volume, mean, *_ = (float(item["value"]) for item in group["measurementItems"])
        assert volume == pytest.approx(mask.sum() * np.prod(SPACING), rel=1e-9)
        assert mean == pytest.approx(values[mask].mean(dtype=np.float64), rel=1e-9)


def test_attenuation_is_reported_as_attenuation(archive, settings):
    values, masks = truth()
    images = slices(values, per_cm=True)
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, settings)
    (path,) = paths_of(archive, "SR")
    value, unit = numbers_of(groups_of(path)[0])[codes.DCM.AttenuationCoefficient, codes.SCT.Mean]
    assert unit.value == "/cm"
    assert value == pytest.approx(0.2 + 1e-4 * values[masks[0]].mean(), rel=1e-6)


def test_an_empty_segment_has_no_volume_and_no_mean(archive, settings):
    values, masks = truth()
    images = slices(values)
    masks[1] = False
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, settings)
    (path,) = paths_of(archive, "SR")
    assert numbers_of(groups_of(path)[1]) == {(codes.SCT.Volume, None): (0.0, codes.UCUM.CubicMillimeter)}


def test_a_segment_below_the_smallest_volume_is_left_out(archive, tmp_path):
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks))
    assert masks[0].sum() < masks[1].sum()
    between = float(np.prod(SPACING)) * (masks[0].sum() + 1)
    assert not work(archive, report_settings(tmp_path, min_volume_mm3=between))
    (path,) = paths_of(archive, "SR")
    assert [group.tracking_identifier for group in groups_of(path)] == ["lesion 2"]


def test_every_seg_of_a_series_has_its_report(archive, settings):
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks, 1), seg_of(images, masks, 2))
    assert not work(archive, settings)
    reports = [pydicom.dcmread(path) for path in paths_of(archive, "SR")]
    assert len(reports) == 2
    assert len({report.SeriesInstanceUID for report in reports}) == 1


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ({"foreign": False}, set()),
        ({"enabled": False}, {"OT"}),
        ({"picture": False}, {"SR"}),
        ({}, {"SR", "OT"}),
    ],
)
def test_each_is_a_setting(archive, tmp_path, wanted, made):
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, report_settings(tmp_path, **wanted))
    assert {modality for modality in ("SR", "OT") if paths_of(archive, modality)} == made


def test_doing_it_again_makes_nothing_twice(measured, settings):
    def contents():
        return dict(measured.database.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall())

    before = contents()
    measured.jobs.push("series_stable", SEG)
    assert not work(measured, settings)
    assert contents() == before


def test_another_segmentation_of_that_name_replaces_both(measured, settings):
    values, masks = truth()
    before = [path.stem.split("-")[0] for modality in ("SR", "OT") for path in paths_of(measured, modality)]
    masks[0, 7] = masks[0, 6]
    store(measured, seg_of(slices(values), masks))
    assert not work(measured, settings)
    after = [path.stem.split("-")[0] for modality in ("SR", "OT") for path in paths_of(measured, modality)]
    assert after == before
    (path,) = paths_of(measured, "SR")
    volume, _ = numbers_of(groups_of(path)[0])[codes.SCT.Volume, None]
    assert volume == pytest.approx(masks[0].sum() * np.prod(SPACING))


def test_a_report_that_was_deleted_is_made_again(measured, settings):
    (path,) = paths_of(measured, "SR")
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    measured.delete(Level.IMAGE, uid)
    measured.jobs.push("series_stable", SEG)
    assert not work(measured, settings)
    (path,) = paths_of(measured, "SR")
    assert pydicom.dcmread(path).SOPInstanceUID == uid


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"Modality": "MR"}, "only CT is measured, and series 2.25.72 is MR"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "are not axial"),
        ({"FrameOfReferenceUID": "2.25.99"}, "has the Frame of Reference 2.25.74, its source 2.25.99"),
        ({"ImagePositionPatient": lambda z: [0, 0, 2.5 * z + 9 * (z > 6)]}, "not evenly spaced"),
        ({"RescaleType": "US"}, "the values of image 2.25.72.0 are neither in HU nor in 1/cm"),
    ],
    ids=["MR", "coronal", "another frame of reference", "a gap", "no unit"],
)
def test_a_source_that_cannot_be_measured_is_told_in_a_sentence(archive, settings, attributes, sentence):
    values, masks = truth()
    seg = seg_of(slices(values), masks)
    store(archive, *slices(values, **attributes), seg)
    failed = work(archive, settings)
    assert sentence in failed["measure"]
    assert failed["picture"] == failed["measure"]


@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientSex", "W"), ("PatientBirthDate", "00000000"), ("StudyTime", "10:15:00")]
)
def test_values_that_the_standard_does_not_allow_are_taken_over_as_they_are(archive, settings, keyword, value):
    values, masks = truth()
    images = slices(values)
    seg = seg_of(images, masks)
    for dataset in (*images, seg):
        dataset[keyword] = DataElement(keyword, dictionary_VR(keyword), value, validation_mode=0)
    store(archive, *images, seg)
    assert not work(archive, settings)
    (path,) = paths_of(archive, "SR")
    assert pydicom.dcmread(path)[keyword].value == value


def test_a_seg_whose_source_is_not_stored_says_so(archive, settings):
    values, masks = truth()
    store(archive, seg_of(slices(values), masks))
    assert work(archive, settings)["measure"] == f"the series that SEG {SEG}.1 segments is not stored: {CT}"


def test_sheared_slices_have_the_volume_of_their_voxels(archive):
    """A tilted gantry: slices do not lie straight above each other, and their distance is that of their planes."""
    values, _ = truth()
    store(archive, *slices(values, ImagePositionPatient=lambda z: [0, 0.9 * z, 2.5 * z]))
    source, read = read_source(Series(archive, CT))
    assert read.shape == SHAPE
    assert source.voxel_mm3 == pytest.approx(np.prod(SPACING))


def test_every_energy_bin_is_measured(archive, tmp_path, validator_errors):
    """A scan of two bins, from projections to the report: as many groups as segments and bins."""
    store(archive, *simulate_scan("calibration", views=24, rows=16, columns=20, thresholds_kev=(18, 45), seed=1))
    settings = report_settings(tmp_path, foreign=False)
    assert not work(archive, settings)
    (path,) = paths_of(archive, "SR")
    assert validator_errors(path) == []
    (seg_path,) = paths_of(archive, "SEG")
    rows = archive.database.execute(
        "SELECT series_instance_uid FROM series WHERE modality = 'CT' ORDER BY CAST(series_number AS INTEGER)"
    ).fetchall()
    bins = [read_volume(Series(archive, uid).paths)[1] for (uid,) in rows]
    labels = read_labels(pydicom.dcmread(seg_path), bins[0].values.shape)
    groups = groups_of(path)
    assert len(groups) == labels.max() * len(bins) > 2
    for place, group in enumerate(groups):
        segment, which = divmod(place, len(bins))
        numbers = numbers_of(group)
        inside = bins[which].values[labels == segment + 1].astype(np.float64)
        assert numbers[codes.DCM.AttenuationCoefficient, codes.SCT.Mean][0] == pytest.approx(inside.mean(), rel=1e-9)
        assert ((codes.SCT.Volume, None) in numbers) is (which == 0)
        mean = group.get_measurements(name=codes.DCM.AttenuationCoefficient)[0]
        assert mean.derivation == codes.SCT.Mean
        inferred = {str(item.name.meaning): item.value for item in mean[0].ContentSequence}
        assert inferred["Series Instance UID"] == rows[which][0]
        assert inferred["Photon Energy"].value == ("18-45keV", "45-118keV")[which]
        assert group.tracking_identifier.endswith(("18-45 keV", "45-118 keV")[which])
    assert len({group.tracking_uid for group in groups}) == labels.max()


def test_hooks_are_asked_without_matplotlib():
    program = "import sys, plugins.measurement.plugin, plugins.embedding; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_labels_of_any_script_stay_what_they_are(measured, tmp_path):
    dataset = pydicom.dcmread(paths_of(measured, "SEG")[0])
    assert [str(item.SegmentLabel) for item in dataset.SegmentSequence] == list(LABELS)
