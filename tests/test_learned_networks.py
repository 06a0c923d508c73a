"""CE-Net, Xception and the losses: structure against the papers, formulas against plain ones."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from index.encoders.learned import augment, losses, whitening
from index.encoders.learned.cenet import CENet, DenseAtrousConvolution, ResidualMultiKernelPooling
from index.encoders.learned.size import PAPER, SMALL, Size
from index.encoders.learned.tandem import Tandem
from index.encoders.learned.xception import SeparableConvolution, Xception


def weights(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def random_images(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(seed))


def test_at_paper_size_the_encoder_is_resnet_34() -> None:
    cenet = CENet(PAPER)
    # 21,797,672 as published; without the classifier (513,000), and with one grey channel instead of three.
    assert weights(cenet.stem, cenet.stages) == 21_797_672 - 513_000 - 2 * 64 * 49


def test_at_paper_size_xception_has_as_many_weights_as_published() -> None:
    # 22,855,952 of Table 3, which includes the classifier of 1000 classes.
    assert weights(Xception(PAPER, inputs=3)) == 22_855_952 - (2048 * 1000 + 1000)


@pytest.mark.parametrize(
    ("branch", "field"), enumerate((3, 7, 9, 19)), ids=["first", "second", "third", "fourth"]
)
def test_branches_of_dense_atrous_convolution_see_as_far_as_the_paper_says(branch: int, field: int) -> None:
    layers = DenseAtrousConvolution(1).branches[branch]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    point = torch.zeros((1, 1, 41, 41))
    point[0, 0, 20, 20] = 1.0
    seen = torch.nonzero(layers(point)[0, 0].any(dim=0)).flatten()
    assert int(seen.max() - seen.min()) + 1 == field


def test_multi_kernel_pooling_keeps_its_input_and_adds_four_maps() -> None:
    maps = torch.rand((2, 5, 8, 8))
    pooled = ResidualMultiKernelPooling(5)(maps)
    assert pooled.shape == (2, 9, 8, 8)
    torch.testing.assert_close(pooled[:, :5], maps)


def test_a_separable_convolution_is_depthwise_then_pointwise() -> None:
    layer = SeparableConvolution(6, 10)
    assert layer.depthwise.groups == 6
    assert weights(layer.depthwise, layer.pointwise) == 6 * 9 + 6 * 10


@pytest.mark.parametrize("size", [SMALL, PAPER], ids=lambda size: size.name)
def test_shapes(size: Size) -> None:
    narrow = size if size is SMALL else dataclasses.replace(
        size, stages=(8, 8, 16, 16), stem=(4, 4), entry=(8, 8, 16), middle=1, leave=(16, 16, 16, 24)
    )
    network = Tandem(narrow, outputs=3).eval()
    images = random_images(2, narrow.side)
    context = network.cenet.describe(images)
    assert context.bottleneck.shape == (2, narrow.stages[3] + 4, 8, 8)
    assert context.maps.shape == (2, narrow.stages[0], narrow.side // 2, narrow.side // 2)
    assert network.cenet(images).shape == (2, 3, narrow.side, narrow.side)
    features = network(images)
    assert features.shape == (2, network.channels)
    parts = features.split([network.context_channels, network.xception.channels], dim=1)
    for part in parts:
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2))


def plain_contrastive(vectors: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    terms = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == labels[i] >= 0]
        if positives:
            whole = sum(np.exp(vectors[i] @ vectors[j] / temperature) for j in others)
            terms.append(
                -np.mean([np.log(np.exp(vectors[i] @ vectors[p] / temperature) / whole) for p in positives])
            )
    return float(np.mean(terms))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 0], [0, 0, 1, 2, -1], [3, 3, 3, 3, 3], [-1, -1, 0, 0, 1]])
def test_supervised_contrastive_loss_is_the_formula_of_its_paper(labels: list[int]) -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    loss = losses.supervised_contrastive(torch.from_numpy(vectors), torch.tensor(labels), 0.3)
    assert float(loss) == pytest.approx(plain_contrastive(vectors, np.array(labels), 0.3), rel=1e-6)


def test_without_positives_the_contrastive_loss_is_nothing_and_can_be_differentiated() -> None:
    vectors = torch.eye(3, requires_grad=True)
    loss = losses.supervised_contrastive(vectors, torch.tensor([0, 1, -1]))
    loss.backward()
    assert float(loss) == 0.0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_two_views_of_an_image_are_its_only_positives() -> None:
    first, second = torch.eye(4)[:3], torch.eye(4)[:3]
    own, swapped = (losses.two_views(first, second[order], torch.arange(3)) for order in ([0, 1, 2], [1, 2, 0]))
    assert float(own) < 0.01 < float(swapped)


def test_segmentation_loss_is_least_where_the_prediction_is_right() -> None:
    truth = torch.zeros((1, 8, 8), dtype=torch.long)
    truth[0, 2:6, 2:6] = 1
    right = 20.0 * torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).float()
    assert float(losses.segmentation(right, truth)) == pytest.approx(0.0, abs=1e-3)
    assert float(losses.segmentation(-right, truth)) > 1.0


def test_views_differ_from_their_images_and_follow_from_the_generator() -> None:
    images = random_images(6)
    one, two, other = (
        augment.views(images, torch.Generator().manual_seed(seed), augment.Strength()) for seed in (1, 1, 2)
    )
    assert one.shape == images.shape
    assert 0.0 <= float(one.min()) <= float(one.max()) <= 1.0
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert (one != other).any()
    assert (one != images).any()


def test_segments_move_with_their_images() -> None:
    truth = torch.zeros((8, 64, 64), dtype=torch.uint8)
    truth[:, 20:40, 24:44] = 1
    still = {"log_gamma": 0.0, "contrast": 0.0, "brightness": 0.0, "noise": 0.0, "cut_out": 0.0}
    seen, moved = augment.views_with_truth(
        truth[:, None].float(), truth, torch.Generator().manual_seed(0), augment.Strength(**still)
    )
    assert (moved != truth).any()
    assert float(((seen[:, 0] > 0.5) == (moved == 1)).float().mean()) > 0.99


def test_masking_hides_about_the_share_of_patches_that_is_asked() -> None:
    images = random_images(64)
    masked = augment.masked(images, torch.Generator().manual_seed(0), share=0.4)
    blank = masked.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).std(dim=4) < 1e-6
    assert float(blank.float().mean()) == pytest.approx(0.4, abs=0.03)


def test_whitening_without_labels_makes_the_components_equally_strong_and_independent() -> None:
    random = np.random.default_rng(0)
    features = (random.normal(size=(4000, 6)) @ random.normal(size=(6, 6))).astype(np.float32)
    fitted = whitening.fit(features, np.full(4000, -1), 6, shrinkage=0.0)
    np.testing.assert_allclose(np.cov(fitted(features), rowvar=False), np.eye(6), atol=1e-2)


def test_whitening_by_labels_makes_the_spread_within_classes_alike_and_that_between_them_lead() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, size=3000)
    centres = np.zeros((3, 6))
    centres[1, 4], centres[2, 5] = 1.0, 1.0
    features = (centres[labels] + random.normal(size=(3000, 6)) * [5, 3, 2, 1, 0.1, 0.1]).astype(np.float32)
    vectors = whitening.fit(features, labels, 6, shrinkage=0.0)(features)
    within = np.concatenate([vectors[labels == label] - vectors[labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(np.cov(within, rowvar=False), np.eye(6), atol=2e-2)
    means = np.stack([vectors[labels == label].mean(axis=0) for label in range(3)])
    assert np.abs(means[:, :2]).max() > 10 * np.abs(means[:, 2:]).max()


def test_shrinkage_keeps_small_variances_small() -> None:
    random = np.random.default_rng(0)
    features = (random.normal(size=(500, 3)) * [1.0, 1.0, 1e-4]).astype(np.float32)
    spread = whitening.fit(features, np.full(500, -1), 3, shrinkage=0.1)(features).std(axis=0)
    assert spread[0] == pytest.approx(1.0, abs=0.1)
    assert spread[2] < 0.01


def test_no_more_dimensions_than_samples_or_channels() -> None:
    features = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    assert whitening.fit(features, np.full(5, -1), 64).projection.shape == (8, 5)
