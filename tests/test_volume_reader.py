"""Series to volumes: order, orientation, multi-frame images, units."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from stacks import AXIAL, OBLIQUE, SAGITTAL, images, multi_frame

from plugins.node import CannotProceed
from plugins.segmentation import volume_reader
from plugins.segmentation.volume_reader import read_on_grid, read_volume

SHAPE = (5, 6, 7)
VALUES = np.random.default_rng(0).integers(-500, 1500, SHAPE).astype(np.int16)


def files(folder: Path, datasets: Iterable[Dataset]) -> list[Path]:
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_single_frames_in_any_order_make_a_volume_in_hu_with_its_place(tmp_path: Path, directions: tuple) -> None:
    slices = images(SHAPE, directions=directions, values=VALUES)
    read, volume = read_volume(files(tmp_path, [slices[index] for index in (2, 4, 0, 3, 1)]))
    assert [one.SOPInstanceUID for one in read] == [one.SOPInstanceUID for one in slices]
    np.testing.assert_array_equal(volume.values, VALUES * 2.0 - 1000)
    assert volume.values.dtype == np.float32
    assert volume.is_hu
    assert volume.spacing_mm_zyx == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_allclose(volume.placement.origin_mm_xyz, slices[0].ImagePositionPatient)
    np.testing.assert_allclose(volume.placement.step_x_xyz, 0.7 * np.asarray(directions[0]))


def test_a_multi_frame_image_makes_the_same_volume(tmp_path: Path) -> None:
    slices = images(SHAPE, directions=OBLIQUE, values=VALUES)
    order = (3, 1, 4, 0, 2)
    (image,), grid, volume = read_on_grid(files(tmp_path, [multi_frame(slices, order)]))
    np.testing.assert_array_equal(volume.values, VALUES * 2.0 - 1000)
    assert [frame for _, frame in grid.frames] == [order.index(number) + 1 for number in range(5)]
    assert image.NumberOfFrames == 5


@pytest.mark.parametrize("frames", [1, 5])
def test_a_volume_larger_than_memory_is_refused_before_its_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    slices = images(SHAPE, values=VALUES)
    paths = files(tmp_path, slices if frames == 1 else [multi_frame(slices, tuple(range(5)))])
    monkeypatch.setattr(volume_reader, "machine_bytes", lambda: 6 * VALUES.size)
    read_volume(paths)
    monkeypatch.setattr(volume_reader, "machine_bytes", lambda: 6 * VALUES.size - 1)
    with pytest.raises(CannotProceed, match=r"a volume of 7 × 6 × 5 voxels takes 0\.0 GiB to be read"):
        read_volume(paths)


def test_values_that_are_neither_hu_nor_attenuation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotProceed, match="neither in HU nor in 1/cm"):
        read_volume(files(tmp_path, images(SHAPE, Modality="MR")))
    with pytest.raises(CannotProceed, match="neither in HU nor in 1/cm"):
        read_volume(files(tmp_path, images(SHAPE, RescaleType="US")))
    with pytest.raises(CannotProceed, match="no Rescale Slope"):
        read_volume(files(tmp_path, images(SHAPE, RescaleSlope=None)))
    with pytest.raises(CannotProceed, match="cannot be decoded"):
        read_volume(files(tmp_path, images(SHAPE, PixelData=b"\0\0")))
