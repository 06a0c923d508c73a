"""The key picture of a stored SEG: the right planes the right way up, in a Secondary Capture."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from segmented import (
    CT,
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

from plugins.embedding import is_picture
from plugins.measurement.drawing import Entry, draw
from plugins.measurement.key_picture import key_picture
from plugins.measurement.picture import volume_text
from plugins.measurement.planes import Plane, centre_of, three_planes, window_of
from plugins.measurement.segments import SegmentVoxels, coded_names, segments_of, voxels_of
from plugins.measurement.subject import Source
from plugins.node import CannotProceed, Series
from plugins.pictures import is_drawn
from plugins.segmentation.source_grid import source_grid
from reconstruct.dicom_items import code


@pytest.fixture
def drawn(archive, tmp_path):
    """An archive with a CT and the SEG of another program, and its picture."""
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, report_settings(tmp_path))
    return archive


def picture_of(archive) -> pydicom.Dataset:
    (path,) = paths_of(archive, "OT")
    return pydicom.dcmread(path)


def one_voxel(z, y, x) -> SegmentVoxels:
    layer = np.zeros(SHAPE, np.uint16)
    layer[z, y, x] = 1
    return SegmentVoxels((layer,), {1: 0})


def test_head_left_and_back_are_where_the_letters_say():
    voxels = one_voxel(SHAPE[0] - 2, SHAPE[1] - 3, SHAPE[2] - 4)  # near the head, the back and the patient's left
    planes = three_planes(np.zeros(SHAPE, np.float32), voxels, (1,), SPACING, centre_of(voxels, (1,)))
    sides = []
    for plane in planes:
        ((row, column),) = np.argwhere(plane.masks[1])
        assert (row, column) == plane.cross
        left, right, top, bottom = plane.sides
        rows, columns = plane.image.shape
        sides.append((right if column > columns / 2 else left, bottom if row > rows / 2 else top))
    assert sides == [("L", "P"), ("L", "H"), ("P", "H")]


ORIENTATIONS = {
    "prone": ([-1, 0, 0, 0, -1, 0], lambda volume: volume[..., ::-1, ::-1]),
    "rows to the front": ([0, -1, 0, 1, 0, 0], lambda volume: volume[..., ::-1, :].swapaxes(-1, -2)),
    "rows to the back": ([0, 1, 0, -1, 0, 0], lambda volume: volume[..., ::-1].swapaxes(-1, -2)),
}
"""Image Orientation (Patient), and how the voxels of the supine patient are stored in it."""


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_that_run_otherwise_give_the_picture_of_those_that_run_to_the_left(
    drawn, archive, tmp_path, orientation
):
    """The same patient, other rows: the same pixels, letters, bar and scale."""
    first = picture_of(drawn).pixel_array
    cosines, stored = ORIENTATIONS[orientation]
    (dz, dy, dx), (_, rows, columns) = SPACING, SHAPE
    corner = np.array([-10.0, 20.0])
    corner += [(columns - 1) * dx if -1 in (cosines[0], cosines[3]) else 0, 0]
    corner += [0, (rows - 1) * dy if -1 in (cosines[1], cosines[4]) else 0]
    values, masks = truth()
    images = slices(
        np.ascontiguousarray(stored(values)), ImageOrientationPatient=cosines,
        ImagePositionPatient=lambda z: [*corner, 30 + dz * z], PixelSpacing=[dx, dy] if cosines[1] else [dy, dx],
    )  # fmt: skip
    store(archive, *images, seg_of(images, stored(masks)))
    assert not work(archive, report_settings(tmp_path))
    assert np.array_equal(first, picture_of(archive).pixel_array)


def test_rows_along_no_axis_of_the_patient_are_measured_and_not_drawn(archive, tmp_path):
    values, masks = truth()
    images = slices(values, ImageOrientationPatient=[0.8, 0.6, 0, -0.6, 0.8, 0])
    store(archive, *images, seg_of(images, masks))
    failed = work(archive, report_settings(tmp_path))
    assert failed == {
        "picture": f"rows and columns of series {CT} run along no axis of the patient, which is what can be drawn"
    }
    assert paths_of(archive, "SR")


def test_a_plane_has_the_size_of_what_it_shows():
    voxels = one_voxel(5, 5, 5)
    planes = three_planes(np.zeros(SHAPE, np.float32), voxels, (1,), SPACING, (5, 5, 5))
    z, y, x = (count * step for count, step in zip(SHAPE, SPACING, strict=True))
    assert [plane.size_mm for plane in planes] == [(y, x), (z, x), (z, y)]


def test_planes_go_through_the_centre_of_mass():
    _, masks = truth()
    layer = masks[0].astype(np.uint16)
    expected = tuple(round(float(part)) for part in np.argwhere(masks[0]).mean(axis=0))
    assert centre_of(SegmentVoxels((layer,), {1: 0}), (1,)) == expected
    with pytest.raises(ValueError, match="no voxels"):
        centre_of(SegmentVoxels((np.zeros(SHAPE, np.uint16),), {1: 0}), (1,))


def test_a_little_bone_leaves_contrast_to_soft_tissue():
    values = np.random.default_rng(1).normal(40, 10, SHAPE).astype(np.float32)
    values[:, :2, :2] = 3000
    low, high = window_of(values, SegmentVoxels((np.ones(SHAPE, np.uint16),), {1: 0}))
    assert low < 40 < high < 300


def test_pixels_have_the_aspect_and_the_scale_of_the_patient():
    """A square of 20 mm in voxels of 0.5 × 2 mm is a square in the picture, and the bar measures it."""
    mask = np.zeros((80, 20), bool)
    mask[20:60, 5:15] = True
    plane = Plane("Axial", np.zeros(mask.shape, np.float32), {1: mask}, (0.5, 2.0), ("R", "L", "A", "P"), (40, 10))
    entry = Entry(1, "#ff0000", "a", "1", "2")
    pixels = draw([plane], [entry], window=(0, 1), title="", subtitle="", width=700)
    assert pixels.shape[1] == 700
    red = (pixels[..., 0] > 20) & (pixels[..., 1] < 10) & (pixels[..., 2] < 10)
    red[-60:] = False  # the legend
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert wide == pytest.approx(tall, abs=3)
    bar = max(np.flatnonzero(row.min(axis=-1) > 220).size for row in pixels[rows.max() :])
    assert bar == pytest.approx(tall / 2, abs=3), "10 mm: the longest of 1, 2, 5 that is at most a quarter of 40 mm"


def test_segments_are_shown_in_their_colours(drawn):
    pixels = picture_of(drawn).pixel_array.astype(int)
    for segment in segments_of(pydicom.dcmread(paths_of(drawn, "SEG")[0])):
        colour = np.array([int(segment.colour[place : place + 2], 16) for place in (1, 3, 5)])
        assert (np.abs(pixels - colour).max(axis=-1) < 8).sum() > 14 * 14, "the legend alone has so many"


def test_a_colour_that_the_seg_recommends_is_taken():
    values, masks = truth()
    seg = seg_of(slices(values), masks)
    seg.SegmentSequence[0].RecommendedDisplayCIELabValue = [34885, 53485, 50171]  # sRGB red
    assert segments_of(seg)[0].colour == "#ff0000"


def test_colours_of_many_segments_differ():
    values, masks = truth()
    seg = seg_of(slices(values), masks)
    template = seg.SegmentSequence[0]
    seg.SegmentSequence = [pydicom.Dataset(template) for _ in range(60)]
    for number, item in enumerate(seg.SegmentSequence, start=1):
        item.SegmentNumber = number
    assert len({segment.colour for segment in segments_of(seg)}) == 60


def test_it_is_a_secondary_capture_that_says_where_it_comes_from(drawn, validator_errors):
    (path,) = paths_of(drawn, "OT")
    assert validator_errors(path) == []
    picture = pydicom.dcmread(path)
    assert picture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (picture.ConversionType, picture.BurnedInAnnotation) == ("WSD", "NO")
    assert "RecognizableVisualFeatures" not in picture, "the slices do not tell"
    assert list(picture.ImageType) == ["DERIVED", "SECONDARY", "KEY PICTURE"]
    assert (picture.StudyInstanceUID, str(picture.PatientName)) == (STUDY, "Müller^Jörg")
    assert "FrameOfReferenceUID" not in picture
    named = {item.ReferencedSOPInstanceUID for item in picture.SourceImageSequence}
    assert named == {f"{SEG}.1", *(f"{CT}.{z}" for z in range(SHAPE[0]))}
    assert "version=3" in picture.DerivationDescription


def test_what_names_the_patient_is_not_in_the_pixels(drawn, archive, tmp_path):
    """The same case under another name gives the same pixels."""
    first = picture_of(drawn).pixel_array
    values, masks = truth()
    images = slices(values, PatientName="Other^Name", PatientID="ANOTHER", StudyDate="19991231")
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, report_settings(tmp_path))
    second = picture_of(archive)
    assert str(second.PatientName) == "Other^Name"
    assert np.array_equal(first, second.pixel_array)


def test_what_another_program_calls_its_segments_is_not_in_the_pixels(drawn, archive, tmp_path):
    """Labels and the name of the algorithm are free text; the codes are shown instead."""
    first = picture_of(drawn).pixel_array
    values, masks = truth()
    images = slices(values)
    seg = seg_of(images, masks)
    for item in seg.SegmentSequence:
        item.SegmentLabel, item.SegmentAlgorithmName = f"of Mr Müller, {item.SegmentNumber}", "Dr Weiß"
    store(archive, *images, seg)
    assert not work(archive, report_settings(tmp_path))
    assert np.array_equal(first, picture_of(archive).pixel_array)


def test_codes_tell_segments_apart():
    values, masks = truth()
    seg = seg_of(slices(values), masks)
    one, other = seg.SegmentSequence
    left = code("7771000", "SCT", "Left")
    for item, modifiers in ((one, [left]), (other, [])):
        (kind,) = item.SegmentedPropertyTypeCodeSequence = [code("64033007", "SCT", "Kidney")]
        kind.SegmentedPropertyTypeModifierCodeSequence = modifiers
    assert coded_names(segments_of(seg)) == {1: "Kidney, left", 2: "Kidney"}
    one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = []
    assert coded_names(segments_of(seg)) == {1: "Kidney (segment 1)", 2: "Kidney (segment 2)"}
    one.AnatomicRegionSequence = [code("64033007", "SCT", "Kidney")]
    one.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [left]
    assert coded_names(segments_of(seg)) == {1: "Kidney, left", 2: "Kidney"}
    del one.AnatomicRegionSequence
    for item in (one, other):
        del item.SegmentedPropertyTypeCodeSequence, item.SegmentedPropertyCategoryCodeSequence
    assert coded_names(segments_of(seg)) == {1: "Segment 1", 2: "Segment 2"}


@pytest.mark.parametrize(
    ("told", "expected"), [({}, None), ({"all": "NO"}, "NO"), ({"all": "NO", 3: "YES"}, "YES"), ({3: "NO"}, None)]
)
def test_what_identifies_the_patient_in_the_slices_does_so_in_the_picture(told, expected):
    values, masks = truth()
    images = slices(values)
    for place, image in enumerate(images):
        if answer := told.get(place, told.get("all")):
            image.BurnedInAnnotation = image.RecognizableVisualFeatures = answer
    picture = key_picture(
        np.zeros((4, 4, 3), np.uint8), seg_of(images, masks), images, series_uid="2.25.1", description=""
    )
    assert picture.get("RecognizableVisualFeatures") == expected
    assert picture.BurnedInAnnotation == ("YES" if expected == "YES" else "NO")


def test_key_pictures_and_reports_are_no_cases(drawn):
    """They are neither embedded nor segmented, and nothing is made of them in turn."""
    embedded = drawn.database.execute(
        "SELECT DISTINCT series_instance_uid FROM embedding JOIN series ON series.id = embedding.series"
    ).fetchall()
    assert embedded == [(CT,)]
    for modality in ("SR", "OT"):
        series = Series(drawn, str(pydicom.dcmread(paths_of(drawn, modality)[0]).SeriesInstanceUID))
        assert not is_picture(series)
    sources = drawn.database.execute("SELECT DISTINCT source FROM derivation").fetchall()
    assert sources == [(SEG,)]


def test_another_secondary_capture_is_no_key_picture(drawn):
    picture = picture_of(drawn)
    assert is_drawn(picture)
    picture.ImageType = ["DERIVED", "SECONDARY"]
    assert not is_drawn(picture)


def test_segments_without_a_voxel_have_no_picture(archive, tmp_path):
    values, masks = truth()
    images = slices(values)
    store(archive, *images, seg_of(images, masks))
    assert not work(archive, report_settings(tmp_path, min_volume_mm3=1e9))
    assert not paths_of(archive, "OT")
    assert not paths_of(archive, "SR")


def source_of(images):
    return Source(CT, tuple(images), source_grid(images), "HU", None)


def test_overlapping_segments_keep_all_their_voxels():
    values, masks = truth()
    images = slices(values)
    assert (masks[0] & masks[1]).any()
    voxels = voxels_of(seg_of(images, masks), source_of(images))
    assert len(voxels.layers) == 2
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal(voxels.mask(number), mask)


def test_a_seg_whose_images_are_not_all_stored_is_refused_in_a_sentence():
    values, masks = truth()
    images = slices(values)
    seg = seg_of(images, masks)
    images[3].SOPInstanceUID = "2.25.53"
    with pytest.raises(CannotProceed, match=f"1 of 12 images of series {CT} that SEG {SEG}.1 refers to are not stored"):
        voxels_of(seg, source_of(images))


@pytest.mark.parametrize(
    ("mm3", "text"),
    [(0.0, "0.00 mm³"), (3.456, "3.46 mm³"), (999.4, "999 mm³"), (4234.0, "4.23 mL"), (1_234_567.0, "1,235 mL")],
)
def test_volumes_are_written_with_three_digits(mm3, text):
    assert volume_text(mm3) == text


def test_a_seg_of_another_program_is_read_on_its_images(shared_data):
    """Written by dcmqi, which does not say that spatial locations are preserved."""
    folder = shared_data / "dcmqi" / "data" / "segmentations"
    images = [pydicom.dcmread(path) for path in sorted((folder / "ct-3slice").glob("*.dcm"))]
    seg = pydicom.dcmread(folder / "liver.dcm")
    source = Source(str(images[0].SeriesInstanceUID), tuple(images), source_grid(images), "HU", None)
    voxels = voxels_of(seg, source)
    expected = sum(int(frame.sum()) for frame in seg.pixel_array.reshape(-1, seg.Rows, seg.Columns))
    assert int(voxels.mask(1).sum()) == expected > 1000
