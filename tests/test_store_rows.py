"""C-STORE, row by row of what a DIMSE client may rely on (PS3.4 Annex B, PS3.7 9.1.1): over the wire, then on disk."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import threading
from io import BytesIO

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless
from pynetdicom.dsutils import encode

from index import changes, fsck
from index.errors import NotFound
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, Proposal
from scp.part10 import data_set_offset
from scp.requestor import Peer, Timeouts, connect

UID_OF = "1.2.826.0.1.3680043.9.7133.9.{}".format
STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"


def _peer(node):
    return Peer("127.0.0.1", node.port, "THARSIS")


@contextlib.contextmanager
def _link(node, title="MODALITY", syntax=ExplicitVRLittleEndian):
    link = connect(_peer(node), [Proposal(CTImageStorage, (syntax,))], calling=title, timeouts=Timeouts())
    yield link
    link.release()


def _store(node, data, uid, *, title="MODALITY", syntax=ExplicitVRLittleEndian):
    """Store encoded bytes, or a data set, under the UID that the command names."""
    content = encode(data, False, True) if isinstance(data, Dataset) else data
    with _link(node, title, syntax) as link:
        return link.store((CTImageStorage, uid), syntax, content)


def _content(node, uid):
    path = node.archive.open_instance(uid).path
    return path.read_bytes()[data_set_offset(path) :]


def _kinds(node):
    return [change.kind.value for change in changes.since(node.archive.database)]


def _find(node, level, **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return list(client.find(_peer(node), identifier, STUDY_ROOT_FIND, Requestor("MODALITY")))


def _is_clean(node):
    assert [path for path in node.archive.incoming.iterdir() if path.stat().st_size] == []
    assert list(fsck.check(node.archive, fsck.Options(), lambda *_: None)) == []
    client.echo(_peer(node), Requestor("MODALITY"))


# Same SOP Instance UID, other content (B.2.3: the Status says what became of it)


@pytest.mark.parametrize(
    ("policy", "second", "code", "kept"),
    [
        ("never", "MODALITY", 0xB006, "old"),
        ("never", "OTHER", 0xB006, "old"),
        ("same_source", "MODALITY", 0x0000, "new"),
        ("same_source", "OTHER", 0xB006, "old"),
        ("always", "MODALITY", 0x0000, "new"),
        ("always", "OTHER", 0x0000, "new"),
    ],
)
def test_other_content_under_a_known_uid(start_node, make_dataset, policy, second, code, kept):
    node = start_node(overwrite=policy)
    old, new = make_dataset(1, StudyDescription="old"), make_dataset(1, StudyDescription="new")
    assert _store(node, old, UID_OF(1)).code == 0
    status = _store(node, new, UID_OF(1), title=second)
    assert status.code == code
    assert bool(status.comment) == (code != 0)
    assert _content(node, UID_OF(1)) == encode(old if kept == "old" else new, False, True)
    [row] = _find(node, "STUDY", StudyInstanceUID=STUDY, StudyDescription=None)
    assert row.StudyDescription == kept
    assert len(list(node.archive.data.rglob("*.dcm"))) == 1
    _is_clean(node)


def test_the_old_version_stays_until_the_commit(start_node, make_dataset, monkeypatch):
    node = start_node(overwrite="always")
    old, new = make_dataset(1, StudyDescription="old"), make_dataset(1, StudyDescription="new")
    assert _store(node, old, UID_OF(1)).code == 0
    place, seen = node.archive._files.place, []

    def interrupted(incoming, relative, **how):
        place(incoming, relative, **how)
        seen.append(_content(node, UID_OF(1)))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(node.archive._files, "place", interrupted)
    status = _store(node, new, UID_OF(1))
    assert (status.code, status.comment) == (0x0110, "processing failed: Input/output error")
    assert seen
    monkeypatch.undo()
    assert _content(node, UID_OF(1)) == encode(old, False, True)
    _is_clean(node)
    assert _store(node, new, UID_OF(1)).code == 0
    assert _content(node, UID_OF(1)) == encode(new, False, True)


# Same SOP Instance UID, same content


def test_nothing_is_written_twice(start_node, make_dataset):
    node, dataset = start_node(overwrite="always"), make_dataset(1)
    assert _store(node, dataset, UID_OF(1)).code == 0
    path = node.archive.open_instance(UID_OF(1)).path
    before = path.stat()
    feed = _kinds(node)
    assert _store(node, dataset, UID_OF(1), title="OTHER").code == 0
    after = node.archive.open_instance(UID_OF(1)).path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert _kinds(node) == feed
    _is_clean(node)


def test_one_object_from_many_at_the_same_moment_is_one_object(start_node, make_dataset):
    node, start = start_node(), threading.Barrier(6)
    data = encode(make_dataset(1), False, True)
    codes = []

    def send(title):
        with _link(node, title) as link:
            start.wait(60)
            codes.append(link.store((CTImageStorage, UID_OF(1)), ExplicitVRLittleEndian, data).code)

    threads = [threading.Thread(target=send, args=(f"M{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [0] * 6
    [row] = _find(node, "STUDY", StudyInstanceUID=STUDY, NumberOfStudyRelatedInstances=None)
    assert row.NumberOfStudyRelatedInstances == 1
    assert len(list(node.archive.data.rglob("*.dcm"))) == 1
    _is_clean(node)


# UIDs (PS3.5 9.1)

HOSTILE = ["../../x", "../" * 20 + "x", "/etc/x", "a\\b", "1.2.a", "1." + "2" * 80, "ä", "%2e%2e", ".", "..", "1..2"]


@pytest.mark.filterwarnings("ignore:.*VR UI")
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_no_path_is_made_of_a_uid(start_node, make_dataset, tmp_path, keyword):
    node = start_node()
    before = set(tmp_path.iterdir())
    for number, uid in enumerate(HOSTILE, start=1):
        dataset = make_dataset(number)
        data = encode(dataset, False, True).replace(
            _element(keyword, str(dataset[keyword].value)), _element(keyword, uid)
        )
        told = uid if keyword == "SOPInstanceUID" else UID_OF(number)
        status = _store(node, data, told)
        if status.code:  # what the wire cannot carry is refused by name, and nothing is stored
            assert status.is_failure
            assert status.comment
            continue
        path = node.archive.open_instance(told).path
        assert path.resolve().is_relative_to(node.archive.data / "files")
        assert len(path.relative_to(node.archive.data).parts) == 4
        assert "uid_nonconforming" in _kinds(node), uid
    assert set(tmp_path.iterdir()) == before
    _is_clean(node)


def _element(keyword, uid):
    tag = tag_for_keyword(keyword)
    value = uid.encode()
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(value)) + value


@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_a_command_that_names_a_path_is_refused(start_node, make_dataset):
    node = start_node()
    status = _store(node, make_dataset(1), "../../x")
    assert status.code == 0xA900
    assert status.offending == (tag_for_keyword("SOPInstanceUID"),)
    with pytest.raises(NotFound):
        node.archive.open_instance(UID_OF(1))
    _is_clean(node)


# Values that a VR does not allow (PS3.5 6.2): accepted, and indexed as they stand


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("PatientName", b"PN", "Very^" + "Long" * 20),
        ("StudyDescription", b"LO", "x" * 100),
        ("StudyDate", b"DA", "2024-13-45"),
        ("StudyDate", b"DA", "yesterday "),
        ("AccessionNumber", b"SH", "A" * 40),
    ],
)
def test_a_value_that_its_vr_does_not_allow(start_node, make_dataset, keyword, vr, value):
    node, dataset = start_node(), make_dataset(1)
    tag = tag_for_keyword(keyword)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    data = encode(dataset, False, True)
    at = data.index(start)
    (length,) = struct.unpack("<H", data[at + 6 : at + 8])
    odd = start + struct.pack("<H", len(value)) + value.encode() + data[at + 8 + length :]
    assert _store(node, data[:at] + odd, UID_OF(1)).code == 0
    assert _content(node, UID_OF(1)) == data[:at] + odd
    [row] = _find(node, "STUDY", StudyInstanceUID=STUDY, **{keyword: None})
    assert str(row[keyword].value) == value.strip()


# Same Study UID, other PatientID


@pytest.mark.parametrize(("policy", "code"), [("accept", 0x0000), ("reject", 0xA900)])
def test_a_study_of_another_patient(start_node, make_dataset, policy, code):
    node = start_node(patient_mismatch=policy)
    assert _store(node, make_dataset(1), UID_OF(1)).code == 0
    status = _store(node, make_dataset(2, PatientID="P2"), UID_OF(2))
    assert status.code == code
    if code:
        assert status.offending == (tag_for_keyword("PatientID"),)
        assert status.comment
    assert "patient_mismatch" in _kinds(node)
    _is_clean(node)


# Nesting and lengths (PS3.5 7.5)


def _with(dataset, more):
    """`dataset` encoded, with the encoded elements `more` before its pixels."""
    data = encode(dataset, False, True)
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + more + data[at:]


SEQUENCE = struct.pack("<HH2sHLHHL", 0x0088, 0x0200, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
END = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize(("depth", "code"), [(64, 0x0000), (65, 0xC000), (100_000, 0xC000)])
def test_nesting_has_a_limit(start_node, make_dataset, depth, code):
    node = start_node()
    status = _store(node, _with(make_dataset(1), SEQUENCE * depth + END * depth), UID_OF(1))
    assert status.code == code
    assert status.comment == ("sequences nested deeper than 64" if code else "")
    assert _store(node, make_dataset(2), UID_OF(2)).code == 0
    _is_clean(node)


def test_an_object_that_is_cut_off_is_stored_as_it_came_and_its_sender_warned(start_node, make_dataset):
    """Nobody may have a better one; a plain Success would tell its sender that nothing is missing."""
    node = start_node()
    data = encode(make_dataset(1), False, True)[:-28]
    for _ in range(2):
        status = _store(node, data, UID_OF(1))
        assert (status.code, status.comment) == (0xB007, "cut off: (7FE0,0010) has 100 of 128 bytes")
    assert _content(node, UID_OF(1)) == data
    assert _kinds(node).count("cut_off") == 1
    _is_clean(node)


# When the node cannot


def test_a_catalogue_that_others_hold_for_a_moment_is_waited_for(start_node, make_dataset):
    node = start_node()
    other = sqlite3.connect(node.archive.data / "catalogue.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    codes = []
    sender = threading.Thread(target=lambda: codes.append(_store(node, make_dataset(1), UID_OF(1)).code))
    sender.start()
    sender.join(1.0)
    assert sender.is_alive()
    assert client.echo(_peer(node), Requestor("MODALITY")) < 30, "others are served meanwhile"
    other.execute("ROLLBACK")
    other.close()
    sender.join(60)
    assert codes == [0]


def test_a_catalogue_that_others_do_not_let_go_is_told(start_node, make_dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("index.database.BUSY_TIMEOUT_S", 0.2)
        node = start_node()
        other = sqlite3.connect(node.archive.data / "catalogue.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        status = _store(node, make_dataset(1), UID_OF(1))
    assert (status.code, status.comment) == (0xA700, "the catalogue was locked for 0.2 s: nothing stored")
    assert _find(node, "STUDY", StudyInstanceUID=STUDY) == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    assert _store(node, make_dataset(1), UID_OF(1)).code == 0
    _is_clean(node)


def test_a_folder_that_cannot_be_written_to_is_told(start_node, make_dataset):
    node = start_node()
    assert _store(node, make_dataset(1), UID_OF(1)).code == 0
    away = node.archive.incoming.with_name("away")
    node.archive.incoming.rename(away)
    status = _store(node, make_dataset(2), UID_OF(2))
    assert (status.code, status.comment) == (0x0110, "processing failed: No such file or directory")
    assert len(_find(node, "IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=None)) == 1
    away.rename(node.archive.incoming)
    assert _store(node, make_dataset(2), UID_OF(2)).code == 0
    _is_clean(node)


def test_another_transfer_syntax_is_other_content(start_node, make_dataset):
    """Byte for byte as sent: which of two encodings of the same pixels is kept is for the policy to say."""
    node, dataset = start_node(), make_dataset(1)
    assert _store(node, dataset, UID_OF(1)).code == 0
    dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    packed = buffer.getvalue()[_offset_in(buffer.getvalue()) :]
    assert _store(node, packed, UID_OF(1), syntax=RLELossless).code == 0xB006
    assert node.archive.open_instance(UID_OF(1)).transfer_syntax_uid == ExplicitVRLittleEndian


def _offset_in(part10):
    return 132 + 12 + struct.unpack("<L", part10[140:144])[0]


def test_an_object_without_the_end_of_its_pixels_is_sent_as_it_came_or_not_at_all(start_node, make_dataset, tmp_path):
    """PS3.5 A.4: fragments without a Sequence Delimitation Item; converted, nothing would be left of the object."""
    node = start_node()
    data = encode(make_dataset(1, PixelData=None), False, True)
    data += struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    assert _store(node, data, UID_OF(1)).code == 0xB007
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", STUDY
    for syntax, code in [(ExplicitVRLittleEndian, 0x0000), (ExplicitVRBigEndian, 0xA702)]:
        objects = [(CTImageStorage, syntax)]
        *_, last = client.get(_peer(node), keys, tmp_path / syntax, STUDY_ROOT_GET, Requestor("M"), objects=objects)
        assert last.status.code == code, last
    assert "cut off" in last.status.comment
