"""Other views of the same slices: what a slice may look like and still show the same.

All random numbers come from one generator on the CPU, so that a seed gives the same views on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from plugins.segmentation.learned.inputs import AIR_HU
from plugins.segmentation.learned.recipe import Strength

_KNOTS = 5
"""Points along a side between which the displacement is smooth."""


def views(
    slices: Tensor, truth: Tensor, mirrored: Tensor, tile: int, random: torch.Generator, strength: Strength
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a view of each slice, HU, axes (n, neighbour, tile, tile), its truth, and whether it is mirrored.

    The truth has the axes (n, tile, tile); in mirrored views, axis (n,), the sides have changed their names.

    Parameters
    ----------
    slices
        HU, axes (n, neighbour, row, column).
    truth
        Class numbers, axes (n, row, column).
    mirrored
        Class number → that of the class on the other side, which is the same for what has no side; axis (class,).
    """
    is_mirrored = _uniform(slices, random) < strength.mirror
    is_reversed = _uniform(slices, random) < strength.reverse
    places = _places(slices, is_mirrored, tile, random, strength)
    # Truth is 0 outside, the background; values are those of air.
    greys = functional.grid_sample(slices - AIR_HU, places, align_corners=False) + AIR_HU
    moved = functional.grid_sample(truth[:, None].float(), places, mode="nearest", align_corners=False)[:, 0].long()
    moved = torch.where(is_mirrored[:, None, None], mirrored[moved], moved)
    greys = torch.where(is_reversed[:, None, None, None], greys.flip(1), greys)
    return _other_values(greys, random, strength), moved, is_mirrored


def _normal(like: Tensor, random: torch.Generator, deviation: float, *shape: int) -> Tensor:
    return deviation * torch.randn((len(like), *shape), generator=random).to(like.device)


def _uniform(like: Tensor, random: torch.Generator, *shape: int) -> Tensor:
    return torch.rand((len(like), *shape), generator=random).to(like.device)


def _places(
    slices: Tensor, is_mirrored: Tensor, tile: int, random: torch.Generator, strength: Strength
) -> Tensor:
    """Return where each pixel of the views comes from, axes (n, row, column, 2), in halves of the image (-1 to 1)."""
    angle = _normal(slices, random, strength.angle_rad)
    zoom = _normal(slices, random, strength.log_zoom).exp()
    sign = 1.0 - 2.0 * is_mirrored.float()
    size = torch.tensor([slices.shape[3], slices.shape[2]], dtype=torch.float32, device=slices.device)
    spare = (size - tile).clamp(min=0.0) / 2.0
    centre = (2.0 * _uniform(slices, random, 2) - 1.0) * spare + _normal(slices, random, strength.shift * tile, 2)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    zero = torch.zeros((len(slices), 2, 1), device=slices.device)
    turn = torch.stack([torch.stack([sign * cosine, -sine], 1), torch.stack([sign * sine, cosine], 1)], 1)
    grid = functional.affine_grid(torch.cat([turn, zero], 2), [len(slices), 1, tile, tile], align_corners=False)
    knots = _normal(slices, random, 2.0 * strength.warp, 2, _KNOTS, _KNOTS)
    warp = functional.interpolate(knots, (tile, tile), mode="bicubic", align_corners=True).movedim(1, -1)
    pixels = (grid + warp) * (tile / 2.0) + centre[:, None, None]
    return pixels / (size / 2.0)


def _other_values(hounsfield: Tensor, random: torch.Generator, strength: Strength) -> Tensor:
    contrast = _normal(hounsfield, random, strength.log_contrast)[:, None, None, None].exp()
    offset = _normal(hounsfield, random, strength.offset_hu)[:, None, None, None]
    noise = strength.noise_hu * _uniform(hounsfield, random, 1, 1, 1)
    return hounsfield * contrast + offset + noise * _normal(hounsfield, random, 1.0, *hounsfield.shape[1:])
