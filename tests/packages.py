"""Packages with a plug-in, as an installer would leave them on the path of a node."""

from __future__ import annotations

import textwrap
from pathlib import Path

HEAD = """
import os, sys, time, threading
from plugins.hookspecs import hookimpl
from plugins.node import CannotProceed, Work

def for_ever():
    threading.Event().wait()
"""


def install(folder: Path, name: str, code: str, *, version: str = "1", plugin: str = "") -> None:
    """Install a package `name` whose plug-in, called `plugin` or as the package, is the module with this code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text(f"[tharsis.plugins]\n{plugin or name} = {name}\n", encoding="utf-8")


def job(kind: str, body: str) -> str:
    """Code of a plug-in that asks for a job of this kind for each series, and does it with this body."""
    return f"""
@hookimpl
def jobs_for_series(series):
    return [Work({kind!r}, series.uid)]

@hookimpl
def job_functions():
    return {{{kind!r}: do}}

def do(task):
    {body}
"""
