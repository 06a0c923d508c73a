"""What a plug-in is, found out by loading it, in a process of its own: ``python -m commands.plugin_facts NAME ...``.

A package of somebody else's may hang or end the process that imports it. So each plug-in is a line of JSON on the
child's standard output, and whoever has none was the last one that was tried.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from config.settings import Settings
from plugins.watch import HUNG, Doing, Watch

LOOK_S = 60.0
"""A plug-in that is not loaded by then hangs, unless ``[plugins] hook_s`` is shorter, seconds."""


@dataclass(frozen=True)
class Facts:
    """What loading a plug-in has shown.

    Attributes
    ----------
    hooks
        That it implements.
    kinds
        Of job that it does.
    settings
        Of its own: key → type, default and description in words.
    problem
        Why it cannot be used; empty when it can.
    """

    name: str
    hooks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def look_at(names: Sequence[str], settings: Settings) -> dict[str, Facts]:
    """Load plug-ins, each once, in processes of their own, and return what that has shown."""
    facts: dict[str, Facts] = {}
    left = list(names)
    while left:
        status, told = _child(left, settings)
        facts |= {each.name: each for each in told}
        left = left[len(told) :]
        if left:
            hung = f"it did not return within {_limit_s(settings):g} s"
            why = hung if status == HUNG else f"it ended its process with status {status}"
            facts[left[0]] = Facts(left[0], problem=f"{why} when it was loaded")
            left = left[1:]
    return facts


def _limit_s(settings: Settings) -> float:
    return min(LOOK_S, settings.plugins.hook_s)


def _child(names: Sequence[str], settings: Settings) -> tuple[int, list[Facts]]:
    """Run one child; return its exit status and what it told of the first plug-ins."""
    ended = subprocess.run(  # noqa: S603 - our own module; names come from installed packages
        [sys.executable, "-P", "-m", "commands.plugin_facts", *names],
        input=settings.model_dump_json(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return ended.returncode, [Facts(**line) for line in lines]


def main(names: Sequence[str]) -> None:
    """Load the plug-ins and print a line of JSON for each."""
    from plugins.found import found
    from plugins.manager import PATIENCE_WITH_BUILT_IN  # loads what every plug-in needs, before one is watched

    settings = Settings.model_validate_json(sys.stdin.read())
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a plug-in prints is not what it is
    logging.disable()
    watch = Watch(end=_end)
    watch.start()
    there = {each.name: each for each in found() if not each.problem}
    for name in names:
        patience = PATIENCE_WITH_BUILT_IN if there[name].built_in else 1.0
        with watch.over(name, "import", patience * _limit_s(settings)):
            facts = _facts(there[name], settings)
        told.write(json.dumps(asdict(facts)) + "\n")
        told.flush()
    os._exit(0)


def _end(_doing: Doing) -> None:
    os._exit(HUNG)


def _facts(plugin: Any, settings: Settings) -> Facts:
    from plugins.manager import Plugins, ask_each, job_owners

    plugins = Plugins(settings)
    plugins.add(plugin)
    loaded = plugins.get_plugin(plugin.name)
    hooks = tuple(sorted(caller.name for caller in plugins.get_hookcallers(loaded) or ())) if loaded else ()
    kinds = tuple(job_owners(plugins))
    models = [answer for _, answer in ask_each(plugins, "own_settings")]
    return Facts(
        plugin.name,
        hooks,
        kinds,
        _fields(models[0]) if models else {},
        plugins.left_out.get(plugin.name, ""),
    )


def _fields(model: object) -> dict[str, str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    return {name: _field(facts) for name, facts in model.model_fields.items()}


def _field(facts: Any) -> str:
    one_of = " or ".join(map(repr, get_args(facts.annotation))) if get_origin(facts.annotation) is Literal else ""
    kind = one_of or getattr(facts.annotation, "__name__", str(facts.annotation))
    return f"{kind}, {_default(facts)}" + (f": {facts.description}" if facts.description else "")


def _default(facts: Any) -> str:
    if facts.is_required():
        return "to be given"
    try:
        return f"default {facts.get_default(call_default_factory=True)!r}"
    except Exception:  # noqa: BLE001 - it is made of other settings, or of what is not there before they are told
        return "default made when the settings are read"


if __name__ == "__main__":
    main(sys.argv[1:])
