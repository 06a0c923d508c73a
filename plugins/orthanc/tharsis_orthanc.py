# SPDX-License-Identifier: AGPL-3.0-or-later
#
# This program is free software: you can redistribute it and/or modify it under the terms of the GNU Affero General
# Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
# later version. It is distributed in the hope that it will be useful, but WITHOUT ANY WARRANTY. See
# <https://www.gnu.org/licenses/>.
#
# This file alone is under that licence, because it is loaded by Orthanc's Python plug-in, which is. It imports nothing
# of Tharsis, and nothing of Tharsis imports it: the two are programs of their own that talk over HTTP.
"""Orthanc as a Tharsis: the script for Orthanc's Python plug-in (``"PythonScript"`` in Orthanc's settings).

It notes which series became stable, or were deleted, in a spool that survives a crash, and gives the notes to the
node; it answers ``/tharsis/...`` in Orthanc's REST API by asking the node; and it puts buttons into Orthanc Explorer.
All work is done by the node, in other processes. Needs Python 3.9 or later and its standard library.

Calls into Orthanc hold Python's global lock, so none of them waits for anybody: the node is asked over sockets of
Python's own, which release it. Nothing here runs while Orthanc is storing an instance.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import queue
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from typing import Any

import orthanc  # type: ignore[import-not-found]  # it exists inside of Orthanc only

_PAGE = 500
"""Changes that Orthanc is asked for at a time: the call holds the lock for some milliseconds."""

_BATCH = 500
_LOOK_S = 60.0
_GATHER_S = 0.1
"""Notes that come within this time go to disk together, seconds."""

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 30.0
_MOST_ASKING = 8
"""Requests that may wait for the node at the same time; Orthanc has a few dozen threads for all of HTTP."""

_DEFAULTS = {
    "Node": "http://127.0.0.1:11180",
    "Key": "",
    "KeyFile": "",
    "Spool": "",
    "TimeoutS": 5.0,
    "Aet": "",
    "Host": "127.0.0.1",
    "Port": 11112,
}

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS note (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, "
    "UNIQUE (kind, id))",
    "CREATE TABLE IF NOT EXISTS place (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
)

_EXPLORER = """
(function() {
  function button(page, anchor, icon, text, action) {
    $(page).live('pagebeforecreate', function() {
      var link = $('<a>').attr({'href': '#', 'data-role': 'button', 'data-icon': icon, 'data-theme': 'e'}).text(text);
      $(anchor).closest('ul').before(link);
      link.click(function(event) {
        event.preventDefault();
        if ($.mobile.pageData && $.mobile.pageData.uuid) { action($.mobile.pageData.uuid); }
      });
    });
  }
  function view(id) { window.open('../tharsis/view/' + id); }
  function again(id) {
    $.ajax({url: '../tharsis/again/' + id, type: 'POST', data: '{}', dataType: 'json',
      success: function() { alert('Tharsis will look at this series again.'); },
      error: function(answer) { alert(answer.responseText); }});
  }
  function status(id) { window.open('../tharsis/status?series=' + id); }
  button('#study', '#study-delete', 'search', 'Similar cases', view);
  button('#series', '#series-delete', 'search', 'Similar cases', view);
  button('#series', '#series-delete', 'refresh', 'Process again', again);
  button('#series', '#series-delete', 'info', 'Tharsis status', status);
})();
"""


class NodeAway(Exception):
    """The node does not answer, or not in time; the message is one sentence."""


class Node:
    """The door of the Tharsis node.

    Parameters
    ----------
    url, key
        Where it is, and what it wants to be shown.
    timeout_s
        How long it may stay silent, seconds.
    """

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is no business of a proxy

    def ask(self, method: str, path: str, content: Any = None, asker: str = "") -> tuple[int, str, bytes]:
        """Return status, media type and body of the node's answer; raises `NodeAway`."""
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Bearer {self._key}", "X-Asker": asker, "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers, method=method)  # noqa: S310 - the site's own
        try:
            with closing(self._open(request)) as answer:
                return answer.status, answer.headers.get_content_type(), answer.read()
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise NodeAway(f"the Tharsis node at {self._url} does not answer: {reason}") from error

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as refusal:  # an answer like any other
            return refusal


