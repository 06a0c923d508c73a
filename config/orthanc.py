"""``[orthanc]``: the Orthanc that this node works for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SHORTEST_KEY = 16


class OrthancSettings(BaseModel):
    """``[orthanc]``: an Orthanc with our script, whose series this node takes in and whose questions it answers.

    Raises
    ------
    ValueError
        Enabled without a key, both a secret and a file with it, or a URL that is none of http or https.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool
    url: str
    user: str
    password: Annotated[str, Field(repr=False)]
    password_file: str
    ca: str
    timeout_s: Annotated[float, Field(gt=0)]
    aet: str
    door_host: str
    door_port: Annotated[int, Field(ge=1, le=65535)]
    key: Annotated[str, Field(repr=False)]
    key_file: str
    compare_hours: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _can_be_used(self) -> OrthancSettings:
        _require_url(self.url)
        for name in ("password", "key"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"{name} and {name}_file are two ways to say the same: leave one out")
        if self.enabled and not (self.key or self.key_file):
            raise ValueError("enabled needs a key, that of Orthanc's settings; `tharsis orthanc setup` makes one")
        if self.key and len(self.key) < _SHORTEST_KEY:
            raise ValueError(f"key has at least {_SHORTEST_KEY} characters, got {len(self.key)}")
        return self

    def secret(self, name: str) -> str:
        """Return ``password`` or ``key``, from the settings or from the file that they name.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is no text, or the key in it is too short.
        """
        file = getattr(self, f"{name}_file")
        if not file:
            return str(getattr(self, name))
        told = Path(file).expanduser().read_text(encoding="utf-8").strip()
        if name == "key" and len(told) < _SHORTEST_KEY:
            raise ValueError(f"the key in {file} has {len(told)} characters, at least {_SHORTEST_KEY} are expected")
        return told


def _require_url(url: str) -> None:
    """Refuse what no connection can be made to, however often that is tried."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url begins with http:// or https://, got {url!r}")
    try:
        told = urlsplit(url)
        host, _ = told.hostname, told.port
    except ValueError as error:
        raise ValueError(f"url {url!r} is no URL: {error}") from error
    if not host:
        raise ValueError(f"url names no host, got {url!r}")
    if told.username is not None:
        raise ValueError("url has a login in it: user and password are keys of their own")
