"""Images to a grid: in order along their normal, where they are in the patient, and what is no stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from stacks import AXIAL, CORONAL, OBLIQUE, SAGITTAL, images, multi_frame, uid

from plugins.node import CannotProceed
from plugins.segmentation.source_grid import grid_of_files, source_grid


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["ax", "cor", "sag", "oblique"])
def test_slices_in_any_order_are_put_along_the_normal(directions: tuple) -> None:
    slices = images((5, 6, 7), directions=directions)
    grid = source_grid([slices[index] for index in (3, 0, 4, 2, 1)])
    assert grid.frames == tuple((slice_.SOPInstanceUID, 0) for slice_ in slices)
    assert grid.shape_zyx == (5, 6, 7)
    assert grid.spacing_mm_zyx == pytest.approx((2.5, 0.8, 0.7))
    assert grid.is_even
    row, column = np.asarray(directions)
    affine = grid.placement.affine
    np.testing.assert_allclose(affine[:3, 0], 2.5 * np.cross(row, column), atol=1e-5)
    np.testing.assert_allclose(affine[:3, 1], 0.8 * column)
    np.testing.assert_allclose(affine[:3, 2], 0.7 * row)
    np.testing.assert_allclose(affine[:3, 3], (-20.0, 10.0, 5.0))
    assert np.linalg.det(affine) < 0  # (z, y, x) of a right-handed (x, y, z)


def test_a_multi_frame_image_gives_the_grid_of_its_slices() -> None:
    slices = images((5, 6, 7), directions=OBLIQUE)
    order = (4, 1, 0, 3, 2)
    grid, expected = source_grid([multi_frame(slices, order)]), source_grid(slices)
    assert [frame for _, frame in grid.frames] == [order.index(number) + 1 for number in range(5)]
    np.testing.assert_allclose(grid.placement.affine, expected.placement.affine)
    assert grid.numbers[uid("multi-frame", 0), 3] == 0


def test_tilted_slices_step_along_the_tilt_and_keep_the_distance_of_their_planes(shared_data: Path) -> None:
    grid = grid_of_files(sorted((shared_data / "dcm_qa_ct" / "In" / "GE").glob("*.dcm"))[:10])
    step = np.asarray(grid.placement.step_z_xyz)
    normal = grid.planes.normal_xyz
    assert abs(float(step @ normal)) == pytest.approx(grid.spacing_mm_zyx[0], rel=1e-6)
    assert np.linalg.norm(step) > 1.01 * grid.spacing_mm_zyx[0]


def test_a_lost_slice_leaves_a_gap_and_the_usual_step() -> None:
    grid = source_grid(images((5, 6, 7), places=(0, 1, 2, 4, 5)))
    assert grid.shape_zyx[0] == 5
    assert grid.step_mm == pytest.approx(2.5)
    assert not grid.is_even
    np.testing.assert_allclose(grid.planes.distances_mm, [5.0, 7.5, 10.0, 15.0, 17.5])


def test_one_slice_is_as_thick_as_it_says() -> None:
    grid = source_grid(images((1, 6, 7), directions=OBLIQUE))
    assert grid.spacing_mm_zyx == (2.5, 0.8, 0.7)
    assert np.linalg.norm(grid.placement.step_z_xyz) == pytest.approx(2.5)
    with pytest.raises(CannotProceed, match="does not say how thick"):
        _ = source_grid(images((1, 6, 7), SliceThickness=None)).placement


def test_images_in_no_plane_have_an_order_and_no_place(make_dataset: Callable[..., Dataset]) -> None:
    grid = source_grid([make_dataset(number) for number in (3, 1, 2)])
    assert [name.rpartition(".")[2] for name, _ in grid.frames] == ["1", "2", "3"]
    with pytest.raises(CannotProceed, match="do not say where they lie"):
        _ = grid.placement


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        (images((2, 6, 7)) + images((2, 6, 7), directions=SAGITTAL, name="other"), "in one orientation"),
        (images((2, 6, 7)) + images((2, 6, 7), name="other"), "one slice at each position, got two at 5.000 mm"),
        (images((2, 6, 7)) + images((1, 8, 7), places=[7], name="other"), "one Rows and Columns, got 8 and 7 beside 6"),
        (images((2, 6, 7)) + images((1, 6, 7), places=[7], spacing=(2.5, 1, 1), name="o"), "pixels of one size"),
        (images((2, 6, 7)) + images((1, 6, 7), places=[7], frame_of_reference="o", name="o"), "one Frame of"),
        ([], "no image"),
    ],
    ids=["orientations", "twice", "sizes", "spacings", "frames of reference", "nothing"],
)
def test_what_is_no_stack_is_told_in_a_sentence(stack: list[Dataset], sentence: str) -> None:
    with pytest.raises(CannotProceed, match=sentence):
        source_grid(stack)


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["ax", "cor", "sag", "oblique"])
def test_the_grid_lies_where_itk_says(tmp_path: Path, directions: tuple) -> None:
    itk = pytest.importorskip("SimpleITK")
    files = []
    for number, slice_ in enumerate(images((5, 12, 9), directions=directions)):
        files.append(tmp_path / f"{number}.dcm")
        slice_.save_as(files[-1], enforce_file_format=True)
    _same_as_itk(itk, files)


def test_the_grid_of_a_real_series_lies_where_itk_says(shared_data: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    _same_as_itk(itk, list((shared_data / "dcm_qa_frag").rglob("*.dcm")))


def _same_as_itk(itk: Any, files: list[Path]) -> None:
    """ITK gets the files in the order of the grid: its own order depends on what it takes for a series."""
    grid = grid_of_files(files)
    by_uid = {dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID: str(path) for path in files}
    reader = itk.ImageSeriesReader()
    reader.SetFileNames([by_uid[name] for name, _ in grid.frames])
    image = reader.Execute()
    slices, rows, columns = grid.shape_zyx
    for index in [(0, 0, 0), (slices - 1, 0, 0), (slices // 2, rows - 1, columns // 3)]:
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((grid.placement.affine @ [*index, 1.0])[:3], expected, atol=1e-3)
