"""Fit the weights of the texture encoder: ``python -m index.encoders.fit FOLDER... [--output FILE]``.

Deterministic: the same folders, seed and libraries give the same file. Folders hold DICOM or PNG files; every image is
brought into the canonical form and seen several times, turned over, shifted, scaled, with other contrast and noise, so
that the axes describe kinds of images and not these images. Procedural textures (filtered noise of many spectra,
ellipses, gratings, flat fields) fill the space between them.

The weights in the package were fitted on the public test images of pydicom and pydicom-data, cornerstone3D, highdicom,
dcmqi, dcmstack, pynetdicom, rt-utils, dicompyler-core, suyashkumar-dicom (MIT or BSD), dcm_qa_12bit, dcm_qa_agfa,
dcm_qa_ct, dcm_qa_frag, dcm_qa_nih, dcm_qa_ts (BSD-2), lungmask, TotalSegmentator and weasis-dicom-tools (Apache-2.0)
and Tomosynthesis-Toolkit (MIT). Nothing that retrieval is judged on was among them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError
from scipy import ndimage
from skimage.io import imread

from index.encoders.encoder import Images
from index.encoders.pixels import SIDE, NoPixels, canonical_frames
from index.encoders.square import to_square
from index.encoders.texture import BLOCKS, WEIGHTS, Descriptor, Image, describe

log = logging.getLogger("index.encoders.fit")

DIMENSION = 128
SHRINKAGE = 0.1
"""Of each variance towards the mean variance of the kept axes: small ones would be noise blown up."""

_MOST_OF_A_SERIES = 24
_VIEWS = 6
_PROCEDURAL = 600
_NOT_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "ECG"}


def corpus(folders: Sequence[Path]) -> Images:
    """Return the canonical images of all DICOM and PNG files below `folders`, no more than a few of a series."""
    images: list[npt.NDArray[np.float32]] = []
    taken: Counter[str] = Counter()
    seen: set[str] = set()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        for group, image in _images_of(path):
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            if digest in seen or taken[group] >= _MOST_OF_A_SERIES:
                continue
            seen.add(digest)
            taken[group] += 1
            images.append(image)
    if not images:
        raise ValueError(f"no DICOM or PNG image below {', '.join(map(str, folders))}")
    return np.stack(images)


def _images_of(path: Path) -> Iterator[tuple[str, Image]]:
    """Yield (series, or folder of a PNG; canonical image)."""
    if path.suffix.lower() == ".png":
        yield str(path.parent), to_square(imread(path, as_gray=True) / 255.0, SIDE)
        return
    try:
        dataset = pydicom.dcmread(path)
        if str(dataset.get("Modality", "")) in _NOT_IMAGES:
            return
        frames = canonical_frames(dataset, most=_MOST_OF_A_SERIES)
    except (InvalidDicomError, NoPixels, EOFError) as error:
        log.debug("%s: %s", path.name, error)
        return
    for image in frames.images:
        if np.ptp(image) > 0:
            yield str(dataset.get("SeriesInstanceUID", path.parent)), image


def variation(image: Image, random: np.random.Generator) -> Image:
    """Return `image` turned over, rotated, scaled, shifted, with other contrast and noise."""
    if random.random() < 0.5:
        image = image[:, ::-1]
    angle, scale = np.deg2rad(random.normal(0.0, 8.0)), float(np.exp(random.normal(0.0, 0.12)))
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - matrix @ centre + random.normal(0.0, 5.0, size=2)
    moved = ndimage.affine_transform(image, matrix, offset, order=1)
    contrast = np.power(np.clip(moved, 0.0, 1.0), float(np.exp(random.normal(0.0, 0.2))))
    noisy = contrast + random.normal(0.0, random.choice([0.0, 0.01, 0.03]), size=image.shape)
    return np.asarray(np.clip(noisy, 0.0, 1.0), dtype=np.float32)


def procedural(random: np.random.Generator) -> Image:
    """Return a texture of random spectrum, seen through ellipses as a body is seen in its field of view."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")) + 1 / SIDE
    spectrum = np.fft.fft2(random.normal(size=(SIDE, SIDE))) * frequency ** -random.uniform(0.0, 2.0)
    texture = np.fft.ifft2(spectrum).real
    texture = (texture - texture.mean()) / (texture.std() + 1e-12)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij"))
    image = np.full((SIDE, SIDE), random.choice([0.0, random.random()]))
    for _ in range(int(random.integers(1, 8))):
        centre, axes = random.uniform(-0.6, 0.6, size=(2, 1, 1)), random.uniform(0.1, 0.9, size=(2, 1, 1))
        inside = np.square((grid - centre) / axes).sum(axis=0) < 1.0
        image[inside] = random.random() + random.choice([0.0, 0.05, 0.2]) * texture[inside]
    return np.asarray(np.clip(image, 0.0, 1.0), dtype=np.float32)


def weights(
    descriptors: npt.NDArray[np.float32], sizes: Sequence[int], dimension: int = DIMENSION, shrinkage: float = SHRINKAGE
) -> tuple[Descriptor, npt.NDArray[np.float32]]:
    """Return the mean, axis (raw,), and the whitened principal axes, axes (raw, `dimension`), of `descriptors`.

    Parameters
    ----------
    descriptors
        Axes (sample, raw).
    sizes
        Lengths of the blocks along the raw axis. Each block gets the same total variance; within the blocks of
        unlike quantities (co-occurrence, wavelets) each value has had its own scale removed.
    shrinkage
        0 whitens fully, 1 only rotates.
    """
    mean = descriptors.mean(axis=0, dtype=np.float64)
    centred = descriptors - mean
    scale = np.empty_like(mean)
    start = 0
    for block, size in zip(BLOCKS, sizes, strict=True):
        part = slice(start, start + size)
        deviation = centred[:, part].std(axis=0)
        unlike = block.__name__ in ("co_occurrence", "wavelet_energies")
        spread = np.maximum(deviation, 1e-3 * deviation.max()) if unlike else np.ones(size)
        scale[part] = 1.0 / (spread * np.sqrt(np.square(deviation / spread).sum()))
        start += size
    covariance = np.cov(centred * scale, rowvar=False)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1][:dimension], axes[:, ::-1][:, :dimension]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    shrunk = (1.0 - shrinkage) * variances + shrinkage * variances.mean()
    return mean.astype(np.float32), (scale[:, None] * axes / np.sqrt(shrunk)).astype(np.float32)


def fit(folders: Sequence[Path], seed: int = 0) -> bytes:
    """Return the weights file fitted on the images below `folders`."""
    random = np.random.default_rng(seed)
    images = corpus(folders)
    log.info("%d images", len(images))
    seen = [*images, *(variation(image, random) for image in images for _ in range(_VIEWS))]
    seen += [procedural(random) for _ in range(_PROCEDURAL)]
    descriptors = np.stack([describe(image) for image in seen])
    mean, projection = weights(descriptors, [block(images[0]).size for block in BLOCKS])
    file = io.BytesIO()
    np.savez(file, mean=mean, projection=projection.astype(np.float16))
    return file.getvalue()


def main() -> None:
    """Fit, and write the weights file."""
    parser = argparse.ArgumentParser(description="Fit the weights of the texture encoder.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="DICOM or PNG files, searched below")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    content = fit(arguments.folders, arguments.seed)
    arguments.output.write_bytes(content)
    log.info("%s: %d bytes, SHA-256 %s", arguments.output, len(content), hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
