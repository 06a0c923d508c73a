"""Files that received data sets are written to, fragment by fragment, as Part 10 (PS3.10 7.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import UID
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from index.errors import InvalidInstance

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reception:
    """Where received data sets go.

    Attributes
    ----------
    new_file
        Makes the empty file for one data set; what it raises is the answer to that C-STORE.
    source_aet
        AE title of the sender, for the File Meta Information.
    """

    new_file: Callable[[], Path]
    source_aet: str


def encoded_meta(identity: tuple[str, str], transfer_syntax_uid: str, source_aet: str) -> bytes:
    """Return the File Meta Information of a received data set.

    Parameters
    ----------
    identity
        (SOP Class UID, SOP Instance UID) of the C-STORE-RQ.
    """
    meta = create_file_meta(
        sop_class_uid=UID(identity[0]),
        sop_instance_uid=UID(identity[1]),
        transfer_syntax=UID(transfer_syntax_uid),
        implementation_uid=UID(IMPLEMENTATION_CLASS_UID),
        implementation_version=implementation_version_name(),
    )
    meta.SourceApplicationEntityTitle = source_aet
    return encode_file_meta(meta)


def _uids(identity: tuple[object, object]) -> tuple[str, str]:
    for keyword, value in zip(("AffectedSOPClassUID", "AffectedSOPInstanceUID"), identity, strict=True):
        if not isinstance(value, str) or not value:
            got = "several" if value else "none"  # not which: what goes to an inbox is not logged
            raise InvalidInstance(f"{keyword}: expected one UID, got {got}", element=keyword)
    return str(identity[0]), str(identity[1])


class ReceivedFile:
    """The Part 10 file that one C-STORE-RQ is written to while it is received.

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
        self._stream: BinaryIO | None = None
        try:
            meta = encoded_meta(_uids(identity), transfer_syntax_uid, reception.source_aet)
            self.path = reception.new_file()
            self._stream = self.path.open("wb")
            self._stream.write(bytes(128) + b"DICM" + meta)
        except Exception as error:  # noqa: BLE001  (it answers this C-STORE; the upper layer's thread goes on)
            self.fail(error)

    @property
    def file(self) -> ReceivedFile:
        """Itself: pynetdicom flushes the file of the file after every fragment."""
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append a fragment of the data set."""
        if self._stream is None:
            return
        try:
            self._stream.write(data)
        except OSError as error:
            self.fail(error)

    def flush(self) -> None:
        """Do nothing: the archive flushes whole files."""

    def close(self) -> None:
        """End the file; what cannot be written any more is an error of this reception."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            stream.close()
        except OSError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Drop what was received, because of `error`."""
        self.error = self.error or error
        self.discard()

    def discard(self) -> None:
        """Close and delete the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                _LOG.debug("closing a discarded file failed", exc_info=True)
        if self.path is not None:
            self.path.unlink(missing_ok=True)
