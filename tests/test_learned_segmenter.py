"""The parts of the learned segmenter: orientation, sampling, tiles, sides, loss, split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from stacks import AXIAL, CORONAL, OBLIQUE, SAGITTAL, images

from commands.segmenter_judgement import _counts, _own
from plugins.segmentation.classes import SegmentClass, can_be_mirrored, mirrored
from plugins.segmentation.learned import inference
from plugins.segmentation.learned.axes import Axes
from plugins.segmentation.learned.examples import Example, Examples, split_patients, split_slices
from plugins.segmentation.learned.inference import probabilities
from plugins.segmentation.learned.inputs import CHANNELS, seen, windowed
from plugins.segmentation.learned.losses import UNKNOWN, partial_segmentation
from plugins.segmentation.learned.network import SegmentationNet
from plugins.segmentation.learned.preparation import prepared, prepared_labels
from plugins.segmentation.learned.recipe import WIDTHS, Recipe, Strength, epochs_for
from plugins.segmentation.learned.training import Segmenting, dice, train
from plugins.segmentation.learned.views import views
from plugins.segmentation.segmenter import Segment, Volume
from plugins.segmentation.source_grid import source_grid

ORGAN = codes.SCT.AnatomicalStructure
LEFT, RIGHT = codes.SCT.Left, codes.SCT.Right


def segment_class(type_: Code, *modifiers: Code, label: str = "x") -> SegmentClass:
    return SegmentClass.of(Segment(label, ORGAN, type_, modifiers=modifiers))


KIDNEY_L, KIDNEY_R = segment_class(codes.SCT.Kidney, LEFT), segment_class(codes.SCT.Kidney, RIGHT)
LIVER = segment_class(codes.SCT.Liver)


@pytest.mark.parametrize(
    "directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"]
)
def test_a_volume_in_any_orientation_is_seen_from_the_same_side(directions) -> None:
    """A voxel that is farther up, back or left has a larger index along that axis; and the way back is exact."""
    shape = (5, 6, 7)
    placement = source_grid(images(shape, directions=directions)).placement
    axes = Axes.of(placement)
    indices = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    x, y, z, _ = (placement.affine @ indices).reshape(4, *shape)
    for axis, coordinate in enumerate((z, y, x)):
        assert (np.diff(axes.turned(coordinate), axis=axis) > 0).all()
    values = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(axes.back(axes.turned(values)), values)
    assert axes.turned(values).shape == tuple(shape[axis] for axis in axes.order)


def test_labels_go_to_the_network_and_back_voxel_by_voxel() -> None:
    shape = (4, 30, 20)
    placement = source_grid(images(shape, directions=CORONAL, spacing=(2.5, 1.0, 1.0))).placement
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    volume = Volume((labels * 100.0).astype(np.float32), (2.5, 1.0, 1.0), True, None, placement)
    seen_as = prepared(volume, 1.0, 5.0)
    assert seen_as.slice_mm == 1.0
    assert seen_as.step == 5.0
    assert seen_as.values.shape == (30, 10, 20)
    classes = prepared_labels(labels, seen_as)[:, None] == np.arange(3)[:, None, None]
    np.testing.assert_array_equal(seen_as.labels(torch.from_numpy(classes.astype(np.float32))), labels)


def test_coarser_pixels_are_the_mean_of_what_they_cover_and_nothing_is_shifted() -> None:
    shape = (2, 40, 40)
    placement = source_grid(images(shape, spacing=(3.0, 1.0, 1.0))).placement
    values = np.zeros(shape, np.float32)
    values[:, 10:20, 20:30] = 400.0
    coarse = prepared(Volume(values, (3.0, 1.0, 1.0), True, None, placement), 5.0, 3.0)
    expected = np.zeros((8, 8))
    expected[2:4, 4:6] = 400.0
    assert coarse.values.shape == (2, 8, 8)
    away = np.abs(coarse.values[0].astype(float) - expected)
    assert away.mean() < 25
    rows, columns = np.indices((8, 8))
    mass = coarse.values[0].astype(float)
    assert (rows * mass).sum() / mass.sum() == pytest.approx(2.5, abs=0.05)
    assert (columns * mass).sum() / mass.sum() == pytest.approx(4.5, abs=0.05)


def test_neighbours_are_at_their_distance_and_repeat_at_the_ends() -> None:
    values = np.arange(6, dtype=np.float16)[:, None, None] * np.ones((6, 2, 2), np.float16)
    assert seen(values, np.array([3]), 1.0)[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert seen(values, np.array([3]), 0.5)[0, :, 0, 0].tolist() == [2, 2.5, 3, 3.5, 4]
    assert seen(values, np.array([0, 5]), 2.0)[:, :, 0, 0].tolist() == [[0, 0, 0, 2, 4], [1, 3, 5, 5, 5]]
    assert windowed(seen(values, np.array([3]), 1.0)).shape == (1, CHANNELS, 2, 2)


def test_sides_change_places_and_other_classes_stay() -> None:
    assert mirrored([KIDNEY_L, LIVER, KIDNEY_R])[:4].tolist() == [0, 3, 2, 1]
    assert mirrored([KIDNEY_L, LIVER])[:3].tolist() == [0, 1, 2]
    assert KIDNEY_L.name == "Kidney, Left"
    assert SegmentClass.from_plain(KIDNEY_L.to_plain()) == KIDNEY_L
    other = [segment_class(ORGAN, side, label=name) for side, name in ((LEFT, "a"), (RIGHT, "b"))]
    assert not can_be_mirrored(other)
    unspecific = [segment_class(ORGAN, label=name) for name in ("a", "b")]
    assert unspecific[0].key != unspecific[1].key
    assert mirrored(unspecific)[:3].tolist() == [0, 1, 2]
    assert can_be_mirrored([KIDNEY_L, LIVER, KIDNEY_R])
    assert not can_be_mirrored([KIDNEY_L, LIVER])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Segment("Femur_L", ORGAN, ORGAN), Segment("Femur_R", ORGAN, ORGAN)),
        (
            Segment("x", ORGAN, Code("18639004", "SCT", "Left kidney")),
            Segment("y", ORGAN, Code("9846003", "SCT", "Right kidney")),
        ),
        (
            Segment("x", ORGAN, Code("T-71000", "SRT", "Kidney"), modifiers=(Code("G-A101", "SRT", "Left"),)),
            Segment("y", ORGAN, Code("T-71000", "SRT", "Kidney"), modifiers=(Code("G-A100", "SRT", "Right"),)),
        ),
        (
            Segment("Kidney", ORGAN, ORGAN, modifiers=(LEFT,)),
            Segment("Kidney", ORGAN, ORGAN, modifiers=(RIGHT,)),
        ),
    ],
    ids=["labels", "types with a side", "SNOMED RT", "labels with modifiers"],
)
def test_sides_are_known_however_they_are_told(left: Segment, right: Segment) -> None:
    classes = [SegmentClass.of(left), SegmentClass.of(right), LIVER]
    assert classes[0].key != classes[1].key
    assert mirrored(classes)[:4].tolist() == [0, 2, 1, 3]
    assert can_be_mirrored(classes)
    assert not can_be_mirrored(classes[1:])
    network, values = Brightness(), np.zeros((1, 16, 16), np.float16)
    seen_as = []
    network.forward = lambda images: seen_as.append(images) or Brightness.forward(network, images)  # type: ignore[method-assign]
    list(probabilities(network, values, 1.0, 16, None))
    assert len(seen_as) == 2, "as it is, and with its neighbours reversed"


def test_snomed_rt_and_ct_are_one_class() -> None:
    old = Segment("x", ORGAN, Code("T-71000", "SRT", "Kidney"), modifiers=(Code("G-A101", "SRT", "Left"),))
    assert SegmentClass.of(old).key == KIDNEY_L.key
    vague = [Segment(name, ORGAN, Code("T-D0005", "SRT", "Anatomical structure")) for name in ("a", "b")]
    assert SegmentClass.of(vague[0]).key != SegmentClass.of(vague[1]).key


def test_a_mirrored_view_has_the_other_side_under_its_name() -> None:
    slices = torch.full((1, 5, 16, 16), -1000.0)
    truth = torch.zeros((1, 16, 16), dtype=torch.int64)
    slices[..., 2:5], truth[..., 2:5] = 100.0, 1
    still = Strength(0, 0, 0, 0, 1.0, 0, 0, 0, 0)
    sides = torch.from_numpy(mirrored([KIDNEY_R, KIDNEY_L]))
    values, own, is_mirrored = views(slices, truth, sides, 16, torch.Generator().manual_seed(0), still)
    assert is_mirrored.all()
    assert (own[..., 11:14] == 2).all()
    assert (own == 0).sum() == 16 * 13
    assert (values[:, :, :, 12] > 0).all()


def test_a_view_without_changes_is_the_slice_padded_with_air() -> None:
    slices = torch.randn(2, 5, 10, 12) * 100
    truth = torch.randint(0, 3, (2, 10, 12))
    still = Strength(0, 0, 0, 0, 0, 0, 0, 0, 0)
    values, own, is_mirrored = views(slices, truth, torch.arange(256), 16, torch.Generator().manual_seed(0), still)
    assert values.shape == (2, 5, 16, 16)
    assert not is_mirrored.any()
    torch.testing.assert_close(values[:, :, 3:13, 2:14], slices, atol=0.01, rtol=1e-3)
    assert torch.equal(own[:, 3:13, 2:14], truth)
    assert (values[:, :, :3] == -1000).all()


class Brightness(torch.nn.Module):
    """Stands for a network: class 1 where the middle slice is bright, class 0 where it is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(1, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        middle = images[:, 2]
        return torch.stack([0.5 - middle, middle - 0.5, torch.zeros_like(middle) - 9.0], 1) * 20


def test_tiles_cover_slices_of_any_size_without_seams() -> None:
    values = np.random.default_rng(0).choice([-160.0, 240.0], (3, 37, 75)).astype(np.float16)
    found = list(probabilities(Brightness(), values, 1.0, 16, np.arange(256), flips=True))
    assert [each.shape for each in found] == [(3, 37, 75)] * 3
    for each, own in zip(found, values, strict=True):
        np.testing.assert_array_equal(each.argmax(dim=0).numpy(), own > 0)
        np.testing.assert_allclose(each.sum(dim=0), 1.0, rtol=1e-5)


def test_flips_exchange_sides() -> None:
    """A network that calls the left half of what it sees by one side's name agrees with its mirror image."""

    class Sides(Brightness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            is_left = (torch.arange(images.shape[3]) < images.shape[3] // 2).float().expand(images[:, 0].shape)
            return torch.stack([torch.zeros_like(is_left) - 9, is_left, 1 - is_left], 1) * 20

    values = np.zeros((1, 16, 16), np.float16)
    (each,) = probabilities(Sides(), values, 1.0, 16, mirrored([KIDNEY_R, KIDNEY_L]), flips=True)
    assert (each.argmax(dim=0)[:, :8] == 1).all()
    assert (each.argmax(dim=0)[:, 8:] == 2).all()
    assert each.max(dim=0).values.min() > 0.99


def test_starts_of_tiles_reach_both_ends() -> None:
    for length in (16, 17, 24, 40, 100):
        starts = inference._starts(length, 16)
        assert starts[0] == 0
        assert starts[-1] == length - 16
        assert max(np.diff(starts), default=0) <= 8


def test_the_network_keeps_the_size_of_an_image() -> None:
    network = SegmentationNet(WIDTHS["small"], CHANNELS, 7).eval()
    assert network(torch.zeros(2, CHANNELS, 64, 96)).shape == (2, 7, 64, 96)


def test_the_loss_is_silent_where_nothing_is_told() -> None:
    random = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 4, 8, 8, generator=random, requires_grad=True)
    truth = torch.randint(0, 4, (2, 8, 8), generator=random)
    truth[:, :4] = UNKNOWN
    everything = torch.ones(2, 4, dtype=torch.bool)
    partial_segmentation(predicted, truth, everything).backward()
    assert predicted.grad is not None
    assert (predicted.grad[:, :, :4] == 0).all()
    assert (predicted.grad[:, :, 4:] != 0).any()


def test_a_class_that_nobody_told_of_counts_as_background() -> None:
    """Whether the network says background or the unknown class there, the loss is the same; a wrong class costs."""
    truth = torch.zeros(1, 8, 8, dtype=torch.int64)
    truth[:, :2] = 1
    told = torch.tensor([[True, True, False]])

    def loss(of_background: int) -> float:
        predicted = torch.full((1, 3, 8, 8), -20.0)
        predicted[:, 1, :2] = 20.0
        predicted[:, of_background, 2:] = 20.0
        return float(partial_segmentation(predicted, truth, told))

    assert loss(0) == pytest.approx(loss(2), abs=1e-4)
    assert loss(0) == pytest.approx(0.0, abs=1e-3)
    assert loss(1) > 1.0


def test_a_side_that_nobody_drew_stays_open_in_mirrored_views() -> None:
    """Only left kidneys are drawn: of right ones nothing is told, and in a mirrored view it is the other way round."""
    values = np.zeros((4, 16, 16), np.float16)
    is_told = np.array([[True, True, False]] * 4)
    volume = Example("P", "s", "1", values, np.ones(values.shape, np.uint8), is_told, 1.0, 3.0)
    examples = Examples((KIDNEY_L, KIDNEY_R), (volume,))
    sides = torch.from_numpy(mirrored(examples.classes))
    stage = Segmenting(examples, examples, Recipe(1.0, 1.0, tile=16), sides)
    seen_as = {
        (int(truth.max()), tuple(told.tolist()))
        for seed in range(12)
        for _, truth, told in [stage._view((0, 1), torch.Generator().manual_seed(seed))]
    }
    assert seen_as == {(1, (True, True, False)), (2, (True, False, True))}


def test_dice_leaves_out_what_is_unknown_and_what_is_nowhere() -> None:
    truth = np.array([[1, 1, 0, UNKNOWN]], np.uint8)
    predicted = np.array([[1, 0, 0, 2]], np.uint8)
    found = dice([(predicted, truth, np.ones(4, np.bool_))], 4)
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(found[1:]).all()


def test_a_class_counts_where_somebody_looked_for_it() -> None:
    """One slice in which only class 1 is drawn, one in which only class 2 is; both are everywhere, and found."""
    both = np.array([[1, 1, 2, 2]], np.uint8)
    slices = [
        (both, np.array([[1, 1, 0, 0]], np.uint8), np.array([True, True, False])),
        (both, np.array([[0, 0, 2, 2]], np.uint8), np.array([True, False, True])),
    ]
    assert dice(slices, 3).tolist() == [1.0, 1.0]
    volumes = tuple(
        Example(f"P{number}", "s", "1", np.zeros((1, 1, 4), np.float16), truth[None], told[None], 1.0, 3.0)
        for number, (_, truth, told) in enumerate(slices)
    )
    counts = sum(_counts(both[None], volume) for volume in volumes)
    assert _own(counts)[1:].tolist() == [1.0, 1.0]


def example(patient: str, slices: int = 40) -> Example:
    values = np.arange(slices, dtype=np.float16)[:, None, None] * np.ones((slices, 4, 4), np.float16)
    return Example(patient, f"study {patient}", f"series {patient}", values,
                   np.ones(values.shape, np.uint8), np.ones((slices, 2), np.bool_), 1.0, 3.0)  # fmt: skip


def test_a_split_by_patient_parts_patients() -> None:
    volumes = tuple(example(f"P{number}") for number in range(30) for _ in range(2))
    parts = split_patients(Examples((LIVER,), volumes), fraction=0.3, seed=0)
    all_parts = parts.training, parts.validation, parts.held_out
    patients = [{volume.patient for volume in part.volumes} for part in all_parts]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    assert sum(map(len, patients)) == 30
    assert all(patients)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.4, 0.6, 0.9])
