"""The plug-ins of this node: the built-in ones and those that installed packages offer."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import pluggy

from plugins import embedding, hookspecs, reconstruction
from plugins.hookspecs import JobFunction
from plugins.segmentation import plugin as segmentation

ENTRY_POINT_GROUP = "tharsis.plugins"
"""Installed packages register their plug-in modules under this entry point group."""

BUILT_IN: Mapping[str, ModuleType] = {
    "reconstruction": reconstruction,
    "segmentation": segmentation,
    "embedding": embedding,
}


def load_plugins() -> pluggy.PluginManager:
    """Return the plug-in manager with every plug-in registered and checked against the hook specifications."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name, module in BUILT_IN.items():
        manager.register(module, name)
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    manager.check_pending()
    return manager


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
