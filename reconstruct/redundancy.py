"""How often each ray is measured, and what a measurement therefore counts for.

The ray that leaves the source at view angle β, γ counterclockwise of the axis, is measured again, the other way round,
at β + π + 2γ under -γ. The weights of the two have to add up to 1.

- Full circle: 1/2 each.
- Short scan of π + 2Γ: Parker's weights [1]_, which go smoothly to 0 at both ends; Γ is half of what the arc has over
  half a turn, so that all of a longer arc is used [2]_. Where the fan is wider than Γ, the rays beyond it are measured
  once or not at all: they count 1, and the field of view ends there.
- Offset detector, full circle: rays beyond the shorter side are measured once and count 1; across the part that is seen
  from both sides weights rise as a sine in γ from 0 to 1 [3]_.
- Limited arc, less than a short scan: 1; what is missing is missing (tomosynthesis).

.. [1] Parker, Optimal short scan convolution reconstruction for fanbeam CT, Med. Phys. 9 (1982) 254.
.. [2] Silver, A method for including redundant data in computed tomography, Med. Phys. 27 (2000) 773.
.. [3] Wang, X-ray micro-CT with a displaced detector array, Med. Phys. 29 (2002) 1634.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from reconstruct.arcs import Arc, arc_of
from reconstruct.field_of_view import Fan, fan_of
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.grid import GeometryError

Weights = NDArray[np.float32]


class Coverage(StrEnum):
    """What a scan measures of the rays through its field of view."""

    FULL = "full circle"
    SHORT = "short scan"
    OFFSET = "offset detector"
    LIMITED = "limited arc"


@dataclass(frozen=True, eq=False)
class Redundancy:
    """What the measurements of a scan count for.

    Attributes
    ----------
    coverage
        Which of the rules of this module applies.
    arc
        Where the views stand.
    fan
        What the detector sees of the fan.
    geometry
        Of the views that are meant.
    missing
        `missing_columns` of the whole scan, where `geometry` is a part of it.
    """

    coverage: Coverage
    arc: Arc
    fan: Fan
    geometry: ConeBeamGeometry
    missing: tuple[int, int] | None = None

    @property
    def missing_columns(self) -> tuple[int, int]:
        """Columns that an offset detector lacks before the first one and behind the last one to be symmetric.

        What it measured counts 0 there, but the filter's tails reach into them, and voxels project to them.
        """
        if self.missing is not None:
            return self.missing
        if self.coverage is not Coverage.OFFSET:
            return 0, 0
        columns = self.geometry.columns - 1
        axis = _axis_columns(self.geometry)
        return max(0, math.ceil(columns - 2 * axis.min())), max(0, math.ceil(2 * axis.max() - columns))

    def select(self, views: slice) -> Redundancy:
        """Return the same of some of the views, which still count for what they count for in the whole scan."""
        if views == slice(None):
            return self
        arc = replace(
            self.arc, shares_rad=self.arc.shares_rad[views], positions_rad=self.arc.positions_rad[views]
        )
        return replace(self, arc=arc, geometry=self.geometry.select(views), missing=self.missing_columns)

    def weights(self, views: slice) -> Weights:
        """Return the weights of `views` in units of those of a full circle, (view, column) float32, 0 to 2.

        Columns are taken at the height of the middle row; a detector that is rolled in its plane mixes neighbouring
        columns, across which the weights hardly change.
        """
        geometry = self.geometry.select(views)
        if self.coverage is Coverage.FULL:
            return np.ones((geometry.views, geometry.columns), dtype=np.float32)
        if self.coverage is Coverage.LIMITED:
            return np.full((geometry.views, geometry.columns), 2.0, dtype=np.float32)
        angles = fan_angles(geometry)
        if self.coverage is Coverage.OFFSET:
            share = np.clip(self.fan.longer_side * angles / self.fan.shorter_rad, -1.0, 1.0)
            return np.asarray(1.0 + np.sin(np.pi / 2 * share), dtype=np.float32)
        spare = (self.arc.length_rad - np.pi) / 2
        return np.asarray(2.0 * _parker(self.arc.positions_rad[views, None], angles, spare), dtype=np.float32)


def redundancy(geometry: ConeBeamGeometry, *, limited_arc: bool = False) -> Redundancy:
    """Return what the measurements of a scan count for.

    Parameters
    ----------
    geometry
        Of the scan.
    limited_arc
        Whether an arc that is no short scan is taken as it is. Edges across the missing directions are then lost and
        values have no scale.

    Raises
    ------
    GeometryError
        Less than a short scan without `limited_arc`, an offset detector that does not go all the way round, or one that
        does not see the axis.
    """
    arc, fan = arc_of(geometry.view_angles_rad), fan_of(geometry.sources, geometry.corners())
    if arc.is_circle:
        return Redundancy(Coverage.OFFSET if fan.is_offset else Coverage.FULL, arc, fan, geometry)
    covered = f"{geometry.views} views that cover {np.rad2deg(arc.length_rad):.1f} degrees"
    if arc.length_rad < np.pi + fan.shorter_rad:
        if limited_arc:
            return Redundancy(Coverage.LIMITED, arc, fan, geometry)
        raise GeometryError(
            "expected views all around the axis, or over half a turn and the fan, "
            f"{np.rad2deg(np.pi + 2 * fan.shorter_rad):.1f} degrees, got {covered}; limited_arc takes such a scan "
            "as tomosynthesis"
        )
    if fan.is_offset:
        raise GeometryError(f"expected views all around the axis, as the detector is offset to one side, got {covered}")
    return Redundancy(Coverage.SHORT, arc, fan, geometry)


def fan_angles(geometry: ConeBeamGeometry) -> NDArray[np.float64]:
    """Return γ of each column at the middle row, counterclockwise of the axis seen from +z, rad, (view, column)."""
    offsets = np.arange(geometry.columns) - (geometry.columns - 1) / 2
    start = geometry.detector_centres - geometry.sources
    rays = start[:, None, :2] + offsets[:, None] * geometry.column_steps[:, None, :2]
    inwards = -geometry.sources[:, None, :2]
    across = inwards[..., 0] * rays[..., 1] - inwards[..., 1] * rays[..., 0]
    return np.asarray(np.arctan2(across, np.sum(inwards * rays, axis=-1)))


def _axis_columns(geometry: ConeBeamGeometry) -> NDArray[np.float64]:
    """Return the column, 0-based, that sees the axis in the middle row of each view, (view,)."""
    start, step = geometry.detector_centres - geometry.sources, geometry.column_steps
    inwards = -geometry.sources
    across, across_step = (inwards[:, 0] * ray[:, 1] - inwards[:, 1] * ray[:, 0] for ray in (start, step))
    return np.asarray((geometry.columns - 1) / 2 - across / across_step)


def _parker(beta: NDArray[np.float64], gamma: NDArray[np.float64], spare: float) -> NDArray[np.float64]:
    """Parker's weights for views at `beta` from the beginning of an arc of π + 2 `spare`, 0 to 1."""
    rise, fall = 2 * (spare - gamma), 2 * (spare + gamma)
    left = np.pi + 2 * spare - beta
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.sin(np.pi / 2 * beta / rise) ** 2
        falling = np.sin(np.pi / 2 * left / fall) ** 2
    weights = np.ones(np.broadcast_shapes(beta.shape, gamma.shape))
    np.copyto(weights, rising, where=beta < rise)
    np.copyto(weights, falling, where=left < fall)
    return weights