def test_as_many_slices_are_held_out_as_asked_for(fraction: float) -> None:
    parts = split_slices(Examples((LIVER,), (example("P1", 800),)), fraction=fraction, seed=0)
    share = sum(len(volume.values) for volume in parts.held_out.volumes) / 800
    assert share == pytest.approx(fraction, abs=0.02)


def test_two_series_of_one_patient_hold_out_the_same_places() -> None:
    thin = replace(example("P1", 104), series="thin", slice_mm=1.0, lowest_mm=-40.0)
    thick = replace(example("P1", 40), series="thick", slice_mm=2.5, lowest_mm=-38.0)
    parts = split_slices(Examples((LIVER,), (thin, thick)), fraction=0.3, seed=0)
    assert parts.held_out.volumes
    for out in parts.held_out.volumes:
        for own in parts.training.volumes:
            first, last = (part.lowest_mm + 0.5 * part.slice_mm for part in (out, own))
            ends = first + (len(out.values) - 1) * out.slice_mm, last + (len(own.values) - 1) * own.slice_mm
            assert ends[0] < last or ends[1] < first, "a slice that is held out lies among those learned from"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_split_by_slices_parts_slices_with_all_that_is_seen_beside_them(seed: int) -> None:
    parts = split_slices(Examples((LIVER,), (example("P1", 100), example("P2", 43))), fraction=0.25, seed=seed)
    assert not parts.validation.volumes
    for series in ("series P1", "series P2"):
        own, other = (
            {int(value) for volume in part.volumes if volume.series == series for value in volume.values[:, 0, 0]}
            for part in (parts.training, parts.held_out)
        )
        assert not own & other
        assert own | other == set(range(100 if series == "series P1" else 43))
    for volume in parts.held_out.volumes:
        assert volume.first == int(volume.values[0, 0, 0])
        looked_at = seen(volume.values, np.array([0]), 2.0)
        assert looked_at.min() >= volume.first
    share = sum(len(volume.values) for volume in parts.held_out.volumes) / 143
    assert 0.15 < share < 0.35


def test_what_cannot_be_trained_is_refused() -> None:
    assert epochs_for(10_000_000) < epochs_for(100)
    for wrong in ({"size": "huge"}, {"batch": 1}, {"epochs": 0}, {"spacing_mm": 0.0}):
        with pytest.raises(ValueError, match="got"):
            Recipe(**{"spacing_mm": 1.0, "reach_mm": 1.0, **wrong})


@pytest.mark.parametrize(("shown", "is_watched"), [(1, True), (0, False)])
def test_a_run_says_what_early_stopping_watched(shown: int, is_watched: bool) -> None:
    """Validation slices that show no class tell nothing, however many are annotated."""
    training, validation = example("P1", 8), example("P2", 8)
    validation.truth[:] = shown
    run = train(
        Examples((LIVER,), (training,)), Examples((LIVER,), (validation,)), Recipe(1.0, 1.0, tile=48, epochs=1)
    )
    assert run.watched_validation == is_watched
