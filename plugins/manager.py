"""The plug-ins of this node: the built-in ones and those that installed packages offer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from typing import Any

import pluggy

from plugins import hookspecs
from plugins.hookspecs import JobFunction

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "tharsis.plugins"
"""Installed packages register their plug-in modules under this entry point group."""

BUILT_IN: Mapping[str, str] = {
    "reconstruction": "plugins.reconstruction",
    "segmentation": "plugins.segmentation.plugin",
    "materials": "plugins.materials.plugin",
    "measurement": "plugins.measurement.plugin",
    "embedding": "plugins.embedding",
    "indexing": "plugins.indexing",
    "asked": "plugins.asked",
    "scrubber": "plugins.scrubber",
    "orthanc": "plugins.orthanc.plugin",
}
"""Name → module. By name, so that a process that needs one of them does not load the libraries of the others."""


def load_plugins(only: Sequence[str] | None = None) -> pluggy.PluginManager:
    """Return the plug-in manager with every plug-in registered and checked against the hook specifications.

    Parameters
    ----------
    only
        Just these of the built-in ones, and no installed package.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name, module in BUILT_IN.items():
        if only is None or name in only:
            manager.register(import_module(module), name)
    if only is not None:
        return manager
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            manager.register(entry_point.load(), entry_point.name)
            manager.check_pending()
        except Exception:  # somebody else's package: whatever is wrong with it, the node goes on without it
            logger.exception("plug-in %s cannot be used", entry_point.name)
            manager.unregister(name=entry_point.name)
    return manager


def ask_each(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
    """Ask one plug-in after the other and yield (its name, its answer or the exception that it raised).

    Unlike a plain hook call, one that raises does not keep the others from being asked.
    """
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        try:
            answer = implementation.function(**{name: arguments[name] for name in implementation.argnames})
        except Exception as error:  # its own fault, to be told with its name
            logger.exception("plug-in %s: %s failed", implementation.plugin_name, hook)
            yield implementation.plugin_name, error
        else:
            yield implementation.plugin_name, answer


def job_functions(manager: pluggy.PluginManager) -> dict[str, JobFunction]:
    """Return the function for each kind of job.

    Raises
    ------
    ValueError
        Two plug-ins claim one kind.
    """
    functions: dict[str, JobFunction] = {}
    for offered in manager.hook.job_functions():
        for kind, function in offered.items():
            if kind in functions:
                raise ValueError(f"two plug-ins offer the job kind {kind!r}")
            functions[kind] = function
    return functions
