"""Which plug-ins there are: the built-in ones and those of installed packages, in the order in which they are asked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata

from config.identity import version
from config.plugins import PluginSettings

ENTRY_POINT_GROUP = "tharsis.plugins"
"""Installed packages register their plug-in modules under this entry point group."""

BUILT_IN: Mapping[str, str] = {
    "reconstruction": "plugins.reconstruction",
    "segmentation": "plugins.segmentation.plugin",
    "materials": "plugins.materials.plugin",
    "measurement": "plugins.measurement.plugin",
    "scan_quality": "plugins.scan_quality.plugin",
    "embedding": "plugins.embedding",
    "indexing": "plugins.indexing",
    "asked": "plugins.asked",
    "scrubber": "plugins.scrubber",
    "routing": "plugins.routing.plugin",
    "orthanc": "plugins.orthanc.plugin",
}
"""Name → module. By name, so that a process that needs one of them does not load the libraries of the others."""


@dataclass(frozen=True)
class Found:
    """A plug-in that could be loaded.

    Attributes
    ----------
    package, version
        The distribution that it comes with.
    module
        Where its hooks are.
    load
        Imports and returns that.
    problem
        Why it cannot even be tried; empty when it can.
    """

    name: str
    package: str
    version: str
    module: str
    load: Callable[[], object]
    built_in: bool = False
    problem: str = ""


def found() -> list[Found]:
    """Return the plug-ins there are: the built-in ones, then those of packages by name.

    Of two with one name the first counts; the other one stays in the list, with its problem.
    """
    own = [
        Found(name, "tharsis", version(), module, partial(import_module, module), built_in=True)
        for name, module in BUILT_IN.items()
    ]
    entry_points = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda each: (each.name, each.value))
    plugins, taken = own, {each.name: each for each in own}
    for each in entry_points:
        package = (each.dist.name, each.dist.version) if each.dist is not None else ("", "")
        first = taken.get(each.name)
        problem = f"{first.package} has a plug-in of the same name" if first is not None else ""
        plugins.append(Found(each.name, *package, each.value, each.load, problem=problem))
        taken.setdefault(each.name, plugins[-1])
    return plugins


def versions(plugins: Iterable[Found]) -> dict[str, str]:
    """Return name → package and version."""
    return {each.name: f"{each.package} {each.version}" for each in plugins if not each.problem}


def in_order(plugins: Sequence[Found], order: Sequence[str]) -> list[Found]:
    """Return the plug-ins in the order of asking: first those named, in this order, then the others as they come."""
    place = {name: number for number, name in enumerate(order)}
    return sorted(plugins, key=lambda each: place.get(each.name, len(place)))


def unknown_names(settings: PluginSettings, plugins: Iterable[Found]) -> list[str]:
    """Return a sentence for each name in the settings that no plug-in has."""
    known = sorted({each.name for each in plugins})
    named = {"disabled": settings.disabled, "order": settings.order, "settings": tuple(settings.settings)}
    return [
        f"plugins.{key} names {name!r}, but no such plug-in is installed; the nearest is {nearest(name, known)!r}"
        for key, names in named.items()
        for name in names
        if name not in known
    ]


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the most similar of the known names."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
