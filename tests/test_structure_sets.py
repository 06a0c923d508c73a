"""RTSTRUCT contours to label maps: the pixel-centre rule, holes, places, codes, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pydicom import dcmread
from pydicom.dataset import Dataset
from stacks import AXIAL, CORONAL, OBLIQUE, images, structure_set

from plugins.node import CannotProceed
from plugins.segmentation.polygons import ON_LINE, filled
from plugins.segmentation.reading import Reading, name_of, read_segmentation
from plugins.segmentation.source_grid import grid_of_files, source_grid
from plugins.segmentation.structure_sets import referenced_images

SHAPE = (40, 50)


def box(top: float, left: float, bottom: float, right: float) -> np.ndarray:
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)], float)


def star(seed: int, centre: tuple[float, float] = (19.3, 24.8), radius: float = 15.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 40))
    lengths = random.uniform(0.3, 1.0, 40) * radius
    return np.stack([centre[0] + lengths * np.sin(angles), centre[1] + lengths * np.cos(angles)], axis=1)


def area(polygon: np.ndarray) -> float:
    y, x = polygon.T
    return abs(float(y @ np.roll(x, -1) - x @ np.roll(y, -1))) / 2


def by_matplotlib(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.indices(shape)
    near = ((rows >= polygon[:, 0].min()) & (rows <= polygon[:, 0].max())).ravel()
    near &= ((columns >= polygon[:, 1].min()) & (columns <= polygon[:, 1].max())).ravel()
    found = np.zeros(rows.size, bool)
    found[near] = Outline(polygon).contains_points(np.stack([rows.ravel()[near], columns.ravel()[near]], axis=1))
    return found.reshape(shape)


def distance(point: np.ndarray, polygon: np.ndarray) -> float:
    """From a point to the nearest edge, pixels."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    share = (((point - polygon) * edges).sum(axis=1) / (edges**2).sum(axis=1)).clip(0, 1)
    return float(np.linalg.norm(polygon + share[:, None] * edges - point, axis=1).min())


def masks(reading: Reading) -> dict[str, np.ndarray]:
    return {
        segment.label: found.labels == label
        for found in reading.segmentations
        for label, segment in enumerate(found.segments, start=1)
    }


@pytest.mark.parametrize("seed", range(8))
def test_pixels_are_those_that_another_rasteriser_finds(seed: int) -> None:
    polygon = star(seed)
    found = filled([polygon], SHAPE)
    different = np.argwhere(found != by_matplotlib(polygon, SHAPE))
    assert all(distance(pixel, polygon) <= ON_LINE for pixel in different)
    np.testing.assert_array_equal(filled([polygon[::-1]], SHAPE), found)


def test_a_polygon_across_the_border_of_the_picture_is_cut_there() -> None:
    polygon = star(3, centre=(1.2, 47.7))
    np.testing.assert_array_equal(filled([polygon], SHAPE), by_matplotlib(polygon, SHAPE))
    assert not filled([polygon + 1000.0], SHAPE).any()


def test_the_mean_area_of_pixels_is_that_of_the_polygon() -> None:
    counts = [filled([star(5) + shift], SHAPE).sum() for shift in np.random.default_rng(1).random((200, 2))]
    assert np.mean(counts) == pytest.approx(area(star(5)), rel=0.01)


