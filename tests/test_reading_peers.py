"""What this node writes as SEG, in the eyes of others: highdicom's reader, and dcmqi's with ITK for the geometry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from stacks import AXIAL, CORONAL, OBLIQUE, SAGITTAL, images, random_labels, segmentation

from plugins.segmentation.reading import read_segmentation
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.source_grid import source_grid

SHAPE = (6, 20, 17)
PLACES = pytest.mark.parametrize(
    "directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"]
)


def saved(folder: Path, directions: tuple, labels: np.ndarray) -> tuple[Path, list]:
    slices = images(labels.shape, directions=directions)
    seg_object(segmentation(labels), slices, recipe="{}").save_as(folder / "seg.dcm", enforce_file_format=True)
    return folder / "seg.dcm", slices


@PLACES
def test_highdicom_reads_our_seg_voxel_by_voxel(tmp_path: Path, directions: tuple) -> None:
    labels = random_labels(SHAPE, 3, seed=11)
    path, slices = saved(tmp_path, directions, labels)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    affine = source_grid(slices).placement.affine
    for index in np.argwhere(volume.array):
        place = volume.affine @ [*index, 1.0]
        z, y, x = np.round(np.linalg.inv(affine) @ place).astype(int)[:3]
        assert labels[z, y, x] == volume.array[tuple(index)]
    assert np.count_nonzero(volume.array) == np.count_nonzero(labels)


@PLACES
@pytest.mark.parametrize("shape", [SHAPE, (1, 20, 17)], ids=["stack", "one slice"])
def test_dcmqi_reads_our_seg_voxel_by_voxel_and_itk_puts_it_where_we_do(
    tmp_path: Path, directions: tuple, shape: tuple[int, int, int]
) -> None:
    itk = pytest.importorskip("SimpleITK")
    pytest.importorskip("dcmqi")
    labels = random_labels(shape, 3, seed=12)
    path, slices = saved(tmp_path, directions, labels)
    tool = Path(sys.executable).with_name("segimage2itkimage")
    told = subprocess.run(
        [tool, "--inputDICOM", path, "--outputDirectory", tmp_path, "-t", "nrrd", "--mergeSegments"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    (file,) = tmp_path.glob("*.nrrd")
    image = itk.ReadImage(str(file))
    found = itk.GetArrayFromImage(image)
    affine = source_grid(slices).placement.affine
    numbers = np.zeros(shape, np.uint8)
    for index in np.argwhere(found):
        place = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        where = np.linalg.inv(affine) @ [*place, 1.0]
        nearest = np.round(where).astype(int)[:3]
        assert np.abs(where[:3] - nearest).max() < 1e-3
        numbers[tuple(nearest)] = found[tuple(index)]
    np.testing.assert_array_equal(numbers, labels)
    reading = read_segmentation(dcmread(path), source_grid(slices))
    np.testing.assert_array_equal(reading.segmentations[0].labels, numbers)