class Spool:
    """The notes that the node has not taken yet, in a SQLite file; for one thread.

    A note is *touched* (a series is getting instances), *stable* or *deleted*. What is touched and never becomes
    stable, because Orthanc died first, is taken for stable some time after the next start.
    """

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", *_SCHEMA):
            self._database.execute(statement)

    def write(self, notes: list[tuple[str, str]], last_change: int | None = None) -> None:
        """Write notes (kind, identifier), and up to which change Orthanc's log was read: all of it or nothing."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for kind, identifier in notes:
                if kind != "touched":
                    self._database.execute("DELETE FROM note WHERE kind = 'touched' AND id = ?", (identifier,))
                self._database.execute("INSERT OR IGNORE INTO note (kind, id) VALUES (?, ?)", (kind, identifier))
            if last_change is not None:
                self._database.execute("INSERT OR REPLACE INTO place VALUES ('change', ?)", (last_change,))

    def take_touched_for_stable(self, identifiers: list[str]) -> None:
        """Series that Orthanc left unfinished when it died, and that nobody went on with."""
        self.write([("stable", identifier) for identifier in identifiers])

    def touched(self) -> list[str]:
        """Return the series that have not become stable."""
        return [row[0] for row in self._database.execute("SELECT id FROM note WHERE kind = 'touched'")]

    def last_change(self) -> int | None:
        """Return up to which change Orthanc's log was read; None for a new spool."""
        row = self._database.execute("SELECT value FROM place WHERE name = 'change'").fetchone()
        return None if row is None else int(row[0])

    def batch(self) -> list[tuple[int, str, str]]:
        """Return the oldest notes for the node: (number, kind, identifier)."""
        return self._database.execute(
            "SELECT number, kind, id FROM note WHERE kind <> 'touched' ORDER BY number LIMIT ?", (_BATCH,)
        ).fetchall()

    def forget(self, numbers: list[int]) -> None:
        """Delete notes that the node has on its own disk."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("DELETE FROM note WHERE number = ?", [(number,) for number in numbers])

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class Notes(threading.Thread):
    """Takes notes from Orthanc's events, writes them to the spool, and gives them to the node.

    Parameters
    ----------
    spool
        Path of the spool.
    node
        Who gets the notes.
    stable_s
        Orthanc's StableAge, seconds.
    """

    def __init__(self, spool: str, node: Node, stable_s: float) -> None:
        super().__init__(name="tharsis-notes", daemon=True)
        self._path = spool
        self._node = node
        self._stable_s = stable_s
        self._events: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._touched: set[str] = set()
        self._unwritten: list[tuple[str, str]] = []
        self._is_greeted = False
        self._is_away = False
        self._delay_s = _FIRST_DELAY_S

    def note(self, kind: str, identifier: str) -> None:
        """Take a note; returns at once."""
        if kind == "touched":
            if identifier in self._touched:
                return
            self._touched.add(identifier)
        else:
            self._touched.discard(identifier)
        self._events.put((kind, identifier))
        self._wake.set()

    def stop(self) -> None:
        """Write what was noted, and end."""
        self._stopping.set()
        self._wake.set()
        self.join(10.0)

    def run(self) -> None:
        """Until `stop`: whatever happens once is no reason to take no more notes."""
        _name_thread("tharsis-notes")
        spool = Spool(self._path)
        left = spool.touched()
        left_until = time.monotonic() + self._stable_s
        pause = 0.0
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            self._stopping.wait(_GATHER_S)
            try:
                self._write(spool)
                if left and time.monotonic() >= left_until:
                    spool.take_touched_for_stable([each for each in left if _is_finished(each)])
                    left = []
                pause = self._deliver(spool)
            except Exception as error:  # noqa: BLE001 - a full disk, a locked file: told, and tried again
                orthanc.LogError(f"Tharsis: the notes in {self._path} cannot be kept: {error}")
                pause = _LONGEST_DELAY_S
            if left:
                pause = min(pause, max(0.0, left_until - time.monotonic()))
        self._write(spool)
        spool.close()

    def _write(self, spool: Spool) -> None:
        """Write the events, and what Orthanc's log of changes has beyond them."""
        while not self._events.empty():  # nobody else takes from it
            self._unwritten.append(self._events.get())
        if self._unwritten:
            spool.write(self._unwritten)
            self._unwritten = []  # not before: no log has deletions, should the disk be full
        for found, last in _changes_since(spool.last_change()):
            spool.write(found, last)

    def _deliver(self, spool: Spool) -> float:
        """Give the node its notes; return how long to wait for more, or before the next try, seconds."""
        try:
            if not self._is_greeted:
                self._give("/hello", {})
                self._is_greeted = True
            while batch := spool.batch():
                kinds = {
                    kind: [identifier for _, noted, identifier in batch if noted == kind]
                    for kind in ("stable", "deleted")
                }
                self._give("/notes", kinds)
                spool.forget([number for number, _, _ in batch])
        except NodeAway as error:
            if not self._is_away:
                orthanc.LogWarning(f"Tharsis: {error}; what Orthanc stores is noted in {self._path} meanwhile")
            self._is_away = True
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
            return self._delay_s
        if self._is_away:
            orthanc.LogWarning("Tharsis: the node answers again and has all notes")
        self._is_away = False
        self._delay_s = _FIRST_DELAY_S
        return _LOOK_S

    def _give(self, path: str, content: Any) -> None:
        status, _, body = self._node.ask("POST", path, content)
        if status != 200:
            raise NodeAway(f"the Tharsis node does not take {path}: {status} {body[:200].decode(errors='replace')}")


