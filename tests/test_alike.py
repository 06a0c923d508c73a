"""Headers of images like one before: never another one than reading all of it gives, and found where they can be."""

from __future__ import annotations

import random
import struct

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from index import alike as alike_module
from index import archive as archive_module
from index.alike import Alike
from index.errors import InvalidInstance
from index.header import WANTED, header_of
from index.part10 import begin_of_data_set
from index.structure import scan
from scp.reception import ReceivedFile, Reception

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
NESTING = 64

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Image:
    """A Part 10 file in memory."""

    def __init__(self, path, content):
        self.path, self.content = path, bytearray(content)
        path.write_bytes(content)
        with path.open("rb") as file:
            self.begin = begin_of_data_set(file)

    @property
    def memory(self):
        return memoryview(bytes(self.content))

    def read(self):
        """Return what was found in all of it, and its header."""
        found = scan(self.path, NESTING, WANTED, self.begin, self.memory)
        return found, header_of(found)

    def like(self, known):
        return known.header(self.memory, self.begin, NESTING)

    def changed(self, old, new, count=1):
        assert len(old) == len(new)
        assert self.content.count(old) >= count
        return Image(self.path, bytes(self.content).replace(old, new))


def kept(image):
    known, (found, header) = Alike(), image.read()
    assert header is not None
    known.keep(image.memory, found, header, NESTING)
    return known


def procedure(number):
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = f"P{number}", f"S{number}"
    return item


@pytest.fixture(params=SYNTAXES, ids=["implicit", "explicit", "big-endian"])
def image(make_file, request):
    path = make_file(
        1, transfer_syntax=request.param, PatientName="Doe^Jane", PatientID="P-1", InstanceNumber="7 ",
        StudyDate="20260101", SpecificCharacterSet="ISO_IR 100", RequestAttributesSequence=[procedure(1), procedure(2)],
        ReferencedImageSequence=[referenced("1.2.3.10")], PixelData=bytes(512), Rows=16, Columns=16,
    )  # fmt: skip
    return Image(path, path.read_bytes())


def referenced(uid):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
    return item


def test_values_that_differ_are_those_of_the_other_image(image):
    other = image.changed(b"P-1 ", b"P-22").changed(b"20260101", b"19991231").changed(b"Doe^Jane", b"Roe^Mary")
    found = other.like(kept(image))
    assert found == other.read()[1]
    assert (found.values["PatientID"], found.values["StudyDate"]) == ("P-22", "19991231")
    assert found.values["PatientName"] == "Roe^Mary"


def test_pixels_are_not_compared(image):
    other = Image(image.path, bytes(image.content[:-512]) + b"\xff" * 512)
    assert other.like(kept(image)) == image.read()[1]


def test_sequences_that_are_indexed_and_others(image):
    other = image.changed(b"S2", b"S9").changed(b"1.2.3.10", b"1.2.3.99")
    found = other.like(kept(image))
    assert found == other.read()[1]
    assert [item.values["ScheduledProcedureStepID"] for item in found.items] == ["S1", "S9"]
    only_other = image.changed(b"1.2.3.10", b"1.2.3.99")
    assert only_other.like(kept(image)).items is image.read()[1].items


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ISO_IR 100", b"ISO_IR 101"),  # all texts depend on it
        (b"Doe^Jane", b"D\xf6e^Jan\xe9"),
        (b"P-1 ", b"\x1b(B "),
    ],
)
def test_what_has_to_be_decoded_is_read_whole_or_the_same(image, old, new):
    other = image.changed(old, new)
    assert other.like(kept(image)) in (None, other.read()[1])


def test_another_character_set_and_a_missing_uid_are_read_whole(image):
    known, uid = kept(image), image.read()[1].sop_instance_uid.encode()
    assert image.changed(b"ISO_IR 100", b"ISO_IR 101").like(known) is None
    assert image.changed(uid, b" " * len(uid)).like(known) is None


def test_another_length_or_another_element_is_read_whole(image):
    known = kept(image)
    longer = Image(image.path, bytes(image.content) + b"\0\0")
    assert longer.like(known) is None
    at = image.content.index(b"Doe^Jane")
    for place in (at - 1, at - 2, at - 8):  # its length and its tag
        other = bytearray(image.content)
        other[place] ^= 1
        assert Image(image.path, bytes(other)).like(known) is None
    assert known.header(image.memory, (image.begin[0] + 2, image.begin[1]), NESTING) is None
    assert known.header(image.memory, image.begin, NESTING - 1) is None


