"""``[scan_quality]``: a picture of what scans suffer from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ScanQualitySettings(BaseModel):
    """``[scan_quality]``: scans to pictures of them before and after the corrections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool
    picture_width: Annotated[int, Field(ge=960, le=4096)]
