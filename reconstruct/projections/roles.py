"""What a frame is of: an object, the open beam, the dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reconstruct.projections.encoding import ROLES
from reconstruct.projections.frames import Frame, ScanError
from reconstruct.projections.functional_groups import Attributes


@dataclass(frozen=True, eq=False)
class RoledFrame:
    """A frame with its attributes and its role, before frames are grouped."""

    frame: Frame
    attributes: Attributes
    role: str


def role_of(attributes: Attributes) -> str:
    """Return the Frame Role (0071,xx10), else what Frame Type or Image Type say, else PROJECTION.

    Raises
    ------
    ScanError
        A role that there is none of.
    """
    role = str(attributes.get("FrameRole") or "")
    if not role:
        image_type = {*words_of(attributes.get("FrameType")), *words_of(attributes.get("ImageType"))}
        role = next((name for name in ("FLAT", "DARK") if name in image_type), "PROJECTION")
    if role not in ROLES:
        raise ScanError(f"Frame Role (0071,xx10) is {role!r}, expected one of {', '.join(ROLES)}")
    return role


def words_of(value: Any) -> tuple[str, ...]:
    """Return the words of a CS with any number of values."""
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str) else tuple(str(part) for part in value)
