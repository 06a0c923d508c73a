"""Sequence matching (PS3.4 C.2.2.2.6): items stored and asked for, which match, and what is returned of them."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from index.archive import Archive
from index.errors import InvalidIdentifier
from index.keys import SEQUENCES, Level
from index.query import Model, parse_identifier

STUDY, SERIES = "1.2.826.0.1.3680043.9.7133.1", "1.2.826.0.1.3680043.9.7133.2"


def item(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, Sequence(value) if keyword.endswith("Sequence") else value)
    return dataset


def code(value="", scheme="", meaning="", **more):
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)


HEAD = code("24725-4", "LN", "CT Head", ContextUID="1.2.840.10008.6.1.494")
CHEST = code("24627-2", "LN", "CT Chest")
LOCAL = code("24725-4", "99LOCAL", "Something else")
REQUEST = item(
    RequestedProcedureID="RP1", ScheduledProcedureStepID="SPS1", RequestedProcedureDescription="Schädel",
    ScheduledProtocolCodeSequence=[code("P1", "99X", "Protocol one"), code("P2", "99X", "Protocol two")],
)  # fmt: skip
OTHER_REQUEST = item(RequestedProcedureID="RP2", ScheduledProcedureStepID="SPS2")


@pytest.fixture(params=[True, False], ids=["undefined-length", "defined-length"])
def filled(request, archive, make_instance):
    """One study with two procedure codes, a series of two requests, an image of a region; one study without any."""
    sequences = {
        "ProcedureCodeSequence": [HEAD, CHEST],
        "RequestAttributesSequence": [REQUEST, OTHER_REQUEST],
        "AnatomicRegionSequence": [code("69536005", "SCT", "Head")],
    }
    content = make_instance(1, SpecificCharacterSet="ISO_IR 100", **{
        keyword: _sequence(items, request.param) for keyword, items in sequences.items()
    })  # fmt: skip
    archive.ingest(content)
    archive.ingest(make_instance(2, StudyInstanceUID="1.3", SeriesInstanceUID="1.3.1"))
    archive.ingest(make_instance(3, StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1", ProcedureCodeSequence=[LOCAL]))
    return archive


def _sequence(items, undefined):
    sequence = Sequence(items)
    sequence.is_undefined_length = undefined
    return sequence


@pytest.mark.parametrize(
    ("asked", "studies"),
    [
        ([code("24725-4")], {STUDY, "1.4"}),
        ([code("24725-4", "LN")], {STUDY}),
        ([code("24725-4", "99LOCAL")], {"1.4"}),
        ([code("24627-2", "LN")], {STUDY}),
        ([code("24725-4", "LN", "CT Chest")], set()),  # no one item has all three
        ([code("24627-2", "99LOCAL")], set()),
        ([code(meaning="CT*")], {STUDY}),
        ([code("247?5-4")], {STUDY, "1.4"}),
        ([item(ContextUID=["1.2.3", "1.2.840.10008.6.1.494"])], {STUDY}),
        ([code("24725_4")], set()),
        ([code("1", "2", "3")], set()),
        ([code()], {STUDY, "1.3", "1.4"}),
        ([Dataset()], {STUDY, "1.3", "1.4"}),
        ([], {STUDY, "1.3", "1.4"}),
        ([code("*", "*")], {STUDY, "1.3", "1.4"}),
    ],
)
def test_all_keys_have_to_hold_in_one_item(asked, studies, filled, ask):
    answers = ask(filled, ProcedureCodeSequence=Sequence(asked), supported=True)
    assert {answer.StudyInstanceUID for answer in answers} == studies


@pytest.mark.parametrize(
    ("level", "sequence", "asked", "found"),
    [
        ("SERIES", "RequestAttributesSequence", item(ScheduledProcedureStepID="SPS1"), 1),
        ("SERIES", "RequestAttributesSequence", item(ScheduledProcedureStepID="SPS1", RequestedProcedureID="RP2"), 0),
        ("SERIES", "RequestAttributesSequence", item(RequestedProcedureDescription="Sch?del"), 1),
        ("SERIES", "RequestAttributesSequence", item(ScheduledProtocolCodeSequence=[code("P2")]), 1),
        ("SERIES", "RequestAttributesSequence", item(ScheduledProtocolCodeSequence=[code("P3")]), 0),
        ("SERIES", "RequestAttributesSequence",
         item(ScheduledProcedureStepID="SPS2", ScheduledProtocolCodeSequence=[code("P2")]), 0),
        ("IMAGE", "AnatomicRegionSequence", code("69536005", "SCT"), 1),
        ("IMAGE", "AnatomicRegionSequence", code("69536005", "SRT"), 0),
        ("IMAGE", "ProcedureCodeSequence", code("24725-4"), 1),
        ("IMAGE", "RequestAttributesSequence", item(ScheduledProcedureStepID="SPS9"), 0),
    ],
)  # fmt: skip
def test_sequences_of_each_level_and_sequences_inside_items(level, sequence, asked, found, filled, ask):
    unique = {"StudyInstanceUID": STUDY} | ({"SeriesInstanceUID": SERIES} if level == "IMAGE" else {})
    answers = ask(filled, level, SpecificCharacterSet="ISO_IR 100", **unique, **{sequence: Sequence([asked])})
    assert len(answers) == found


def test_the_items_that_match_are_returned_with_just_what_was_asked_for(filled, ask):
    (answer,) = ask(filled, StudyInstanceUID=STUDY, ProcedureCodeSequence=Sequence([code("24627-2")]))
    (returned,) = answer.ProcedureCodeSequence
    assert {each.keyword for each in returned} == {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"}
    assert (returned.CodeValue, returned.CodingSchemeDesignator, returned.CodeMeaning) == ("24627-2", "LN", "CT Chest")
    (answer,) = ask(filled, StudyInstanceUID=STUDY, ProcedureCodeSequence=Sequence([item(CodeValue="")]))
    assert [[each.keyword for each in returned] for returned in answer.ProcedureCodeSequence] == [["CodeValue"]] * 2


@pytest.mark.parametrize("asked", [[], [Dataset()]], ids=["no-item", "empty-item"])
def test_an_empty_sequence_key_returns_the_whole_sequence(asked, filled, ask):
    answers = ask(filled, ProcedureCodeSequence=Sequence(asked), supported=True)
    codes = {answer.StudyInstanceUID: list(answer.ProcedureCodeSequence) for answer in answers}
    assert codes == {STUDY: [HEAD, CHEST], "1.3": [], "1.4": [LOCAL]}
    (answer,) = ask(filled, "SERIES", StudyInstanceUID=STUDY, RequestAttributesSequence=Sequence(asked))
    assert list(answer.RequestAttributesSequence) == [REQUEST, OTHER_REQUEST]
    assert answer.SpecificCharacterSet == "ISO_IR 100"  # as stored, for the text inside


def test_text_inside_items_chooses_the_character_set_of_the_answer(filled, ask):
    for charset, expected in (("ISO_IR 192", "ISO_IR 192"), ("ISO_IR 144", "ISO_IR 100")):
        (answer,) = ask(filled, "SERIES", StudyInstanceUID=STUDY, SpecificCharacterSet=charset,
                        RequestAttributesSequence=Sequence([item(RequestedProcedureDescription="")]))  # fmt: skip
        assert answer.SpecificCharacterSet == expected
        assert answer.RequestAttributesSequence[0].RequestedProcedureDescription == "Schädel"


def test_a_character_set_of_its_own_in_an_item(archive, make_instance, ask):
    request = item(SpecificCharacterSet="ISO_IR 144", RequestedProcedureDescription="Грудь")
    archive.ingest(make_instance(1, SpecificCharacterSet="ISO_IR 100", RequestAttributesSequence=[request]))
    asked = item(SpecificCharacterSet="ISO_IR 192", RequestedProcedureDescription="Гр*")
    (answer,) = ask(archive, "SERIES", StudyInstanceUID=STUDY, RequestAttributesSequence=Sequence([asked]))
    assert answer.RequestAttributesSequence[0].RequestedProcedureDescription == "Грудь"


@pytest.mark.parametrize(
    ("keyword", "items", "level"),
    [
        ("ReferencedStudySequence", [item(ReferencedSOPInstanceUID="1.2")], "STUDY"),
        ("ContentSequence", [], "IMAGE"),
        ("ProcedureCodeSequence", [item(CodeValue="", EquivalentCodeSequence=[code("X")])], "STUDY"),
        ("ProcedureCodeSequence", [item(CodeValue="", ContextGroupVersion="20240101")], "STUDY"),
        ("RequestAttributesSequence", [item(ScheduledProcedureStepID="X")], "STUDY"),  # below the level
    ],
)
def test_what_is_not_in_the_documented_set_is_unsupported_and_returned_empty(keyword, items, level, filled, ask):
    unique = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES} if level == "IMAGE" else {"PatientID": "P1"}
    answers = ask(filled, level, **unique, **{keyword: Sequence(items)}, supported=False)
    assert len(answers) == (1 if level == "IMAGE" else 3)
    inside = [each for answer in answers for each in answer.get(keyword)]
    if keyword == "ProcedureCodeSequence":
        assert len(inside) == 3
        (_, unsupported) = items[0]
        assert all(each[unsupported.tag].is_empty and each.CodeValue for each in inside)
    else:
        assert not inside


@pytest.mark.parametrize(
    ("items", "element"),
    [([code("1"), code("2")], "ProcedureCodeSequence"), ([item(ContextUID="1.2.*")], "ContextUID")],
)
def test_a_malformed_sequence_key_is_refused_and_named(items, element, transmit):
    identifier = item(QueryRetrieveLevel="STUDY", ProcedureCodeSequence=items)
    with pytest.raises(InvalidIdentifier) as caught:
        parse_identifier(transmit(identifier), Model.STUDY_ROOT)
    assert caught.value.element == element


def test_items_go_with_what_they_belong_to(filled):
    assert filled.database.execute("SELECT count(*) FROM item").fetchone()[0] > 4
    filled.delete(Level.STUDY, STUDY)
    filled.delete(Level.STUDY, "1.4")
    assert filled.database.execute("SELECT count(*) FROM item").fetchone()[0] == 0


@pytest.mark.parametrize(
    "damage", [b"\xfe\xff\x00\xe0\xff\xff\xff\x7f", b"\xfe\xff\x00\xe0\x04\0\0\0\x08\0\0\x01", b"junk"]
)
def test_a_sequence_that_cannot_be_read_counts_as_absent(damage, archive, make_instance, ask):
    content = make_instance(1, PixelData=None)
    place = content.index(b"\x10\x00\x10\x00PN")
    broken = b"\x08\x00\x32\x10SQ\0\0" + len(damage).to_bytes(4, "little") + damage
    archive.ingest(content[:place] + broken + content[place:])
    (answer,) = ask(archive, ProcedureCodeSequence=Sequence([]))
    assert len(answer.ProcedureCodeSequence) == 0


def test_an_older_catalogue_gets_the_table_and_answers_without_items(tmp_path, make_instance, ask):
    """A catalogue of before sequences were indexed: the migration makes the table; `tharsis rebuild` fills it."""
    archive = Archive(tmp_path / "old")
    archive.ingest(make_instance(1, ProcedureCodeSequence=[HEAD]))
    with archive.transaction() as database:
        database.execute("DROP TABLE item")
        for table in ("patient", "study", "series", "instance"):
            for column in ("timezone_offset_from_utc", "originals"):
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = 'queries'")
    archive.close()
    (answer,) = ask(Archive(tmp_path / "old"), ProcedureCodeSequence=Sequence([]))
    assert len(answer.ProcedureCodeSequence) == 0


def test_an_attribute_that_the_table_gained_gets_its_column(tmp_path, make_instance, ask):
    archive = Archive(tmp_path / "old")
    with archive.transaction() as database:
        database.execute("ALTER TABLE item DROP COLUMN code_meaning")
    archive.close()
    archive = Archive(tmp_path / "old")
    archive.ingest(make_instance(1, ProcedureCodeSequence=[HEAD]))
    assert len(ask(archive, ProcedureCodeSequence=Sequence([code(meaning="CT Head")]))) == 1


def test_codes_are_found_by_an_index(filled):
    plan = filled.database.execute(
        "EXPLAIN QUERY PLAN SELECT 1 FROM study WHERE study.id IN "
        "(SELECT item.study FROM item WHERE item.sequence = ? AND item.code_value = ?)", ("A", "B"),
    ).fetchall()  # fmt: skip
    assert any("item_code" in row[-1] for row in plan)


def test_the_table_of_sequences_speaks_of_sequences():
    from pydicom.datadict import dictionary_VR

    for key in SEQUENCES.values():
        assert dictionary_VR(key.keyword) == "SQ"
        assert all(dictionary_VR(inner.keyword) == "SQ" for inner in key.sequences)
        assert all(dictionary_VR(attribute.keyword) != "SQ" for attribute in key.keys)
