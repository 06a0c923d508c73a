"""Data Exchange HDF5 (De Carlo et al., "Scientific data exchange", J. Synchrotron Rad. 21 (2014) 1224)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reconstruct.imports.raw_scan import Images, RawScan, Setup, numbers
from reconstruct.projections.frames import ScanError

_PIXEL_SIZE = "measurement/instrument/detector/{}pixel_size"
_TO_MM = {"m": 1000.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}


def read_data_exchange(path: Path) -> RawScan:
    """Return the scan of ``/exchange/data``, ``data_white``, ``data_dark`` and ``theta``; the sample turns.

    The format was made for parallel beams and says no distances: the user does.

    Raises
    ------
    ScanError
        No HDF5, or no data or angles in it.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ScanError(f"{path.name} cannot be read as HDF5: {error}") from error
    views = _images(file, "exchange/data", path)
    if views is None:
        raise ScanError(f"{path.name} has no data set /exchange/data")
    if "exchange/theta" not in file:
        raise ScanError(f"{path.name} does not say the angles of the views: /exchange/theta")
    theta = file["exchange/theta"]
    angles = numbers(theta[()], f"{path.name}: /exchange/theta").reshape(-1)
    if _unit(theta) in ("rad", "radian", "radians"):
        angles = np.rad2deg(angles)
    rows, columns = (_pitch(file, name) for name in ("y_", "x_"))
    both = _pitch(file, "")
    pitch = (rows or both, columns or both)
    setup = Setup(
        pitch_mm=(pitch[0], pitch[1]) if pitch[0] and pitch[1] else None, angles_deg=angles, sample_turns=True
    )
    white, dark = _images(file, "exchange/data_white", path), _images(file, "exchange/data_dark", path)
    return RawScan(views, setup, white, dark, path.stem)


def _images(file: Any, name: str, path: Path) -> Images | None:
    if name not in file:
        return None
    data = file[name]
    if data.ndim != 3:
        raise ScanError(f"{path.name}: /{name} has {data.ndim} dimensions, expected views, rows and columns")

    def read(index: int) -> Any:
        try:
            return np.asarray(data[index])
        except OSError as error:
            raise ScanError(f"image {index + 1} of /{name} in {path.name} cannot be read: {error}") from error

    return Images(read, data.shape[0], lambda index: f"image {index + 1} of /{name}")


def _pitch(file: Any, axis: str) -> float | None:
    name = _PIXEL_SIZE.format(axis)
    if name not in file:
        return None
    value = float(numbers(file[name][()], f"/{name}").reshape(-1)[0])
    unit = _unit(file[name]) or "m"
    if unit not in _TO_MM:
        raise ScanError(f"the unit of /{name} is {unit!r}, expected one of {', '.join(_TO_MM)}")
    return value * _TO_MM[unit]


def _unit(data: Any) -> str:
    told = data.attrs.get("units", "")
    return (told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)).strip().lower()
