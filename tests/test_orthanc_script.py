"""The script in Orthanc where a real Orthanc cannot be made to do it: lost logs, newer versions, a node that refuses.

Everything else is tested with a real one, in `test_orthanc_plugin`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

HOME = Path(__file__).resolve().parents[1]
SCRIPT = HOME / "plugins" / "orthanc" / "tharsis_orthanc.py"
PACKAGES = ("commands", "config", "index", "plugins", "reconstruct", "scp")


class Change(IntEnum):
    DELETED, NEW_CHILD_INSTANCE, NEW_SERIES, STABLE_SERIES, ORTHANC_STARTED, ORTHANC_STOPPED, OTHER = range(1, 8)


class Resource(IntEnum):
    STUDY, SERIES, INSTANCE, NONE = range(1, 5)


class FakeOrthanc(ModuleType):
    """As much of the module `orthanc` as the script uses."""

    ChangeType, ResourceType = Change, Resource

    class OrthancException(Exception):
        pass

    def __init__(self, folder: Path) -> None:
        super().__init__("orthanc")
        self.folder = folder
        self.changes: list[dict] = []  # Orthanc's log of changes
        self.first = 0  # Seq before the first of `changes`
        self.settings: dict = {"Tharsis": {"Key": "k" * 20}, "IndexDirectory": str(folder), "StableAge": 0}
        self.system: dict = {}
        self.asked: list[str] = []
        self.said: list[str] = []
        self.callbacks: dict = {}

    def get_configuration(self):
        return json.dumps(self.settings)

    def rest_api_get(self, path):
        self.asked.append(path)
        last = self.first + len(self.changes)
        if path == "/system":
            return json.dumps(self.system).encode()
        if path == "/changes?last":
            return json.dumps({"Changes": self.changes[-1:], "Done": True, "Last": last}).encode()
        if path.startswith("/changes?since="):
            since = int(path.split("since=")[1].split("&")[0])
            page = self.changes[max(0, since - self.first):][:2]
            end = page[-1]["Seq"] if page else last
            return json.dumps({"Changes": page, "Done": end == last, "Last": end}).encode()
        if path.startswith("/series/"):
            return b'{"IsStable": true}'
        raise self.OrthancException(path)

    def change(self, kind, identifier):
        self.changes.append({"ChangeType": kind, "ID": identifier, "Seq": self.first + len(self.changes) + 1})

    def register_rest_callback(self, path, function):
        self.callbacks[path] = function

    def register_on_change_callback(self, function):
        self.callbacks["change"] = function

    def log(self, sentence):
        self.said.append(sentence)

    GetConfiguration, RestApiGet, LogWarning, LogError = get_configuration, rest_api_get, log, log
    RegisterRestCallback, RegisterOnChangeCallback = register_rest_callback, register_on_change_callback


class FakeNode:
    """The node's door: notes what it is given, or is off."""

    def __init__(self, script):
        self._script = script
        self.is_off = False
        self.status = 200
        self.given: list[tuple[str, dict]] = []

    def ask(self, _method, path, content=None, _asker=""):
        if self.is_off:
            raise self._script.NodeAway("off")
        if self.status == 200:
            self.given.append((path, content))
        return self.status, "application/json", b"{}"

    def notes(self):
        return [content for path, content in self.given if path == "/notes"]


@pytest.fixture
def orthanc(tmp_path, monkeypatch):
    fake = FakeOrthanc(tmp_path)
    monkeypatch.setitem(sys.modules, "orthanc", fake)
    return fake


