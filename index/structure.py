"""The shape of an encoded data set: how deep it nests, and whether it is whole (PS3.5 7.1, 7.5).

Parsers that recurse, or that trust a length, then meet nothing in the archive that they cannot carry. How it is walked:
`index.walk`.
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from index.errors import InvalidInstance
from index.part10 import begin_of_data_set, inflated
from index.walk import CutOff, Layout, Walk

DEEPEST = 128
"""Sequences inside each other that any settings let in."""
_LONGEST_INFLATED = 1 << 26
"""Bytes of a deflated data set that are looked at; a small file may inflate to any size."""


def require_structure(path: Path, most_nesting: int) -> str:
    """Check the data set of the Part 10 file at `path`; return where it is cut off, a sentence, or "" for nowhere.

    An object that is cut off may still be worth keeping: that is for the caller to say.

    Parameters
    ----------
    most_nesting
        Sequences that may lie inside each other.

    Raises
    ------
    InvalidInstance
        Not a Part 10 file, nested deeper, of too many elements, or without a structure that can be followed.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        begin, transfer_syntax = begin_of_data_set(file)
        if not transfer_syntax:
            return ""  # which refuses it for another reason
        if transfer_syntax != DeflatedExplicitVRLittleEndian:
            size = os.fstat(file.fileno()).st_size
            return _walk(Walk(file, begin, size, transfer_syntax, is_whole=True), most_nesting)
        return _walk_inflated(file, most_nesting)


def _walk_inflated(file: BinaryIO, most_nesting: int) -> str:
    """Check a deflated data set, at whose begin `file` stands."""
    with inflated(file, _LONGEST_INFLATED) as (content, is_whole):
        if not is_whole and len(content) < _LONGEST_INFLATED:
            return f"cut off: the deflated data set ends after {len(content)} bytes"
        walk = Walk(BytesIO(content), 0, len(content), DeflatedExplicitVRLittleEndian, is_whole=is_whole)
        return _walk(walk, most_nesting)


def scan(
    path: Path,
    most_nesting: int,
    wanted: Container[int],
    begin: tuple[int, str] | None = None,
    memory: memoryview | None = None,
) -> Scan:
    """Check the data set as `require_structure` does, and read elements of its top level on the way.

    Parameters
    ----------
    wanted
        Tags of what is read, up to Pixel Data.
    begin
        Where the data set begins and its Transfer Syntax UID, when that is known.
    memory
        The file, where it is in memory: then nothing is read at `path`, where it may not be yet.

    Raises
    ------
    InvalidInstance, OSError
        As there.
    """
    with path.open("rb") if memory is None else _Bytes(memory) as file:
        offset, transfer_syntax = begin or begin_of_data_set(file)
        if not transfer_syntax:
            return Scan("", transfer_syntax, None)  # who reads its header refuses it
        if transfer_syntax == DeflatedExplicitVRLittleEndian:
            file.seek(offset)
            return Scan(_walk_inflated(file, most_nesting), transfer_syntax, None)
        size = os.fstat(file.fileno()).st_size if memory is None else len(memory)
        walk = Walk(file, offset, size, transfer_syntax, is_whole=True, wanted=wanted)
        if memory is not None:  # who reads it may compare it with the next
            walk.lay_out()
        cut_off = _walk(walk, most_nesting)
        if cut_off or walk.elements is None:
            return Scan(cut_off, transfer_syntax, None)
        return Scan("", transfer_syntax, walk.elements, walk.sequences(), walk.is_implicit, walk.layout(offset))


class _Bytes(BytesIO):
    """Bytes in memory to be read like a file, of which no more is copied than is read."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__()
        self._memory = memory
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._memory)}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._memory) if size is None or size < 0 else self._at + size
        piece = self._memory[self._at : end].tobytes()
        self._at += len(piece)
        return piece


def require_whole(encoded: bytes, transfer_syntax_uid: str, most_nesting: int) -> None:
    """Check a data set in memory, not deflated: raises `InvalidInstance` as above, and when it is cut off."""
    if cut_off := _walk(
        Walk(BytesIO(encoded), 0, len(encoded), transfer_syntax_uid, is_whole=True), most_nesting
    ):
        raise InvalidInstance(cut_off)


@dataclass(frozen=True)
class Scan:
    """What one pass over a data set found.

    Attributes
    ----------
    cut_off
        Where it is cut off, a sentence; "" for nowhere.
    elements
        The wanted elements as they are encoded, by their tags, but for sequences; None where only a whole parser can
        tell: deflated, cut off, or broken somewhere.
    sequences
        The wanted sequences as they are encoded, a data set of nothing else.
    is_implicit
        Whether that is in Implicit VR.
    layout
        Where what lies; None where nothing else is laid out like it for sure.
    """

    cut_off: str
    transfer_syntax_uid: str
    elements: dict[BaseTag, RawDataElement] | None
    sequences: bytes = b""
    is_implicit: bool = False
    layout: Layout | None = None


def _walk(walk: Walk, most_nesting: int) -> str:
    try:
        walk.run(most_nesting)
    except CutOff as cut_off:
        return f"cut off: {cut_off}"
    return ""