def test_a_contour_in_a_contour_is_a_hole_and_one_in_that_is_filled() -> None:
    found = filled([box(4.5, 4.5, 30.5, 30.5), box(9.5, 9.5, 25.5, 25.5), box(14.5, 14.5, 20.5, 20.5)], SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[5:31, 5:31] = True
    expected[10:26, 10:26] = False
    expected[15:21, 15:21] = True
    np.testing.assert_array_equal(found, expected)


def test_a_keyhole_is_a_hole_and_its_channel_leaves_no_trace() -> None:
    outer, inner = box(4.5, 4.5, 30.5, 30.5), box(9.5, 9.5, 25.5, 25.5)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    np.testing.assert_array_equal(filled([keyhole], SHAPE), filled([outer, inner], SHAPE))


def test_pixel_centres_on_a_contour_are_inside() -> None:
    """As programs write that trace label maps: outer and inner contours run through pixels of the region."""
    expected = np.zeros(SHAPE, bool)
    expected[5:31, 5:31] = True
    expected[11:25, 11:25] = False
    np.testing.assert_array_equal(filled([box(5, 5, 30, 30), box(10, 10, 25, 25)], SHAPE), expected)
    noise = np.random.default_rng(0).normal(0, 1e-4, (2, 4, 2))
    np.testing.assert_array_equal(
        filled([box(5, 5, 30, 30) + noise[0], box(10, 10, 25, 25) + noise[1]], SHAPE), expected
    )
    line = filled([np.array([(3.0, 4.0), (3.0, 9.0)]), np.array([(7.0, 7.0)]), np.array([(20.0, 3), (25, 8)])], SHAPE)
    assert {tuple(map(int, pixel)) for pixel in np.argwhere(line)} == {
        *((3, column) for column in range(4, 10)), (7, 7), *((20 + step, 3 + step) for step in range(6)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
@pytest.mark.parametrize("directions", [AXIAL, CORONAL, OBLIQUE], ids=["axial", "coronal", "oblique"])
def test_regions_lie_on_the_slices_that_they_were_drawn_on(directions: tuple, kind: str) -> None:
    slices = images((5, *SHAPE), directions=directions)
    one, other = star(1), star(2, centre=(20.2, 30.1))
    dataset = structure_set(
        slices,
        [("Ring", [(1, one), (2, one), (2, box(17.5, 22.5, 20.5, 26.5))]), ("Other", [(2, other), (4, other)])],
        kind=kind,
    )
    reading = read_segmentation(dataset, source_grid(slices[::-1]))
    found = masks(reading)
    ring, overlapping = np.zeros((2, 5, *SHAPE), bool)
    ring[1] = filled([one], SHAPE)
    ring[2] = ring[1] ^ filled([box(17.5, 22.5, 20.5, 26.5)], SHAPE)
    overlapping[[2, 4]] = filled([other], SHAPE)
    np.testing.assert_array_equal(found["Ring"], ring)
    np.testing.assert_array_equal(found["Other"], overlapping)
    assert len(reading.segmentations) == 2  # they overlap
    assert not reading.notes


def test_contours_between_slices_go_to_the_nearest_one_within_half_a_step() -> None:
    slices = images((5, *SHAPE))
    dataset = structure_set(
        slices, [("A", [(1.4, box(5, 5, 9, 9)), (1.1, box(20, 20, 29, 29)), (3.4, box(5, 5, 9, 9)), (4.8, star(1))])]
    )
    reading = read_segmentation(dataset, source_grid(slices))
    found = masks(reading)["A"]
    assert found.sum(axis=(1, 2)).tolist() == [0, 100, 0, 25, 0]
    assert found[1, 20:30, 20:30].all()
    assert reading.notes == ("1 of 4 contours of region 1 (A) lie on no slice of the images",)


def test_holes_stay_holes_where_contours_of_a_plane_differ_in_the_last_digits() -> None:
    slices = images((3, *SHAPE))
    contours = [(1.1998, box(4.5, 4.5, 30.5, 30.5)), (1.2002, box(9.5, 9.5, 25.5, 25.5)), (1.45, star(1))]
    found = masks(read_segmentation(structure_set(slices, [("A", contours)]), source_grid(slices)))["A"]
    np.testing.assert_array_equal(found[1], filled([polygon for _, polygon in contours[:2]], SHAPE))


def test_a_contour_that_comes_twice_is_there_once() -> None:
    slices = images((2, *SHAPE))
    dataset = structure_set(slices, [("A", [(0, box(5, 5, 9, 9)), (0, box(5, 5, 9, 9))])])
    assert masks(read_segmentation(dataset, source_grid(slices)))["A"].sum() == 25


def test_regions_are_coded_as_well_as_the_object_tells() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "10200004", "SCT", "Liver"
    kidney, left = Dataset(), Dataset()
    kidney.CodeValue, kidney.CodingSchemeDesignator, kidney.CodeMeaning = "64033007", "SCT", "Kidney"
    left.CodeValue, left.CodingSchemeDesignator, left.CodeMeaning = "7771000", "SCT", "Left"
    kidney.SegmentedPropertyTypeModifierCodeSequence = [left]
    slices = images((2, *SHAPE))
    square = [(0, box(5, 5, 9, 9))]
    told = {
        "kidney": {"RTROIInterpretedType": "ORGAN", "RTROIIdentificationCodeSequence": [kidney]},
        "organ": {"RTROIInterpretedType": "ORGAN", "RTROIIdentificationCodeSequence": [code]},
        "Heart": {"RTROIInterpretedType": "ORGAN"},
        "target": {"RTROIInterpretedType": "GTV"},
    }
    dataset = structure_set(slices, [(name, square) for name in (*told, "something")], observations=told)
    reading = read_segmentation(dataset, source_grid(slices))
    segments = [segment for found in reading.segmentations for segment in found.segments]
    assert [segment.number for segment in segments] == [1, 2, 3, 4, 5]
    assert [name_of(segment) for segment in segments] == ["Kidney, Left", "Liver", "Heart", "GTV", "something"]
    assert [segment.category.meaning for segment in segments] == [
        *["Anatomical Structure"] * 3, "RT Target", "Non-specific Volume",
    ]  # fmt: skip
    assert {segment.algorithm.name for segment in segments} == {"Manual"}


def test_a_series_that_is_named_twice_has_the_images_of_both() -> None:
    """Some programs name a study again for each Frame of Reference or each time point."""
    dataset = structure_set(images((2, *SHAPE)), [("A", [(0, box(5, 5, 9, 9))])])
    ((series, named),) = referenced_images(dataset).items()
    again = copy.deepcopy(dataset.ReferencedFrameOfReferenceSequence[0])
    item = again.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence[0]
    item.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedFrameOfReferenceSequence.append(again)
    assert referenced_images(dataset) == {series: named | {"1.2.3"}}


def test_what_cannot_be_read_is_told_in_a_sentence() -> None:
    slices = images((3, *SHAPE))
    grid = source_grid(slices)
    square = [(0, box(5, 5, 9, 9))]
    with pytest.raises(CannotProceed, match=r"region 1 \(A\) is left out: its contours are POINT, and only closed"):
        read_segmentation(structure_set(slices, [("A", square)], kind="POINT"), grid)
    with pytest.raises(CannotProceed, match="it has no contour"):
        read_segmentation(structure_set(slices, [("A", [])]), grid)
    with pytest.raises(CannotProceed, match=r"1 of 1 contours .* lie on no slice"):
        read_segmentation(structure_set(slices, [("A", [(9, box(5, 5, 9, 9))])]), grid)
    with pytest.raises(CannotProceed, match="another Frame of Reference than the images, and was not drawn on any"):
        read_segmentation(
            structure_set(slices, [("A", square)]), source_grid(images((3, *SHAPE), frame_of_reference="other"))
        )
    side = images((30, 30, 30), directions=CORONAL, name="side")
    with pytest.raises(CannotProceed, match="does not lie in the plane of the slices"):
        read_segmentation(structure_set(slices, [("A", square)]), source_grid(side))
    with pytest.raises(CannotProceed, match="need images that say where they lie"):
        read_segmentation(structure_set(slices, [("A", square)]), source_grid(images((3, 8, 8), PixelSpacing=None)))
    nowhere = structure_set(slices, [("A", square)])
    nowhere.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = []
    with pytest.raises(CannotProceed, match="on which series it was drawn"):
        referenced_images(nowhere)


def test_one_region_that_cannot_be_used_does_not_harm_the_others() -> None:
    slices = images((2, *SHAPE))
    square = [(0, box(5, 5, 9, 9))]
    dataset = structure_set(slices, [("A", square), ("B", []), ("C", square)])
    dataset.ROIContourSequence[2].ContourSequence[0].ContourData[2] = "20"
    reading = read_segmentation(dataset, source_grid(slices))
    assert list(masks(reading)) == ["A"]
    assert reading.notes[0] == "region 2 (B) is left out: it has no contour"
    assert "region 3 (C) is left out: a contour does not lie in the plane" in reading.notes[1]


def test_the_structure_set_of_rt_utils_fills_what_its_contours_enclose(shared_data: Path) -> None:
    """Its Frame of Reference is not that of the images, on which its contours were drawn all the same."""
    folder = shared_data / "rt-utils" / "tests" / "mock_data"
    grid = grid_of_files([folder / "ct_2.dcm", folder / "ct_1.dcm"])
    dataset = dcmread(folder / "rt.dcm")
    found = masks(read_segmentation(dataset, grid))["ROI-1"]
    expected = np.zeros((512, 512), bool)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        x, y, _ = np.reshape(np.array(contour.ContourData, float), (-1, 3)).T
        spacing = grid.spacing_mm_zyx[1]
        expected ^= by_matplotlib(np.stack([(y + 125) / spacing, (x + 125) / spacing], axis=1), (512, 512))
    assert (found[0] != expected).sum() <= 0.005 * expected.sum()  # centres on the line
    # rt-utils 1.2.7 rounds to pixels, then counts in all that the line touches: 1660.
    assert found[0].sum() == pytest.approx(1660, rel=0.15)
    assert not found[1].any()


def test_missing_series_of_rt_utils_is_refused(shared_data: Path) -> None:
    folder = shared_data / "rt-utils" / "tests" / "mock_data"
    with pytest.raises(CannotProceed, match="on which series it was drawn"):
        referenced_images(dcmread(folder / "non_existent_reference_rt.dcm"))
    (images_of,) = referenced_images(dcmread(folder / "invalid_reference_rt.dcm")).values()
    assert len(images_of) == 5


@pytest.mark.slow
def test_a_clinical_structure_set_has_the_volumes_of_its_polygons(shared_data: Path) -> None:
    folder = shared_data / "dicompyler-core" / "tests" / "testdata" / "example_data"
    dataset, image = dcmread(folder / "rtss.dcm"), dcmread(folder / "ct.0.dcm", stop_before_pixels=True)
    x, y, top = (float(value) for value in image.ImagePositionPatient)
    spacing = float(image.PixelSpacing[0])
    slices = images(
        (98, int(image.Rows), int(image.Columns)), origin=(x, y, top - 97 * 3), spacing=(3, spacing, spacing),
        FrameOfReferenceUID=image.FrameOfReferenceUID,
    )  # fmt: skip
    reading = read_segmentation(dataset, source_grid(slices))
    found = masks(reading)
    assert "region 2 (Areola) is left out: it has no contour" in reading.notes
    assert not any("no slice" in note for note in reading.notes)
    for item, region in zip(dataset.ROIContourSequence, dataset.StructureSetROISequence, strict=True):
        if region.ROIName not in ("Heart", "Breast", "Tumor Bed"):
            continue
        pixels, outlines = 0.0, np.zeros((98, 512, 512), bool)
        for contour in item.ContourSequence:
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            polygon = (points[:, [1, 0]] - (y, x)) / spacing
            pixels += area(polygon)
            outlines[round((points[0, 2] - top) / 3) + 97] ^= by_matplotlib(polygon, (512, 512))
        mask = found[region.ROIName]
        assert (mask != outlines).sum() <= 0.003 * outlines.sum()
        assert mask.sum() == pytest.approx(pixels, rel=0.01)