@pytest.mark.parametrize("seed", range(6))
def test_whatever_differs_it_is_never_another_header(image, seed):
    """Bytes anywhere, of any value: the structure, the lengths, the texts."""
    known, chosen, hits = kept(image), random.Random(seed), 0
    end = len(image.content) - 512
    for _ in range(400):
        other = bytearray(image.content)
        for _ in range(chosen.choice([1, 1, 2, 5])):
            at = chosen.randrange(image.begin[0], end)
            other[at] = chosen.choice([chosen.randrange(256), 0x30 + chosen.randrange(10), 0x20, 0])
        changed = Image(image.path, bytes(other))
        found = changed.like(known)
        if found is None:
            continue
        hits += 1
        read, header = changed.read()
        assert (found, read.cut_off) == (header, "")
    assert hits > 40


def test_an_element_that_is_there_twice_is_no_example(make_file):
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, PatientID="AAAA", PixelData=bytes(64))
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x20\x00LO")
    twice = Image(path, content[: at + 12] + content[at : at + 12] + content[at + 12 :])
    other = Image(path, bytes(twice.content).replace(b"AAAA", b"BBBB", 1))
    found, header = twice.read()
    assert header is not None
    known = Alike()
    known.keep(twice.memory, found, header, NESTING)
    assert other.like(known) is None


def test_what_does_not_end_with_its_pixels_is_no_example(make_file):
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, PixelData=bytes(64), DataSetTrailingPadding=bytes(10))
    image = Image(path, path.read_bytes())
    found, header = image.read()
    assert header is not None
    assert found.layout is None
    assert image.like(kept(image)) is None


def test_what_goes_on_behind_its_pixels_is_no_example(make_file):
    """A few zeros there are let pass, and anything else is not."""
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, PixelData=bytes(64))
    zeros, ones = (Image(path, path.read_bytes() + 4 * each) for each in (b"\0", b"\1"))
    found, header = zeros.read()
    assert (found.cut_off, found.layout) == ("", None)
    assert header is not None
    assert ones.read()[0].cut_off
    assert ones.like(kept(zeros)) is None


def test_text_that_is_compared_in_another_form(make_file):
    path = make_file(
        1, transfer_syntax=ExplicitVRLittleEndian, SpecificCharacterSet="ISO_IR 192", StudyDescription="Cafe 1",
        PixelData=bytes(64),
    )  # fmt: skip
    image = Image(path, path.read_bytes())
    other = image.changed(b"Cafe 1", "Cafe\u0301".encode())
    assert other.read()[1].originals == {"StudyDescription": "Cafe\u0301"}
    assert other.like(kept(image)) is None
    assert image.like(kept(other)) is None


def explicit(tag, vr, value):
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"OB", b"OW", b"OF", b"SQ", b"UN"):
        return head + struct.pack("<HL", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def test_an_element_between_two_of_pixels(make_file):
    """Who reads keys stops at the first."""
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, PixelData=bytes(64))
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    first = content[:at] + explicit(0x7FE00008, b"OF", bytes(8))
    one, other = (
        Image(path, first + explicit(0x0008103E, b"LO", text) + content[at:]) for text in (b"Head", b"Neck")
    )
    assert one.read()[1] is not None
    assert other.like(kept(one)) in (None, other.read()[1])


ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHL", 0xFFFE, number, length) for number, length in (
    (0xE000, 0xFFFFFFFF), (0xE00D, 0), (0xE0DD, 0),
))  # fmt: skip


def test_what_is_passed_twice_is_no_example(make_file):
    """A sequence that ends within the header of its item: what follows is an item, and then a value."""
    levels = 200
    path = make_file(1, transfer_syntax=ExplicitVRLittleEndian, PixelData=bytes(64))
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    sequence = b"\x08\x00\x40\x11SQ\0\0" + b"\xff" * 4
    nested = (sequence + ITEM) * levels + (ITEM_END + SEQUENCE_END) * levels
    side_by_side = (sequence + ITEM + ITEM_END + SEQUENCE_END) * levels
    tag = struct.pack("<2sH", b"LO", len(nested) - 4 + len(ITEM_END))  # VR and length to whom all that is a value
    flat, deep = (tag + each[4:] + ITEM_END for each in (side_by_side, nested))
    short = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 4)
    one, other = (Image(path, content[:at] + short + ITEM + each + content[at:]) for each in (flat, deep))
    assert len(one.content) == len(other.content)
    found, header = one.read()
    assert (found.cut_off, found.layout) == ("", None)
    assert header is not None
    with pytest.raises(InvalidInstance, match="nested deeper"):
        other.read()
    assert other.like(kept(one)) is None


