"""The layout of the project: names that resolve to this checkout, packages without code in their __init__."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["tharsis", "commands", "scp", "plugins", "reconstruct", "index", "config"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_to_this_checkout(name):
    found = importlib.util.find_spec(name)
    assert found is not None, f"{name} cannot be imported"
    assert found.origin is not None, f"{name} has no __init__.py"
    expected = ROOT / f"{name}.py" if name == "tharsis" else ROOT / name / "__init__.py"
    assert Path(found.origin).resolve() == expected


@pytest.mark.parametrize(
    "path", sorted(path for name in NAMES for path in (ROOT / name).rglob("__init__.py")), ids=lambda p: p.parent.name
)
def test_packages_hold_a_docstring_and_nothing_else(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert [type(statement) for statement in body] == [ast.Expr]
    assert isinstance(body[0].value, ast.Constant)
    assert isinstance(body[0].value.value, str)


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for name in NAMES for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_tests_are_flat_and_shadow_nothing():
    tests = ROOT / "tests"
    assert not (tests / "__init__.py").exists()
    assert [path.name for path in tests.iterdir() if path.name in NAMES or path.stem in NAMES] == []


def test_the_wheel_ships_every_name():
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert set(wheel["wheel"]["only-include"]) == {f"{name}.py" if name == "tharsis" else name for name in NAMES}
