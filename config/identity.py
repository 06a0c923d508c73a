"""Who this node is in DICOM: UID root, implementation class and version, new UIDs."""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from importlib import metadata

UID_ROOT = "2.25.25614280963192986495263802268460570104"
"""The root under which every UID of this product lies (PS3.5 B.2)."""

IMPLEMENTATION_CLASS_UID = f"{UID_ROOT}.0.1"
MANUFACTURER = "Tharsis"
MODEL_NAME = "Tharsis node"

_ARC_LIMIT = 10**18
"""Largest last arc plus one: root, arc of purpose and 18 digits stay within 64 characters."""


def version() -> str:
    """Return the installed version of Tharsis, ``0.0.0`` when run from a bare source tree."""
    try:
        return metadata.version("tharsis")
    except metadata.PackageNotFoundError:
        return "0.0.0"


@cache
def implementation_version_name() -> str:
    """Return the Implementation Version Name (PS3.7 D.3.3.2), at most 16 characters."""
    return f"THARSIS_{version().replace('.', '_')}"[:16]


def new_uid() -> str:
    """Return a UID that nobody has used: the root, arc 2 and 18 random digits."""
    return f"{UID_ROOT}.2.{secrets.randbelow(_ARC_LIMIT - 1) + 1}"


def derived_uid(*parts: str) -> str:
    """Return the UID that belongs to `parts`: the same parts always give the same UID.

    Derived objects are named this way, so that doing the same work again replaces the objects instead of
    making more of them.

    Parameters
    ----------
    *parts
        What the object is derived from, for example a Series Instance UID and a recipe.
    """
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return f"{UID_ROOT}.3.{int.from_bytes(digest[:16], 'big') % (_ARC_LIMIT - 1) + 1}"
