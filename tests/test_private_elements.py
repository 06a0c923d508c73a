"""The private block of the similarity query, as clients with and without its dictionary send it."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import encode

from index.errors import InvalidIdentifier
from scp.private_elements import CREATOR, ELEMENTS, GROUP, dcmtk_dictionary, put_block, take_block


def _raw(vr, *elements):
    """A data set as it arrives: Explicit VR Little Endian, elements (number, bytes) with this VR."""
    creator = CREATOR.encode()
    data = struct.pack("<HH2sH", GROUP, 0x0010, b"LO", len(creator)) + creator
    for number, value in elements:
        if vr == b"UN":
            data += struct.pack("<HH2sHI", GROUP, 0x1000 | number, vr, 0, len(value)) + value
        else:
            data += struct.pack("<HH2sH", GROUP, 0x1000 | number, vr, len(value)) + value
    return read_dataset(BytesIO(data), is_implicit_VR=False, is_little_endian=True)


@pytest.mark.parametrize(
    ("vr", "number", "value", "keyword", "expected"),
    [
        (b"UN", 0x02, b"1.2.3\0", "QuerySeriesInstanceUID", "1.2.3"),
        (b"UN", 0x06, b"\x05\x00", "MaximumResults", 5),
        (b"UN", 0x06, b"\x33\x00", "MaximumResults", 51),  # not the text "3"
        (b"UN", 0x06, b"5 ", "MaximumResults", 5),
        (b"UN", 0x06, b"10", "MaximumResults", 10),
        (b"UN", 0x06, b"100 ", "MaximumResults", 100),
        (b"US", 0x06, b"\x0a\x00", "MaximumResults", 10),
        (b"UN", 0x07, struct.pack("<d", 0.25), "MinimumScore", 0.25),
        (b"UN", 0x07, b"0.25", "MinimumScore", 0.25),
        (b"FD", 0x07, struct.pack("<d", 0.5), "MinimumScore", 0.5),
        (b"UN", 0x0B, b"SAME_STUDY\\SAME_PATIENT ", "Exclude", ["SAME_STUDY", "SAME_PATIENT"]),
        (b"UN", 0x05, b"1\\2\\3\\4 ", "QueryRegion", (1, 2, 3, 4)),
        (b"UN", 0x05, struct.pack("<4H", 1, 2, 3, 4), "QueryRegion", (1, 2, 3, 4)),
        (b"UN", 0x08, b"texture-1 ", "ModelID", "texture-1"),
    ],
)
def test_values_are_read_from_their_bytes(vr, number, value, keyword, expected):
    identifier = _raw(vr, (number, value))
    assert take_block(identifier) == {keyword: expected}
    assert len(identifier) == 0


@pytest.mark.parametrize(
    ("number", "value"), [(0x02, b"\x01\x00"), (0x06, b"\x01\x02\x03"), (0x07, b"\x00\x00"), (0x06, b"1.5 ")]
)
def test_bytes_that_mean_nothing_are_refused(number, value):
    with pytest.raises(InvalidIdentifier):
        take_block(_raw(b"UN", (number, value)))


@pytest.mark.parametrize("implicit", [True, False])
def test_a_block_survives_the_way(implicit):
    sent = Dataset()
    vector = np.array([0.6, 0.8], np.float32)
    put_block(sent, {"QueryVector": vector.tobytes(), "MaximumResults": 3, "Exclude": ["SAME_STUDY"], "ModelID": None})
    sent.PatientID = "P1"
    received = read_dataset(BytesIO(encode(sent, implicit, True)), is_implicit_VR=implicit, is_little_endian=True)
    block = take_block(received)
    assert block is not None
    np.testing.assert_array_equal(block.pop("QueryVector"), vector)
    assert block == {"MaximumResults": 3, "Exclude": ["SAME_STUDY"]}
    assert [element.keyword for element in received] == ["PatientID"]


def test_group_0073_of_another_creator_is_no_block():
    other = Dataset()
    other.private_block(GROUP, "SOMEBODY ELSE", create=True).add_new(0x02, "UI", "1.2.3")
    assert take_block(other) is None


def test_the_dictionary_for_dcmtk_has_every_element():
    lines = dcmtk_dictionary().splitlines()
    assert len(lines) == len(ELEMENTS)
    assert f'({GROUP:04x},"{CREATOR}",02)\tUI\tQuerySeriesInstanceUID\t1\tPrivateTag' in lines