def _changes_since(last: int | None) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Yield what Orthanc's log of changes has after `last`, a page at a time, with where the page ends.

    A new spool begins at the end of the log: the node compares all series when it is greeted. So it does when the log
    is another one, which ends before `last`.
    """
    end = int(_get("/changes?last")["Last"])
    if last is None or end < last:
        yield [], end
        return
    while last < end:
        page = _get(f"/changes?since={last}&limit={_PAGE}{_only_series()}")
        kinds = {"NewSeries": "touched", "StableSeries": "stable"}
        found = [(kinds[each["ChangeType"]], each["ID"]) for each in page["Changes"] if each["ChangeType"] in kinds]
        last = end if page["Done"] else max(int(page["Last"]), last + 1)
        yield found, last


_capabilities: dict[str, Any] = {}


def _only_series() -> str:
    """Orthanc 1.12.5 and later leaves out changes of other kinds when it is asked to."""
    if not _capabilities:
        _capabilities.update({"known": True, **_get("/system").get("Capabilities", {})})
    return "&type=NewSeries;StableSeries" if _capabilities.get("HasExtendedChanges") else ""


def _is_finished(series: str) -> bool:
    """Whether nothing is coming in for the series at the moment; when it is gone, the node finds out."""
    try:
        return bool(_get(f"/series/{series}").get("IsStable", True))
    except orthanc.OrthancException:
        return True


def _get(path: str) -> Any:
    return json.loads(orthanc.RestApiGet(path))


def _name_thread(name: str) -> None:
    """Newer SDKs show the names of threads in Orthanc's log."""
    if hasattr(orthanc, "SetCurrentThreadName"):
        orthanc.SetCurrentThreadName(name)


class Routes:
    """What Orthanc's REST API answers below ``/tharsis``, by asking the node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asking = threading.BoundedSemaphore(_MOST_ASKING)

    def similar(self, output: Any, _uri: str, **request: Any) -> None:
        """``GET /tharsis/similar/{series or study}?k=&exclude=``: ranked neighbours that Orthanc has not deleted."""
        if request["method"] != "GET":
            output.SendMethodNotAllowed("GET")
            return
        query = urllib.parse.urlencode(request.get("get") or {})
        status, kind, body = self._ask("GET", f"/similar/{_quoted(request)}?{query}", request)
        if status == 200:
            told = json.loads(body)
            told["neighbours"] = [each for each in told["neighbours"] if _is_there(each["orthancSeries"])]
            body = json.dumps(told, indent=2, ensure_ascii=False).encode()
        _answer(output, status, kind, body)

    def view(self, output: Any, _uri: str, **request: Any) -> None:
        """``GET /tharsis/view/{series or study}``: the same as a page with pictures."""
        if request["method"] != "GET":
            output.SendMethodNotAllowed("GET")
            return
        _answer(output, *self._ask("GET", "/page", request))

    def status(self, output: Any, _uri: str, **request: Any) -> None:
        """``GET /tharsis/status?series=``: how the node stands."""
        if request["method"] != "GET":
            output.SendMethodNotAllowed("GET")
            return
        query = urllib.parse.urlencode(request.get("get") or {})
        _answer(output, *self._ask("GET", f"/status?{query}", request))

    def again(self, output: Any, _uri: str, **request: Any) -> None:
        """``POST /tharsis/again/{series}``: look at the series again."""
        if request["method"] != "POST":
            output.SendMethodNotAllowed("POST")
            return
        _answer(output, *self._ask("POST", f"/again/{_quoted(request)}", request, {}))

    def _ask(self, method: str, path: str, request: Any, content: Any = None) -> tuple[int, str, bytes]:
        if not self._asking.acquire(blocking=False):
            return _refusal(f"{_MOST_ASKING} requests are waiting for the Tharsis node already: try again")
        try:
            return self._node.ask(method, path, content, _asker(request))
        except NodeAway as error:
            return _refusal(str(error))
        finally:
            self._asking.release()


def _refusal(sentence: str) -> tuple[int, str, bytes]:
    return 503, "application/json", json.dumps({"error": sentence}).encode()


def _answer(output: Any, status: int, kind: str, body: bytes) -> None:
    if status == 200:
        output.AnswerBuffer(body, kind)
    else:
        output.SetHttpHeader("Content-Type", kind)
        output.SendHttpStatus(status, body.decode(), len(body))


def _quoted(request: Any) -> str:
    return urllib.parse.quote(request["groups"][0], safe="")


def _is_there(series: str | None) -> bool:
    """Whether Orthanc still has the series; one that was never in Orthanc is nobody's to deny."""
    if series is None:
        return True
    try:
        orthanc.RestApiGet(f"/series/{series}")
    except orthanc.OrthancException:
        return False
    return True


