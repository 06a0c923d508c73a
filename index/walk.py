"""One pass over an encoded data set, element by element (PS3.5 7.1, 7.5): what `index.structure` finds out by it.

Walked without recursion, so that a hostile data set costs no more than its own bytes. What is wrong *inside* a sequence
or an item of explicit length is skipped: readers find its end all the same, and writers exist that get such things
wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import BinaryIO

from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from index.errors import InvalidInstance

_SEQUENCES = frozenset(tag for tag, (vr, *_) in DicomDictionary.items() if vr == "SQ")
_LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with a length of 32 bits (PS3.5 7.1.2)."""
_FRAGMENTED = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"})
"""VRs whose undefined length means the fragments of encapsulated pixel data (PS3.5 A.4)."""

_PLAIN = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs with a length of 16 bits."""

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_FIRST_GROUP, _PIXEL_GROUP, _PIXEL_DATA = 0x0008, 0x7FE0, 0x7FE00010
_PIXELS = frozenset({_PIXEL_DATA, 0x7FE00008, 0x7FE00009})
_UNDEFINED = 0xFFFFFFFF
_LONGEST_HEADER = 12
_MOST_ELEMENTS = 1 << 22
"""Elements, items and fragments of a data set; an enhanced object of 10,000 frames has a quarter of it."""
_WINDOW_BYTES = 1 << 15
_LONGEST_SEQUENCE = 1 << 16
"""Bytes of a sequence that is kept to be read; those that are indexed have a hundred."""
_LONGEST_LAYOUT, _MOST_LAID_OUT = 1 << 16, 2048
"""Bytes and values in front of the pixels up to which is told where they lie."""


class CutOff(Exception):
    """An element or a sequence goes on behind the end of the data set."""


@dataclass(frozen=True)
class Layout:
    """Where the values of a data set lie that ends with its pixels: another one that differs in them only is like it.

    Attributes
    ----------
    begin
        Of the data set in its file.
    values
        Begin, end and tag of each value in front of the pixels, in their order; tag 0 of one inside a sequence.
    pixels
        Where the value of Pixel Data begins.
    end
        Where it ends, and the file with it.
    sequences
        Begin and end of the wanted sequences.
    """

    begin: int
    values: list[tuple[int, int, int]]
    pixels: int
    end: int
    sequences: list[tuple[int, int]]


class Walk:
    """One pass over an encoded data set.

    Parameters
    ----------
    begin, end
        Where it lies in `file`.
    is_whole
        False when it goes on behind `end`, where nobody looks.
    wanted
        Tags of elements at the top level that are kept: in `elements`, or `sequences`.

    Attributes
    ----------
    is_implicit
        Whether it is in Implicit VR.
    """

    def __init__(
        self,
        file: BinaryIO,
        begin: int,
        end: int,
        transfer_syntax_uid: str,
        *,
        is_whole: bool,
        wanted: Container[int] = (),
    ) -> None:
        self._wanted = wanted
        self.elements: dict[BaseTag, RawDataElement] | None = {}
        self._is_little_endian = transfer_syntax_uid != ExplicitVRBigEndian
        self._file = file
        self._at = begin
        self._end = end
        self._is_whole = is_whole
        self._window = b""
        self._window_at = begin
        mark = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        self._unpack_explicit = struct.Struct(mark + "HH2sH").unpack_from
        self._unpack_implicit = struct.Struct(mark + "HHL").unpack_from
        self._unpack_length = struct.Struct(mark + "L").unpack_from
        self.is_implicit = transfer_syntax_uid == ImplicitVRLittleEndian and not self._begins_with_a_vr()
        # What is open, the innermost last: (where it ends, None for at its delimiter; whether it is a sequence).
        self._open: list[tuple[int | None, bool]] = []
        self._depth = 0
        self._entered = self._entered_at = 0
        self._kept_from: int | None = None
        self._kept: list[tuple[int, int]] = []
        self._passed = 0
        self._values: list[tuple[int, int, int]] | None = None
        self._laid_out_to = 0

    def _begins_with_a_vr(self) -> bool:
        """Whether what is declared to be Implicit VR is written as Explicit VR: readers go by what is there."""
        vr = self._bytes(8)[4:6]
        return len(vr) == 2 and vr.isalpha() and vr.isupper()

    def _bytes(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end."""
        offset = self._at - self._window_at
        if offset < 0 or offset + count > len(self._window):
            self._file.seek(self._at)
            self._window = self._file.read(min(_WINDOW_BYTES, max(0, self._end - self._at)))
            self._window_at, offset = self._at, 0
        return self._window[offset : offset + count]

    def sequences(self) -> bytes:
        """Return the wanted sequences that were passed, as they are encoded."""
        pieces = []
        for begin, end in self._kept:
            self._file.seek(begin)
            pieces.append(self._file.read(end - begin))
        return b"".join(pieces)

    def lay_out(self) -> None:
        """Take note of where values lie, up to a length behind which nobody asks for it."""
        self._values = []
        self._laid_out_to = self._at + _LONGEST_LAYOUT

    def layout(self, begin: int) -> Layout | None:
        """Return where what has been passed lies; None unless it ends with pixels that are as long as they say."""
        if not self._values:
            return None
        at, end, tag = self._values[-1]
        if tag not in _PIXELS or end != self._end:
            return None
        return Layout(begin, self._values[:-1], at, end, self._kept)

    def run(self, most_nesting: int) -> None:
        """Walk to the end.

        Parameters
        ----------
        most_nesting
            Sequences that may lie inside each other.

        Raises
        ------
        InvalidInstance
            Nested deeper, of too many elements, or without a structure that can be followed.
        CutOff
            It ends within an element or a sequence.
        """
        last = 0
        if max(self._bytes(2), default=0) < _FIRST_GROUP:
            self.elements = None  # parsers stumble over elements of a command set, or of File Meta Information
        while True:
            self._close()
            if not self._open and not self.is_implicit:
                last = self._pass_plain(last)
            if self._at >= self._end:
                break
            self._passed += 1
            if self._passed > _MOST_ELEMENTS:
                raise InvalidInstance(f"a data set of more than {_MOST_ELEMENTS} elements")
            if self._open and self._open[-1][1]:
                self._item()
                continue
            tag = self._data_element()
            if self._depth > most_nesting:
                raise InvalidInstance(f"sequences nested deeper than {most_nesting}")
            if tag == 0 and last >= _PIXEL_DATA and not self._open:  # a sector of zeros behind the data set
                return
            last = tag
        if self._open and self._is_whole:
            raise CutOff("a sequence does not end within the data set")

    def _pass_plain(self, last: int) -> int:
        """Pass elements of Explicit VR with short values at the top level, as most are; return the tag of the last."""
        at, base, unpack, values = self._at, self._window_at, self._unpack_explicit, self._values
        window = self._window if at >= base else b""
        stop = min(base + len(window), self._end)
        while at + _LONGEST_HEADER <= stop:
            group, element, vr, length = unpack(window, at - base)
            end = at + 8 + length
            if vr not in _PLAIN or end > stop or group >= _PIXEL_GROUP or self._passed >= _MOST_ELEMENTS:
                break
            last = group << 16 | element
            if last == 0:
                break
            if last in self._wanted and self.elements is not None:
                key, value = BaseTag(last), window[at + 8 - base : end - base]
                self.elements[key] = RawDataElement(
                    key, vr.decode(), length, value, 0, False, self._is_little_endian
                )
            if values is not None:
                values.append((at + 8, end, last))
            at, self._passed = end, self._passed + 1
        self._at = at
        self._limit_layout()
        return last

    def _limit_layout(self) -> None:
        """Give up taking note where it has become much."""
        if self._values and (self._values[-1][0] > self._laid_out_to or len(self._values) > _MOST_LAID_OUT):
            self._values = None

    def _close(self) -> None:
        """Leave whatever ends here."""
        while self._open and (end := self._open[-1][0]) is not None and self._at >= end:
            if self._at > end:  # what was passed behind it is passed again, as something else
                self._values = None
            self._at = end
            self._pop()

    def _pop(self) -> None:
        self._depth -= self._open.pop()[1]
        if not self._open and self._kept_from is not None:
            self._kept.append((self._kept_from, self._at))
            self._kept_from = None
            if self._at - self._kept[-1][0] > _LONGEST_SEQUENCE:
                self.elements = None

    def _item(self) -> None:
        """Pass the header of an item, or the delimiter of the sequence."""
        header = self._bytes(8)
        if len(header) < 8:
            self._skip_broken("in the header of an item", is_cut_off=True)
            return
        group, element, length = self._unpack_implicit(header)
        tag = group << 16 | element
        if tag == _ITEM:
            self._at += 8
            self._enter(length, is_sequence=False)
        elif tag == _SEQUENCE_END:
            end = self._open[-1][0]
            self._at = self._at + 8 if end is None else end
            self._pop()
        else:
            self._skip_broken(f"({group:04X},{element:04X}) where an item of a sequence is expected")

    def _data_element(self) -> int:
        """Pass an element, or the header of a sequence; return its tag."""
        header = self._bytes(_LONGEST_HEADER)
        if len(header) < 8:
            if any(header) or self._open:
                self._skip_broken("in the header of an element", is_cut_off=True)
            self._at = max(self._at, self._end if not self._open else self._at)
            return 0
        tag, vr, length, size = self._header(header)
        self._entered, self._entered_at = tag, self._at
        if tag == _ITEM_END:
            self._leave_item()
            return tag
        self._at += size
        if length == _UNDEFINED:
            self._undefined_length(tag, vr)
        elif vr == b"SQ" or (tag in _SEQUENCES and vr in (b"", b"UN")):
            self._enter(length, is_sequence=True)
        elif self._at + length > (self._limit() if self._open else self._end):
            self.elements = None
            there = self._limit() - self._at
            self._skip_broken(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has {there} of {length} bytes", is_cut_off=True)
        else:
            if not self._open:
                if tag in self._wanted:
                    self._keep(tag, vr, length)
                elif tag in _PIXELS:  # who reads keys stops there
                    self._wanted = ()
            if self._values is not None:
                self._values.append((self._at, self._at + length, tag if not self._open else 0))
                self._limit_layout()
            self._at += length
        return tag

    def _keep(self, tag: int, vr: bytes, length: int) -> None:
        if length > _WINDOW_BYTES:
            self.elements = None
        if self.elements is not None:
            key = BaseTag(tag)
            self.elements[key] = RawDataElement(
                key, vr.decode() if vr else None, length, self._bytes(length), 0, not vr, self._is_little_endian
            )

    def _header(self, header: bytes) -> tuple[int, bytes, int, int]:
        """Return tag, VR (empty when there is none), length and the size of an element's header."""
        if not self.is_implicit:
            group, element, vr, length = self._unpack_explicit(header)
            if vr in _LONG_LENGTH:
                if len(header) < _LONGEST_HEADER:
                    return group << 16 | element, vr, _UNDEFINED - 1, len(header)
                return group << 16 | element, vr, self._unpack_length(header, 8)[0], 12
            if vr.isalpha() and vr.isupper():
                return group << 16 | element, vr, length, 8
        group, element, length = self._unpack_implicit(header)  # some writers switch to it inside of sequences
        self.elements = self.elements if self.is_implicit or self._open else None
        return group << 16 | element, b"", length, 8

    def _limit(self) -> int:
        """Where the innermost thing of explicit length ends."""
        return next((end for end, _ in reversed(self._open) if end is not None), self._end)

    def _enter(self, length: int, *, is_sequence: bool) -> None:
        if is_sequence and not self._open and length and self._entered in self._wanted:
            self._kept_from = self._entered_at
        end = None if length == _UNDEFINED else self._at + length
        limit = self._limit()
        if end is not None and end > limit:
            if limit == self._end and self._is_whole:
                raise CutOff(f"a sequence or item has {limit - self._at} of {length} bytes")
            end = limit
        self._open.append((end, is_sequence))
        self._depth += is_sequence

    def _leave_item(self) -> None:
        if not self._open:
            raise InvalidInstance("the end of an item outside of any sequence")
        end = self._open[-1][0]
        self._at = self._at + 8 if end is None else end
        self._pop()

    def _undefined_length(self, tag: int, vr: bytes) -> None:
        if vr in _FRAGMENTED or tag == _PIXEL_DATA:
            self._fragments()
            return
        following = self._bytes(4)
        is_delimiter = len(following) == 4 and self._tag_of(following) in (_ITEM, _SEQUENCE_END)
        if vr == b"SQ" or tag in _SEQUENCES or is_delimiter:
            self._enter(_UNDEFINED, is_sequence=True)
        else:
            self._skip_broken(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) of undefined length is no sequence")

    def _tag_of(self, four: bytes) -> int:
        group, element, _ = self._unpack_implicit(four + bytes(4))
        return int(group << 16 | element)

    def _fragments(self) -> None:
        self._values = None
        for _ in range(_MOST_ELEMENTS):
            header = self._bytes(8)
            if len(header) < 8:
                self._skip_broken("the pixel data has no end", is_cut_off=True)
                return
            group, element, length = self._unpack_implicit(header)
            tag = group << 16 | element
            self._at += 8
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                self._skip_broken(f"({group:04X},{element:04X}) where a fragment of pixel data is expected")
                return
            if self._at + length > self._limit():
                there = self._limit() - self._at
                self._skip_broken(f"a fragment of pixel data has {there} of {length} bytes", is_cut_off=True)
                return
            self._at += length
        raise InvalidInstance(f"pixel data of more than {_MOST_ELEMENTS} fragments")

    def _skip_broken(self, sentence: str, *, is_cut_off: bool = False) -> None:
        """Go on behind the innermost thing of explicit length; raise `sentence` when nothing tells where to go on."""
        self.elements = None  # other readers may make something else of it
        self._values = None
        while self._open:
            end = self._open[-1][0]
            if end is not None:
                self._at = end
                return
            self._pop()
        if self._is_whole:
            raise (CutOff if is_cut_off else InvalidInstance)(sentence)
        self._at = self._end
