"""The shape of a data set, judged before anybody parses it: depth, lengths, delimiters (PS3.5 7.1, 7.5, A.4)."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from index import structure
from index.errors import InvalidInstance
from index.structure import require_structure, require_whole
from scp.reception import encoded_meta

UNDEFINED = 0xFFFFFFFF
LONG = {"OB", "OW", "SQ", "UN", "UT"}


def element(tag, vr, value=b"", length=None, mark="<"):
    length = len(value) if length is None else length
    group, number = tag >> 16, tag & 0xFFFF
    if not vr:
        return struct.pack(mark + "HHL", group, number, length) + value
    if vr in LONG:
        return struct.pack(mark + "HH2sHL", group, number, vr.encode(), 0, length) + value
    return struct.pack(mark + "HH2sH", group, number, vr.encode(), length) + value


def item(content=b"", length=None):
    return element(0xFFFEE000, "", content, length)


ITEM_END = element(0xFFFEE00D, "")
SEQUENCE_END = element(0xFFFEE0DD, "")
SEQUENCE = 0x00081115
NAME = element(0x00100010, "PN", b"A^B ")
PIXELS = element(0x7FE00010, "OW", bytes(16))


def nested(depth, *, explicit):
    """`depth` sequences inside each other, of undefined or of explicit length."""
    if not explicit:
        begin = element(SEQUENCE, "SQ", length=UNDEFINED) + item(length=UNDEFINED)
        return begin * depth + (ITEM_END + SEQUENCE_END) * depth
    content = b""
    for _ in range(depth):
        content = element(SEQUENCE, "SQ", item(content))
    return content


@pytest.fixture
def judge(tmp_path):
    def judge(data_set, syntax=ExplicitVRLittleEndian, most_nesting=64):
        path = tmp_path / "object.dcm"
        path.write_bytes(bytes(128) + b"DICM" + encoded_meta(("1.2", "1.2.3"), syntax, "X") + data_set)
        return require_structure(path, most_nesting)

    return judge


WHOLE = {
    "empty": b"",
    "elements": NAME + PIXELS,
    "empty sequence": element(SEQUENCE, "SQ") + NAME,
    "sequence of explicit length": element(SEQUENCE, "SQ", item(NAME)) + NAME,
    "sequence of undefined length": element(SEQUENCE, "SQ", length=UNDEFINED) + item(NAME) + SEQUENCE_END + NAME,
    "item of undefined length": element(SEQUENCE, "SQ", item(NAME + ITEM_END, UNDEFINED)) + NAME,
    "delimiter at the end of an explicit length": element(SEQUENCE, "SQ", item(NAME) + SEQUENCE_END) + NAME,
    "UN of undefined length (6.2.2)": element(0x00091001, "UN", length=UNDEFINED)
    + item(element(0x00100010, "", b"A^B ")) + SEQUENCE_END,
    "fragments (A.4)": element(0x7FE00010, "OB", length=UNDEFINED) + item() + item(bytes(4)) + SEQUENCE_END,
    "zeros behind the pixels": PIXELS + bytes(512),
    "a zero behind the last element": NAME + b"\0",
    "implicit inside explicit": element(SEQUENCE, "SQ", item(element(0x00100010, "", b"A^B "))),
    "garbage inside an explicit length": element(SEQUENCE, "SQ", b"\x01" * 30) + NAME,
    "depth at the limit": nested(64, explicit=False),
    "explicit depth at the limit": nested(64, explicit=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole(judge, name):
    assert judge(WHOLE[name]) == ""


def test_the_byte_order_and_the_missing_vr_are_those_of_the_transfer_syntax(judge):
    assert judge(element(0x00100010, "PN", b"A^B ", mark=">") * 3, ExplicitVRBigEndian) == ""
    assert judge(element(0x00100010, "", b"A^B ") * 3, ImplicitVRLittleEndian) == ""
    assert judge(element(SEQUENCE, "", item(element(0x00100010, "", b"A^B "))), ImplicitVRLittleEndian) == ""
    assert judge(NAME * 3, ImplicitVRLittleEndian) == "", "declared implicit, written explicit"


CUT_OFF = {
    "pixels": (PIXELS[:-3], "(7FE0,0010) has 13 of 16 bytes"),
    "a length beyond the end": (element(0x00100010, "PN", b"A", length=0xFFFE), "(0010,0010) has 1 of 65534 bytes"),
    "the header of an element": (NAME + PIXELS[:6], "in the header of an element"),
    "a long header": (NAME + PIXELS[:10], "(7FE0,0010)"),
    "a sequence": (element(SEQUENCE, "SQ", item(NAME))[:-5], "a sequence or item has"),
    "a sequence of undefined length": (element(SEQUENCE, "SQ", length=UNDEFINED) + item(NAME), "does not end"),
    "an item of undefined length": (element(SEQUENCE, "SQ", length=UNDEFINED) + item(NAME, UNDEFINED), "does not end"),
    "fragments": (element(0x7FE00010, "OB", length=UNDEFINED) + item(bytes(4)), "the pixel data has no end"),
    "a fragment": (element(0x7FE00010, "OB", length=UNDEFINED) + item(bytes(4), 9), "fragment of pixel data has 4 of"),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT_OFF)
def test_where_it_is_cut_off_is_told(judge, name):
    data_set, sentence = CUT_OFF[name]
    told = judge(data_set)
    assert told.startswith("cut off: ")
    assert sentence in told
    with pytest.raises(InvalidInstance, match="cut off"):
        require_whole(data_set, ExplicitVRLittleEndian, 64)


WITHOUT_STRUCTURE = {
    "too deep": (nested(65, explicit=False), "deeper than 64"),
    "too deep, explicit": (nested(65, explicit=True), "deeper than 64"),
    "100,000 deep": (nested(100_000, explicit=False), "deeper than 64"),
    "the end of an item outside": (NAME + ITEM_END + NAME, "outside of any sequence"),
    "no item in a sequence": (element(SEQUENCE, "SQ", length=UNDEFINED) + NAME, "where an item of a sequence"),
    "no fragment in the pixels": (element(0x7FE00010, "OB", length=UNDEFINED) + NAME, "where a fragment"),
    "text of undefined length": (element(0x00204000, "UT", NAME, UNDEFINED), "undefined length is no sequence"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_STRUCTURE)
def test_what_has_no_structure_is_refused(judge, name):
    data_set, sentence = WITHOUT_STRUCTURE[name]
    with pytest.raises(InvalidInstance, match=sentence):
        judge(data_set)


@pytest.mark.parametrize(
    ("data_set", "limit", "sentence"),
    [
        (element(0x00100010, "LO") * 101, 100, "more than 100 elements"),
        (bytes(8 * 101), 100, "more than 100 elements"),
        (element(0x7FE00010, "OB", length=UNDEFINED) + item() * 101 + SEQUENCE_END, 100, "more than 100 fragments"),
    ],
    ids=["elements", "zeros", "fragments"],
)
def test_the_number_of_elements_is_bounded(judge, monkeypatch, data_set, limit, sentence):
    monkeypatch.setattr("index.walk._MOST_ELEMENTS", limit)
    with pytest.raises(InvalidInstance, match=sentence):
        judge(data_set)


def test_a_deflated_data_set_is_looked_into_and_no_further_than_its_limit(judge, monkeypatch):
    def deflated(content):
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return squeezer.compress(content) + squeezer.flush()

    whole = deflated(NAME + PIXELS)
    assert judge(whole, DeflatedExplicitVRLittleEndian) == ""
    assert "deflated data set ends after" in judge(whole[:-4], DeflatedExplicitVRLittleEndian)
    assert "has 13 of 16" in judge(deflated(NAME + PIXELS[:-3]), DeflatedExplicitVRLittleEndian)
    with pytest.raises(InvalidInstance, match="cannot be inflated"):
        judge(b"\xff" * 40, DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("index.structure._LONGEST_INFLATED", 1000)
    bomb = deflated(NAME + element(0x7FE00010, "OW", bytes(1 << 24)))
    assert judge(bomb, DeflatedExplicitVRLittleEndian) == "", "what lies behind the limit is not known to be missing"


def test_a_large_value_costs_nothing(judge, monkeypatch):
    """It is passed over, not read."""
    read, walk = [], structure.Walk

    class Counted:
        def __init__(self, file):
            self._file, self.seek = file, file.seek

        def read(self, size):
            content = self._file.read(size)
            read.append(len(content))
            return content

    monkeypatch.setattr(structure, "Walk", lambda file, *rest, **named: walk(Counted(file), *rest, **named))
    frames = b"".join(item(bytes(1 << 20)) for _ in range(25))
    data_set = element(0x7FE00010, "OB", length=UNDEFINED) + frames + SEQUENCE_END
    assert judge(data_set, JPEGBaseline8Bit) == ""
    assert 0 < sum(read) < len(data_set) / 10
    assert len(read) < 100


def test_every_byte_of_a_data_set_may_be_missing(judge):
    """Wherever it is cut, nothing but a sentence or `InvalidInstance` comes of it."""
    data_set = NAME + element(SEQUENCE, "SQ", item(NAME) + item(NAME + ITEM_END, UNDEFINED)) + PIXELS
    for end in range(len(data_set)):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
            with contextlib.suppress(InvalidInstance):
                assert isinstance(judge(data_set[:end], syntax), str)
