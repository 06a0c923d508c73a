"""Scans of micro-CT scanners with a log in the form of an INI file: Bruker SkyScan ``.log`` and Nikon ``.xtekct``."""

from __future__ import annotations

import configparser
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconstruct.imports.image_files import images_in
from reconstruct.imports.raw_scan import RawScan, Setup, evenly, text_of
from reconstruct.imports.stage_axis import StageAxis
from reconstruct.projections.acquisition import Exposure
from reconstruct.projections.frames import ScanError


class _Log:
    """The sections of a log, whose keys are found whatever their case and spaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        try:
            parser.read_string(text_of(path))
        except configparser.Error as error:
            first = error.message.splitlines()[0].rstrip(".")
            raise ScanError(f"{path.name} is no log of sections and keys: {first}") from error
        self._values = {_plain(key): value for section in parser.sections() for key, value in parser.items(section)}

    def text(self, *keys: str) -> str:
        value = next((self._values[_plain(key)] for key in keys if _plain(key) in self._values), None)
        if value is None:
            raise ScanError(f"{self.path.name} does not say {' or '.join(repr(key) for key in keys)}")
        return value.strip()

    def has(self, key: str) -> bool:
        return bool(self._values.get(_plain(key), "").strip())

    def number(self, *keys: str) -> float:
        text = self.text(*keys)
        try:
            return float(text)
        except ValueError as error:
            raise ScanError(f"{self.path.name}: {keys[0]!r} is {text!r}, expected a number") from error

    def maybe(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None


def _plain(key: str) -> str:
    return "".join(key.lower().split())


def read_bruker(path: Path) -> RawScan:
    """Return the scan of a Bruker SkyScan log and the TIFF files beside it.

    The pixel size in the log is that at the object; distances bring it to the detector. The sample turns.

    Raises
    ------
    ScanError
        A key or a file is missing; the sentence names it.
    """
    log = _Log(path)
    count = round(log.number("Number of Files"))
    width = round(log.number("Filename Index Length")) if log.has("Filename Index Length") else 4
    prefix = log.text("Filename Prefix")
    views = images_in([path.parent / f"{prefix}{number:0{width}d}.tif" for number in range(count)])
    to_object, to_camera = log.number("Object to Source (mm)"), log.number("Camera to Source (mm)")
    pitch = 1e-3 * log.number("Image Pixel Size (um)", "Pixel Size (um)") * to_camera / to_object
    clockwise = log.text("Rotation Direction").upper() == "CW" if log.has("Rotation Direction") else False
    step = log.number("Rotation Step (deg)")
    setup = Setup(
        source_to_isocentre_mm=to_object,
        source_to_detector_mm=to_camera,
        pitch_mm=(pitch, pitch),
        angles_deg=evenly(count, 0.0, -step if clockwise else step),
        sample_turns=True,
        exposure=Exposure(log.maybe("Source Voltage (kV)"), _milli(log.maybe("Source Current (uA)"))),
    )
    notes = ["the optical axis of the log is not used: say with --principal-point where it is, if not in the middle"]
    return RawScan(views, setup, described=prefix, notes=tuple(notes if log.has("Optical Axis (line)") else ()))


def read_nikon(path: Path) -> RawScan:
    """Return the scan of a Nikon ``.xtekct`` file and the TIFF files beside it.

    Images are seen from the detector, and the sample turns clockwise seen from above. Angles, and the times of the
    views, come from ``_ctdata.txt`` where it lies beside, else angles from the angular step. Object Offset X takes the
    axis to later columns, Object Roll its top to earlier ones, Object Tilt its top away from the source; older files
    say instead where the axis is seen at the top and the bottom of the detector.

    Nikon publishes none of this. Sense and offset are those in which the readers of CIL (Jørgensen et al., Phil. Trans.
    R. Soc. A 379 (2021) 20200192) and of TIGRE (Biguri et al., Biomed. Phys. Eng. Express 2 (2016) 055010) agree, roll
    and tilt those of CIL. Offsets of the detector, which CIL leaves out, are told in a note.

    Raises
    ------
    ScanError
        A key or a file is missing; the sentence names it.
    """
    log = _Log(path)
    count = round(log.number("Projections"))
    name = log.text("Name")
    separator = log.text("InputSeparator") if log.has("InputSeparator") else ""
    digits = round(log.number("InputDigits")) if log.has("InputDigits") else 4
    folder = path.parent / log.text("InputFolderName") if log.has("InputFolderName") else path.parent
    views = images_in([folder / f"{name}{separator}{number:0{digits}d}.tif" for number in range(1, count + 1)])
    to_object, to_detector = log.number("SrcToObject"), log.number("SrcToDetector")
    pitch = log.number("DetectorPixelSizeY"), log.number("DetectorPixelSizeX")
    angles, times = _table(path.parent / "_ctdata.txt", count)
    if angles is None:
        angles = evenly(count, log.maybe("InitialAngle") or 0.0, log.number("AngularStep"))
    setup = Setup(
        source_to_isocentre_mm=to_object,
        source_to_detector_mm=to_detector,
        pitch_mm=pitch,
        angles_deg=-angles,
        sample_turns=True,
        axis=_nikon_axis(log, to_object / to_detector, views.shape[1] * pitch[0]),
        unattenuated=log.maybe("WhiteLevel"),
        exposure=Exposure(log.maybe("XraykV"), _milli(log.maybe("XrayuA"))),
        view_times_s=times,
    )
    unused = [f"{key} of {value:g} mm" for key in ("DetectorOffsetX", "DetectorOffsetY") if (value := log.maybe(key))]
    told = f"{' and '.join(unused)} left out: say with --principal-point where the axis is seen, if not in the middle"
    return RawScan(views, setup, described=name, notes=(told,) if unused else ())


def _nikon_axis(log: _Log, demagnification: float, height_mm: float) -> StageAxis:
    """Return where the axis is; `height_mm` is that of the detector."""
    top, bottom = (log.maybe(f"CentreOfRotation{end}") or 0.0 for end in ("Top", "Bottom"))
    offset, roll = log.maybe("ObjectOffsetX"), log.maybe("ObjectRoll")
    return StageAxis(
        right_mm=-((top + bottom) / 2 * demagnification if offset is None else offset),
        roll_deg=math.degrees(math.atan2(bottom - top, height_mm)) if roll is None else roll,
        tilt_deg=log.maybe("ObjectTilt") or 0.0,
    )


def _milli(micro: float | None) -> float | None:
    return None if micro is None else micro / 1000


def _table(path: Path, count: int) -> tuple[NDArray[np.float64] | None, tuple[float, ...]]:
    """Return angles and times of a table whose lines are number, angle and time; None and nothing without a table.

    Times that do not rise from view to view are none.
    """
    if not path.is_file():
        return None, ()
    rows = [line.split() for line in text_of(path).splitlines()]
    found = [row for row in rows if len(row) >= 2 and row[0].isdigit()]
    try:
        angles = np.array([float(row[1]) for row in found])
    except ValueError as error:
        raise ScanError(f"{path.name} has lines without an angle") from error
    if len(angles) != count:
        raise ScanError(f"{path.name} has {len(angles)} angles for {count} projections")
    try:
        times = tuple(float(row[2]) for row in found)
    except (IndexError, ValueError):
        return angles, ()
    return angles, times if all(one < other for one, other in pairwise(times)) else ()
