"""Compiled loops over ellipsoids: chords along rays, and membership of voxels. Arrays in, arrays out.

An ellipsoid is a row of 13 float64: the 9 elements of the matrix that turns it into the unit ball, its centre,
mm, and its value.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def add_chords(
    ellipsoids: NDArray[np.float64],
    sources: NDArray[np.float64],
    first_pixels: NDArray[np.float64],
    column_steps: NDArray[np.float64],
    row_steps: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write into `out` (view, row, column) the sum of value × length, mm, along each pixel's ray."""
    views, rows, columns = out.shape
    for line in prange(views * rows):
        view = line // rows
        row = line - view * rows
        start = first_pixels[view] - sources[view]
        for column in range(columns):
            dx = start[0] + column * column_steps[view, 0] + row * row_steps[view, 0]
            dy = start[1] + column * column_steps[view, 1] + row * row_steps[view, 1]
            dz = start[2] + column * column_steps[view, 2] + row * row_steps[view, 2]
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            total = 0.0
            for k in range(ellipsoids.shape[0]):
                e = ellipsoids[k]
                ox = sources[view, 0] - e[9]
                oy = sources[view, 1] - e[10]
                oz = sources[view, 2] - e[11]
                # The ray o + s d in the frame where the ellipsoid is the unit ball: |o + s d|² = 1.
                px = e[0] * ox + e[1] * oy + e[2] * oz
                py = e[3] * ox + e[4] * oy + e[5] * oz
                pz = e[6] * ox + e[7] * oy + e[8] * oz
                qx = e[0] * dx + e[1] * dy + e[2] * dz
                qy = e[3] * dx + e[4] * dy + e[5] * dz
                qz = e[6] * dx + e[7] * dy + e[8] * dz
                a = qx * qx + qy * qy + qz * qz
                b = px * qx + py * qy + pz * qz
                # b² - a c would lose digits far from a small ball; the line's distance from its centre does not.
                s = b / a
                mx = px - s * qx
                my = py - s * qy
                mz = pz - s * qz
                inside = 1.0 - (mx * mx + my * my + mz * mz)
                if inside > 0.0:
                    half = math.sqrt(inside / a)
                    enter = max(-s - half, 0.0)
                    leave = max(-s + half, 0.0)
                    total += e[12] * (leave - enter) * length
            out[view, row, column] = total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def fill_voxels(
    ellipsoids: NDArray[np.float64],
    z_mm: NDArray[np.float64],
    y_mm: NDArray[np.float64],
    x_mm: NDArray[np.float64],
    samples: int,
    out: NDArray[np.float32],
) -> None:
    """Write into `out` (z, y, x) the mean over `samples`³ points of each voxel.

    The coordinates are those of the points, `samples` to a voxel, so ``len(z_mm) == samples * out.shape[0]``.
    """
    slices, lines, columns = out.shape
    share = 1.0 / (samples * samples * samples)
    for z in prange(slices):
        for y in range(lines):
            for x in range(columns):
                total = 0.0
                for k in range(ellipsoids.shape[0]):
                    e = ellipsoids[k]
                    hits = 0
                    for i in range(samples):
                        oz = z_mm[z * samples + i] - e[11]
                        for j in range(samples):
                            oy = y_mm[y * samples + j] - e[10]
                            for m in range(samples):
                                ox = x_mm[x * samples + m] - e[9]
                                px = e[0] * ox + e[1] * oy + e[2] * oz
                                py = e[3] * ox + e[4] * oy + e[5] * oz
                                pz = e[6] * ox + e[7] * oy + e[8] * oz
                                if px * px + py * py + pz * pz <= 1.0:
                                    hits += 1
                    total += e[12] * hits
                out[z, y, x] = total * share
