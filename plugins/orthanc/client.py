"""Orthanc's REST API, as far as this node uses it. Instances go between socket and file, never whole into memory."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from config.orthanc import OrthancSettings

_PIECE = 1 << 20
_LONGEST_REASON = 200
_WAIT_FOR_PERSON = (401, 403)
_WAIT = (408, 429, 500, 502, 503, 504, 507)


class OrthancAway(Exception):
    """Orthanc does not answer, or cannot at the moment; the message is one sentence. Trying again may help."""


class OrthancRefused(Exception):
    """Orthanc refused a request for good; the message is one sentence."""


class OrthancLacks(Exception):
    """What was asked for is not, or no longer, in Orthanc."""


class OrthancClient:
    """One connection to Orthanc, for one thread.

    Parameters
    ----------
    settings
        Where it is, and as whom to log in.

    Raises
    ------
    OrthancAway
        The file with the password or with the authorities cannot be read; from every method when Orthanc does not
        answer, does not let us in, or has no room.
    OrthancLacks
        From every method: what the path names does not exist.
    OrthancRefused
        From every method: any other refusal.
    """

    def __init__(self, settings: OrthancSettings) -> None:
        url = urlsplit(settings.url)
        self._url = settings.url.rstrip("/")
        self._base = url.path.rstrip("/")
        self._headers = {"Accept": "application/json, */*"}
        try:
            password = settings.secret("password")
            host = url.hostname or ""
            if url.scheme == "https":
                context = ssl.create_default_context(cafile=settings.ca or None)
                self._connection: HTTPConnection = HTTPSConnection(
                    host, url.port, timeout=settings.timeout_s, context=context
                )
            else:
                self._connection = HTTPConnection(host, url.port, timeout=settings.timeout_s)
        except (OSError, ValueError) as error:
            raise OrthancAway(f"the settings of [orthanc] cannot be used: {error}") from error
        if settings.user:
            login = base64.b64encode(f"{settings.user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"

    def __enter__(self) -> OrthancClient:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        return self._json("GET", path)

    def text(self, path: str) -> str:
        """Return the text at `path`."""
        return self._text("GET", path)

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        self._text("DELETE", path)

    def download(self, path: str, target: IO[bytes]) -> None:
        """Write the body at `path` into a file."""
        with self._answer("GET", path) as response:
            shutil.copyfileobj(response, target, _PIECE)
            if response.length:  # http.client ends early without an error when the connection does
                raise OrthancAway(f"Orthanc at {self._url} broke off in the middle of {path}")

    def upload(self, file: Path) -> dict[str, Any]:
        """Store a Part 10 file; return what Orthanc says of it (ID, ParentSeries, ParentStudy, Status)."""
        with file.open("rb") as body:
            headers = {"Content-Type": "application/dicom", "Content-Length": str(file.stat().st_size)}
            told = self._json("POST", "/instances", body, headers)
        if not isinstance(told, dict) or "ID" not in told:
            raise OrthancRefused(f"Orthanc has not stored {file.name}: {str(told)[:_LONGEST_REASON]}")
        return told

    def _json(
        self, method: str, path: str, body: IO[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        text = self._text(method, path, body, headers)
        try:
            return json.loads(text)
        except ValueError as error:  # a page of something in between, as while it is being looked after
            raise OrthancAway(f"what answers at {self._url} is no Orthanc: {method} {path} gives no JSON") from error

    def _text(
        self, method: str, path: str, body: IO[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> str:
        with self._answer(method, path, body, headers) as response:
            return response.read().decode("utf-8", errors="replace")

    @contextmanager
    def _answer(
        self, method: str, path: str, body: IO[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Send a request and give its answer; whatever goes wrong closes the connection, the next request opens it."""
        try:
            self._connection.request(method, self._base + path, body, {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            if response.status >= 300:
                self._refuse(f"{method} {path}", response)
            yield response
        except (OSError, HTTPException, ValueError) as error:
            self._connection.close()
            raise OrthancAway(f"Orthanc at {self._url} does not answer: {error or type(error).__name__}") from error
        except BaseException:
            self._connection.close()
            raise

    def _refuse(self, what: str, response: HTTPResponse) -> None:
        reason = f"{response.status} {_reason(response.read(_PIECE))}".strip()
        if response.status == 404:
            raise OrthancLacks(f"Orthanc has no {what}")
        if response.status in _WAIT_FOR_PERSON:
            raise OrthancAway(f"Orthanc at {self._url} does not let this node in ({reason}): see user and password")
        if response.status in _WAIT:
            raise OrthancAway(f"Orthanc at {self._url} cannot do {what} now ({reason})")
        if response.status < 400:
            raise OrthancAway(f"Orthanc at {self._url} sends {what} elsewhere ({reason}): see url")
        raise OrthancRefused(f"Orthanc refuses {what} ({reason})")


def _reason(body: bytes) -> str:
    """What Orthanc says in the body of a refusal."""
    text = body.decode("utf-8", errors="replace")
    with suppress(ValueError, AttributeError):
        told = json.loads(text)
        text = told.get("Details") or told.get("Message") or text
    return " ".join(text.split())[:_LONGEST_REASON]
