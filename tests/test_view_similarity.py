"""Similar cases through a de-identification profile, through both doors."""

from __future__ import annotations

import pydicom
import pytest
from cases import ROOT, picture
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from wire import identifiers, leaked

from index.archive import Archive
from index.on_demand import OnDemand
from index.similarity import Similarity
from scp.contexts import SIMILARITY_FIND, SIMILARITY_MOVE, STUDY_ROOT_FIND, STUDY_ROOT_MOVE
from scp.private_elements import CREATOR, ELEMENTS, put_block

PROFILES = [{"name": "teaching"}]
TITLES = [{"title": "TEACHING", "deidentify": "view", "profile": "teaching"}]
ASKED = ("StudyInstanceUID", "StudyDescription", "StudyID", "PatientID", "PatientName", "AccessionNumber")


@pytest.fixture
def node(start_node, filled_folder, encoder, storescp):
    """Six cases of three slices; case n and n + 3 look alike."""
    entities = [
        {"title": "STUDENT", "rights": ["find", "move", "similar"]},
        {"title": "OTHER", "rights": ["find", "move"]},
        {"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1]},
    ]
    node = start_node(
        entities=entities, data=filled_folder, titles=TITLES, profiles=PROFILES,
        similarity=lambda archive: Similarity(archive, OnDemand(archive, timeout_s=300.0)),
    )  # fmt: skip
    encoder(node.archive)
    return node


def _find(
    node, level="STUDY", *, called="TEACHING_SIM", calling="STUDENT", model=STUDY_ROOT_FIND, block=None, port=None,
    **keys,
):  # fmt: skip
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in {**dict.fromkeys(ASKED, ""), **keys}.items():
        setattr(identifier, keyword, value)
    if block is not None:
        put_block(identifier, block)
    entity = AE(calling)
    entity.add_requested_context(model, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", port or node.port, ae_title=called)
    answers = list(assoc.send_c_find(identifier, model))
    assoc.release()
    return answers


def _case_of(node, uid):
    row = node.archive.database.execute("SELECT original FROM told WHERE uid = ?", (uid,)).fetchone()
    return int(row[0].rsplit(".", 1)[1])


def _studies(node):
    """The told UID of each case's study."""
    matches = [match for _, match in _find(node, called="TEACHING")[:-1]]
    return {_case_of(node, match.StudyInstanceUID): match for match in matches}


def _value(match, keyword):
    return match.private_block(0x0073, CREATOR)[ELEMENTS[keyword].number].value


def test_a_reference_by_a_told_uid_or_a_pseudonym(node, wire):
    told = {f"{ROOT}.".encode(), b"Doe^Jane", b"Case ", b"20240102"}
    line = wire(node.port)
    studies = _studies(node)
    assert sorted(studies) == list(range(6))
    for reference in (studies[1].StudyInstanceUID, studies[1].PatientID):
        answers = _find(node, port=line.port, PatientID=f"~{reference}")
        assert _case_of(node, answers[0][1].StudyInstanceUID) == 4
        assert 1 not in [_case_of(node, match.StudyInstanceUID) for _, match in answers[:-1]]
        assert answers[0][1].StudyDescription.startswith("#01 0.9")
        assert answers[0][1].StudyDescription.endswith("|"), "the description is not kept by the profile"
        assert answers[0][1].StudyID == "SIM-01"
        assert answers[0][1].RetrieveAETitle == "TEACHING_SIM"
    assert leaked(bytes(line.from_target), told) == set()


@pytest.mark.parametrize("reference", [f"{ROOT}.1.1", f"{ROOT}.2.1", f"{ROOT}.9.1.2", "P1", "A1", "a1"])
def test_an_original_reference_is_not_confirmed(node, reference):
    [(status, _)] = _find(node, PatientID=f"~{reference}")
    [(unknown, _)] = _find(node, PatientID="~zzz")
    assert status.Status == unknown.Status == 0xC001
    assert status.ErrorComment == unknown.ErrorComment.replace("zzz", reference)[:64]
    for keyword in ("QueryStudyInstanceUID", "QuerySeriesInstanceUID", "QuerySOPInstanceUID"):
        [(status, _)] = _find(node, called="TEACHING", block={keyword: reference})
        assert status.Status == 0xC001


def test_the_block_names_and_answers_told_uids(node):
    study = _studies(node)[2].StudyInstanceUID
    answers = _find(
        node, "SERIES", called="TEACHING", model=SIMILARITY_FIND, block={"QueryStudyInstanceUID": study},
        SeriesInstanceUID="",
    )  # fmt: skip
    assert [status.Status for status, _ in answers[:-1]] == [0xFF00] * 5
    best = answers[0][1]
    assert _case_of(node, best.StudyInstanceUID) == 5
    assert _value(best, "Rank") == 1
    scores = [_value(match, "Score") for _, match in answers[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert _value(best, "IndexSize") > 0
    matched = _value(best, "MatchedSOPInstanceUID")
    [(_, image), _] = _find(
        node, "IMAGE", called="TEACHING", StudyInstanceUID=best.StudyInstanceUID,
        SeriesInstanceUID=best.SeriesInstanceUID, SOPInstanceUID=matched,
    )  # fmt: skip
    assert image.SOPInstanceUID == matched
    again = _find(node, "IMAGE", called="TEACHING", block={"QuerySOPInstanceUID": matched}, SOPInstanceUID="")
    assert _case_of(node, again[0][1].StudyInstanceUID) == 2


def test_a_filter_of_what_is_not_kept_changes_nothing(node):
    study = _studies(node)[0].StudyInstanceUID
    plain = _find(node, called="TEACHING", block={"QueryStudyInstanceUID": study})
    filtered = _find(node, called="TEACHING", block={"QueryStudyInstanceUID": study}, AccessionNumber="A3")
    assert [match.StudyInstanceUID for _, match in filtered[:-1]] == [match.StudyInstanceUID for _, match in plain[:-1]]
    assert {status.Status for status, _ in filtered[:-1]} == {0xFF01}
    assert _value(filtered[0][1], "IndexSize") == _value(plain[0][1], "IndexSize")


def test_the_same_neighbours_as_without_a_profile(node):
    study = _studies(node)[0].StudyInstanceUID
    through = _find(node, PatientID=f"~{study}")
    whole = _find(node, called="THARSIS_SIM", PatientID=f"~{ROOT}.1.0")
    assert [_case_of(node, match.StudyInstanceUID) for _, match in through[:-1]] == [
        int(match.StudyInstanceUID.rsplit(".", 1)[1]) for _, match in whole[:-1]
    ]
    shown = [match.StudyDescription.partition(" |")[0] for _, match in through[:-1]]
    assert shown == [match.StudyDescription.partition(" |")[0] for _, match in whole[:-1]]


def test_the_right_is_needed_at_a_view_too(node):
    [(status, _)] = _find(node, calling="OTHER", PatientID="~1.2.3")
    assert status.Status == 0x0124


def _send(node, path, called="TEACHING_SIM"):
    entity = AE("STUDENT")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    status = assoc.send_c_store(str(path))
    assoc.release()
    return status


def test_an_image_that_was_sent_to_ask_does_not_tell_what_is_stored(node, make_image):
    """One that bears the UIDs of a stored series would leave that one out, were its UIDs those that are known."""
    assert _send(node, make_image(1, 2)).Status == 0x0000
    answers = _find(node)
    cases = [_case_of(node, match.StudyInstanceUID) for _, match in answers[:-1]]
    assert cases[0] == 1, "an original UID counts for nothing"
    assert len(cases) == 6


def test_an_image_of_the_view_is_not_its_own_neighbour(node, make_image):
    studies = _studies(node)
    [series] = [match for _, match in _find(node, "SERIES", called="TEACHING", SeriesInstanceUID="",
                                            StudyInstanceUID=studies[1].StudyInstanceUID)[:-1]]  # fmt: skip
    path = make_image(
        1, 2, StudyInstanceUID=series.StudyInstanceUID, SeriesInstanceUID=series.SeriesInstanceUID,
        PatientID=series.PatientID, PixelData=picture(1, 3).tobytes(),
    )  # fmt: skip
    assert _send(node, path).Status == 0x0000
    cases = [_case_of(node, match.StudyInstanceUID) for _, match in _find(node)[:-1]]
    assert cases[0] == 4
    assert 1 not in cases


@pytest.mark.parametrize("door", ["found", "private"])
def test_a_neighbour_is_moved(node, door, storescp, make_image):
    study = _studies(node)[0].StudyInstanceUID
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    model = STUDY_ROOT_MOVE
    if door == "found":
        identifier.StudyInstanceUID = _find(node, PatientID=f"~{study}")[0][1].StudyInstanceUID
    else:
        model = SIMILARITY_MOVE
        put_block(identifier, {"QueryStudyInstanceUID": study, "MaximumResults": 1})
    entity = AE("STUDENT")
    entity.add_requested_context(model, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="TEACHING_SIM")
    *_, (last, _) = assoc.send_c_move(identifier, "STORESCP", model)
    assoc.release()
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0x0000, 3)
    received = [pydicom.dcmread(path) for path in storescp[0].iterdir()]
    assert {_case_of(node, each.StudyInstanceUID) for each in received} == {3}
    assert leaked(storescp[0], identifiers(pydicom.dcmread(make_image(3, 1))) - {b"Case"}) == set()


@pytest.mark.slow
def test_real_images_embedded_by_the_node(serve, dcmtk, storescp, shared_data, wait_until):
    """The whole way: stored at the main title, embedded, asked about and pulled at the view, with DCMTK alone."""
    more = (
        '[[deidentification]]\nname = "teaching"\n'
        '[[ae_titles]]\ntitle = "TEACHING"\ndeidentify = "view"\nprofile = "teaching"\n'
        '[[application_entities]]\ntitle = "STUDENT"\nrights = ["find", "move", "similar"]\n'
        f'[[application_entities]]\ntitle = "STORESCP"\nhost = "127.0.0.1"\nport = {storescp[1]}\n'
    )
    node = serve(settle_time_s=0.3, more=more)
    folder = shared_data / "highdicom" / "data" / "test_files"
    pydicom_files = shared_data / "pydicom" / "src" / "pydicom" / "data" / "test_files"
    files = [folder / "ct_image.dcm", folder / "dx_image.dcm", pydicom_files / "MR_small.dcm"]
    told = identifiers(*map(pydicom.dcmread, files))
    dcmtk("dcmsend", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    embedded = "SELECT count(DISTINCT series) FROM embedding WHERE instance IS NULL"
    wait_until(lambda: archive.database.execute(embedded).fetchone() == (3,), timeout=900)

    def findscu(called, *keys):
        log = dcmtk(
            "findscu", "-S", "-aet", "STUDENT", "-aec", called, "127.0.0.1", node.port,
            "-k", "QueryRetrieveLevel=STUDY", *(option for key in keys for option in ("-k", key)),
        ).stdout  # fmt: skip
        assert leaked(log.encode(), told) == set()
        return [line.split("[")[1].split("]")[0].strip(" \0") for line in log.splitlines() if "(0020,000d)" in line]

    (ct,) = findscu("TEACHING", "StudyInstanceUID", "ModalitiesInStudy=CT")
    neighbours = findscu("TEACHING_SIM", f"PatientID=~{ct}", "StudyInstanceUID", "StudyDescription", "PatientName")
    assert len(neighbours) == 2
    assert ct not in neighbours
    dcmtk(
        "movescu", "-S", "-aet", "STUDENT", "-aec", "TEACHING_SIM", "-aem", "STORESCP", "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={neighbours[0]}",
    )  # fmt: skip
    [path] = storescp[0].iterdir()
    assert pydicom.dcmread(path).StudyInstanceUID == neighbours[0]
    assert leaked(storescp[0], told) == set()
