"""Other views of the same images: what an image may look like and still show the same.

All random numbers come from one generator on the CPU, so that a seed gives the same views on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Strength:
    """How far a view may be from its image.

    Attributes
    ----------
    angle_rad, log_zoom, shift
        Standard deviations of rotation, of the logarithm of the scale, and of the shift in halves of the image side.
    mirror
        Probability of being mirrored left to right.
    log_gamma, contrast, brightness
        Standard deviations of the logarithm of the exponent of the grey values and of a linear change of them.
    noise
        Largest standard deviation of additive noise.
    cut_out
        Side of the square that is blanked, in image sides, at most; half of the views have none.
    """

    angle_rad: float = 0.14
    log_zoom: float = 0.12
    shift: float = 0.08
    mirror: float = 0.5
    log_gamma: float = 0.25
    contrast: float = 0.15
    brightness: float = 0.05
    noise: float = 0.03
    cut_out: float = 0.4


def views(images: Tensor, random: torch.Generator, strength: Strength) -> Tensor:
    """Return one view of each of `images`, axes (n, 1, row, column), 0 to 1, on their device."""
    moved = _sampled(images, _places(images, random, strength))
    return _blanked(_other_greys(moved, random, strength), random, strength)


def views_with_truth(
    images: Tensor, truth: Tensor, random: torch.Generator, strength: Strength
) -> tuple[Tensor, Tensor]:
    """Return one view of each of `images`, and the segment numbers `truth`, axes (n, row, column), moved alike."""
    places = _places(images, random, strength)
    # Counted from 1 while they move: what comes in from outside is 0, and then belongs to no segment.
    numbers = _sampled(truth[:, None].float() + 1.0, places, mode="nearest")[:, 0]
    moved = (numbers - 1.0).clamp(min=0.0).to(truth.dtype)
    greys = _other_greys(_sampled(images, places), random, strength)
    return _blanked(greys, random, strength), moved


def _normal(images: Tensor, random: torch.Generator, deviation: float, *, shape: tuple[int, ...] = ()) -> Tensor:
    """Return normal random numbers, axes (n, …), of that standard deviation."""
    return deviation * torch.randn((len(images), *shape), generator=random).to(images.device)


def _uniform(images: Tensor, random: torch.Generator, *shape: int) -> Tensor:
    """Return uniform random numbers from 0 to 1, axes (n, …)."""
    return torch.rand((len(images), *shape), generator=random).to(images.device)


def _places(images: Tensor, random: torch.Generator, strength: Strength) -> Tensor:
    """Return where each pixel of a rotated, scaled, shifted and mirrored view comes from, axes (n, row, column, 2)."""
    angle = _normal(images, random, strength.angle_rad)
    zoom = _normal(images, random, strength.log_zoom).exp()
    mirror = 1.0 - 2.0 * (_uniform(images, random) < strength.mirror).float()
    shift = _normal(images, random, strength.shift, shape=(2,))
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.stack([mirror * cosine, -sine, shift[:, 0]], 1), torch.stack([mirror * sine, cosine, shift[:, 1]], 1)]
    return functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)


def _sampled(maps: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Return the values of `maps` at `places`; outside they are 0."""
    return functional.grid_sample(maps, places, mode=mode, align_corners=False)


def _other_greys(images: Tensor, random: torch.Generator, strength: Strength) -> Tensor:
    gamma, contrast = (
        _normal(images, random, deviation)[:, None, None, None].exp()
        for deviation in (strength.log_gamma, strength.contrast)
    )
    brightness = _normal(images, random, strength.brightness)[:, None, None, None]
    noise = strength.noise * _uniform(images, random, 1, 1, 1) * _normal(images, random, 1.0, shape=images.shape[1:])
    greys = images.clamp(0.0, 1.0).pow(gamma)
    return ((greys - 0.5) * contrast + 0.5 + brightness + noise).clamp(0.0, 1.0)


def _blanked(images: Tensor, random: torch.Generator, strength: Strength) -> Tensor:
    """Blank a square of each (DeVries and Taylor, arXiv:1708.04552) with its mean grey."""
    rows, columns = images.shape[2:]
    half = 0.5 * strength.cut_out * _uniform(images, random) * (_uniform(images, random) < 0.5)
    centre = _uniform(images, random, 2)
    y = (torch.arange(rows, device=images.device) + 0.5) / rows
    x = (torch.arange(columns, device=images.device) + 0.5) / columns
    inside_y = (y[None] - centre[:, :1]).abs() < half[:, None]
    inside_x = (x[None] - centre[:, 1:]).abs() < half[:, None]
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    return torch.where(inside, images.mean(dim=(1, 2, 3), keepdim=True), images)


def masked(images: Tensor, random: torch.Generator, *, patches: int = 8, share: float = 0.4) -> Tensor:
    """Return `images` with a share of their square patches blanked and noise added: what an autoencoder mends.

    Parameters
    ----------
    patches
        Along a side.
    """
    hidden = (_uniform(images, random, 1, patches, patches) < share).float()
    hidden = functional.interpolate(hidden, images.shape[2:], mode="nearest")
    noisy = images + 0.05 * _normal(images, random, 1.0, shape=images.shape[1:])
    return torch.where(hidden > 0.5, images.mean(dim=(1, 2, 3), keepdim=True), noisy).clamp(0.0, 1.0)
