"""One pass over a data set does not know better than the parser, whatever is in it, and spares it where it can."""

from __future__ import annotations

import random

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from index import archive as archive_module
from index.errors import InvalidInstance
from index.header import WANTED, header_of, read_header
from index.structure import scan

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def found_in_one_pass(path):
    return header_of(scan(path, 64, WANTED))


def code(value, meaning, scheme="SCT"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def request(number, *, charset=None):
    item = Dataset()
    if charset:
        item.SpecificCharacterSet = charset
    item.RequestedProcedureID, item.ScheduledProcedureStepID = f"P{number}", f"S{number}"
    item.RequestedProcedureDescription = "Schädel"
    item.ScheduledProtocolCodeSequence = [code("1", "Head"), code("2", "Neck")]
    return item


def sequences(*, undefined):
    """Return what a modality with a worklist writes, in sequences of known or of undefined length."""
    told = {
        "ProcedureCodeSequence": [code("77477000", "CT")],
        "RequestAttributesSequence": [request(1), request(2, charset="ISO_IR 192")],
        "ReferencedStudySequence": [],
        "AnatomicRegionSequence": [code("69536005", "Head")],
        "SpecificCharacterSet": "ISO_IR 100",
    }
    if undefined:
        for value in (each for each in told.values() if isinstance(each, list)):
            for item in value:
                item.is_undefined_length_sequence_item = True
    return told


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_are_found_in_the_same_pass(make_file, syntax, undefined):
    path = make_file(1, transfer_syntax=syntax, **sequences(undefined=undefined))
    found = found_in_one_pass(path)
    assert found is not None
    assert found == read_header(path)
    assert [item.sequence for item in found.items].count("RequestAttributesSequence") == 2
    assert found.items[-1].values != found.items[0].values


def test_sequences_of_undefined_length_and_of_unknown_vr(make_file):
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, RequestAttributesSequence=[request(1)])
    content = path.read_bytes()
    at = content.index(b"\x40\x00\x75\x02SQ")
    length = int.from_bytes(content[at + 8 : at + 12], "little")
    value, rest = content[at + 12 : at + 12 + length], content[at + 12 + length :]
    end = bytes.fromhex("FEFFDDE0 00000000")
    undefined = content[: at + 8] + b"\xff" * 4 + value + end + rest
    unknown = content[: at + 4] + b"UN" + content[at + 6 :]
    for changed in (undefined, unknown):
        path.write_bytes(changed)
        assert found_in_one_pass(path) in (None, read_header(path))
    path.write_bytes(undefined)
    assert found_in_one_pass(path).items == read_header(path).items != ()


def test_a_sequence_that_is_too_long_and_what_is_broken_are_left_to_the_parser(make_file):
    path = make_file(1, ProcedureCodeSequence=[code(str(number), "x" * 60) for number in range(900)])
    assert found_in_one_pass(path) is None
    assert len(read_header(path).items) == 900
    cut = make_file(2)
    cut.write_bytes(cut.read_bytes()[:-20])
    assert found_in_one_pass(cut) is None


@pytest.mark.parametrize("with_sequences", [False, True], ids=["plain", "sequences"])
def test_one_pass_does_not_know_better_than_the_parser(make_file, with_sequences):
    """Of data sets with a few bytes overwritten, cut out or doubled: what is found is what a rebuild would find."""
    generator = random.Random(20261128)
    told = with_items = 0
    more = sequences(undefined=False) if with_sequences else {}
    for syntax in SYNTAXES:
        path = make_file(1, transfer_syntax=syntax, PixelData=bytes(8), Rows=2, Columns=2, **more)
        content = path.read_bytes()
        first = content.rindex(b"1.2.840.10008.5.1.4.1.1.2") - 8
        for _ in range(400):
            at, size = generator.randrange(first, len(content)), generator.choice([1, 2, 4, 8, 12])
            doubled, junk = content[at : at + size] * 2, generator.randbytes(size)
            put = generator.choice([junk, bytes(size), b"\xff" * size, b"", doubled])
            path.write_bytes(content[:at] + put + content[at + size :])
            try:
                found = found_in_one_pass(path)
            except InvalidInstance:
                continue
            if found is not None:
                assert found == read_header(path)
                told += 1
                with_items += bool(found.items)
    assert told > 300
    assert with_items > 150 or not with_sequences


def test_what_a_modality_sends_is_parsed_once(archive, make_instance, monkeypatch):
    monkeypatch.setattr(archive_module, "read_header", None)  # which would read the file again
    archive.ingest(make_instance(**sequences(undefined=False)))
    (count,) = archive.database.execute("SELECT count(*) FROM item WHERE parent IS NULL").fetchone()
    assert count == 4