@pytest.fixture
def load(orthanc):
    def load():
        spec = importlib.util.spec_from_file_location("the_script", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def keeper(orthanc, load):
    """The notes of a script, its spool and a node, a step at a time and without a thread."""
    script = load()
    path = str(orthanc.folder / "spool.sqlite")
    node = FakeNode(script)
    notes = script.Notes(path, node, 0)
    spool = script.Spool(path)
    return SimpleNamespace(script=script, notes=notes, spool=spool, node=node, path=path)


def test_it_begins_at_the_end_of_the_log_and_reads_on_from_there(orthanc, keeper):
    orthanc.change("StableSeries", "old")
    keeper.notes._write(keeper.spool)
    for kind, identifier in (("NewInstance", "x"), ("NewSeries", "a"), ("StableSeries", "a"), ("NewSeries", "b")):
        orthanc.change(kind, identifier)
    keeper.notes._write(keeper.spool)
    assert [note[1:] for note in keeper.spool.batch()] == [("stable", "a")]
    assert keeper.spool.touched() == ["b"]
    assert keeper.spool.last_change() == 5
    assert not any("type=" in path for path in orthanc.asked)


def test_a_newer_orthanc_is_asked_for_changes_of_series_only(orthanc, keeper):
    orthanc.system = {"Capabilities": {"HasExtendedChanges": True}}
    keeper.notes._write(keeper.spool)
    orthanc.change("StableSeries", "a")
    keeper.notes._write(keeper.spool)
    assert orthanc.asked[-1] == "/changes?since=0&limit=500&type=NewSeries;StableSeries"


def test_a_log_that_was_cleared_loses_nothing_that_was_told(orthanc, keeper):
    keeper.notes._write(keeper.spool)
    keeper.notes.note("stable", "a")
    keeper.notes._write(keeper.spool)
    assert [note[1:] for note in keeper.spool.batch()] == [("stable", "a")]


def test_another_log_is_read_from_its_end(orthanc, keeper):
    """A new index, or an old one from a backup: the node compares all series when it is greeted."""
    keeper.spool.write([], 1000)
    orthanc.change("StableSeries", "a")
    keeper.notes._write(keeper.spool)
    assert keeper.spool.last_change() == 1
    assert keeper.spool.batch() == []


def test_what_the_node_does_not_take_stays_over_restarts(orthanc, keeper):
    keeper.notes.note("stable", "a")
    keeper.notes.note("deleted", "b")
    keeper.notes._write(keeper.spool)
    keeper.node.is_off = True
    assert keeper.notes._deliver(keeper.spool) <= 30.0
    keeper.node.is_off, keeper.node.status = False, 503
    keeper.notes._deliver(keeper.spool)
    assert sum("off" in sentence for sentence in orthanc.said) == 1, "told once"
    keeper.spool.close()
    spool, keeper.node.status = keeper.script.Spool(keeper.path), 200
    keeper.script.Notes(keeper.path, keeper.node, 0)._deliver(spool)
    assert [path for path, _ in keeper.node.given] == ["/hello", "/notes"]
    assert keeper.node.notes() == [{"stable": ["a"], "deleted": ["b"]}]
    assert spool.batch() == []


def test_a_series_that_never_became_stable_is_told_after_the_next_start(orthanc, load):
    script = load()
    path = str(orthanc.folder / "spool.sqlite")
    node = FakeNode(script)
    spool = script.Spool(path)
    spool.write([("touched", "half"), ("touched", "whole"), ("stable", "whole")], 0)
    spool.close()
    notes = script.Notes(path, node, 0)
    notes.start()
    wait_for(lambda: any("half" in told["stable"] for told in node.notes()))
    notes.stop()
    assert not notes.is_alive()
    assert sorted(each for told in node.notes() for each in told["stable"]) == ["half", "whole"]


def wait_for(condition):
    from orthanc_site import wait_for

    wait_for(condition)


def test_events_become_notes(orthanc, load):
    script = load()
    noted = []
    script.tharsis._notes = SimpleNamespace(
        note=lambda *note: noted.append(note), start=lambda: noted.append("start"), stop=lambda: noted.append("stop")
    )
    heard = []
    script.tharsis.listeners.append(lambda *event: heard.append(event))
    events = [
        (Change.ORTHANC_STARTED, Resource.NONE, ""), (Change.NEW_SERIES, Resource.SERIES, "a"),
        (Change.NEW_CHILD_INSTANCE, Resource.SERIES, "a"), (Change.NEW_CHILD_INSTANCE, Resource.STUDY, "s"),
        (Change.STABLE_SERIES, Resource.SERIES, "a"), (Change.DELETED, Resource.INSTANCE, "i"),
        (Change.DELETED, Resource.STUDY, "s"), (Change.OTHER, Resource.SERIES, "a"),
        (Change.ORTHANC_STOPPED, Resource.NONE, ""),
    ]  # fmt: skip
    for event in events:
        orthanc.callbacks["change"](*event)
    assert noted == ["start", ("touched", "a"), ("touched", "a"), ("stable", "a"), ("deleted", "i"), "stop"]
    assert heard == events


def test_a_series_that_is_getting_images_is_noted_once(keeper):
    for _ in range(1000):
        keeper.notes.note("touched", "a")
    assert keeper.notes._events.qsize() == 1


def test_without_a_key_it_says_which_one(orthanc, load):
    orthanc.settings["Tharsis"] = {}
    with pytest.raises(ValueError, match='no "Key" in "Tharsis"'):
        load()


def test_an_unknown_key_is_told(orthanc, load):
    orthanc.settings["Tharsis"]["Spol"] = "x"
    load()
    assert "unknown key in \"Tharsis\": Spol" in orthanc.said[0]


def test_it_needs_nothing_but_the_standard_library_and_orthanc():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 9))
    assert _imported(tree) - set(sys.stdlib_module_names) == {"orthanc"}


def test_the_licence_is_that_of_this_file_alone():
    assert SCRIPT.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: AGPL-3.0-or-later\n")
    for package in PACKAGES:
        for file in (HOME / package).rglob("*.py"):
            if file == SCRIPT:
                continue
            text = file.read_text(encoding="utf-8")
            assert "SPDX-License-Identifier: AGPL" not in text, file
            imported = _imported(ast.parse(text), whole=True)
            assert "orthanc" not in {name.split(".")[0] for name in imported}, f"{file}: that is Orthanc's plug-in"
            assert not any("tharsis_orthanc" in name for name in imported), file


def _imported(tree, *, whole=False):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names if whole else {name.split(".")[0] for name in names}
