"""What is promised to authors of plug-ins is written down: every hook, every setting, code that is tested."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from config.plugins import PluginSettings
from config.settings import Settings
from plugins import hookspecs, manager
from plugins.node import Series, Task, Work

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs" / "example-plugin"
DEFAULTS = resources.files("config").joinpath("default.toml").read_text(encoding="utf-8")
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "tharsis_spec")}


def section(title: str) -> str:
    """The text below a heading of the page, up to the next heading."""
    found = re.search(rf"^#+ `?{re.escape(title)}.*?$(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/plugins.md has no section on {title}"
    return found[1]


def test_there_are_hooks():
    assert {"jobs_for_series", "job_functions", "worker_started", "segmenters"} <= set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_when_in_which_process_what_it_answers_and_what_an_exception_does(name):
    told = inspect.getdoc(HOOKS[name]) or ""
    for word in ("When: ", "Process: ", "Exception: ", "Returns\n-------"):
        assert word in told, f"{name}: its docstring does not tell {word!r}"
    for parameter in inspect.signature(HOOKS[name]).parameters:
        assert re.search(rf"^{parameter}\n    \S", told, re.MULTILINE), f"{name}: what is {parameter}?"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_section_with_its_parameters(name):
    parameters = ", ".join(inspect.signature(HOOKS[name]).parameters)
    told = section(f"{name}({parameters})`")
    for word in ("*When*", "*Returns*", "*Exception"):
        assert word in told, f"docs/plugins.md on {name} does not tell {word}"


def test_no_section_tells_of_a_hook_that_does_not_exist():
    assert set(re.findall(r"^#### `(\w+)\(", PAGE, re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("shown", [Series, Task, Work])
def test_what_a_plug_in_gets_is_described(shown):
    fields = getattr(shown, "__dataclass_fields__", {})
    names = {*fields, *(name for name in vars(shown) if not name.startswith("_"))} | (
        {"uid", "instances"} if shown is Series else set()
    )
    told = section(f"{shown.__name__}`")
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", told)] == []


def test_the_built_in_plug_ins_keep_to_the_contract_and_have_no_other_way_in():
    plugins = manager.load_plugins()
    assert not plugins.left_out
    specified = {caller.name for caller in plugins.hook.__dict__.values() if getattr(caller, "spec", None)}
    assert specified == set(HOOKS)
    for name in manager.BUILT_IN:
        for caller in plugins.get_hookcallers(plugins.get_plugin(name)) or ():
            parameters = set(inspect.signature(HOOKS[caller.name]).parameters)
            (own,) = [each for each in caller.get_hookimpls() if each.plugin_name == name]
            assert set(own.argnames) <= parameters


@pytest.mark.parametrize("name", PluginSettings.model_fields)
def test_every_setting_of_plug_ins_is_on_the_page(name):
    assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE)


def leaves(model: type[BaseModel]) -> list[str]:
    """The sections and keys of the settings as they stand in a file, but for tables in double brackets."""
    sections = {name: field.annotation for name, field in model.model_fields.items()}
    return [f"{section}.{key}" for section, of in sections.items() if isinstance(of, type) for key in keys_of(of)]


def keys_of(section: type) -> list[str]:
    return list(getattr(section, "model_fields", ()))


@pytest.mark.parametrize("key", leaves(Settings))
def test_every_setting_has_a_default_and_a_comment_in_the_manual(key):
    section_name, name = key.split(".")
    assert name in tomllib.loads(DEFAULTS)[section_name]
    lines = DEFAULTS.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"[{section_name}]"))
    own = next(line for line in lines[start + 1 :] if line.startswith((f"{name} = ", f"[{section_name}.{name}]")))
    assert re.search(r" # .{10,}", own), f"{key} has no comment in config/default.toml"


def test_every_key_of_the_manual_exists():
    told = tomllib.loads(DEFAULTS)
    assert {f"{section}.{key}" for section, keys in told.items() for key in keys} == set(leaves(Settings))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_code_on_the_page_is_the_code_that_is_tested():
    module = (EXAMPLE / "tharsis_mip.py").read_text(encoding="utf-8")
    assert len(blocks("python")) >= 4
    for block in blocks("python"):
        assert block in module
    for block in blocks("toml"):
        assert block in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
