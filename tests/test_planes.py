"""The planes that are shown go through what matters, and say where they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commands.planes import fullest_contrast, planes_through, position_of, three_planes
from plugins.segmentation.segmenter import Placement, Volume
from reconstruct.geometry import VolumeGrid
from reconstruct.spectral_phantoms import PHANTOMS

SHAPE = (30, 40, 50)


def box(at: tuple[int, int, int], half: int) -> NDArray[np.bool_]:
    """A cube of an odd number of voxels around a voxel."""
    inside = np.zeros(SHAPE, bool)
    z, y, x = at
    inside[z - half : z + half + 1, y - half : y + half + 1, x - half : x + half + 1] = True
    return inside


def placed(values: NDArray[np.float32]) -> Volume:
    placement = Placement((-10.0, -8.0, -3.0), (0.0, 0.0, 0.5), (0.0, 0.4, 0.0), (0.4, 0.0, 0.0))
    return Volume(values, (0.5, 0.4, 0.4), True, placement=placement)


def test_the_planes_go_through_a_part_that_the_middle_misses() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:27, 4:36, 5:45] = 1
    labels[box((22, 9, 41), 1)] = 2
    z, y, x = planes_through(labels.astype(np.float32), labels)
    assert (labels[z] == 2).any()
    assert (labels[:, y] == 2).any()
    assert (labels[:, :, x] == 2).any()


def test_a_part_is_cut_where_it_is_widest() -> None:
    z, y, x = np.indices(SHAPE)
    ball = (z - 12) ** 2 + (y - 25) ** 2 + (x - 30) ** 2 <= 36
    assert planes_through(np.zeros(SHAPE), ball.astype(np.uint8)) == (12, 25, 30)


def test_a_small_part_of_a_segment_counts_beside_a_large_one() -> None:
    """A stone beside the spine, both of them as dense as bone."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:28, 30:36, 22:28] = 1
    labels[box((21, 18, 10), 1)] = 1
    z, *_ = planes_through(np.zeros(SHAPE), labels)
    assert z in (20, 21, 22)


def test_noise_is_no_part() -> None:
    labels = np.zeros((40, 60, 60), np.uint8)
    labels[4:36, 5:55, 5:55] = 1
    labels[20, 30, 30] = 2
    labels[6:9, 10:13, 10:13] = 2
    labels[30, 20:50:4, 20:50:4] = 2
    z, *_ = planes_through(np.zeros(labels.shape), labels)
    assert z in (6, 7, 8)


def test_the_three_planes_show_different_things() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:27, 4:36, 5:45] = 1
    for at in ((8, 10, 10), (8, 20, 20), (20, 30, 40)):
        labels[box(at, 2)] = 2
    z, y, _ = planes_through(np.zeros(SHAPE), labels)
    assert 6 <= z <= 10, "two parts at once"
    assert 28 <= y <= 32, "then the third"


def test_without_labels_it_is_the_plane_of_most_contrast() -> None:
    values = np.zeros(SHAPE, np.float32)
    values[9] += np.arange(50)
    assert planes_through(values)[0] == 9
    assert planes_through(values, np.zeros(SHAPE, np.uint8))[0] == 9


def test_contrast_outside_of_the_window_is_not_seen() -> None:
    images = np.zeros((3, 20, 20))
    images[1, :, :10], images[2, :, :10] = 50, 9000
    images[2, :, 10:] = 8000
    assert fullest_contrast(images, window=(0, 100)) == 1
    assert fullest_contrast(images, window=(0, 10000)) == 2


def test_planes_say_where_they_are() -> None:
    volume = placed(np.zeros(SHAPE, np.float32))
    shown = three_planes(volume, (4, 20, 30))
    assert [picture.title for picture in shown] == [
        "axial, z = −1.0 mm", "coronal, y = 0.0 mm", "sagittal, x = 2.0 mm",
    ]  # fmt: skip
    assert [picture.image.shape for picture in shown] == [(40, 50), (30, 50), (30, 40)]
    assert [round(picture.pixel_aspect, 3) for picture in shown] == [1.0, 1.25, 1.25]


def test_the_position_is_the_patients_whichever_way_slices_are_counted() -> None:
    down = Placement((10.0, 0.0, 6.0), (0.0, 0.0, -0.5), (0.0, 0.4, 0.0), (0.4, 0.0, 0.0))
    volume = Volume(np.zeros(SHAPE, np.float32), (0.5, 0.4, 0.4), True, placement=down)
    assert position_of(volume, 0, 2) == "z = 5.0 mm"
    assert position_of(Volume(volume.values, (0.5, 0.4, 0.4), True), 0, 2) == "3 of 30"


def test_the_stones_of_the_phantom_are_in_its_planes() -> None:
    phantom = PHANTOMS["kidney-stone"]
    grid = VolumeGrid((48, 64, 64), (0.55, 0.55, 0.55))
    labels = phantom.labels(grid)
    stone = 1 + [material.name for material in phantom.materials].index("calcium oxalate")
    z, y, x = planes_through(labels.astype(np.float32), labels)
    assert (labels[z] == stone).any() or (labels[:, y] == stone).any() or (labels[:, :, x] == stone).any()
    middle = [size // 2 for size in labels.shape]
    assert not (labels[middle[0]] == stone).any()
