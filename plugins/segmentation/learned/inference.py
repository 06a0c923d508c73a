"""From values to classes: tiles that slide over each slice, seen from several sides, and averaged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from index.encoders.learned.loop import CHANNELS_LAST
from plugins.segmentation.learned.inputs import Hounsfield, seen, windowed
from plugins.segmentation.learned.network import DIVISOR, SegmentationNet

_AT_ONCE = 8
"""Slices that are computed together."""

_SHARPNESS = 8.0
"""A tile counts least at its border, where the network sees least around it: Gaussian weights of side / this."""


def probabilities(
    network: SegmentationNet,
    values: Hounsfield,
    step: float,
    tile: int,
    mirrored: npt.NDArray[np.int64] | None,
    progress: Callable[[float], None] = lambda _done: None,
    *,
    wanted: npt.NDArray[np.int64] | None = None,
    flips: bool = True,
) -> Iterator[Tensor]:
    """Yield the probabilities of the classes of each slice, axes (class, row, column), on the device of the network.

    Parameters
    ----------
    values
        HU ``(z, y, x)`` at the spacing of the recipe.
    step
        Distance of the neighbours that the network sees, in slices.
    mirrored
        Class → class of the other side, axis (class,); None: what is mirrored means nothing, so nothing is.
    wanted
        Which slices; all when None.
    flips
        Average over the slice, the slice mirrored left to right with sides exchanged, and both with the order of the
        neighbours reversed.
    """
    device = next(network.parameters()).device
    sides = None if mirrored is None else torch.from_numpy(mirrored[: network.head.out_channels]).to(device)
    all_rows = np.arange(len(values)) if wanted is None else wanted
    for start in range(0, len(all_rows), _AT_ONCE):
        rows = all_rows[start : start + _AT_ONCE]
        slices = windowed(seen(values, rows, step)).to(device).contiguous(memory_format=CHANNELS_LAST)
        with torch.inference_mode():
            views = (_view(network, slices, sides, tile, *how) for how in _ways(flips=flips, mirrors=sides is not None))
            mean = torch.stack(list(views)).mean(dim=0)
        yield from mean
        progress((start + len(rows)) / len(all_rows))


def _ways(*, flips: bool, mirrors: bool) -> Iterator[tuple[bool, bool]]:
    for is_mirrored, is_reversed in itertools.product((False, True), repeat=2):
        if (flips or not (is_mirrored or is_reversed)) and (mirrors or not is_mirrored):
            yield is_mirrored, is_reversed


def _view(
    network: SegmentationNet,
    slices: Tensor,
    sides: Tensor | None,
    tile: int,
    is_mirrored: bool,  # noqa: FBT001
    is_reversed: bool,  # noqa: FBT001
) -> Tensor:
    if is_reversed:
        slices = torch.cat([part.flip(1) for part in slices.chunk(2, dim=1)], dim=1)
    if not is_mirrored or sides is None:
        return _slid(network, slices, tile)
    return _slid(network, slices.flip(3), tile).flip(3)[:, sides]


def _slid(network: SegmentationNet, slices: Tensor, tile: int) -> Tensor:
    """Return the softmax over whole slices, axes (n, class, row, column), from tiles that overlap by half."""
    rows, columns = slices.shape[2:]
    padded = functional.pad(slices, (0, max(0, tile - columns), 0, max(0, tile - rows)))
    weights = _weights(tile, slices.device)
    total: Tensor | None = None
    count = torch.zeros(padded.shape[2:], device=slices.device)
    for top, left in itertools.product(_starts(padded.shape[2], tile), _starts(padded.shape[3], tile)):
        inside = (..., slice(top, top + tile), slice(left, left + tile))
        told = network(padded[inside]).softmax(dim=1) * weights
        if total is None:
            total = told.new_zeros((len(slices), told.shape[1], *padded.shape[2:]))
        total[inside] += told
        count[inside] += weights
    if total is None:
        raise ValueError(f"expected slices of at least one pixel, got {tuple(slices.shape)}")
    return (total / count)[..., :rows, :columns]


def _starts(length: int, tile: int) -> list[int]:
    count = 1 + -(-(length - tile) // (tile // 2))
    return [round(place * (length - tile) / max(count - 1, 1)) for place in range(count)]


def _weights(tile: int, device: torch.device) -> Tensor:
    if tile % DIVISOR:
        raise ValueError(f"expected a tile whose side is a multiple of {DIVISOR}, got {tile}")
    along = (torch.arange(tile, device=device) - (tile - 1) / 2) / (tile / _SHARPNESS)
    gauss = torch.exp(-0.5 * along**2).clamp(min=1e-3)
    return gauss[:, None] * gauss[None, :]
