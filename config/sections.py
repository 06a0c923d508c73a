"""What the sections of the settings are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
"""PS3.5 table 6.2-1, AE: default repertoire without backslash and control characters."""


def ae_title(value: str) -> str:
    """Return `value` without padding when it can be an AE title (PS3.5 table 6.2-1); else raises `ValueError`."""
    title = value.strip()
    if not _AE_TITLE.fullmatch(title):
        raise ValueError(f"an AE title has 1 to 16 ASCII characters and no backslash, got {value!r}")
    return title


AETitle = Annotated[str, AfterValidator(ae_title)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A table of the settings: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
