"""The segmenter ``totalsegmentator``: 117 structures of the body, by a package and networks that come separately.

J. Wasserthal et al., *TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images*, Radiology:
Artificial Intelligence 5(5), 2023; its networks are nnU-Nets (F. Isensee et al., Nature Methods 18, 2021). It is there
when the package is, and refuses volumes while its networks are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from config.settings import SegmentationSettings
from plugins.node import CannotProceed
from plugins.segmentation.segmenter import Algorithm, Progress, Segment, Segmentation, Volume
from plugins.segmentation.totalsegmentator_codes import UnknownStructure, segment_for
from plugins.segmentation.totalsegmentator_process import Labelled, Wanted, run

VERSION = "1"
"""Counts up whenever the same answer of TotalSegmentator becomes another segmentation."""

_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_GRID_VOXELS = 0.01
"""How far a voxel may be from where it was: NIfTI keeps places in single precision."""

_DOWNLOADS = {"total": ("total", "total_fast"), "total_mr": ("total_mr", "total_fast_mr")}
"""Task → what TotalSegmentator's `totalseg_download_weights` calls its networks, without and with `fast`."""


def installed_version() -> str | None:
    """Return the version of the package TotalSegmentator; None when it is not installed."""
    try:
        return metadata.version("TotalSegmentator")
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class TotalSegmentator:
    """Finds organs, bones, muscles and vessels.

    Attributes
    ----------
    version
        Of the package.
    task
        ``total`` or ``total_mr``.
    fast
        The network of 3 mm voxels instead of 1.5 mm.
    structures
        Only these; all when empty.
    """

    version: str
    task: str
    fast: bool
    structures: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name in the settings."""
        return "totalsegmentator"

    @classmethod
    def offered(cls, wanted: SegmentationSettings) -> list[TotalSegmentator]:
        """Return the segmenter as the settings want it; none when the package is not installed."""
        version = installed_version()
        if version is None:
            return []
        structures = tuple(sorted(set(wanted.totalsegmentator_structures)))
        return [cls(version, wanted.totalsegmentator_task, wanted.totalsegmentator_fast, structures)]

    def recipe(self) -> Mapping[str, Any]:
        """Return the versions and the parameters."""
        return {
            "version": VERSION,
            "package": self.version,
            "task": self.task,
            "fast": self.fast,
            "structures": list(self.structures),
        }

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Find structures; only what is there becomes a segment.

        Raises
        ------
        CannotProceed
            The volume is not in HU or its place in the patient is not known, the networks are missing, or
            TotalSegmentator refused or answered on another grid.
        """
        if not volume.is_hu:
            raise CannotProceed("TotalSegmentator needs Hounsfield units, got a volume in 1/cm")
        if volume.placement is None:
            raise CannotProceed("TotalSegmentator tells left from right, got a volume without a place in the patient")
        affine = _RAS_OF_LPS @ volume.placement.affine[:, [2, 1, 0, 3]]
        answer = run(volume.values.T, affine, self._wanted(), lambda: progress(0.1))
        progress(0.9)
        labels, segments = _present(on_grid(answer, affine, volume.values.T.shape).T, answer.names)
        return Segmentation(labels, segments, self._algorithm())

    def _wanted(self) -> Wanted:
        names = {_DOWNLOADS[self.task][self.fast]}
        if self.structures and self.task == "total_mr":  # looks for them with the fast network first
            names.add("total_fast_mr")
        download = " and ".join(f"totalseg_download_weights -t {name}" for name in sorted(names))
        return Wanted(self.task, self.fast, self.structures, download)

    def _algorithm(self) -> Algorithm:
        parameters = {
            "task": self.task,
            "voxels": "3 mm" if self.fast else "1.5 mm",
            "structures": " ".join(self.structures) or "all",
        }
        return Algorithm("TotalSegmentator", self.version, codes.DCM.ArtificialIntelligence, parameters)


def on_grid(answer: Labelled, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the labels voxel by voxel on the grid of `affine`, whatever order and direction the answer's axes have.

    Parameters
    ----------
    affine
        (4, 4), voxel indices to mm in RAS.
    shape
        Voxels along its three axes.

    Raises
    ------
    CannotProceed
        It is another grid.
    """
    refusal = CannotProceed(
        f"TotalSegmentator answered on another grid: expected one of {shape}, got one of {answer.labels.shape} voxels"
    )
    if answer.labels.ndim != 3 or not np.linalg.det(answer.affine):
        raise refusal
    to_answer = np.linalg.inv(answer.affine) @ affine
    order = np.abs(to_answer[:3, :3]).argmax(axis=0)
    if sorted(order) != [0, 1, 2] or answer.labels.transpose(order).shape != shape:
        raise refusal
    directions = np.sign(to_answer[order, [0, 1, 2]])
    last = np.array(shape) - 1
    exact = np.diag([0.0, 0.0, 0.0, 1.0])
    exact[order, [0, 1, 2]] = directions
    exact[order, 3] = np.where(directions < 0, last, 0)
    corners = np.array([[*corner, 1] for corner in product(*((0, end) for end in last))]).T
    if np.abs((to_answer - exact) @ corners).max() > _SAME_GRID_VOXELS:
        raise refusal
    return np.flip(answer.labels.transpose(order), tuple(np.flatnonzero(directions < 0).tolist()))


def _present(labels: NDArray[np.uint8], names: Mapping[int, str]) -> tuple[NDArray[np.uint8], tuple[Segment, ...]]:
    """Number what is there from 1 without gaps (PS3.3 C.8.20.2), in the order of TotalSegmentator's labels."""
    is_there = np.zeros(256, np.bool_)
    for plane in labels:
        is_there[plane] = True
    found = [number for number in np.flatnonzero(is_there).tolist() if number]
    for number in found:
        if number not in names:
            raise CannotProceed(f"TotalSegmentator answered with a label {number}, which is no structure of its task")
    try:
        segments = tuple(segment_for(names[number]) for number in found)
    except UnknownStructure as error:
        raise CannotProceed(str(error)) from error
    table = np.zeros(256, np.uint8)
    table[found] = np.arange(1, len(found) + 1)
    return table[labels], segments
