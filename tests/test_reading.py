"""Stored SEG of every kind back to label maps on the grid of their images, voxel by voxel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import JPEG2000Lossless, RLELossless
from stacks import (
    ALGORITHM,
    AXIAL,
    CORONAL,
    OBLIQUE,
    ORGANS,
    SAGITTAL,
    images,
    multi_frame,
    random_labels,
    segmentation,
    uid,
)

from plugins.node import CannotProceed
from plugins.segmentation.reading import Reading, fractions, name_of, read_segmentation
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.segmenter import Segment, Segmentation
from plugins.segmentation.source_grid import SourceGrid, grid_of_files, source_grid

SHAPE = (6, 20, 17)
LABELS = random_labels(SHAPE, 4, seed=1)


def written(slices: list[Dataset], pixels: np.ndarray, kind: str = "BINARY", **options: Any) -> Dataset:
    """A SEG by highdicom: labels, or one channel for each segment that may overlap or be fractional."""
    count = pixels.shape[-1] if pixels.ndim == 4 else int(pixels.max())
    descriptions = [
        highdicom.seg.SegmentDescription(
            number, name, Code("91723000", "SCT", "Anatomical Structure"), Code(value, "SCT", name), "MANUAL",
            tracking_uid=uid("finding", name), tracking_id=f"finding {name}",
        )
        for number, (name, value) in enumerate(ORGANS[:count], start=1)
    ]
    seg = highdicom.seg.Segmentation(
        slices, pixels, kind, descriptions, uid("seg series"), 1, uid("seg"), 1, "m", "m", "1", "1", **options
    )
    seg.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return seg


def numbered(reading: Reading) -> np.ndarray:
    """The one label map, by segment numbers."""
    (only,) = reading.segmentations
    return np.array([0, *(segment.number for segment in only.segments)])[only.labels]


@pytest.mark.parametrize(
    ("seg", "source", "truths"),
    [
        ("liver.dcm", "ct-3slice", ["liver_seg"]),
        ("partial_overlaps.dcm", "ct-3slice", ["partial_overlaps-1", "partial_overlaps-2", "partial_overlaps-3"]),
        ("23x38x3/seg/label.seg", "23x38x3/image", ["23x38x3/nrrd/label"]),
        ("23x38x3/seg/label.seg", "23x38x3/multiframe", ["23x38x3/nrrd/label"]),
        ("24x38x3/seg/label.seg", "24x38x3/image", ["24x38x3/nrrd/label"]),
        ("24x38x3/seg/label.seg", "24x38x3/multiframe", ["24x38x3/nrrd/label"]),
        ("sparse-labelmap-noppv.dcm", "24x38x3/image", ["sparse_labelmap_noppv_seg"]),
        ("sparse-labelmap-ppv5.dcm", "24x38x3/multiframe", ["sparse_labelmap_ppv5_seg"]),
    ],
)
def test_the_cases_of_dcmqi_equal_their_truth(shared_data: Path, seg: str, source: str, truths: list[str]) -> None:
    itk = pytest.importorskip("SimpleITK")
    folder = shared_data / "dcmqi" / "data" / "segmentations"
    grid = grid_of_files((folder / source).glob("*.dcm"))
    dataset = dcmread(folder / seg)
    reading = read_segmentation(dataset, grid)
    assert not reading.resampled
    assert not reading.notes
    assert len(reading.segmentations) == len(truths)
    for found, name in zip(reading.segmentations, truths, strict=True):
        image = itk.ReadImage(str(folder / f"{name}.nrrd"))
        truth = itk.GetArrayFromImage(image)
        # dcmqi fills slices without a frame with the padding value, which here is background.
        truth[truth == dataset.get("PixelPaddingValue", 0)] = 0
        numbers = np.array([0, *(segment.number for segment in found.segments)])
        np.testing.assert_array_equal(numbers[found.labels], truth)
        np.testing.assert_allclose(grid.placement.origin_mm_xyz, image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(grid.spacing_mm_zyx[::-1], image.GetSpacing(), atol=1e-6)


CT2 = "pydicom/src/pydicom/data/test_files/dicomdirtests/77654033/CT2"


@pytest.mark.parametrize(
    "name", ["ct_binary", "ct_binary_fractional", "ct_binary_overlap", "ct_true_fractional", "ct_binary_single_frame"]
)
def test_the_cases_of_highdicom_equal_what_its_reader_says(shared_data: Path, name: str) -> None:
    folder = shared_data / "highdicom" / "data" / "test_files"
    single = name.endswith("single_frame")
    grid = grid_of_files([folder / "ct_image.dcm"] if single else (shared_data / CT2).iterdir())
    reading = read_segmentation(dcmread(folder / f"seg_image_{name}.dcm"), grid)
    seg = highdicom.seg.segread(folder / f"seg_image_{name}.dcm")
    told = seg.get_pixels_by_source_instance(
        [name for name, _ in grid.frames], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert told.any()
    for found in reading.segmentations:
        for label, segment in enumerate(found.segments, start=1):
            np.testing.assert_array_equal(found.labels == label, told[..., segment.number - 1] >= 0.5)
            assert segment.label == seg.get_segment_description(segment.number).segment_label
            assert segment.algorithm.family.value == "123110"
    if "fractional" in name:
        ((segment, values),) = fractions(dcmread(folder / f"seg_image_{name}.dcm"), grid)
        np.testing.assert_allclose(values, told[..., segment.number - 1], atol=1e-6)


@pytest.mark.parametrize(
    ("seg", "image"),
    [
        ("sm_control", "control"), ("sm_numbers", "numbers"), ("sm_dots", "dots"), ("sm_dots_tiled_full", "dots"),
        ("sm_control_labelmap", "control"), ("sm_control_labelmap_palette_color", "control"),
    ],
)  # fmt: skip
def test_the_slides_of_highdicom_are_read_frame_by_frame(shared_data: Path, seg: str, image: str) -> None:
    folder = shared_data / "highdicom" / "data" / "test_files"
    grid = grid_of_files([folder / f"sm_image_{image}.dcm"])
    labels = numbered(read_segmentation(dcmread(folder / f"seg_image_{seg}.dcm"), grid))
    whole = highdicom.seg.segread(folder / f"seg_image_{seg}.dcm").get_total_pixel_matrix(combine_segments=True)
    assert whole.any()
    for (row, column), tile in zip(grid.tiling.tiles, labels, strict=True):
        np.testing.assert_array_equal(tile, whole[row - 1 : row + 9, column - 1 : column + 9])


def test_a_slide_and_another_tiling_do_not_fit(shared_data: Path) -> None:
    folder = shared_data / "highdicom" / "data" / "test_files"
    grid = grid_of_files([folder / "sm_image_control.dcm"])
    with pytest.raises(CannotProceed, match="no stack of slices"):
        read_segmentation(dcmread(folder / "seg_image_ct_binary.dcm"), grid)
    with pytest.raises(CannotProceed, match="expected one image of a slide, got 2"):
        grid_of_files([folder / "sm_image_control.dcm", folder / "sm_image_dots.dcm"])


def test_an_image_in_no_plane_is_matched_by_its_reference(
    shared_data: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset = dcmread(shared_data / "highdicom" / "data" / "test_files" / "seg_image_cr_binary.dcm")
    (item,) = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    image = make_dataset(Rows=16, Columns=16, SOPInstanceUID=item.ReferencedSOPInstanceUID)
    np.testing.assert_array_equal(numbered(read_segmentation(dataset, source_grid([image])))[0], dataset.pixel_array)
    with pytest.raises(CannotProceed, match="nor refers to any"):
        read_segmentation(dataset, source_grid([make_dataset(Rows=16, Columns=16)]))
    with pytest.raises(CannotProceed, match="another size: 16×16 on 8×8"):
        read_segmentation(dataset, source_grid([make_dataset()]))


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["ax", "cor", "sag", "oblique"])
@pytest.mark.parametrize(
    ("shape", "segments"), [(SHAPE, 4), ((1, 20, 17), 4), ((3, 5, 4), 1), ((2, 1, 1), 1)],
    ids=["stack", "one slice", "small", "one pixel"],
)  # fmt: skip
def test_labels_written_by_this_node_come_back_voxel_by_voxel(
    directions: tuple, shape: tuple[int, int, int], segments: int
) -> None:
    slices = images(shape, directions=directions)
    labels = random_labels(shape, segments, seed=7)
    dataset = seg_object(segmentation(labels), slices, recipe="{}")
    reading = read_segmentation(dataset, source_grid(slices[::-1]))
    np.testing.assert_array_equal(numbered(reading), labels)
    (found,) = reading.segmentations
    assert [name_of(segment) for segment in found.segments] == [name for name, _ in ORGANS[:segments]]
    assert (found.algorithm.name, found.algorithm.version) == ("Test", "1")
    assert found.algorithm.parameters == {"level": "5"}
    assert not reading.resampled


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_left_and_right_come_back(kind: Any, validator_errors: Callable[..., list[str]], tmp_path: Path) -> None:
    slices = images(SHAPE)
    organ = Code("91723000", "SCT", "Anatomical Structure"), Code("64033007", "SCT", "Kidney")
    sides = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
    segments = tuple(Segment(f"kidney {side.meaning}", *organ, modifiers=(side,)) for side in sides)
    made = Segmentation(random_labels(SHAPE, 2, seed=2), segments, ALGORITHM)
    seg = seg_object(made, slices, recipe="{}", kind=kind)
    (read,) = read_segmentation(seg, source_grid(slices)).segmentations
    assert [name_of(segment) for segment in read.segments] == ["Kidney, Left", "Kidney, Right"]
    assert [segment.modifiers for segment in read.segments] == [(side,) for side in sides]
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert validator_errors(tmp_path / "seg.dcm") == []


def test_a_single_voxel_comes_back() -> None:
    slices = images(SHAPE, directions=OBLIQUE)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4, 3, 16] = 1
    dataset = seg_object(segmentation(labels), slices, recipe="{}")
    np.testing.assert_array_equal(numbered(read_segmentation(dataset, source_grid(slices))), labels)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_in_any_order_and_gaps_in_the_series_are_found_by_their_planes(kind: str) -> None:
    slices = images(SHAPE, directions=OBLIQUE)
    dataset = written(slices, LABELS, kind, omit_empty_frames=True)
    shuffled = copy.deepcopy(dataset)
    frames = list(zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True))
    frames = [frames[index] for index in np.random.default_rng(5).permutation(len(frames))]
    shuffled.PerFrameFunctionalGroupsSequence = [group for group, _ in frames]
    bits = np.stack([pixels for _, pixels in frames])
    shuffled.PixelData = (np.packbits(bits, bitorder="little") if kind == "BINARY" else bits).tobytes()
    np.testing.assert_array_equal(numbered(read_segmentation(shuffled, source_grid(slices))), LABELS)
    kept = [0, 2, 3, 5]
    reading = read_segmentation(shuffled, source_grid([slices[index] for index in kept]))
    np.testing.assert_array_equal(numbered(reading), LABELS[kept])
    assert "lie on no slice of the images" in reading.notes[0]


def test_a_multi_frame_source_and_its_single_frames_give_the_same_labels() -> None:
    slices = images(SHAPE)
    image = multi_frame(slices, (5, 0, 3, 1, 4, 2))
    for source, pixels in ((slices, LABELS), ([image], LABELS[[5, 0, 3, 1, 4, 2]])):
        dataset = written(source, pixels)
        for grid in (source_grid(slices), source_grid([image])):
            np.testing.assert_array_equal(numbered(read_segmentation(dataset, grid)), LABELS)


def test_overlapping_segments_go_into_as_few_maps_as_they_need() -> None:
    slices = images(SHAPE)
    channels = np.zeros((*SHAPE, 4), np.uint8)
    channels[1:4, 2:9, 2:9, 0] = 1
    channels[2:5, 5:12, 5:12, 1] = 1
    channels[1:4, 12:15, 12:15, 2] = 1
    channels[3, 6, 6, 3] = 1
    reading = read_segmentation(written(slices, channels), source_grid(slices))
    assert [[segment.number for segment in found.segments] for found in reading.segmentations] == [[1, 3], [2], [4]]
    for found in reading.segmentations:
        for label, segment in enumerate(found.segments, start=1):
            np.testing.assert_array_equal(found.labels == label, channels[..., segment.number - 1] == 1)
            assert segment.tracking_id == f"finding {ORGANS[segment.number - 1][0]}"
            assert segment.tracking_uid
            assert segment.algorithm.name == "Manual"


@pytest.mark.parametrize("meaning", ["PROBABILITY", "OCCUPANCY"])
def test_fractions_are_cut_at_the_threshold_or_given_as_they_are(meaning: str) -> None:
    slices = images(SHAPE)
    values = np.random.default_rng(3).random((*SHAPE, 2)).astype(np.float32)
    dataset = written(
        slices, values, "FRACTIONAL", fractional_type=meaning, max_fractional_value=200
    )
    grid = source_grid(slices)
    for number, (segment, found) in enumerate(fractions(dataset, grid)):
        assert segment.number == number + 1
        np.testing.assert_allclose(found, values[..., number], atol=0.5 / 200 + 1e-6)
    for threshold in (0.5, 0.8):
        reading = read_segmentation(dataset, grid, threshold=threshold)
        stored = np.around(values * 200) / 200
        for found in reading.segmentations:
            for label, segment in enumerate(found.segments, start=1):
                np.testing.assert_array_equal(found.labels == label, stored[..., segment.number - 1] >= threshold)
    with pytest.raises(CannotProceed, match="expected a FRACTIONAL segmentation, got BINARY"):
        next(fractions(written(slices, LABELS), grid))


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [("FRACTIONAL", RLELossless), ("LABELMAP", RLELossless), ("LABELMAP", JPEG2000Lossless)],
)
def test_compressed_frames_are_read(kind: str, syntax: str) -> None:
    slices = images((3, 40, 32))
    labels = random_labels((3, 40, 32), 3, seed=6)
    dataset = written(slices, labels, kind)
    dataset.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(numbered(read_segmentation(dataset, source_grid(slices))), labels)


def test_a_label_map_of_more_segments_than_fit_in_a_byte_is_split() -> None:
    slices = images((1, 20, 20))
    dataset = written(slices, random_labels((1, 20, 20), 2, seed=2), "LABELMAP")
    values = np.arange(400, dtype=np.uint16).reshape(1, 20, 20) % 301
    item = dataset.SegmentSequence[-1]
    dataset.SegmentSequence = [copy.deepcopy(item) for _ in range(300)]
    for number, one in enumerate(dataset.SegmentSequence, start=1):
        one.SegmentNumber = number
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = values.tobytes()
    reading = read_segmentation(dataset, source_grid(slices))
    assert [len(found.segments) for found in reading.segmentations] == [255, 45]
    total = sum(
        np.array([0, *(segment.number for segment in found.segments)])[found.labels] for found in reading.segmentations
    )
    np.testing.assert_array_equal(total, values)
    del dataset.SegmentSequence[6]
    with pytest.raises(CannotProceed, match="holds the value 7, which is no segment"):
        read_segmentation(dataset, source_grid(slices))


def test_a_seg_on_another_grid_is_brought_over_by_nearest_neighbour_and_says_so() -> None:
    """A ball drawn on a fine sagittal grid, read on oblique slices: each voxel has the label of the nearest one."""
    fine = images((60, 64, 62), directions=SAGITTAL, origin=(30, -30, 32), spacing=(1, 1, 1), name="fine")
    coarse = images((14, 25, 27), directions=OBLIQUE, origin=(-20, -15, -30), spacing=(3, 2, 2), name="coarse")
    grid, fine_grid = source_grid(coarse), source_grid(fine)
    inside = np.linalg.norm(places(fine_grid) - (1.3, -0.4, 0.9), axis=-1) < 15
    dataset = seg_object(segmentation(inside.astype(np.uint8)), fine, recipe="{}")
    reading = read_segmentation(dataset, grid)
    assert reading.resampled
    assert "nearest neighbour" in reading.notes[0]
    index = (np.linalg.inv(fine_grid.placement.affine)[:3] @ np.concatenate(
        [places(grid), np.ones((*grid.shape_zyx, 1))], axis=-1)[..., None])[..., 0]  # fmt: skip
    nearest = np.round(index).astype(int)
    valid = ((nearest >= 0) & (nearest < fine_grid.shape_zyx)).all(axis=-1)
    z, y, x = np.moveaxis(np.where(valid[..., None], nearest, 0), -1, 0)
    expected = inside[z, y, x] & valid
    assert expected.sum() * 12 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.03)
    np.testing.assert_array_equal(numbered(reading), expected)


@pytest.mark.parametrize("keyword", ["SpacingBetweenSlices", "SliceThickness"])
def test_slices_that_a_seg_on_another_grid_leaves_out_stay_empty(keyword: str) -> None:
    """Frames without the segment need not be there: two that are far apart do not fill what lies between them."""
    coarse = images((20, 8, 8), origin=(0, 0, 0), spacing=(1, 2, 2), name="coarse")
    fine = images((20, 16, 16), origin=(-0.5, -0.5, 0), spacing=(1, 1, 1), name="fine")
    labels = np.zeros((20, 16, 16), np.uint8)
    labels[[3, 15], 4:8, 4:8] = 1
    dataset = seg_object(segmentation(labels), fine, recipe="{}")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for other in {"SpacingBetweenSlices", "SliceThickness"} - {keyword}:
        del measures[other]
    found = numbered(read_segmentation(dataset, source_grid(coarse)))
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [3, 15]
    assert found.sum() == 8


def test_a_spacing_that_the_places_of_the_frames_belie_is_not_believed() -> None:
    fine = images((4, 16, 16), origin=(-0.5, -0.5, 0), spacing=(3, 1, 1), name="fine")
    dataset = seg_object(segmentation(np.ones((4, 16, 16), np.uint8)), fine, recipe="{}")
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1.2
    coarse = images((10, 8, 8), origin=(0, 0, 0), spacing=(1, 2, 2), name="coarse")
    assert numbered(read_segmentation(dataset, source_grid(coarse))).all()


def test_the_same_voxels_in_other_axes_are_not_called_resampled() -> None:
    """A sagittal SEG of the voxels of an axial series, cropped: every voxel lies on one of the other grid."""
    axial = images((8, 10, 12), spacing=(2, 1, 1.5), origin=(0, 0, 0))
    side = images((6, 8, 10), directions=((0, 1, 0), (0, 0, 1)), spacing=(1.5, 2, 1), origin=(3, 0, 0), name="side")
    labels = random_labels((6, 8, 10), 3, seed=4)
    dataset = seg_object(segmentation(labels), side, recipe="{}")
    reading = read_segmentation(dataset, source_grid(axial))
    expected = np.zeros((8, 10, 12), np.uint8)
    expected[:, :, 2:8] = labels.transpose(1, 2, 0)
    np.testing.assert_array_equal(numbered(reading), expected)
    assert not reading.resampled


def test_frames_of_two_time_points_go_to_the_images_that_they_refer_to() -> None:
    first, second = images(SHAPE, name="first"), images(SHAPE, name="second")
    early, late = written(first, LABELS), written(second, np.roll(LABELS, 1, axis=2))
    early.PerFrameFunctionalGroupsSequence = [
        *early.PerFrameFunctionalGroupsSequence, *late.PerFrameFunctionalGroupsSequence
    ]  # fmt: skip
    bits = np.concatenate([written(first, LABELS).pixel_array, late.pixel_array])
    early.NumberOfFrames = len(bits)
    early.PixelData = np.packbits(bits, bitorder="little").tobytes()
    np.testing.assert_array_equal(numbered(read_segmentation(early, source_grid(first))), LABELS)
    np.testing.assert_array_equal(
        numbered(read_segmentation(early, source_grid(second))), np.roll(LABELS, 1, axis=2)
    )
    with pytest.raises(CannotProceed, match="expected one frame of segment 1 on a slice, got 2"):
        read_segmentation(early, source_grid(images(SHAPE, name="third")))


def test_without_a_common_frame_of_reference_the_references_count() -> None:
    slices = images(SHAPE)
    dataset = written(slices, LABELS)
    for slice_ in slices:
        slice_.FrameOfReferenceUID = uid("changed by somebody")
    np.testing.assert_array_equal(numbered(read_segmentation(dataset, source_grid(slices))), LABELS)
    others = images(SHAPE, name="others", frame_of_reference="another")
    with pytest.raises(CannotProceed, match="neither shares the Frame of Reference"):
        read_segmentation(dataset, source_grid(others))


def _without_groups(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[0]


def _without_type(dataset: Dataset) -> None:
    del dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence


def _without_number(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def _short(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:20]


def _surface(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.5"


def _far(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 1000


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_without_groups, "per-frame functional groups in the segmentation, got"),
        (_without_type, "segment 1 .* has no code"),
        (_without_number, "shows segment 9, which it does not describe"),
        (_short, "expected 680 bytes of pixels in the segmentation, got 20"),
        (_surface, "expected a segmentation, got Surface Segmentation"),
        (_far, "no frame of the segmentation lies on a slice"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(spoil: Callable[[Dataset], None], sentence: str) -> None:
    slices = images(SHAPE)
    dataset = written(slices, LABELS)
    spoil(dataset)
    with pytest.raises(CannotProceed, match=sentence):
        read_segmentation(dataset, source_grid(slices))


def places(grid: SourceGrid) -> np.ndarray:
    """Axes (z, y, x, xyz): where the voxels are, mm."""
    index = np.moveaxis(np.indices(grid.shape_zyx), 0, -1)
    return index @ grid.placement.affine[:3, :3].T + grid.placement.affine[:3, 3]
