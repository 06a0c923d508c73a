"""Files that received data sets are written to, fragment by fragment, as Part 10 (PS3.10 7.1)."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from index.background import Background
from index.direct_io import SMALL, Memory, NewFile
from index.durable import start_writing
from index.errors import InvalidInstance
from index.instances import Received

_LOG = logging.getLogger(__name__)


def _any_size(_size: int) -> None:
    """Take objects of any size."""


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
    past_cache
        Write what is not small past the system's cache.
    waits
        Whether a file that is closed is whole. Otherwise one that lay in memory may still be on its way to the disk:
        whoever reads or moves it waits first (`Received.wait`).
    require_space
        Called with the size of what is written next to a file that `new_file` was told no size of; what it raises is
        the answer to that C-STORE.
    """

    new_file: Callable[[int], Path]
    source_aet: str
    past_cache: bool = False
    waits: bool = True
    require_space: Callable[[int], None] = _any_size


_READ_AT_ENDS = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
"""Transfer syntaxes whose structure is told by both ends of a file; with others, what lies between is read as well."""

_MEMORY = Memory()

_PREAMBLE = bytes(128) + b"DICM"
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
    before, behind = _around_instance(identity[0], transfer_syntax_uid, source_aet)
    body = before + _element(0x0003, b"UI", identity[1]) + behind
    return _ELEMENT.pack(0x0002, 0x0000, b"UL", 4) + len(body).to_bytes(4, "little") + body


@lru_cache(maxsize=64)
def _around_instance(sop_class_uid: str, transfer_syntax_uid: str, source_aet: str) -> tuple[bytes, bytes]:
    """Return what stands before and behind the Media Storage SOP Instance UID: many objects of a sender share it."""
    behind = (
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", implementation_version_name()),
        (0x0016, b"AE", source_aet),
    )
    return _VERSION + _element(0x0002, b"UI", sop_class_uid), b"".join(_element(*value) for value in behind)


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
    """The Part 10 file that one C-STORE-RQ is written to: when it is whole, or block by block where it is large.

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
        self._reception = reception
        self._memory: memoryview | None = _MEMORY.take()
        self._file: NewFile | None = None
        self._digest = hashlib.sha256()
        self._size = self._held = self._hashed = self._offset = 0
        self._content = b""
        self._is_closed = self._is_flushed = False
        self._writing: Background | None = None
        self._transfer_syntax_uid = str(transfer_syntax_uid)
        try:
            meta = encoded_meta(_uids(identity), transfer_syntax_uid, reception.source_aet)
            self.write(_PREAMBLE + meta)
            self._offset = self._size
        except Exception as error:  # noqa: BLE001  (it answers this C-STORE; the upper layer's thread goes on)
            self.fail(error)

    @property
    def file(self) -> ReceivedFile:
        """Itself: pynetdicom flushes the file of the file after every fragment."""
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append a fragment of the data set."""
        while self._memory is not None and data:
            if self._held == len(self._memory):
                self._write_block(self._memory)
                continue
            piece = data[: len(self._memory) - self._held]
            held = self._held + len(piece)
            self._memory[self._held : held] = piece
            self._size += len(piece)
            self._held = held
            if self._size > SMALL:
                self._hash(self._memory)
            data = data[len(piece) :]

    def _hash(self, memory: memoryview) -> None:
        """Take what has come into the digest, while the rest is on its way."""
        self._digest.update(memory[self._held - (self._size - self._hashed) : self._held])
        self._hashed = self._size

    def _write_block(self, memory: memoryview) -> None:
        """Write to the file what is in memory; less than a block where nothing more comes."""
        try:
            self._reception.require_space(self._held)
            if self._file is None:
                self._file = self._new_file(is_whole=self._held < len(memory))
            self._file.write(memory, self._held)
            if not self._file.is_direct:
                start_writing(self._file.descriptor, self._size - self._held)  # a flush has less to wait for
        except Exception as error:  # noqa: BLE001  (as above)
            self.fail(error)
        else:
            self._held = 0

    def _new_file(self, *, is_whole: bool) -> NewFile:
        self.path = self._reception.new_file(0)
        is_read_again = not is_whole and self._transfer_syntax_uid not in _READ_AT_ENDS
        return NewFile(self.path, past_cache=self._reception.past_cache and not is_read_again)

    @property
    def known(self) -> Received:
        """What is known of the file, once it is closed: nobody has to read it to find out."""
        memory = self._memory
        if memory is not None and self._size > len(memory):
            memory = None
        return Received(
            self._digest.hexdigest(),
            self._size,
            self._offset,
            self._transfer_syntax_uid,
            self._content,
            memory[: self._size] if memory is not None else None,
            is_named=not self._content,
            is_flushed=self._is_flushed,
            writing=self._writing,
        )

    def flush(self) -> None:
        """Do nothing: files are flushed when they are whole."""

    def close(self) -> None:
        """End the file, once; what cannot be written any more is an error of this reception."""
        if self._memory is None or self._is_closed:
            return
        self._is_closed = True
        if self._size <= SMALL:
            self._write_small(self._memory)
            return
        if self._file is None and not self._reception.waits:
            self._begin_writing(self._memory)
            return
        self._write_block(self._memory)
        if self._file is not None and self._file.is_direct:
            try:
                self._file.flush()
            except OSError as error:
                self.fail(error)
            else:
                self._is_flushed = True
        elif self._file is not None:  # the archive has its header to read before it flushes it
            self._file.close()

    def _begin_writing(self, memory: memoryview) -> None:
        """Have all of it written and flushed while others see to what is in it."""
        try:
            held = self._held
            self._reception.require_space(held)
            self._file = file = self._new_file(is_whole=True)

            def write() -> None:
                file.write(memory, held)
                file.flush()

            self._writing = Background(write)
        except Exception as error:  # noqa: BLE001  (as above)
            self.fail(error)
        else:
            self._is_flushed = True  # for who waits

    def _write_small(self, memory: memoryview) -> None:
        content = bytes(memory[: self._size])
        try:
            self.path = self._reception.new_file(len(content))
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                left = memoryview(content)
                while left:
                    left = left[os.write(descriptor, left) :]
            finally:
                os.close(descriptor)
        except Exception as error:  # noqa: BLE001  (as above)
            self.fail(error)
        else:
            self._digest.update(content)
            self._content = content

    def fail(self, error: Exception) -> None:
        """Drop what was received, because of `error`."""
        self.error = self.error or error
        self.discard()

    def leave(self) -> None:
        """Be done with it when its request is answered, and let the next one have its memory."""
        memory = self._memory
        self.discard()
        if memory is not None:
            _MEMORY.give_back(memory)

    def discard(self) -> None:
        """Close and delete the file, unless it has another name by now; one that cannot be deleted stays.

        The file system may have gone read-only, which is no reason to end an association: the next start looks for
        such files (`Archive.clear_incoming`).
        """
        self._memory = None
        if self._writing is not None:
            with suppress(Exception):  # who was to store it has been told
                self._writing.wait()
        file, self._file = self._file, None
        path, self.path = self.path, None
        try:
            if file is not None:
                file.close()
        except OSError as error:  # of what is dropped
            _LOG.error("%s cannot be closed: %s", path, error)
        try:
            if path is not None and path.exists():
                path.unlink(missing_ok=True)
        except OSError as error:
            _LOG.error("what was received of an object cannot be removed: %s", error)
