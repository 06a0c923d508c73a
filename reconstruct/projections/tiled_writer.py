"""Writing a scan that was taken tile by tile, as P1: each tile is written like a scan, and says where it lies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from config.identity import new_uid
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1_writer import write_p1


@dataclass(frozen=True, eq=False)
class TileImages:
    """What was measured at one place of the camera.

    Attributes
    ----------
    counters
        What each counter measured there, with the flat fields of that place.
    geometry
        Of the camera at that place, (view).
    origin_px
        (column, row) of its first pixel on the virtual detector, pixels; None where the camera's position says it.
    camera_mm
        How far the camera had moved along its columns and its rows, mm; None where the origin says it.
    """

    counters: Sequence[CounterImages]
    geometry: ConeBeamGeometry
    origin_px: tuple[float, float] | None = None
    camera_mm: tuple[float, float] | None = None


def write_tiles(tiles: Sequence[TileImages], header: Dataset, acquisition: Acquisition) -> list[Dataset]:
    """Return the instances of a scan, of one tile after the other; see `p1_writer.write_p1`.

    Raises
    ------
    ScanError
        As `p1_instances` does.
    """
    common, scan_uid = copy.deepcopy(header), new_uid()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if keyword not in common:
            setattr(common, keyword, new_uid())
    written = []
    for tile in tiles:
        for instance in write_p1(tile.counters, tile.geometry, common, acquisition, scan_uid=scan_uid):
            elements.put(
                instance,
                TileOrigin=None if tile.origin_px is None else list(tile.origin_px),
                CameraPosition=None if tile.camera_mm is None else list(tile.camera_mm),
            )
            written.append(instance)
    for number, instance in enumerate(written, start=1):
        instance.InstanceNumber = number
        elements.put(
            instance,
            ExpectedFrames=sum(int(each.NumberOfFrames) for each in written),
            ExpectedInstances=len(written),
        )
    return written
