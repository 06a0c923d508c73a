"""The door for the script in Orthanc: a small HTTP server that shows nothing to who does not have the key.

::

    POST /notes            {"stable": [ids], "deleted": [ids]}: queued, on disk, when it is answered
    POST /hello            Orthanc has started
    POST /again/ID         look at a series again
    GET  /similar/ID       neighbours; k, exclude
    GET  /status           of the node; series
    GET  /page             the page that shows neighbours as pictures
"""

from __future__ import annotations

import hmac
import json
import logging
import sqlite3
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from index.archive import Archive
from index.errors import (
    ArchiveError,
    CatalogueBusy,
    InvalidIdentifier,
    NotEmbedded,
    NotFound,
    OutOfSpace,
    UnknownModel,
    UnknownQuery,
)
from plugins.orthanc.answers import Answers

logger = logging.getLogger(__name__)

_LONGEST_BODY = 1 << 20
_IDLE_S = 30.0
_MOST_AT_ONCE = 16
_MOST_DIGITS = 18

CODES: dict[type[Exception], HTTPStatus] = {
    InvalidIdentifier: HTTPStatus.BAD_REQUEST,
    NotFound: HTTPStatus.NOT_FOUND,
    UnknownQuery: HTTPStatus.NOT_FOUND,
    NotEmbedded: HTTPStatus.CONFLICT,
    UnknownModel: HTTPStatus.CONFLICT,
    OutOfSpace: HTTPStatus.INSUFFICIENT_STORAGE,
    CatalogueBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    sqlite3.Error: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The one table from exception to HTTP status; whatever else is raised is 500."""


class Door:
    """A running door; it listens when this returns.

    Parameters
    ----------
    host, port
        Where it listens.
    key
        What a caller has to show.

    Raises
    ------
    OSError
        The address is in use, or not one of this machine.
    """

    def __init__(self, archive: Archive, answers: Answers, *, host: str, port: int, key: str) -> None:
        self._server = _Server((host, port), _Handler)
        self._server.archive, self._server.answers, self._server.key = archive, answers, key.encode()
        self._thread = threading.Thread(target=self._server.serve_forever, name="door", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    archive: Archive
    answers: Answers
    key: bytes

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.places = threading.BoundedSemaphore(_MOST_AT_ONCE)


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        """Answer a GET."""
        self._serve()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Leave a trace where one debugs; identifiers of patients are not in it."""
        logger.debug(format, *args)

    def version_string(self) -> str:
        """Tell nobody which Python this is."""
        return "Tharsis"

    def _serve(self) -> None:
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not self.server.key or not hmac.compare_digest(shown, self.server.key):
            self._answer(HTTPStatus.UNAUTHORIZED, {"error": "the key is not that of this node: see [orthanc] key"})
            return
        if not self.server.places.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many ask at the same time"})
            return
        try:
            self._answer_request()
        finally:
            self.server.places.release()
            self.server.archive.close()  # the connection of this thread

    def _answer_request(self) -> None:
        try:
            content = self._content()
        except Exception as error:  # whatever a request meets is its own answer
            status = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)
            if status is None:
                logger.exception("%s failed", self.requestline)
                status = HTTPStatus.INTERNAL_SERVER_ERROR
            known = isinstance(error, ArchiveError | sqlite3.Error)
            self._answer(status, {"error": str(error) if known else f"the node failed: {type(error).__name__}"})
            return
        if isinstance(content, bytes):
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", content)
        else:
            self._answer(HTTPStatus.OK, content)

    def _content(self) -> dict[str, Any] | bytes:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        what, *names = unquote(url.path).partition("/")[2].split("/")
        answers = self.server.answers
        if self.command == "POST":
            body = self._body()
            if what == "notes":
                return answers.take(body)
            if what == "hello":
                return answers.greet()
            if what == "again" and names:
                return answers.again(names[0])
        elif what == "similar" and names:
            terms = [term for term in query.get("exclude", "").split(",") if term]
            return answers.similar(
                names[0], k=_count(query.get("k")), exclude=terms, asker=self.headers.get("X-Asker", "")[:64]
            )
        elif what == "status":
            return answers.status(query.get("series", ""))
        elif what == "page":
            return resources.files("plugins.orthanc").joinpath("similar.html").read_bytes()
        raise NotFound(f"this door has no {self.command} {url.path[:64]}")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "0")
        if not _is_number(length) or int(length) > _LONGEST_BODY:
            raise InvalidIdentifier(f"expected a body of at most {_LONGEST_BODY} bytes, got {length[:20]!r}")
        try:
            told = json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError as error:
            raise InvalidIdentifier(f"the body is no JSON: {error}") from error
        if not isinstance(told, dict):
            raise InvalidIdentifier("the body is a JSON object")
        return told

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content, ensure_ascii=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not _is_number(text):
        raise InvalidIdentifier(f"k: expected a whole number, got {text[:16]!r}", element="MaximumResults")
    return int(text)
