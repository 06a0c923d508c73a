"""Labels from keywords of every level, from code sequences and from tables; each mistake is one sentence."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from index.labels import InvalidLabels, read_labels, unlabelled

ROOT = "1.2.826.0.1.3680043.9.7133"
A, B, C = (f"{ROOT}.2.{number}" for number in (1, 2, 3))  # series; A and B are of patient P1 and study 1


def code(**values: str) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


@pytest.fixture
def filled(archive, make_instance):
    """Series A (2 images) and B of P1, C of P2."""
    diagnosis = Sequence([code(CodeValue="", CodeMeaning=""), code(CodeValue="J18.9", CodeMeaning="Pneumonia")])
    rows = [
        (1, A, 1, "P1", {"BodyPartExamined": "CHEST", "ImageComments": ""}),
        (2, A, 1, "P1", {"BodyPartExamined": "CHEST", "ImageComments": "second"}),
        (3, B, 1, "P1", {"BodyPartExamined": "", "AdmittingDiagnosesCodeSequence": diagnosis}),
        (4, C, 2, "P2", {"BodyPartExamined": "HÄNDE", "PatientSex": "F", "KVP": "120", "ScanOptions": ["HELIX", "FAST"],
                         "AdmittingDiagnosesCodeSequence": Sequence([code(CodeValue="X1")])}),
    ]  # fmt: skip
    for number, series, study, patient, more in rows:
        archive.ingest(
            make_instance(
                number, SpecificCharacterSet="ISO_IR 192", SeriesInstanceUID=series, PatientID=patient,
                StudyInstanceUID=f"{ROOT}.1.{study}", **more,
            )
        )  # fmt: skip
    return archive


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ("BodyPartExamined", {A: "CHEST", C: "HÄNDE"}),
        ("PatientSex", {C: "F"}),
        ("StudyDescription", {A: "Head", B: "Head", C: "Head"}),
        ("ImageComments", {A: "second"}),
        ("NumberOfSeriesRelatedInstances", {A: "2", B: "1", C: "1"}),
        ("KVP", {C: "120"}),
        ("ScanOptions", {C: "HELIX\\FAST"}),
        ("AdmittingDiagnosesCodeSequence", {B: "Pneumonia", C: "X1"}),
        ("ContrastBolusAgent", {}),
    ],
)
def test_labels_come_from_keywords_of_every_level(filled, source, labels):
    assert read_labels(filled, source) == labels
    assert unlabelled(filled, labels) == 3 - len(labels)


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("patient,label\nP1,ill\nP2,well\nP3,elsewhere\n", {A: "ill", B: "ill", C: "well"}),
        (f"{ROOT}.1.2,well\n", {C: "well"}),
        (f"P1,ill\n{B},worse\n", {A: "ill", B: "worse"}),
        (f"{ROOT}.9.2,from an image,and more\n\n{ROOT}.9.1,from an image\n", {A: "from an image"}),
        ('\ufeff"P2","wörtlich, in quotes"\r\n', {C: "wörtlich, in quotes"}),
    ],
)
def test_labels_come_from_a_table(filled, tmp_path, table, labels):
    file = tmp_path / "labels.csv"
    file.write_bytes(table.encode())
    assert read_labels(filled, str(file)) == labels


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"P1,ill\nP2\n", "line 2: expected 2 columns, separated by a comma, got 1"),
        (b"P1,ill\n\nP2, \n", "line 3: the second column is empty"),
        (b",ill\n", "line 1: the first column is empty"),
        (b"P1,ill\nP1,well\n", "lines 1 and 2: 'P1' is 'ill' in one and 'well' in the other"),
        (f"{ROOT}.9.2,one\n{ROOT}.9.1,two\n".encode(), f"lines 1 and 2: series {A} gets two labels by SOP"),
        (b"P7,ill\nP8,well\n", "none of its 2 lines names"),
        (b"", "it is empty"),
        (b"P1,\xff\n", "expected text in UTF-8"),
        (b'P1,"ill\n', "no CSV after line 0: unexpected end of data"),
    ],
)
def test_a_mistake_in_a_table_is_told_with_its_line(filled, tmp_path, table, said):
    file = tmp_path / "labels.csv"
    file.write_bytes(table)
    with pytest.raises(InvalidLabels) as told:
        read_labels(filled, str(file))
    assert str(told.value).startswith(str(file))
    assert said in str(told.value)


@pytest.mark.parametrize("source", ["Unicorn", "absent.csv", ""])
def test_a_source_is_a_keyword_or_a_file(filled, source):
    with pytest.raises(InvalidLabels, match="is neither"):
        read_labels(filled, source)


def test_a_series_that_cannot_be_read_has_no_label(filled, caplog):
    row = filled.database.execute("SELECT path FROM instance WHERE sop_instance_uid = ?", (f"{ROOT}.9.4",)).fetchone()
    filled.files.path(row[0]).write_bytes(b"no DICOM")
    assert read_labels(filled, "KVP") == {}
    assert f"series {C} has no label" in caplog.text
