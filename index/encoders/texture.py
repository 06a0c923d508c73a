"""The texture encoder: classical descriptors, whitened. It needs no training and no download.

Shape (histograms of oriented gradients; Dalal and Triggs, CVPR 2005), texture (local binary patterns over a pyramid,
Ojala et al., PAMI 2002; grey-level co-occurrence, Haralick et al., 1973; energies of wavelet bands, Mallat, PAMI 1989)
and grey values (histograms, coarse layout) are normalised block by block, then projected on whitened principal axes
(shrunk towards the mean variance). The axes are a package file, fitted by `index.encoders.fit`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import numpy as np
import numpy.typing as npt
import pywt
import skimage  # loads its parts when they are used

from index.encoders.encoder import Images, model_id
from index.encoders.pixels import SIDE, VERSION
from index.unit_vectors import Vectors, unit

NAME = "texture"
WEIGHTS = f"texture-{VERSION}.npz"

Image = npt.NDArray[np.float32]
Descriptor = npt.NDArray[np.float32]

_LBP_POINTS = 8
_LBP_GRIDS = (4, 3, 2)
"""Cells along a side for the patterns at full, half and quarter resolution."""

_GLCM_LEVELS = 32
_GLCM_STEPS = (1, 2, 4, 8)
_GLCM_PROPERTIES = ("contrast", "homogeneity", "energy", "correlation")
_WAVELET, _WAVELET_LEVELS = "db2", 4
_GREY_BINS = 32
_LAYOUT_CELLS = 8


def gradients(image: Image) -> Descriptor:
    """Histograms of oriented gradients: 8 × 8 cells normalised together, 4 × 4 normalised by their neighbours."""
    whole = skimage.feature.hog(image, 8, (SIDE // 8, SIDE // 8), (8, 8), "L2-Hys")
    local = skimage.feature.hog(image, 8, (SIDE // 4, SIDE // 4), (2, 2), "L2-Hys")
    return np.concatenate([whole, local / 3.0]).astype(np.float32)


def binary_patterns(image: Image) -> Descriptor:
    """Square roots of uniform, rotation-invariant local binary pattern histograms, per cell of a pyramid."""
    parts = []
    for cells in _LBP_GRIDS:
        patterns = skimage.feature.local_binary_pattern(_quantised(image, 256), _LBP_POINTS, 1, "uniform")
        parts.append(np.sqrt(_cell_histograms(patterns.astype(np.intp), _LBP_POINTS + 2, cells)) / cells)
        image = _halved(image)
    return np.concatenate(parts).astype(np.float32)


def co_occurrence(image: Image) -> Descriptor:
    """Haralick properties of grey-level pairs: mean and range over four directions, per step."""
    angles = [0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    levels = _quantised(image, _GLCM_LEVELS)
    matrix = skimage.feature.graycomatrix(levels, _GLCM_STEPS, angles, _GLCM_LEVELS, True, True)
    values = np.stack([skimage.feature.graycoprops(matrix, name) for name in _GLCM_PROPERTIES])
    values[0] = np.log1p(values[0])  # contrast alone has no upper bound
    return np.concatenate([values.mean(axis=2).ravel(), np.ptp(values, axis=2).ravel()]).astype(np.float32)


def wavelet_energies(image: Image) -> Descriptor:
    """Logarithms of the mean absolute coefficient and of the root mean square, per band and level."""
    bands = pywt.wavedec2(image, _WAVELET, mode="symmetric", level=_WAVELET_LEVELS)[1:]
    energies = [(np.abs(band).mean(), np.sqrt(np.square(band).mean())) for level in bands for band in level]
    return np.asarray(np.log(np.asarray(energies).ravel() + 1e-3), dtype=np.float32)


def grey_values(image: Image) -> Descriptor:
    """Square roots of grey-value histograms, of the whole and of its quarters, and the coarse layout of greys."""
    levels = _quantised(image, _GREY_BINS).astype(np.intp)
    whole = np.sqrt(_cell_histograms(levels, _GREY_BINS, 1))
    quarters = np.sqrt(_cell_histograms(levels // 4, _GREY_BINS // 4, 2)) / 2
    edge = SIDE // _LAYOUT_CELLS
    layout = image.reshape(_LAYOUT_CELLS, edge, _LAYOUT_CELLS, edge).mean(axis=(1, 3))
    return np.concatenate([whole, quarters, layout.ravel() / _LAYOUT_CELLS]).astype(np.float32)


BLOCKS: tuple[Callable[[Image], Descriptor], ...] = (
    gradients,
    binary_patterns,
    co_occurrence,
    wavelet_energies,
    grey_values,
)
"""The blocks of the raw descriptor, in their order."""


def describe(image: Image) -> Descriptor:
    """Return the raw descriptor of a canonical `image`, axes (row, column)."""
    return np.concatenate([block(image) for block in BLOCKS])


def _quantised(image: Image, levels: int) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(image * levels, 0, levels - 1), dtype=np.uint8)


def _halved(image: Image) -> Image:
    rows, columns = image.shape
    return np.asarray(image.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3)), dtype=np.float32)


def _cell_histograms(values: npt.NDArray[np.intp], bins: int, cells: int) -> npt.NDArray[np.float64]:
    """Return the relative frequencies of `values`, axes (row, column), per cell of a `cells` × `cells` grid, flat."""
    rows, columns = values.shape
    cell = (np.arange(rows) * cells // rows)[:, None] * cells + (np.arange(columns) * cells // columns)[None, :]
    counts = np.bincount((cell * bins + values).ravel(), minlength=cells * cells * bins).reshape(-1, bins)
    return np.asarray((counts / counts.sum(axis=1, keepdims=True)).ravel(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class TextureEncoder:
    """The texture encoder with its weights.

    Attributes
    ----------
    mean
        Of the raw descriptors that it was fitted on, axis (raw,).
    projection
        Whitened principal axes with the blocks' weights folded in, axes (raw, d).
    weights_file
        The weights file, whose digest is in the ModelID.
    """

    mean: npt.NDArray[np.float32]
    projection: npt.NDArray[np.float32]
    weights_file: bytes

    @classmethod
    def load(cls) -> TextureEncoder:
        """Load the weights that come with the package."""
        return cls.from_bytes(resources.files("index.encoders").joinpath(WEIGHTS).read_bytes())

    @classmethod
    def from_bytes(cls, weights: bytes) -> TextureEncoder:
        """Load weights that `index.encoders.fit` wrote.

        Raises
        ------
        ValueError
            Weights of another descriptor.
        """
        with np.load(io.BytesIO(weights), allow_pickle=False) as arrays:
            mean = arrays["mean"].astype(np.float32)
            projection = arrays["projection"].astype(np.float32)
        expected = describe(np.zeros((SIDE, SIDE), dtype=np.float32)).size
        if mean.shape != (expected,) or projection.ndim != 2 or projection.shape[0] != expected:
            raise ValueError(
                f"weights of a descriptor of {expected} values expected, got {mean.shape} and {projection.shape}"
            )
        return cls(mean, projection, weights)

    @property
    def name(self) -> str:
        """``texture``."""
        return NAME

    @cached_property
    def model_id(self) -> str:
        """``texture-<preprocessing version>-<digest of the weights>``."""
        return model_id(NAME, VERSION, self.weights_file)

    @property
    def dimension(self) -> int:
        """Length d of the vectors."""
        return int(self.projection.shape[1])

    def encode(self, images: Images) -> Vectors:
        """Return the vectors, axes (n, d), of canonical `images`, axes (n, row, column).

        Raises
        ------
        ValueError
            Images of another size than the canonical one.
        """
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"expected images of {SIDE} × {SIDE}, got an array of {images.shape}")
        if not len(images):
            return np.zeros((0, self.dimension), dtype=np.float32)
        descriptors = np.stack([describe(image) for image in images])
        return unit((descriptors - self.mean) @ self.projection)
