"""RTK's geometry file (``RTKThreeDCircularGeometry``) and the projections that belong to it.

RTK's axes are those of IEC 61217 (x left, y to the head, z up for a patient head first and supine), its matrices lead
to mm of the projection image.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from reconstruct.imports.image_files import images_in, meta_image
from reconstruct.imports.raw_scan import RawScan, Setup, numbers, text_of
from reconstruct.projections.frames import ScanError
from reconstruct.projections.scan import PixelMeaning

_FROM_LPS = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def read_rtk(path: Path, projections: Path | None, pitch_mm: tuple[float, float] | None = None) -> RawScan:
    """Return the scan of a geometry file and a stack of projections.

    Parameters
    ----------
    path
        The XML file.
    projections
        A MetaImage or TIFF stack of as many images.
    pitch_mm
        Of rows and columns, for a stack that does not tell it (TIFF), whose middle is then the origin.

    Raises
    ------
    ScanError
        No such file, matrices or projections are missing, a detector that is a cylinder, or a pitch beside that of a
        MetaImage.
    """
    text = text_of(path)
    if "<!ENTITY" in text:
        raise ScanError(f"{path.name} declares entities, which no geometry file needs")
    try:
        root = ET.fromstring(text)  # noqa: S314 - entities are refused above
    except ET.ParseError as error:
        raise ScanError(f"{path.name} is no XML: {error}") from error
    if root.tag != "RTKThreeDCircularGeometry":
        raise ScanError(f"{path.name} is <{root.tag}>, expected <RTKThreeDCircularGeometry>")
    if projections is None:
        raise ScanError("a geometry file has no images: say with --projections where they are")
    _refuse_cylinder(root, path)
    matrices, distance = _matrices(root, path)
    if projections.suffix.lower() in (".mha", ".mhd"):
        if pitch_mm is not None:
            raise ScanError(f"{projections.name} says the detector pitch itself: --pitch would change nothing")
        views, spacing, origin = meta_image(projections)
    else:
        if pitch_mm is None:
            raise ScanError(f"{projections.name} does not say the detector pitch (--pitch)")
        views, spacing = images_in([projections]), (pitch_mm[1], pitch_mm[0])
        origin = -(views.shape[2] - 1) / 2 * spacing[0], -(views.shape[1] - 1) / 2 * spacing[1]
    to_pixels = np.array(
        [[1 / spacing[0], 0, -origin[0] / spacing[0]], [0, 1 / spacing[1], -origin[1] / spacing[1]], [0, 0, 1]]
    )
    setup = Setup(
        source_to_detector_mm=distance, matrices=to_pixels @ matrices @ _FROM_LPS, pixels=PixelMeaning.LINE_INTEGRAL
    )
    return RawScan(views, setup, described=path.stem)


def _refuse_cylinder(root: ET.Element, path: Path) -> None:
    for element in root.iter("RadiusCylindricalDetector"):
        told = (element.text or "").strip() or 0
        radius = float(numbers(told, f"{path.name}: RadiusCylindricalDetector").reshape(()))
        if radius != 0:
            raise ScanError(
                f"{path.name}: the detector is a cylinder (RadiusCylindricalDetector is {radius:g} mm), and only plane "
                "ones can be brought in"
            )


def _matrices(root: ET.Element, path: Path) -> tuple[NDArray[np.float64], float | None]:
    found = [projection.findtext("Matrix") for projection in root.iter("Projection")]
    if not found:
        raise ScanError(f"{path.name} has no projection")
    for number, text in enumerate(found, start=1):
        if text is None or len(text.split()) != 12:
            raise ScanError(f"{path.name}: projection {number} has no Matrix of 12 numbers")
    matrices = numbers([text.split() for text in found if text], f"{path.name}: matrices").reshape(-1, 3, 4)
    told = next((element.text for element in root.iter("SourceToDetectorDistance")), None)
    return matrices, None if told is None else float(numbers(told, "SourceToDetectorDistance").reshape(()))
