"""``[[routes]]``: rules for what is sent on to which application entities, and when."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from config.schedule import Schedule
from config.sections import AETitle, NotNegative, Positive, Section


class Commit(StrEnum):
    """Whether a destination is asked for storage commitment of what it was sent."""

    NEVER = "never"
    OFFERED = "offered"
    REQUIRED = "required"


class RouteSettings(Section):
    """One ``[[routes]]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    name: Annotated[str, Field(min_length=1)]
    to: Annotated[tuple[AETitle, ...], Field(min_length=1)]
    sources: Annotated[tuple[str, ...], Field(alias="from")] = ()
    modality: tuple[str, ...] = ()
    match: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    derived: bool | None = None
    schedule: tuple[str, ...] = ()
    profile: str = ""
    commit: Commit = Commit.OFFERED
    retry_hours: NotNegative = 72.0
    priority: Literal["low", "medium", "high"] = "medium"
    max_instances: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def keys(cls) -> list[str]:
        """The keys as they are written in a settings file."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @field_validator("schedule")
    @classmethod
    def _has_windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Schedule.read(value)
        return value

    @field_validator("to")
    @classmethod
    def _names_each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({title for title in value if value.count(title) > 1})
        if twice:
            raise ValueError(f"names {twice[0]!r} more than once")
        return value

    def opening(self) -> Schedule:
        """Return when it sends, by this machine's clock."""
        return Schedule.read(self.schedule)


class RoutingSettings(Section):
    """``[routing]``: what all rules share."""

    report_minutes: Positive


def mistake(
    routes: tuple[RouteSettings, ...], own: tuple[str, ...], destinations: dict[str, bool], profiles: Collection[str]
) -> str:
    """Return what is wrong with the rules as a whole, one sentence; "" for nothing.

    Parameters
    ----------
    own
        AE titles of this node.
    destinations
        AE title → whether its host and port are known, of every application entity.
    profiles
        Names of the de-identification profiles.
    """
    names = [route.name for route in routes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"routes: two rules have the name {twice[0]!r}"
    for route in routes:
        if route.profile and route.profile not in profiles:
            return f"routes: {route.name!r} has the profile {route.profile!r}, which [[deidentification]] does not name"
        for title in route.to:
            if title in own:
                return f"routes: {route.name!r} sends to {title}, which is this node itself"
            if title not in destinations:
                return f"routes: {route.name!r} sends to {title}, which [[application_entities]] does not name"
            if not destinations[title]:
                return f"routes: {route.name!r} sends to {title}, which [[application_entities]] gives no host and port"
    return ""
