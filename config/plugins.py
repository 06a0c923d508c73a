"""Which plug-ins run and in which order: ``[plugins]`` of the settings, and what `tharsis plugins` has chosen since.

The settings are a file that people write, with their comments; the command line never changes it. What it is told goes
into a small file of the data folder, ``plugins.toml``, which goes before the settings for each plug-in that it names.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

CHOICE_FILE = "plugins.toml"
"""In the data folder: what `tharsis plugins` was told."""

ALWAYS = {
    "asked": "it answers similarity queries, which [similarity] enabled = false switches off",
    "routing": "a process of its own sends; without [[routes]] in the settings there is none",
    "orthanc": "a process of its own does its work, which [orthanc] enabled = false switches off",
}
"""Plug-in that cannot be disabled → why."""

_HEAD = (
    "# Written by `tharsis plugins`. What this file says of a plug-in goes before [plugins] of the settings; a node\n"
    "# that runs takes a change over by itself. Delete the file to go back to the settings.\n"
)
_LISTS = ("disabled", "enabled", "order")


class PluginSettings(BaseModel):
    """``[plugins]``: which plug-ins run, in which order, and the settings of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    disabled: tuple[str, ...]
    order: tuple[str, ...]
    hook_s: Annotated[float, Field(gt=0)]
    settings: dict[str, dict[str, Any]]

    @field_validator("disabled", "order")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"names {twice[0]!r} more than once")
        return value

    @field_validator("disabled")
    @classmethod
    def _can_be_disabled(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name in ALWAYS:
                raise ValueError(f"{name!r} cannot be disabled: {ALWAYS[name]}")
        return value


class ChoiceError(ValueError):
    """``plugins.toml`` cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Choice:
    """What ``plugins.toml`` says.

    Attributes
    ----------
    disabled, enabled
        Plug-ins that are, and are not, to run, whatever the settings say.
    order
        Instead of that of the settings, unless it is empty.
    """

    disabled: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    def disable(self, names: Iterable[str]) -> Choice:
        """Return the choice with these disabled."""
        wanted = set(names)
        return Choice(_sorted({*self.disabled} | wanted), _sorted({*self.enabled} - wanted), self.order)

    def enable(self, names: Iterable[str]) -> Choice:
        """Return the choice with these enabled."""
        wanted = set(names)
        return Choice(_sorted({*self.disabled} - wanted), _sorted({*self.enabled} | wanted), self.order)


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def read_choice(data: Path) -> Choice:
    """Return what ``plugins.toml`` of a data folder says; nothing where there is none.

    Raises
    ------
    ChoiceError
        The file is no such file.
    """
    path = data / CHOICE_FILE
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Choice()
    except OSError as error:
        raise ChoiceError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChoiceError(f"{path} is not valid TOML: {error}") from error
    for key, names in told.items():
        if key not in _LISTS:
            raise ChoiceError(f"{path}: unknown key {key!r}; there are {', '.join(_LISTS)}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ChoiceError(f"{path}: {key}: expected a list of names, got {names!r}")
    return Choice(**{key: tuple(names) for key, names in told.items()})


def write_choice(data: Path, choice: Choice) -> Path:
    """Write ``plugins.toml``, whole or not at all, and return its path."""
    path, partial = data / CHOICE_FILE, data / f"{CHOICE_FILE}.{os.getpid()}.part"
    lines = [f"{key} = {json.dumps(list(getattr(choice, key)), ensure_ascii=False)}\n" for key in _LISTS]
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial.write_text(_HEAD + "".join(lines), encoding="utf-8")
    partial.replace(path)
    return path


def chosen(settings: PluginSettings, choice: Choice) -> PluginSettings:
    """Return the settings with what the command line has chosen since."""
    disabled = _sorted(({*settings.disabled} | {*choice.disabled}) - {*choice.enabled} - ALWAYS.keys())
    return settings.model_copy(update={"disabled": disabled, "order": choice.order or settings.order})


def mark(data: Path) -> tuple[int, ...]:
    """Return what changes whenever ``plugins.toml`` is written."""
    try:
        found = (data / CHOICE_FILE).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
