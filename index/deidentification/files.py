"""Part 10 files de-identified: long values go from file to file, one at a time (PS3.10)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from index.durable import flush
from index.errors import CannotDeidentify, InvalidInstance
from index.part10 import begin_of_data_set
from index.structure import DEEPEST, require_structure

_DEFERRED_BYTES = 1 << 20
"""Values longer than this are left in the file until they are written."""


def convert(source: Path, target: Path, deidentify: Callable[[Dataset], Dataset]) -> None:
    """Write what `deidentify` makes of the object in `source` to `target`, which appears whole or not at all.

    Raises
    ------
    CannotDeidentify
        No Part 10 file, or one that is cut off, or cannot be read or written again.
    OSError
        The disk is at fault.
    """
    original = read(source)
    try:
        made = deidentify(original)
    except (CannotDeidentify, OSError):
        raise
    except Exception as error:  # noqa: BLE001  (a damaged object; what is wrong with it may quote it)
        raise CannotDeidentify(f"the object cannot be de-identified ({type(error).__name__})") from None
    draft = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        try:
            _write(draft, made)
        except OSError as error:
            if error.errno is not None:
                raise
            raise CannotDeidentify(f"the object is cut off: {error}"[:200]) from error
        except Exception as error:  # a damaged value may fail only when it is written
            raise CannotDeidentify(f"the object cannot be written again: {_clause(error)}") from error
        flush(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _write(path: Path, made: Dataset) -> None:
    if made.file_meta.TransferSyntaxUID in UID_dictionary:
        dcmwrite(path, made, enforce_file_format=True)
        return
    made.file_meta.FileMetaInformationGroupLength, made.file_meta.FileMetaInformationVersion = 0, b"\x00\x01"
    dcmwrite(path, made, implicit_vr=False, little_endian=True, force_encoding=True)  # pydicom does not know it


def require_complete(source: Path, most_nesting: int = DEEPEST) -> None:
    """Raise `CannotDeidentify` when the Part 10 file is cut off: its last value is not what it says, the rest unknown.

    Raises
    ------
    InvalidInstance, OSError
        As `index.structure.require_structure`.
    """
    if require_structure(source, most_nesting):
        raise CannotDeidentify("the data set is cut off: nobody knows what its end would tell")


def read(source: Path) -> Dataset:
    """Return the object in a Part 10 file, its long values left there.

    Raises
    ------
    CannotDeidentify
        It is none, is cut off, or cannot be read.
    OSError
        The disk is at fault.
    """
    try:
        require_complete(source)
        with source.open("rb") as file:
            _, syntax = begin_of_data_set(file)
        is_deflated = syntax == DeflatedExplicitVRLittleEndian
        return dcmread(source, defer_size=None if is_deflated else _DEFERRED_BYTES)
    except CannotDeidentify:
        raise
    except InvalidInstance as error:
        raise CannotDeidentify(str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise CannotDeidentify(f"unreadable data set: {error}"[:200]) from error
    except Exception as error:  # a parser fed with hostile bytes raises anything
        raise CannotDeidentify(f"unreadable data set: {_clause(error)}") from error


def _clause(error: Exception) -> str:
    return type(error).__name__  # what it says may quote the value
