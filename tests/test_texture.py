"""The texture encoder: identity, invariance, and whether it finds what is alike."""

import hashlib
import io
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.io import imread, imsave

from index.encoders import fit, texture
from index.encoders.encoder import Encoder
from index.encoders.pixels import canonical_frames
from index.encoders.square import to_square
from index.encoders.texture import TextureEncoder
from index.unit_vectors import unit


@pytest.fixture(scope="module")
def encoder() -> TextureEncoder:
    return TextureEncoder.load()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    random = np.random.default_rng(3)
    return np.stack([fit.procedural(random) for _ in range(12)])


def labelled(folder: Path, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and class numbers of `each` PNG or JPEG files per sub-folder."""
    pictures, labels = [], []
    for number, group in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in group.iterdir() if path.suffix in (".png", ".jpeg", ".jpg"))[:each]:
            pictures.append(to_square(imread(path, as_gray=True) / 255.0, 128))
            labels.append(number)
    return np.stack(pictures), np.asarray(labels)


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean average precision and precision at 5, each image a query among all others."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
    relevant = labels[order] == labels[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return float(((precision * relevant).sum(axis=1) / relevant.sum(axis=1)).mean()), float(relevant[:, :5].mean())


def test_vectors_are_unit_float32_and_repeatable(encoder: TextureEncoder, images: np.ndarray) -> None:
    assert isinstance(encoder.name, str)
    checked: Encoder = encoder
    vectors = checked.encode(images)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(images), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(vectors, TextureEncoder.load().encode(images))
    np.testing.assert_allclose(encoder.encode(images[:1]), vectors[:1], atol=1e-5)
    assert encoder.encode(images[:0]).shape == (0, encoder.dimension)


def test_flat_images_have_a_vector_too(encoder: TextureEncoder) -> None:
    flat = np.stack([np.full((128, 128), grey, np.float32) for grey in (0.0, 0.5, 1.0)])
    assert np.isfinite(encoder.encode(flat)).all()


def test_model_id_names_the_weights(encoder: TextureEncoder) -> None:
    content = resources.files("index.encoders").joinpath("texture-2.npz").read_bytes()
    assert encoder.model_id == f"texture-2-{hashlib.sha256(content).hexdigest()[:12]}"
    assert len(encoder.model_id) <= 64
    assert len(content) <= 400_000
    other = io.BytesIO()
    np.savez(other, mean=encoder.mean, projection=encoder.projection * 2)
    assert TextureEncoder.from_bytes(other.getvalue()).model_id != encoder.model_id


def test_weights_of_another_descriptor_and_pickles_are_refused(encoder: TextureEncoder) -> None:
    for arrays in (
        {"mean": np.zeros(5), "projection": np.zeros((5, 2))},
        {"mean": encoder.mean, "projection": np.array([{}], dtype=object)},
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        with pytest.raises(ValueError):
            TextureEncoder.from_bytes(file.getvalue())


@pytest.mark.parametrize("shape", [(128, 128), (1, 64, 64), (1, 128, 127)])
def test_images_of_another_size_are_refused(encoder: TextureEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="128 × 128"):
        encoder.encode(np.zeros(shape, np.float32))


def test_small_changes_move_a_vector_little(encoder: TextureEncoder, images: np.ndarray) -> None:
    random = np.random.default_rng(0)
    noisy = np.clip(images + random.normal(0, 0.004, images.shape), 0, 1).astype(np.float32)
    shifted = np.roll(images, 1, axis=2)
    original = encoder.encode(images)
    others = original @ original.T - 2 * np.eye(len(images))
    for changed in (noisy, shifted):
        assert np.all((encoder.encode(changed) @ original.T).argmax(axis=1) == np.arange(len(images)))
    assert np.median((encoder.encode(shifted) * original).sum(axis=1)) > others.max(axis=1).mean()


def test_photometric_interpretation_does_not_move_a_vector(encoder: TextureEncoder, make_dataset: Any) -> None:
    scene = (fit.procedural(np.random.default_rng(5)) * 4000).astype(np.uint16)
    size: dict[str, Any] = {"Rows": 128, "Columns": 128, "Modality": "DX"}
    plain = make_dataset(**size, PixelData=scene.tobytes())
    turned = make_dataset(**size, PixelData=(4095 - scene).tobytes(), PhotometricInterpretation="MONOCHROME1")
    first, second = (encoder.encode(canonical_frames(dataset).images)[0] for dataset in (plain, turned))
    assert first @ second > 0.995


def test_it_finds_the_same_kind_of_image(encoder: TextureEncoder, shared_data: Path) -> None:
    pictures, labels = labelled(shared_data / "MedNIST" / "resized", 30)
    assert len(pictures) == 180
    average, at_five = retrieval(encoder.encode(pictures), labels)
    raw_average, raw_at_five = retrieval(unit(pictures.reshape(len(pictures), -1) - pictures.mean()), labels)
    print(f"MedNIST: mAP {average:.3f}, P@5 {at_five:.3f}; raw pixels {raw_average:.3f}, {raw_at_five:.3f}")
    assert average > 0.95
    assert at_five > 0.98
    assert average > raw_average + 0.1
    assert at_five > raw_at_five + 0.02


def test_it_does_better_than_chance_on_a_hard_set(encoder: TextureEncoder, shared_data: Path) -> None:
    pictures, labels = labelled(shared_data / "pneumoniamnist_png" / "val", 60)
    average, at_five = retrieval(encoder.encode(pictures), labels)
    print(f"pneumonia: mAP {average:.3f}, P@5 {at_five:.3f}; random .5")
    assert at_five > 0.6


def test_whitening_gives_every_axis_the_same_variance() -> None:
    random = np.random.default_rng(1)
    sizes = [block(np.zeros((128, 128), np.float32)).size for block in texture.BLOCKS]
    mixing = random.normal(size=(12, sum(sizes)))
    samples = (random.normal(size=(400, 12)) @ mixing + 5).astype(np.float32)
    mean, projection = fit.weights(samples, sizes, dimension=10, shrinkage=0.0)
    covariance = np.cov((samples - mean) @ projection, rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(10), atol=1e-2)
    _, half = fit.weights(samples, sizes, dimension=10, shrinkage=1.0)
    variances = np.diag(np.cov((samples - mean) @ half, rowvar=False))
    assert variances[0] > 1.2 * variances[-1]


def test_fitting_is_repeatable(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_PROCEDURAL", 150)
    monkeypatch.setattr(fit, "_VIEWS", 1)
    for number, picture in enumerate(images[:3]):
        imsave(tmp_path / f"{number}.png", (picture * 255).astype(np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    first, second = fit.fit([tmp_path], seed=4), fit.fit([tmp_path], seed=4)
    assert first == second
    assert fit.fit([tmp_path], seed=5) != first
    assert TextureEncoder.from_bytes(first).encode(images).shape == (len(images), fit.DIMENSION)
    with pytest.raises(ValueError, match="no DICOM or PNG image"):
        fit.corpus([tmp_path / "none"])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("index.similarity", ["skimage", "torch", "numba", "pywt", "index.encoders"]),
        ("index.embeddings", ["skimage", "torch", "numba", "faiss", "index.encoders"]),
        ("index.encoders.texture", ["torch", "numba", "faiss"]),
    ],
)
def test_heavy_libraries_stay_out(module: str, absent: list[str]) -> None:
    script = f"import sys, json, {module}; print(json.dumps([name for name in {absent!r} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
