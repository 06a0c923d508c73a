"""An AE title of the node that shows what is stored through a de-identification profile (C-FIND, C-MOVE, C-GET)."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from wire import identifiers, leaked

from index.archive import Archive
from index.commitments import Reference
from index.rebuild import rebuild
from scp.commitment import SOP_INSTANCE_UID, request_information
from scp.contexts import PATIENT_ROOT_FIND, STORAGE_COMMITMENT, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE

PROFILES = [
    {"name": "teaching", "options": ["retain_patient_characteristics"]},
    {"name": "dated", "dates": "full"},
    {"name": "moved", "dates": "modified"},
    {"name": "uids", "options": ["retain_uids"]},
    {"name": "words", "options": ["clean_descriptors"]},
]
TITLES = [{"title": each["name"].upper(), "deidentify": "view", "profile": each["name"]} for each in PROFILES]
FILES = ("ct_image.dcm", "seg_image_ct_binary_single_frame.dcm", "sr_document.dcm", "dx_image.dcm")
ASKED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "StudyInstanceUID", "ModalitiesInStudy",
)  # fmt: skip


@pytest.fixture
def originals(shared_data):
    folder = shared_data / "highdicom" / "data" / "test_files"
    return {name: pydicom.dcmread(folder / name) for name in FILES}


@pytest.fixture
def told(originals):
    return identifiers(*originals.values())


@pytest.fixture
def node(start_node, storescp, originals):
    """A node with the files; storescp is a viewer without a profile of its own."""
    viewer = {"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1], "rights": ["find", "move"]}
    node = start_node(entities=[viewer], titles=TITLES, profiles=PROFILES)
    for dataset in originals.values():
        node.archive.ingest(Path(dataset.filename))
    return node


def _keys(level, keywords=(), **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in {**dict.fromkeys(keywords, ""), **keys}.items():
        setattr(identifier, keyword, value)
    return identifier


def _find(node, identifier, model=STUDY_ROOT_FIND, *, called="TEACHING", calling="VIEWER", port=None):
    entity = AE(calling)
    entity.add_requested_context(model)
    assoc = entity.associate("127.0.0.1", port or node.port, ae_title=called)
    assert assoc.is_established
    answers = list(assoc.send_c_find(identifier, model))
    assoc.release()
    return answers


def _matches(node, identifier, model=STUDY_ROOT_FIND, **more):
    answers = _find(node, identifier, model, **more)
    assert answers[-1][0].Status == 0x0000
    return [match for _, match in answers[:-1]]


def test_answers_tell_no_identity_and_have_every_key_that_was_asked_for(node, dcmtk, wire, told):
    line = wire(node.port)
    answers = _find(node, _keys("STUDY", ASKED), port=line.port)
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0x0000]
    for _, match in answers[:-1]:
        assert set(ASKED) <= {element.keyword for element in match}
        assert match.RetrieveAETitle == "TEACHING"
        assert match.PatientID.startswith("P")
        assert not match.IssuerOfPatientID
        assert match.PatientSex in ("O", "M", "F", "")
    dcmtk(
        "findscu", "-S", "-aec", "TEACHING", "127.0.0.1", line.port, "-k", "QueryRetrieveLevel=STUDY",
        *(option for keyword in ASKED for option in ("-k", keyword)),
    )  # fmt: skip
    study = answers[0][1].StudyInstanceUID
    below = ("SeriesDescription", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "ContentDate")
    for uid in (study, ""):
        found = _find(node, _keys("SERIES", below, StudyInstanceUID=uid), port=line.port)
        for _, match in found[:-1]:
            _find(node, _keys("IMAGE", below, StudyInstanceUID=uid, SeriesInstanceUID=match.SeriesInstanceUID),
                  port=line.port)  # fmt: skip
    assert len(line.from_target) > 2000
    assert leaked(bytes(line.from_target), told) == set()


def test_what_was_told_is_understood_down_to_the_image(node, originals):
    [ct] = _matches(node, _keys("STUDY", ASKED, ModalitiesInStudy="CT"))
    assert sorted(ct.ModalitiesInStudy) == ["CT", "SEG"], "the report is in the series of the image"
    series = _matches(node, _keys("SERIES", ["SeriesInstanceUID", "Modality"], StudyInstanceUID=ct.StudyInstanceUID))
    assert {each.Modality for each in series} == {"CT", "SEG"}
    [of_ct] = [each for each in series if each.Modality == "CT"]
    image, _ = _matches(
        node, _keys("IMAGE", ["SOPInstanceUID"], StudyInstanceUID=ct.StudyInstanceUID,
                    SeriesInstanceUID=of_ct.SeriesInstanceUID),
    )  # fmt: skip
    uids = {ct.StudyInstanceUID, of_ct.SeriesInstanceUID, image.SOPInstanceUID}
    assert len(uids) == 3
    assert not uids & {str(each.get(name)) for each in originals.values()
                       for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}  # fmt: skip
    again = _matches(node, _keys("STUDY", ["StudyInstanceUID"], ModalitiesInStudy="CT"))
    assert [each.StudyInstanceUID for each in again] == [ct.StudyInstanceUID], "the same original, the same replacement"


@pytest.mark.parametrize("called", ["TEACHING", "TEACHING_SIM", "DATED", "MOVED"])
def test_an_original_uid_is_not_confirmed(node, originals, called):
    ct = originals["ct_image.dcm"]
    assert not _matches(node, _keys("STUDY", StudyInstanceUID=ct.StudyInstanceUID), called=called)
    asked = [ct.StudyInstanceUID, originals["dx_image.dcm"].StudyInstanceUID]
    assert not _matches(node, _keys("STUDY", StudyInstanceUID=asked), called=called)
    moved = _move(node, called=called, StudyInstanceUID=str(ct.StudyInstanceUID))
    assert (moved.Status, moved.NumberOfCompletedSuboperations, moved.NumberOfFailedSuboperations) == (0, 0, 0)


def _move(node, level="STUDY", *, called="TEACHING", calling="VIEWER", **keys):
    entity = AE(calling)
    entity.add_requested_context(STUDY_ROOT_MOVE)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    *_, (last, _) = assoc.send_c_move(_keys(level, **keys), "STORESCP", STUDY_ROOT_MOVE)
    assoc.release()
    return last


@pytest.mark.parametrize(
    "asked",
    [
        {"PatientName": "CompressedSamples*"},
        {"PatientName": "Nobody*"},
        {"PatientBirthDate": "19000101-"},
        {"AccessionNumber": "nothing"},
        {"StudyDate": "20040119"},
        {"StudyDate": "18000101-18010101"},
        {"StudyDescription": "e+1"},
        {"IssuerOfPatientID": "X"},
        {"InstitutionName": "none"},
    ],
)
def test_what_the_profile_does_not_keep_selects_nothing_and_says_so(node, asked):
    answers = _find(node, _keys("STUDY", ["StudyInstanceUID"], **asked))
    assert [status.Status for status, _ in answers] == [0xFF01, 0xFF01, 0x0000]


def test_what_the_profile_keeps_selects(node):
    assert len(_matches(node, _keys("STUDY", StudyDate="20040119"), called="DATED")) == 1
    assert len(_matches(node, _keys("STUDY", StudyDate="18000101-18010101"), called="DATED")) == 0
    answers = _find(node, _keys("STUDY", StudyDate="20040119"), called="MOVED")
    assert [status.Status for status, _ in answers] == [0xFF01, 0xFF01, 0x0000], "moved dates are not matched"
    assert len(_matches(node, _keys("STUDY", ModalitiesInStudy="DX"))) == 1


def test_a_pseudonym_is_matched_and_the_patient_id_is_not(node, originals):
    answers = _matches(node, _keys("STUDY", ASKED))
    pseudonyms = {each.PatientID for each in answers}
    assert len(pseudonyms) == 2
    for pseudonym in pseudonyms:
        for value in (pseudonym, f"{pseudonym[:9]}*", f"*{pseudonym[5:]}"):
            assert [each.PatientID for each in _matches(node, _keys("STUDY", PatientID=value))] == [pseudonym]
        [patient] = _matches(node, _keys("PATIENT", PatientID=pseudonym), PATIENT_ROOT_FIND)
        assert patient.PatientID == pseudonym
    for original in {str(each.PatientID) for each in originals.values()}:
        assert not _matches(node, _keys("STUDY", PatientID=original))
        assert not _matches(node, _keys("STUDY", PatientID=f"{original[:2]}*"))


@pytest.mark.parametrize("asked", [["StudyDate"], ["StudyTime"], ["StudyDate", "StudyTime", "PatientID"]])
def test_moved_dates_are_those_of_the_objects_whatever_is_asked_for(start_node, storescp, make_file, asked):
    viewer = {"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1]}
    node = start_node(entities=[viewer], titles=TITLES, profiles=PROFILES)
    node.archive.ingest(make_file(1, StudyTime="000000"))
    [match] = _matches(node, _keys("STUDY", ["StudyInstanceUID", *asked]), called="MOVED")
    assert _move(node, called="MOVED", StudyInstanceUID=match.StudyInstanceUID).NumberOfCompletedSuboperations == 1
    [received] = [pydicom.dcmread(each) for each in storescp[0].iterdir()]
    assert received.StudyDate not in ("", "20240102")
    assert [match[keyword].value for keyword in asked] == [received[keyword].value for keyword in asked]
    assert "PatientID" in asked or "PatientID" not in match
    assert ("StudyDate" in match, "StudyTime" in match) == ("StudyDate" in asked, "StudyTime" in asked)


def test_patients_of_two_issuers_stay_two(start_node, make_file):
    node = start_node(titles=TITLES, profiles=PROFILES)
    for number, issuer in ((1, "NORTH"), (2, "SOUTH")):
        node.archive.ingest(make_file(number, IssuerOfPatientID=issuer, StudyInstanceUID=f"1.2.3.{number}"))
    answers = _matches(node, _keys("STUDY", ["PatientID"]))
    assert len({each.PatientID for each in answers}) == 2
    for each in answers:
        assert len(_matches(node, _keys("STUDY", PatientID=each.PatientID))) == 1


def test_a_profile_that_retains_uids_takes_them(node, originals):
    uid = str(originals["ct_image.dcm"].StudyInstanceUID)
    [match] = _matches(node, _keys("STUDY", StudyInstanceUID=uid), called="UIDS")
    assert match.StudyInstanceUID == uid


@pytest.mark.parametrize("also", [[], ["PatientName"], ["PatientName", "ReferringPhysicianName", "AccessionNumber"]])
def test_what_identifies_somebody_leaves_free_text_whether_it_is_asked_for_or_not(start_node, make_file, also):
    node = start_node(titles=TITLES, profiles=PROFILES)
    node.archive.ingest(make_file(
        1, PatientName="White^Betty", ReferringPhysicianName="Brown^X", StudyDescription="CT head White Brown"
    ))  # fmt: skip
    [match] = _matches(node, _keys("STUDY", ["StudyDescription", *also], StudyInstanceUID=""), called="WORDS")
    assert match.StudyDescription == "CT head"
    assert ("PatientName" in match) == ("PatientName" in also)
    assert "White" not in str(match)


def test_the_character_set_of_an_answer_does_not_tell_what_letters_a_name_has(start_node, make_file):
    node = start_node(titles=TITLES, profiles=PROFILES)
    node.archive.ingest(make_file(1, PatientName="山田^太郎", SpecificCharacterSet="ISO_IR 192"))
    [match] = _matches(node, _keys("STUDY", ["StudyDescription"], StudyInstanceUID=""), called="WORDS")
    assert match.get("SpecificCharacterSet", "") == ""


def test_wild_cards_in_a_uid_are_refused_as_everywhere(node):
    [(status, _)] = _find(node, _keys("STUDY", StudyInstanceUID="2.25.*"))
    assert status.Status == 0xA900


def test_sequences_are_not_matched_either(node, start_node, make_file):
    request = Dataset()
    request.AccessionNumber, request.StudyInstanceUID = "A-17", "1.2.3.4.5"
    node.archive.ingest(make_file(1, RequestAttributesSequence=[request]))
    asked = Dataset()
    asked.AccessionNumber, asked.StudyInstanceUID = "A-99", ""
    [study] = [each for each in _matches(node, _keys("STUDY", ASKED)) if [each.ModalitiesInStudy] == ["CT"]]
    answers = _find(node, _keys("SERIES", StudyInstanceUID=study.StudyInstanceUID, RequestAttributesSequence=[asked]))
    assert [status.Status for status, _ in answers] == [0xFF01, 0x0000]
    assert b"A-17" not in str(answers[0][1]).encode()
    assert "1.2.3.4.5" not in str(answers[0][1])


def test_a_move_by_told_uids_brings_the_objects(node, storescp, told, dcmtk, originals):
    [ct] = _matches(node, _keys("STUDY", ASKED, ModalitiesInStudy="CT"))
    dcmtk(
        "movescu", "-S", "-aec", "TEACHING", "-aem", "STORESCP", "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={ct.StudyInstanceUID}",
    )  # fmt: skip
    received = [pydicom.dcmread(path) for path in storescp[0].iterdir()]
    assert sorted(each.Modality for each in received) == ["CT", "SEG", "SR"]
    assert {each.StudyInstanceUID for each in received} == {ct.StudyInstanceUID}
    assert {each.PatientID for each in received} == {ct.PatientID}
    assert leaked(storescp[0], told) == set()
    # What an object refers to can be asked for, though no answer has told it.
    [seg] = [each for each in received if each.Modality == "SEG"]
    series = seg.ReferencedSeriesSequence[0]
    moved = _move(
        node, "IMAGE", StudyInstanceUID=ct.StudyInstanceUID, SeriesInstanceUID=series.SeriesInstanceUID,
        SOPInstanceUID=series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID,
    )  # fmt: skip
    assert (moved.Status, moved.NumberOfCompletedSuboperations) == (0x0000, 1)


def test_a_get_at_the_view(node, dcmtk, tmp_path, told):
    [dx] = _matches(node, _keys("STUDY", ASKED, ModalitiesInStudy="DX"))
    folder = tmp_path / "got"
    folder.mkdir()
    dcmtk(
        "getscu", "-S", "-aec", "TEACHING", "-od", str(folder), "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={dx.StudyInstanceUID}",
    )  # fmt: skip
    [path] = folder.iterdir()
    assert pydicom.dcmread(path, force=True).StudyInstanceUID == dx.StudyInstanceUID
    assert leaked(folder, told) == set()


@pytest.mark.parametrize("by_get", [False, True])
def test_what_is_cut_off_is_found_and_fails_alone(start_node, storescp, make_file, by_get):
    viewer = {"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1]}
    node = start_node(entities=[viewer], titles=TITLES, profiles=PROFILES)
    cut_off = make_file(1)
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    assert node.archive.ingest(cut_off).cut_off
    node.archive.ingest(make_file(2))
    [study] = _matches(node, _keys("STUDY", ["StudyInstanceUID"]))
    [series] = _matches(node, _keys("SERIES", ["SeriesInstanceUID"], StudyInstanceUID=study.StudyInstanceUID))
    images = _matches(node, _keys("IMAGE", ["SOPInstanceUID"], StudyInstanceUID=series.StudyInstanceUID,
                                  SeriesInstanceUID=series.SeriesInstanceUID))  # fmt: skip
    identifier = _keys("STUDY", StudyInstanceUID=series.StudyInstanceUID)
    entity, got = AE("VIEWER"), []
    entity.add_requested_context(STUDY_ROOT_MOVE)
    entity.add_requested_context(STUDY_ROOT_GET)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)

    def keep(event):
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    assoc = entity.associate(
        "127.0.0.1", node.port, ae_title="TEACHING", ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    *_, (last, failed) = (
        assoc.send_c_get(identifier, STUDY_ROOT_GET)
        if by_get
        else assoc.send_c_move(identifier, "STORESCP", STUDY_ROOT_MOVE)
    )
    assoc.release()
    got += [str(pydicom.dcmread(path).SOPInstanceUID) for path in storescp[0].iterdir()]
    assert (last.Status, last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (0xB000, 1, 1)
    assert "cut off" in last.ErrorComment
    assert sorted([failed.FailedSOPInstanceUIDList, *got]) == sorted(each.SOPInstanceUID for each in images)
    assert not list(node.archive.incoming.iterdir())


def test_a_lenient_ae_does_not_retrieve_by_what_is_not_matched(start_node, storescp, make_file):
    entities = [
        {"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1]},
        {"title": "OLD", "rights": ["find", "move"], "lenient": True},
    ]
    node = start_node(entities=entities, titles=TITLES, profiles=PROFILES)
    node.archive.ingest(make_file(1))
    assert _move(node, calling="OLD", AccessionNumber="A1").Status == 0xA900
    assert _move(node, calling="OLD", AccessionNumber="none").Status == 0xA900
    assert _move(node, calling="OLD", PatientID="P1").NumberOfCompletedSuboperations == 0
    [match] = _matches(node, _keys("STUDY", ["PatientID"]))
    assert _move(node, calling="OLD", PatientID=match.PatientID).NumberOfCompletedSuboperations == 1


def test_a_view_stores_nothing_and_commits_nothing(node, make_file):
    entity = AE("VIEWER")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(STORAGE_COMMITMENT)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="TEACHING")
    stored = assoc.send_c_store(str(make_file(1)))
    information = request_information("1.2.3", [Reference(CTImageStorage, "1.2.3.4")])
    status, _ = assoc.send_n_action(information, 1, STORAGE_COMMITMENT, SOP_INSTANCE_UID)
    assoc.release()
    assert (stored.Status, status.Status) == (0x0122, 0x0122)
    assert not list(node.archive.incoming.iterdir())


def test_the_rights_of_the_caller_hold_at_a_view(start_node, make_file):
    entities = [{"title": "STUDENT", "rights": ["store"]}]
    node = start_node(entities=entities, titles=TITLES, profiles=PROFILES)
    node.archive.ingest(make_file(1))
    [(status, _)] = _find(node, _keys("STUDY"), calling="STUDENT")
    assert status.Status == 0x0124


def test_a_destination_with_a_profile_gets_its_own(start_node, storescp, make_file):
    entities = [{"title": "STORESCP", "host": "127.0.0.1", "port": storescp[1], "profile": "uids"}]
    node = start_node(entities=entities, titles=TITLES, profiles=PROFILES)
    path = make_file(1)
    node.archive.ingest(path)
    [match] = _matches(node, _keys("STUDY", ["StudyInstanceUID"]))
    assert _move(node, StudyInstanceUID=match.StudyInstanceUID).NumberOfCompletedSuboperations == 1
    [received] = [pydicom.dcmread(each) for each in storescp[0].iterdir()]
    assert received.StudyInstanceUID == pydicom.dcmread(path).StudyInstanceUID
    assert received.PatientIdentityRemoved == "YES"


def test_a_rebuilt_catalogue_still_understands_what_was_told(node, originals):
    [ct] = _matches(node, _keys("STUDY", ASKED, ModalitiesInStudy="CT"))
    data = node.archive.data
    node.server.stop(1.0)
    rebuild(data, settle_time_s=0.0, on_file=lambda *_: None)
    fresh = Archive(data)
    rows = fresh.database.execute("SELECT original FROM told WHERE uid = ?", (ct.StudyInstanceUID,)).fetchall()
    assert rows == [(str(originals["ct_image.dcm"].StudyInstanceUID),)]
