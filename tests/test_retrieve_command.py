"""`tharsis retrieve`: from this node and from archives that other people wrote, into a folder and to another node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import MRImageStorage, RLELossless
from typer.testing import CliRunner

from commands import retrieve as retrieving
from scp import client
from scp.client import Requestor
from scp.errors import AssociationLost
from scp.messages import Answer, SubOperations
from scp.part10 import data_set_offset, read_object
from scp.requestor import Peer
from scp.status import PENDING
from tharsis import app

STUDY = "1.2.826.0.1.3680043.9.7133.1"
CT_SERIES = "1.2.826.0.1.3680043.9.7133.2"
MR_SERIES = "1.2.826.0.1.3680043.9.7133.3"
FAILED, USAGE, UNREACHABLE = 1, 2, 3


@pytest.fixture
def files(make_file):
    """Three images of one study: two of CT, and one of MR in a series of its own."""
    return [
        make_file(1),
        make_file(2),
        make_file(3, SeriesInstanceUID=MR_SERIES, SOPClassUID=MRImageStorage, Modality="MR"),
    ]


def retrieve(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(app, ["retrieve", *map(str, arguments)], env={"COLUMNS": "250"})


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _uids(*paths):
    return sorted(f"{read_object(path).sop_instance_uid}.dcm" for path in paths)


def _body(path):
    return path.read_bytes()[data_set_offset(path) :]


def _peer(node, title="THARSIS"):
    return f"{title}@127.0.0.1:{node.port}"


@pytest.fixture
def filled(start_node, files):
    node = start_node()
    for file in files:
        node.archive.ingest(file)
    return node


def test_objects_come_as_they_are_stored(filled, files, tmp_path):
    compressed = Path(get_testdata_file("MR_small_RLE.dcm"))
    filled.archive.ingest(compressed)
    done = retrieve("PatientID=*", "--to", tmp_path / "got", "--peer", _peer(filled))
    assert done.exit_code == 0, done.stderr
    assert "4 objects from THARSIS into" in done.stdout
    assert _names(tmp_path / "got") == _uids(*files, compressed)
    for file in [*files, compressed]:
        item = read_object(file)
        got = tmp_path / "got" / f"{item.sop_instance_uid}.dcm"
        assert _body(got) == _body(file)
        assert read_object(got).transfer_syntax_uid == item.transfer_syntax_uid
    assert read_object(compressed).transfer_syntax_uid == RLELossless


@pytest.fixture(scope="module")
def asked():
    """What is asked for, and which of the files it is."""
    of_study = f"StudyInstanceUID={STUDY}"
    return {
        "patient": (["--level", "PATIENT", "PatientID=P1"], [0, 1, 2]),
        "study": ([of_study], [0, 1, 2]),
        "series": (["--level", "SERIES", of_study, "Modality=MR"], [2]),
        "image": (["--level", "IMAGE", of_study, f"SeriesInstanceUID={CT_SERIES}", "InstanceNumber=2"], [1]),
        "images": (["--level", "IMAGE", of_study, f"SeriesInstanceUID={CT_SERIES}"], [0, 1]),
    }


@pytest.mark.parametrize("archive", ["Tharsis", "dcmqrscp", "Orthanc"])
def test_every_level_comes_from_every_archive(
    archive, start_node, start_dcmqrscp, start_orthanc, files, asked, tmp_path
):
    receiver = start_node(aet="RECEIVER")
    if archive == "Tharsis":
        told = {"title": "RECEIVER", "host": "127.0.0.1", "port": receiver.port}
        peer = Peer("127.0.0.1", start_node(entities=[told]).port, "THARSIS")
    elif archive == "dcmqrscp":
        peer = Peer("127.0.0.1", start_dcmqrscp({"RECEIVER": ("127.0.0.1", receiver.port)}), "DCMQR")
    else:
        orthanc = start_orthanc(
            DicomModalities={"receiver": ["RECEIVER", "127.0.0.1", receiver.port]},
            DicomAlwaysAllowStore=True, DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True, DicomAlwaysAllowMove=True,
        )  # fmt: skip
        peer = Peer("127.0.0.1", orthanc.port, "ORTHANC")
    assert all(sent.is_stored for sent in client.send(peer, files, Requestor("MODALITY")))
    at = ("--peer", f"{peer.title}@127.0.0.1:{peer.port}", "--json")
    for level, (keys, wanted) in asked.items():
        done = retrieve(*keys, "--to", tmp_path / level, *at)
        assert done.exit_code == 0, (level, done.stdout, done.stderr)
        assert json.loads(done.stdout)["retrieved"] == len(wanted), level
        assert _names(tmp_path / level) == _uids(*(files[number] for number in wanted)), level
    keys, _ = asked["series"]
    done = retrieve(*keys, "--move-to", "RECEIVER", *at)
    assert (done.exit_code, json.loads(done.stdout)["problems"]) == (0, []), done.stdout
    assert receiver.archive.open_instance(read_object(files[2]).sop_instance_uid)


def test_what_is_not_sent_is_named_and_the_rest_comes(start_node, start_storescp, files, make_file):
    _, port = start_storescp("+x=")  # takes uncompressed little endian only
    node = start_node(entities=[{"title": "STORESCP", "host": "127.0.0.1", "port": port}])
    of_private_class = make_file(9, SOPClassUID="1.2.840.10008.5.1.4.1.1.999", StudyInstanceUID=f"{STUDY}.9")
    for file in [*files, of_private_class]:
        node.archive.ingest(file)
    done = retrieve("PatientID=P1", "--move-to", "STORESCP", "--peer", _peer(node))
    assert done.exit_code == FAILED
    uid = read_object(of_private_class).sop_instance_uid
    assert f"{uid}: not sent: " in done.stdout
    assert "3 objects from THARSIS to STORESCP" in done.stdout


def test_an_unknown_destination_and_what_is_not_there_are_told(filled, tmp_path):
    unknown = retrieve("PatientID=P1", "--move-to", "NOBODY", "--peer", _peer(filled), "--json")
    [problem] = json.loads(unknown.stdout)["problems"]
    assert unknown.exit_code == FAILED
    assert problem == {"uid": STUDY, "reason": "not sent: A801 (move destination NOBODY is not known)"}
    absent = retrieve("PatientID=absent", "--to", tmp_path / "got", "--peer", _peer(filled))
    assert absent.exit_code == FAILED
    assert absent.stdout == "THARSIS has nothing that matches\n"
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["PatientID=1"], USAGE, "give one of --to FOLDER (C-GET) and --move-to AET (C-MOVE)"),
        (["PatientID=1", "--to", "x", "--move-to", "Y"], USAGE, "give one of"),
        (["PatientID", "SpecificCharacterSet=ISO_IR 100", "--to", "x"], USAGE, "say what to retrieve"),
        (["PatientID=1", "--move-to", "FAR_TOO_LONG_A_TITLE"], USAGE, "--move-to: "),
        (["PatientID=1", "--to", "x", "--peer", "NOBODY@127.0.0.1:1"], UNREACHABLE, "cannot reach NOBODY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_one_sentence(tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    told = retrieve(*arguments)
    assert told.exit_code == code, told.stderr
    assert said in told.stderr
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_peer_that_refuses_the_query_is_told(filled, tmp_path):
    told = retrieve("--level", "SERIES", "Modality=CT", "--to", tmp_path / "got", "--peer", _peer(filled))
    assert told.exit_code == FAILED
    assert "A900 (StudyInstanceUID is required at this level)" in told.stderr


def test_many_images_of_a_series_are_asked_for_in_several_requests(start_node, make_file, monkeypatch, tmp_path):
    monkeypatch.setattr(retrieving, "_UIDS_IN_A_REQUEST", 3)
    asked = []
    get = client.get
    monkeypatch.setattr(client, "get", lambda *told, **more: asked.append(told[1].SOPInstanceUID) or get(*told, **more))
    node = start_node()
    files = [make_file(number) for number in range(1, 8)]
    for file in files:
        node.archive.ingest(file)
    keys = ("--level", "IMAGE", f"StudyInstanceUID={STUDY}", f"SeriesInstanceUID={CT_SERIES}")
    done = retrieve(*keys, "--to", tmp_path / "got", "--peer", _peer(node))
    assert "7 objects from THARSIS" in done.stdout
    assert _names(tmp_path / "got") == _uids(*files)
    assert [1 if isinstance(uids, str) else len(uids) for uids in asked] == [3, 3, 1]


def test_what_came_before_a_peer_was_lost_is_counted(filled, monkeypatch, tmp_path):
    def lost(*_told, **_more):
        yield Answer(PENDING, counts=SubOperations(remaining=1, completed=2))
        raise AssociationLost("THARSIS fell silent")

    monkeypatch.setattr(client, "get", lost)
    done = retrieve("PatientID=P1", "--to", tmp_path / "got", "--peer", _peer(filled), "--json")
    assert done.exit_code == UNREACHABLE
    told = json.loads(done.stdout)
    assert (told["retrieved"], told["problems"]) == (2, [{"reason": "THARSIS fell silent"}])
