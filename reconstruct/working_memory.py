"""Where the large arrays of a reconstruction go: into memory while they fit the bound, else into files."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MIB = 1 << 20


@dataclass(frozen=True)
class WorkingMemory:
    """What of an energy bin is held in memory.

    Attributes
    ----------
    integrals_in_file, volume_in_file
        Whether the line integrals and the volume are memory maps of files.
    fdk_mb
        What is left to FDK for its own work, MiB.
    """

    integrals_in_file: bool
    volume_in_file: bool
    fdk_mb: int

    @classmethod
    def of(cls, projections: tuple[int, ...], volume: tuple[int, ...], memory_mb: int) -> WorkingMemory:
        """Divide `memory_mb` among float32 projections and a volume of these shapes, and the work of FDK.

        Both are held in memory while they leave FDK half of it. Otherwise the volume goes into a file, and so do the
        line integrals if they would take more than a quarter.
        """
        budget, integrals, voxels = memory_mb * _MIB, 4 * math.prod(projections), 4 * math.prod(volume)
        if integrals + voxels <= budget // 2:
            return cls(False, False, (budget - integrals - voxels) // _MIB)
        if integrals <= budget // 4:
            return cls(False, True, (budget - integrals) // _MIB)
        return cls(True, True, memory_mb)


def file_array(shape: tuple[int, ...], folder: Path | None) -> NDArray[np.float32]:
    """Return zeros, float32, that live in a file without a name: its space is free again when the array is.

    Parameters
    ----------
    folder
        On the file system that is to hold it; None: where temporary files go.

    Raises
    ------
    OSError
        The file system has no room for it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        # Room is taken now: a file with holes would kill the process when it is written to and the disk is full.
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