@pytest.mark.parametrize("much", ["values", "bytes"])
def test_much_in_front_of_the_pixels_is_not_noted(make_file, much):
    """Whoever sends it pays for it with its bytes alone."""
    many = {
        "values": [procedure(number) for number in range(1500)], "bytes": [procedure("1" * 32) for _ in range(900)],
    }  # fmt: skip
    path = make_file(
        1, transfer_syntax=ExplicitVRLittleEndian, ReferencedPatientSequence=many[much], PixelData=bytes(64)
    )
    image = Image(path, path.read_bytes())
    found, _ = image.read()
    assert (found.cut_off, found.layout) == ("", None)


def test_only_the_last_layouts_are_kept(make_file):
    known, images = Alike(), []
    for number in range(alike_module._MOST_LAYOUTS + 3):
        path = make_file(number, transfer_syntax=ExplicitVRLittleEndian, PixelData=bytes(64 + 2 * number))
        image = Image(path, path.read_bytes())
        found, header = image.read()
        known.keep(image.memory, found, header, NESTING)
        images.append(image)
    assert [image.like(known) is None for image in images] == [True] * 3 + [False] * alike_module._MOST_LAYOUTS


def test_real_series_are_read_once_and_then_by_what_differs(shared_data):
    hits = images = 0
    for folder in ("dcm_qa_ct/In/GE", "dcm_qa_nih/In/20180918GE/mr_0004"):
        known = Alike()
        for path in sorted((shared_data / folder).rglob("*")):
            try:
                content = path.read_bytes()
                if content[128:132] != b"DICM":
                    continue
            except IsADirectoryError:
                continue
            with path.open("rb") as file:
                begin = begin_of_data_set(file)
            memory = memoryview(content)
            found = scan(path, NESTING, WANTED, begin, memory)
            header = header_of(found)
            like = known.header(memory, begin, NESTING)
            images += 1
            if like is None:
                known.keep(memory, found, header, NESTING)
            else:
                hits += 1
                assert like == header
    assert images > 100
    assert hits > images / 2


def store(archive, path):
    """Store a file as C-STORE does."""
    content = path.read_bytes()
    with path.open("rb") as file:
        offset, syntax = begin_of_data_set(file)
    image = dcmread(path, stop_before_pixels=True)
    identity = (str(image.SOPClassUID), str(image.SOPInstanceUID))
    received = ReceivedFile(Reception(archive.new_file, "SENDER", waits=False), identity, syntax)
    received.write(content[offset:])
    received.close()
    try:
        return archive.ingest(received.path, expected=identity, received=received.known)
    finally:
        received.leave()


@pytest.mark.parametrize("size", [64, 300_000])
def test_the_images_of_a_series_are_read_once(archive, make_file, monkeypatch, size):
    read = []

    def counting(*arguments, **named):
        read.append(1)
        return scan(*arguments, **named)

    monkeypatch.setattr(archive_module, "scan", counting)
    for number in range(10, 15):
        store(archive, make_file(number, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100",
                                 PixelData=bytes(size)))  # fmt: skip
    assert len(read) == 1
    rows = archive.database.execute("SELECT sop_instance_uid, instance_number FROM instance ORDER BY id").fetchall()
    assert len(set(rows)) == 5
    names = archive.database.execute("SELECT patient_name FROM patient").fetchall()
    assert names == [("Müller^Jörg",)]


def test_an_image_like_another_is_refused_as_it_would_be(archive, make_file):
    """It names another instance than its command."""
    store(archive, make_file(10, PixelData=bytes(64)))
    path = make_file(11, PixelData=bytes(64))
    content = path.read_bytes()
    with path.open("rb") as file:
        offset, syntax = begin_of_data_set(file)
    received = ReceivedFile(Reception(archive.new_file, "SENDER"), ("1.2.840.10008.5.1.4.1.1.2", "1.2.3"), syntax)
    received.write(content[offset:])
    received.close()
    with pytest.raises(InvalidInstance, match="differ"):
        archive.ingest(received.path, expected=("1.2.840.10008.5.1.4.1.1.2", "1.2.3"), received=received.known)
