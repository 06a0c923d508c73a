"""RTK in this process, by its Python package: circular scans that it projects and reconstructs, in axes of its own.

Volumes are (Z, Y, X) and Y is the rotation axis; at angle 0 the source is on Z, and columns step along X, rows along Y.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ALLOWED = 1.01
"""How many times RTK's RMSE that of this node may be."""

Array = np.ndarray
Spacing = tuple[float, float, float]


class PeerMissing(Exception):
    """A peer is not installed, or cannot do this; the message says what to do."""


def further_than_rtk(what: str, ours: float, theirs: float) -> list[str]:
    """Return a sentence if the RMSE of this node is above what is allowed, else nothing."""
    if ours <= ALLOWED * theirs:
        return []
    return [f"{what}: RMSE {ours:.4g}, expected {ALLOWED} times RTK's {theirs:.4g} at most"]


class Rtk:
    """RTK's filters on arrays; raises `PeerMissing` where it is not installed."""

    def __init__(self) -> None:
        if next(importlib.metadata.distributions(name="itk-rtk"), None) is None:
            raise PeerMissing("rtk: not installed (pip install itk-rtk)")
        import itk
        from itk import RTK as rtk  # noqa: N811 - the name its documentation uses

        self.name = f"rtk {importlib.metadata.version('itk-rtk')}"
        self._itk, self._rtk, self._kind = itk, rtk, itk.Image[itk.F, 3]
        self._weighting: dict[str, list[Any]] = {
            "full": [], "short": [rtk.ParkerShortScanImageFilter], "offset": [rtk.DisplacedDetectorImageFilter],
        }  # fmt: skip

    def circle(
        self, source_to_isocenter_mm: float, source_to_detector_mm: float, angles_deg: Iterable[float]
    ) -> Any:
        """Return the geometry of a circle, the detector's axis through the isocentre."""
        geometry = self._rtk.ThreeDCircularProjectionGeometry.New()
        for angle in angles_deg:
            geometry.AddProjection(source_to_isocenter_mm, source_to_detector_mm, float(angle), 0, 0)
        return geometry

    def image(self, values: Array, spacing: Spacing, origin: Spacing | None = None) -> Any:
        """Return an image of an array (slowest axis first), mm (fastest axis first); None: its middle at 0."""
        image = self._itk.image_from_array(np.ascontiguousarray(values, dtype=np.float32))
        image.SetSpacing(spacing)
        image.SetOrigin(_middle(values.shape, spacing) if origin is None else origin)
        return image

    def projected(self, volume: Any, blank: Any, geometry: Any) -> Any:
        """Return the line integrals of a volume for the pixels of `blank`, by Joseph's method."""
        projector = self._rtk.JosephForwardProjectionImageFilter[self._kind, self._kind].New()
        projector.SetInput(0, blank)
        projector.SetInput(1, volume)
        projector.SetGeometry(geometry)
        projector.Update()
        return projector.GetOutput()

    def reconstructed(
        self, projections: Any, geometry: Any, scan: str, shape: tuple[int, int, int], spacing: Spacing
    ) -> Array:
        """Return the volume by FDKConeBeamReconstructionFilter.

        Parameters
        ----------
        projections, geometry
            Of the scan.
        scan
            "full", "short": through ParkerShortScanImageFilter, "offset": through DisplacedDetectorImageFilter.
        shape, spacing
            Of the volume around the isocentre, (Z, Y, X) voxels and (X, Y, Z) mm.
        """
        source = self._rtk.ConstantImageSource[self._kind].New()
        source.SetOrigin(_middle(shape, spacing))
        source.SetSpacing(spacing)
        source.SetSize(shape[::-1])
        for kind in self._weighting[scan]:
            weight = kind[self._kind].New()
            weight.SetInput(projections)
            weight.SetGeometry(geometry)
            weight.InPlaceOff()
            weight.Update()
            projections = weight.GetOutput()
        fdk = self._rtk.FDKConeBeamReconstructionFilter[self._kind].New()
        fdk.SetInput(0, source.GetOutput())
        fdk.SetInput(1, projections)
        fdk.SetGeometry(geometry)
        fdk.Update()
        return np.asarray(self._itk.array_from_image(fdk.GetOutput()))

    def write(self, projections: Any, geometry: Any, folder: Path) -> tuple[Path, Path]:
        """Write a scan as RTK does, and return its geometry file and its projections."""
        described, stack = folder / "geometry.xml", folder / "projections.mha"
        writer = self._rtk.ThreeDCircularProjectionGeometryXMLFileWriter.New()
        writer.SetFilename(str(described))
        writer.SetObject(geometry)
        writer.WriteFile()
        self._itk.imwrite(projections, str(stack))
        return described, stack


def _middle(shape: tuple[int, ...], spacing: Spacing) -> list[float]:
    """Origin, mm, that puts the middle of an image at 0; shape slowest axis first, spacing fastest axis first."""
    return [-(count - 1) / 2 * edge for count, edge in zip(reversed(shape), spacing, strict=True)]
