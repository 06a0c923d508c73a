"""Instances as the archive speaks of them: what it stores, and what became of one that was brought in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from index.background import Background


class Outcome(StrEnum):
    """What `Archive.ingest` did."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Ingested:
    """The instance that was brought in, and what became of it.

    Attributes
    ----------
    cut_off
        Where its data set is cut off, a sentence; "" when it is whole.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    outcome: Outcome
    cut_off: str = ""


@dataclass(frozen=True)
class Received:
    """What whoever wrote an incoming file knows of it already.

    Attributes
    ----------
    sha256
        Of the file, hex.
    size
        Of the file, bytes.
    offset
        Of the first byte of the data set.
    content
        The file, where it is small; else empty.
    memory
        The file, where it is still in memory; None: it has to be read.
    is_named
        Whether its name in the incoming folder is on disk (`index.files.FileStore.named_file`).
    is_flushed
        Whether its bytes are, once `wait` has returned.
    writing
        Writes it meanwhile; None: it is written.
    """

    sha256: str
    size: int
    offset: int
    transfer_syntax_uid: str
    content: bytes = b""
    memory: memoryview | None = None
    is_named: bool = False
    is_flushed: bool = False
    writing: Background | None = None

    def wait(self) -> None:
        """Return when it is written.

        Raises
        ------
        OSError
            It cannot be written: the disk is full, above all.
        """
        if self.writing is not None:
            self.writing.wait()


@dataclass(frozen=True)
class StoredInstance:
    """An instance of the archive and its Part 10 file.

    Attributes
    ----------
    size
        Of the file, bytes.
    sha256
        Of the file as it was received, hex.
    damage
        What is wrong with the file as far as is known (`index.integrity.Damage`); empty: nothing.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    path: Path
    size: int
    sha256: str
    damage: str = ""