def _asker(request: Any) -> str:
    """Return the name of the user that logged in to Orthanc, for the node's audit log."""
    kind, _, login = request.get("headers", {}).get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        name = base64.b64decode(login, validate=True).partition(b":")[0]
    except (ValueError, binascii.Error):
        return ""
    return name.decode("ascii", errors="replace").encode("ascii", errors="replace").decode()


class Tharsis:
    """The script at work: settings, notes, routes and buttons.

    Attributes
    ----------
    listeners
        Functions of another script for ``(change, level, resource)``, which Orthanc takes only one of.
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[int, int, str], object]] = []
        told = json.loads(orthanc.GetConfiguration())
        own = {**_DEFAULTS, **told.get("Tharsis", {})}
        self._own = own
        unknown = sorted(set(own) - set(_DEFAULTS))
        if unknown:
            orthanc.LogWarning(f'Tharsis: Orthanc\'s settings have an unknown key in "Tharsis": {unknown[0]}')
        key = own["Key"]
        if own["KeyFile"]:
            with open(own["KeyFile"], encoding="utf-8") as file:  # noqa: PTH123
                key = file.read().strip()
        if not key:
            raise ValueError('Orthanc\'s settings have no "Key" in "Tharsis": it is that of [orthanc] in the node\'s')
        node = Node(own["Node"], key, float(own["TimeoutS"]))
        folder = told.get("IndexDirectory") or told.get("StorageDirectory") or "."
        spool = own["Spool"] or os.path.join(folder, "tharsis-spool.sqlite")  # noqa: PTH118
        Spool(spool).close()  # what cannot be written is told now
        self._notes = Notes(spool, node, float(told.get("StableAge", 60)))
        self._register(Routes(node))

    def _register(self, routes: Routes) -> None:
        orthanc.RegisterRestCallback("/tharsis/similar/([^/]+)", routes.similar)
        orthanc.RegisterRestCallback("/tharsis/view/([^/]+)", routes.view)
        orthanc.RegisterRestCallback("/tharsis/status", routes.status)
        orthanc.RegisterRestCallback("/tharsis/again/([^/]+)", routes.again)
        if hasattr(orthanc, "ExtendOrthancExplorer"):
            orthanc.ExtendOrthancExplorer(_EXPLORER)
        orthanc.RegisterOnChangeCallback(self.on_change)

    def on_change(self, change: int, level: int, resource: str) -> None:
        """Note what happens to series; called by Orthanc, one event after the other, and never while it stores."""
        kinds = orthanc.ChangeType
        if change == kinds.ORTHANC_STARTED:
            self._introduce()
            self._notes.start()
        elif change == kinds.ORTHANC_STOPPED:
            self._notes.stop()
        elif level == orthanc.ResourceType.SERIES and change in (kinds.NEW_SERIES, kinds.NEW_CHILD_INSTANCE):
            self._notes.note("touched", resource)
        elif change == kinds.STABLE_SERIES:
            self._notes.note("stable", resource)
        elif change == kinds.DELETED and level in (orthanc.ResourceType.SERIES, orthanc.ResourceType.INSTANCE):
            self._notes.note("deleted", resource)
        for listener in self.listeners:
            listener(change, level, resource)

    def _introduce(self) -> None:
        """Make the node known to Orthanc under both of its AE titles, unless Orthanc's settings do."""
        if not self._own["Aet"]:
            return
        known = {each.get("AET") for each in _get("/modalities?expand").values()}
        for name, title in (("tharsis", self._own["Aet"]), ("tharsis-similar", self._own["Aet"] + "_SIM")):
            if title not in known:
                peer = {"AET": title, "Host": self._own["Host"], "Port": int(self._own["Port"])}
                orthanc.RestApiPut(f"/modalities/{name}", json.dumps(peer))


tharsis = Tharsis()
