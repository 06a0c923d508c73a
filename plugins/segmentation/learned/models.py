"""Where the weights of segmenters are, and what is noted beside them: two files of the folder ``models``.

The name promises what is in the file: it ends in the digest, which is checked when the weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from index.durable import write_whole

_NAME = re.compile(r"segmenter-(?P<digest>[0-9a-f]{12})")
_WEIGHTS, _FACTS = ".pt", ".json"


def folder_of(data: Path) -> Path:
    """Return the folder of the weights in the archive's folder `data`; it need not exist yet."""
    return data / "models"


def is_name(model: str) -> bool:
    """Whether `model` could be the name of a trained segmenter."""
    return _NAME.fullmatch(model) is not None


def digest_of(model: str) -> str:
    """Return the digest that the name of a segmenter promises.

    Raises
    ------
    ValueError
        It is no name of a trained segmenter.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        raise ValueError(f"expected a name such as segmenter-0123456789ab, got {model!r}")
    return match["digest"]


def weights_file(data: Path, model: str) -> Path:
    """Return the file of the weights of `model`."""
    return folder_of(data) / f"{model}{_WEIGHTS}"


def add(data: Path, weights: bytes, facts: Mapping[str, Any]) -> str:
    """Keep weights that training made, and what it noted about them; return their name."""
    model = f"segmenter-{hashlib.sha256(weights).hexdigest()[:12]}"
    write_whole(folder_of(data) / f"{model}{_FACTS}", json.dumps(facts, indent=2, sort_keys=True).encode())
    write_whole(weights_file(data, model), weights)
    return model


def trained(data: Path) -> list[str]:
    """Return the names of the segmenters whose weights are here, the oldest first."""
    found = [path for path in folder_of(data).glob(f"*{_WEIGHTS}") if is_name(path.stem)]
    return [path.stem for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]
