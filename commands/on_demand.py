"""Commands whose modules are loaded when they run: a list of names and sentences is all that `tharsis --help` needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class Listed:
    """A command as the list of commands shows it.

    Attributes
    ----------
    name
        As the user types it.
    place
        ``module:name`` of its function, or of a `typer.Typer` with commands of its own.
    help
        The first paragraph of its own help.
    """

    name: str
    place: str
    help: str

    def load(self) -> Any:
        """Import its module and return the command itself."""
        module, _, attribute = self.place.partition(":")
        found = getattr(import_module(module), attribute)
        around = typer.Typer(rich_markup_mode="markdown")
        around.callback()(_nothing)  # makes it a group, even around one command
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=self.name)
        else:
            around.command(self.name)(found)
        group: Any = get_command(around)
        return group.commands[self.name]


def app_of(panels: Mapping[str, Iterable[Listed]], **settings: Any) -> typer.Typer:
    """Return a `typer.Typer` of these commands, by the title of their panel; `settings` are its own."""
    by_name = {each.name: each for commands in panels.values() for each in commands}

    class OnDemand(TyperGroup):
        """Commands that stand in for those of `panels`, each until it is to run."""

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            return name, by_name[name].load() if name in by_name else command, rest

    app = typer.Typer(cls=OnDemand, **settings)
    for title, commands in panels.items():
        for each in commands:
            app.command(each.name, help=each.help, rich_help_panel=title)(_nothing)
    return app


def _nothing() -> None:
    pass
