"""Files that received data sets are written to, fragment by fragment, as Part 10 (PS3.10 7.1)."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from index.durable import start_writing
from index.errors import InvalidInstance
from index.instances import Received

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reception:
    """Where received data sets go.

    Attributes
    ----------
    new_file
        Returns the path of the file for one data set, told how many bytes it gets, or 0 when that is not known yet:
        then the file is there, empty. What it raises is the answer to that C-STORE.
    source_aet
        AE title of the sender, for the File Meta Information.
    """

    new_file: Callable[[int], Path]
    source_aet: str


_SMALL = 160 << 10
"""Bytes up to which a file is kept in memory until it is whole: a slice of 256 × 256 is."""

_BUFFER = 1 << 16
_WRITTEN_AT_ONCE = 1 << 18
"""Bytes after which the system is asked to write them to the disk: the flush at the end has less to wait for."""

_ELEMENT = struct.Struct("<HH2sH")
_VERSION = bytes.fromhex("02000100") + b"OB" + bytes.fromhex("0000 02000000 0001")
"""File Meta Information Version (0002,0001)."""


def encoded_meta(identity: tuple[str, str], transfer_syntax_uid: str, source_aet: str) -> bytes:
    """Return the File Meta Information of a received data set (PS3.10 7.1).

    Parameters
    ----------
    identity
        (SOP Class UID, SOP Instance UID) of the C-STORE-RQ.
    """
    values = (
        (0x0002, b"UI", identity[0]),
        (0x0003, b"UI", identity[1]),
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", implementation_version_name()),
        (0x0016, b"AE", source_aet),
    )
    body = _VERSION + b"".join(_element(*value) for value in values)
    return _ELEMENT.pack(0x0002, 0x0000, b"UL", 4) + len(body).to_bytes(4, "little") + body


def _element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("iso8859-1", errors="replace")
    value += (b"\0" if vr == b"UI" else b" ") if len(value) & 1 else b""
    return _ELEMENT.pack(0x0002, number, vr, len(value)) + value


def _uids(identity: tuple[object, object]) -> tuple[str, str]:
    for keyword, value in zip(("AffectedSOPClassUID", "AffectedSOPInstanceUID"), identity, strict=True):
        if not isinstance(value, str) or not value:
            got = "several" if value else "none"  # not which: what goes to an inbox is not logged
            raise InvalidInstance(f"{keyword}: expected one UID, got {got}", element=keyword)
    return str(identity[0]), str(identity[1])


class ReceivedFile:
    """The Part 10 file that one C-STORE-RQ is written to: a small one when it is whole, a larger one as it comes.

    A failure (a full disk) is kept until the request is answered; the rest of the data set is read and dropped, since
    the association can only go on after it.

    Parameters
    ----------
    identity
        (SOP Class UID, SOP Instance UID) as the command has them, which may be neither single nor there at all.
    """

    def __init__(self, reception: Reception, identity: tuple[object, object], transfer_syntax_uid: str) -> None:
        self.error: Exception | None = None
        self.path: Path | None = None
        self._new_file = reception.new_file
        self._begin: bytearray | None = bytearray(128)
        self._content = b""
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size = self._offset = self._begun = 0
        self._transfer_syntax_uid = str(transfer_syntax_uid)
        try:
            self._begin += b"DICM" + encoded_meta(_uids(identity), transfer_syntax_uid, reception.source_aet)
            self._offset = len(self._begin)
        except Exception as error:  # noqa: BLE001  (it answers this C-STORE; the upper layer's thread goes on)
            self.fail(error)

    @property
    def file(self) -> ReceivedFile:
        """Itself: pynetdicom flushes the file of the file after every fragment."""
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append a fragment of the data set."""
        if self._begin is not None:
            if len(self._begin) + len(data) <= _SMALL:
                self._begin += data
                return
            self._open()
        if self._stream is not None:
            self._write(self._stream, data)

    def _open(self) -> None:
        """Begin the file of an object that is not small."""
        begin, self._begin = bytes(self._begin or b""), None
        try:
            self.path = self._new_file(0)
            self._stream = self.path.open("wb", buffering=_BUFFER)
        except Exception as error:  # noqa: BLE001  (as above)
            self.fail(error)
        else:
            self._write(self._stream, begin)

    def _write(self, stream: BinaryIO, data: bytes | memoryview) -> None:
        try:
            stream.write(data)
        except OSError as error:
            self.fail(error)
        else:
            self._digest.update(data)
            self._size += len(data)
            if self._size - self._begun >= _WRITTEN_AT_ONCE:
                start_writing(stream.fileno(), self._begun)
                self._begun = self._size - _BUFFER  # so much may not have left this process yet

    @property
    def known(self) -> Received:
        """What is known of the file, once it is closed: nobody has to read it to find out."""
        return Received(
            self._digest.hexdigest(), self._size, self._offset, self._transfer_syntax_uid, self._content,
            is_named=not self._content,
        )

    def flush(self) -> None:
        """Do nothing: the archive flushes whole files."""

    def close(self) -> None:
        """End the file; what cannot be written any more is an error of this reception."""
        if self._begin is not None:
            self._write_small()
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            stream.flush()
            start_writing(stream.fileno(), self._begun)  # while its header is read
            stream.close()
        except OSError as error:
            with contextlib.suppress(OSError):
                stream.close()
            self.fail(error)

    def _write_small(self) -> None:
        content, self._begin = bytes(self._begin or b""), None
        try:
            self.path = self._new_file(len(content))
            with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        except Exception as error:  # noqa: BLE001  (as above)
            self.fail(error)
        else:
            self._digest.update(content)
            self._size, self._content = len(content), content

    def fail(self, error: Exception) -> None:
        """Drop what was received, because of `error`."""
        self.error = self.error or error
        self.discard()

    def discard(self) -> None:
        """Close and delete the file."""
        self._begin = None
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                _LOG.debug("closing a discarded file failed", exc_info=True)
        if self.path is not None:
            self.path.unlink(missing_ok=True)
