"""Reading an instance's identity and keys: every character set, odd values, hostile files."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
import zlib
from io import BytesIO

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from index import header
from index.errors import InvalidInstance
from index.header import WANTED, header_of, read_header
from index.structure import scan

HEAD_OF_DATA_SET = b"\x08\x00\x16\x00UI"  # SOP Class UID, the first element of what make_instance makes


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "instance.dcm"
        path.write_bytes(content)
        return read_header(path)

    return read


@pytest.fixture
def read_raw(read, make_instance):
    """Read an instance with elements appended as they are encoded (explicit VR little endian)."""

    def read_with(*elements, **values):
        content = make_instance(PixelData=None, **values)
        return read(content + b"".join(encoded(*element) for element in elements))

    return read_with


def encoded(tag, vr, value):
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    long = vr in (b"OB", b"SQ", b"UN", b"UT", b"UC")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


@pytest.mark.parametrize(
    "transfer_syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_encoding_gives_the_same_header(transfer_syntax, read, make_instance):
    found = read(make_instance(7, transfer_syntax=transfer_syntax, SliceLocation="-1.50", ImageType=["ORIGINAL", "X"]))
    assert found.transfer_syntax_uid == transfer_syntax
    assert found.uids == ("1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2",
                          "1.2.826.0.1.3680043.9.7133.9.7")
    assert found.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    expected = {"PatientName": "Doe^Jane", "StudyDate": "20240102", "Rows": "8", "InstanceNumber": "7",
                "SliceLocation": "-1.50", "ImageType": "ORIGINAL\\X", "Modality": "CT", "BodyPartExamined": ""}
    assert {keyword: found.values[keyword] for keyword in expected} == expected


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", " ", "\0"])
def test_a_uid_that_identifies_is_required(keyword, value, read, make_instance):
    content = make_instance(**{keyword: value}, meta={"MediaStorageSOPInstanceUID": "9.9.9"})
    with pytest.raises(InvalidInstance) as caught:
        read(content.replace(b"9.9.9\0", bytes(6)))
    assert caught.value.element == keyword
    assert keyword in str(caught.value)


def test_the_file_meta_stands_in_for_a_missing_sop_class(read, make_instance):
    content = make_instance(SOPClassUID=None, meta={"MediaStorageSOPClassUID": "1.2.840.10008.5.1.4.1.1.4"})
    assert read(content).sop_class_uid == "1.2.840.10008.5.1.4.1.1.4"


@pytest.mark.parametrize(
    ("keyword", "value", "indexed"),
    [
        ("PatientName", "X" * 80, "X" * 80),
        ("StudyDescription", "Y" * 100, "Y" * 100),
        ("StudyDate", "2024.01.02", "20240102"),
        ("StudyDate", "yesterday", "yesterday"),
        ("StudyTime", "10:15:30", "101530"),
        ("StudyTime", "noon", "noon"),
        ("PatientID", "  padded  ", "padded"),
        ("StudyDescription", "Schädel", "Schädel"),
        ("PatientComments", "", ""),
        ("StudyInstanceUID", "1.2.abc/../x", "1.2.abc/../x"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_are_indexed_as_they_stand(keyword, value, indexed, read, make_instance):
    found = read(make_instance(**{keyword: value, "SpecificCharacterSet": "ISO_IR 192"}))
    assert found.values[keyword] == indexed


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("ISO_IR 100", b"M\xfcller^J\xf6rg", "Müller^Jörg"),
        ("ISO_IR 192", "山田^太郎".encode(), "山田^太郎"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        ("ISO_IR 999", b"M\xfcller", "Müller"),
        ("", b"M\xfcller", "Müller"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_are_decoded_by_their_character_set(charset, raw, text, read, make_instance):
    raw += b" " * (len(raw) % 2)
    content = make_instance(PatientName="N" * len(raw), SpecificCharacterSet=charset)
    assert read(content.replace(b"N" * len(raw), raw)).values["PatientName"] == text


def test_an_ideograph_that_normalisation_would_unify_stays_as_it_was_sent(read, make_instance):
    found = read(make_instance(PatientName="樂\uf914^神\ufa19", SpecificCharacterSet="ISO_IR 192"))
    assert found.values["PatientName"] == "樂\uf914^神\ufa19"


@pytest.mark.parametrize(
    ("element", "keyword", "indexed"),
    [
        ((0x00200013, b"IS", b"abc "), "InstanceNumber", "abc"),
        ((0x00280010, b"IS", b"512 "), "Rows", "512"),
        ((0x00280010, b"US", b"\x00"), "Rows", ""),
        ((0x00104000, b"UN", b"told"), "PatientComments", "told"),
        ((0x00104000, b"SQ", b""), "PatientComments", ""),
        ((0x00104000, b"SQ", b"garbage!"), "PatientComments", ""),
        ((0x00104000, b"OB", b"\x00\xff\x00\x00"), "PatientComments", "ÿ"),
        ((0x00104000, b"UT", b"x" * (1 << 17)), "PatientComments", ""),
        ((0x00104000, b"ZZ", b"odd "), "PatientComments", "odd"),
    ],
)
def test_an_element_of_another_vr_or_length_does_no_harm(element, keyword, indexed, read_raw):
    assert read_raw(element).values[keyword] == indexed


@pytest.mark.parametrize(
    "content",
    [b"", b"DICM", b"\0" * 128 + b"DICM", b"\0" * 132, b"GIF89a" * 100, b"\0" * 128 + b"DICM" + b"\xff" * 500],
)
def test_what_is_no_part_10_file_is_refused(content, read):
    with pytest.raises(InvalidInstance):
        read(content)


def test_a_deeply_nested_sequence_is_refused_and_nothing_else_happens(read, make_instance):
    nested = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    content = make_instance(PixelData=None)
    place = content.index(b"\x28\x00\x02\x00US")
    with pytest.raises(InvalidInstance, match="unreadable"):
        read(content[:place] + nested + content[place:])


def test_a_sequence_of_ordinary_depth_is_passed_over(read, make_instance):
    item = Dataset()
    for _ in range(20):
        outer = Dataset()
        outer.RequestAttributesSequence = Sequence([item])
        outer["RequestAttributesSequence"].is_undefined_length = True
        item = outer
    found = read(make_instance(RequestAttributesSequence=item.RequestAttributesSequence))
    assert found.values["Rows"] == "8"


def test_a_length_beyond_the_file_costs_no_memory(read, make_instance):
    content = make_instance(PixelData=None) + b"\x31\x00\x10\x00OB\0\0\xfe\xff\xff\xff"
    assert read(content).values["PatientName"] == "Doe^Jane"


def test_a_deflated_file_that_inflates_without_end_is_read_no_further_than_needed(read, make_instance, monkeypatch):
    monkeypatch.setattr(header, "_LONGEST_HEADER", 1 << 16)
    small = make_instance(transfer_syntax=ExplicitVRLittleEndian, PixelData=None)
    data_set = small[small.index(HEAD_OF_DATA_SET) :]
    meta = make_instance(transfer_syntax=DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + pydicom.dcmread(BytesIO(meta)).file_meta.FileMetaInformationGroupLength
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = stream.compress(data_set + encoded(0x7FDF0010, b"OB", b"\0" * (1 << 26))) + stream.flush()
    assert len(bomb) < 1 << 18
    tracemalloc.start()
    found = read(meta[:start] + bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.values["PatientName"] == "Doe^Jane"
    assert peak < 1 << 23


def test_a_file_that_cannot_be_read_is_not_the_senders_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent.dcm")


@pytest.mark.filterwarnings("ignore")
def test_any_damage_ends_in_a_header_or_in_invalid_instance(read, make_instance):
    chosen = random.Random(0)
    whole = make_instance(PatientName="Doe^Jane", ImageType=["A", "B"], RequestAttributesSequence=[Dataset()])
    for _ in range(300):
        damaged = bytearray(whole[: chosen.randrange(130, len(whole))] if chosen.random() < 0.4 else whole)
        for _ in range(chosen.randrange(1, 6)):
            damaged[chosen.randrange(128, len(damaged))] = chosen.randrange(256)
        with contextlib.suppress(InvalidInstance):  # and nothing else
            assert all(read(bytes(damaged)).uids)


@pytest.mark.filterwarnings("ignore")
def test_every_file_that_pydicom_reads_has_a_header(shared_data):
    read, refused = 0, {}
    for path in sorted((shared_data / "pydicom").rglob("*.dcm")):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # noqa: BLE001 -- the file is one of the malformed ones
            continue
        needed = [dataset.get(keyword) for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
        if not all(needed) or not dataset.file_meta.get("TransferSyntaxUID"):
            continue
        try:
            found = read_header(path)
        except InvalidInstance as error:
            refused[path.name] = str(error)
            continue
        read += 1
        assert found.sop_instance_uid == dataset.SOPInstanceUID
        assert found.values["PatientID"] == str(dataset.get("PatientID", "") or "").strip()
    assert refused == {}
    assert read > 60


# One pass over the data set finds the same as a parser


def _found_in_one_pass(path):
    return header_of(scan(path, 64, WANTED))


def test_one_pass_finds_what_the_parser_finds_in_every_real_file(shared_data):
    told = 0
    for path in sorted(shared_data.rglob("*")):
        if not path.is_file():
            continue
        try:
            parsed = read_header(path)
            found = _found_in_one_pass(path)
        except InvalidInstance:
            continue
        assert found in (None, parsed), path.name
        told += found is not None
    assert told > 20


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"},
        {"StudyDescription": "x" * 70_000},
        {"ImageComments": "x" * 40_000, "Rows": 9},
        {"PatientID": None, "Modality": ""},
    ],
    ids=["plain", "utf-8", "beyond-the-limit", "beyond-the-window", "empty"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_pass_finds_what_the_parser_finds(make_file, syntax, values):
    path = make_file(1, transfer_syntax=syntax, **values)
    assert _found_in_one_pass(path) in (None, read_header(path))
