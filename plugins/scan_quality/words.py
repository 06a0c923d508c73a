"""What is written beside the images of a scan's quality."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np


def of_window(window: tuple[float, float], unit: str = "") -> str:
    """Return a window, for example ``−0.0052 to 0.0631 1/mm``: three digits of its width."""
    low, high = window
    decimals = max(0, 2 - int(np.floor(np.log10(high - low))))
    return f"{low:.{decimals}f} to {high:.{decimals}f} {unit}".strip().replace("-", "−")


def of_corrections(recipe: Mapping[str, object]) -> str:
    """Return corrections as a settings file has them, for example ``drift = true, rings = "combined"``."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in recipe.items()) or "none"
