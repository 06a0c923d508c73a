"""C-FIND, row by row."""

from __future__ import annotations

import unicodedata
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, MRImageStorage

from benchmarks.conformance.case import NotTried, case, check, explained
from benchmarks.conformance.cases_matching import INVALID, refused_with, series_keys
from benchmarks.conformance.probe import Bench, encode
from benchmarks.conformance.wire import Context

C_FIND = "C-FIND"


# Levels

@case(C_FIND, "levels", "PATIENT, STUDY, SERIES, IMAGE in Patient Root; STUDY, SERIES, IMAGE in Study Root",
      clause="PS3.4 C.6.1.1, C.6.2.1", expected="one row at each")
def levels(bench: Bench) -> str:
    bench.put(bench.image())
    for model, names in (("P", ("PATIENT", "STUDY", "SERIES", "IMAGE")), ("S", ("STUDY", "SERIES", "IMAGE"))):
        keys: dict[str, Any] = {"PatientID": bench.patient} if model == "P" else {}
        for name, keyword in zip(
            ("PATIENT", "STUDY", "SERIES", "IMAGE"),
            ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), strict=True,
        ):
            if name in names:
                rows = bench.rows(model, name, **{keyword: None, **keys, **(
                    {"PatientID": bench.patient} if name == "STUDY" else {})})
                check(len(rows) == 1, f"{name} in {model} Root: {len(rows)} rows")
            if name in ("STUDY", "SERIES"):
                keys |= {keyword: bench.study if name == "STUDY" else bench.series}
    return "one row at each"


@case(C_FIND, "levels", "PATIENT in Study Root", clause="PS3.4 C.6.2.1, C.4.1.1.4", expected="A900")
def patient_in_study_root(bench: Bench) -> str:
    bench.put(bench.image())
    return refused_with(bench, INVALID, "S", "PATIENT", PatientID=bench.patient)


@case(C_FIND, "levels", "a level in lower case", clause="PS3.4 C.6, PS3.5 6.2 CS", expected="A900")
def lower_case_level(bench: Bench) -> str:
    bench.put(bench.image())
    return refused_with(bench, INVALID, "S", "study", PatientID=bench.patient, StudyInstanceUID=None)


@case(C_FIND, "levels", "a level that does not exist", clause="PS3.4 C.6", expected="A900")
def unknown_level(bench: Bench) -> str:
    return refused_with(bench, INVALID, "S", "FRAME", StudyInstanceUID=bench.study)


@case(C_FIND, "levels", "a lenient AE may write the level in lower case, and PATIENT in Study Root", clause="-",
      expected="the row")
def lenient_level(bench: Bench) -> str:
    bench.put(bench.image())
    for level, keyword in (("study", "StudyInstanceUID"), ("PATIENT", "PatientID")):
        keys = {"PatientID": bench.patient, **({keyword: None} if keyword != "PatientID" else {})}
        answers = bench.find("S", level, calling="LENIENT", **keys)
        check(answers.status == 0 and len(answers.rows) == 1, f"{level}: {answers.code}, {len(answers.rows)} rows")
    return "answered"


@case(C_FIND, "missing level", "no Query/Retrieve Level", clause="PS3.4 C.4.1.1.3", expected="A900")
def missing_level(bench: Bench) -> str:
    bench.put(bench.image())
    return refused_with(bench, INVALID, "S", None, PatientID=bench.patient, StudyInstanceUID=None)


@case("All services", "Status", "a C-FIND failure carries Error Comment and Offending Element in the command set",
      clause="PS3.7 C.4, 9.3.2.2", expected="(0000,0902) ≤ 64 characters; (0000,0901) = (0008,0052)")
def find_failure_is_explained(bench: Bench) -> str:
    answers = bench.find("S", None, StudyInstanceUID=bench.study)
    check(answers.status not in (0, 0xFF00), answers.code)
    return explained(answers.final, 0x00080052)


# Rows

@case(C_FIND, "rows", "one for each entity: 1 patient, 2 studies, 3 series, 5 images", clause="PS3.4 C.4.1.3.1",
      expected="1, 2, 3, 5 rows, no duplicates")
def one_row_per_entity(bench: Bench) -> str:
    second_series, other_study, other_series = bench.uid(), bench.uid(), bench.uid()
    bench.put(
        *(bench.image() for _ in range(2)), *(bench.image(SeriesInstanceUID=second_series) for _ in range(2)),
        bench.image(StudyInstanceUID=other_study, SeriesInstanceUID=other_series),
    )
    patient = {"PatientID": bench.patient}
    counts = [
        len(bench.rows("P", "PATIENT", **patient, PatientName=None)),
        len(bench.rows("P", "STUDY", **patient, StudyInstanceUID=None)),
        sum(len(bench.rows("P", "SERIES", **patient, StudyInstanceUID=study, SeriesInstanceUID=None))
            for study in (bench.study, other_study)),
        sum(len(bench.rows("P", "IMAGE", **patient, StudyInstanceUID=study, SeriesInstanceUID=series,
                           SOPInstanceUID=None))
            for study, series in ((bench.study, bench.series), (bench.study, second_series),
                                  (other_study, other_series))),
    ]
    check(counts == [1, 2, 3, 5], f"{counts} rows")
    return "1, 2, 3, 5 rows"


# Character sets

def _named(bench: Bench, name: str, charset: str | list[str], **more: Any) -> None:
    bench.put(bench.image(PatientName=name, SpecificCharacterSet=charset, **more))


def _found_by(bench: Bench, name: str, charset: str | None) -> None:
    keys: dict[str, Any] = {"SpecificCharacterSet": charset} if charset else {}
    rows = bench.rows("P", "PATIENT", PatientID=bench.patient, PatientName=name, **keys)
    check(len(rows) == 1, f"{name} in {charset or 'ASCII'}: {len(rows)} rows")


@case(C_FIND, "request charset", "a Latin-1 key finds a UTF-8 name, a UTF-8 key a Latin-1 name",
      clause="PS3.4 C.2.2.2, PS3.3 C.12.1.1.2", expected="one row each")
def latin1_and_utf8(bench: Bench) -> str:
    _named(bench, "Müller^Jörg", "ISO_IR 192")
    _found_by(bench, "Müller^Jörg", "ISO_IR 100")
    bench.renew()
    _named(bench, "Müller^Jörg", "ISO_IR 100")
    _found_by(bench, "Müller^Jörg", "ISO_IR 192")
    return "found"


@case(C_FIND, "request charset", "Greek and Japanese keys find UTF-8 names", clause="PS3.3 C.12.1.1.2",
      expected="one row each")
def greek_and_japanese(bench: Bench) -> str:
    _named(bench, "Διονυσιος", "ISO_IR 192")
    _found_by(bench, "Διονυσιος", "ISO_IR 126")
    bench.renew()
    _named(bench, "Yamada^Tarou=山田^太郎", "ISO_IR 192")
    keys = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]}
    rows = bench.rows("P", "PATIENT", PatientID=bench.patient, PatientName="Yamada^Tarou=山田^太郎", **keys)
    check(len(rows) == 1, f"ISO 2022 IR 87: {len(rows)} rows")
    return "found"


@case(C_FIND, "request charset", "a decomposed key (NFD) finds a composed name (NFC)", clause="Unicode UAX #15",
      expected="one row")
def normal_forms(bench: Bench) -> str:
    _named(bench, "Müller^Jörg", "ISO_IR 192", StudyDescription="Schädel")
    _found_by(bench, unicodedata.normalize("NFD", "Müller^Jörg"), "ISO_IR 192")
    rows = bench.rows("P", "STUDY", PatientID=bench.patient, StudyInstanceUID=None, SpecificCharacterSet="ISO_IR 192",
                      StudyDescription=unicodedata.normalize("NFD", "Schädel"))
    check(len(rows) == 1, f"LO in NFD: {len(rows)} rows")
    return "found"


def _answered(bench: Bench, asked: str | None, **keys: Any) -> Dataset:
    charset = {"SpecificCharacterSet": asked} if asked else {}
    rows = bench.rows("P", keys.pop("level", "PATIENT"), PatientID=bench.patient, **charset, **keys)
    check(len(rows) == 1, f"{len(rows)} rows")
    return rows[0]


@case(C_FIND, "answer charset", "the request's where it can represent the value", clause="PS3.4 C.2.2.2, C.4.1.1.3",
      expected="ISO_IR 100 and the whole name")
def answer_in_the_requests_charset(bench: Bench) -> str:
    _named(bench, "Müller^Jörg", "ISO_IR 192")
    row = _answered(bench, "ISO_IR 100", PatientName=None)
    check(str(row.PatientName) == "Müller^Jörg", f"{row.PatientName} in {row.get('SpecificCharacterSet')}")
    check(row.get("SpecificCharacterSet") == "ISO_IR 100", f"in {row.get('SpecificCharacterSet')}")
    return "ISO_IR 100"


JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


@case(C_FIND, "answer charset", "else the stored one: Japanese in ISO 2022 IR 87, asked in Latin-1",
      clause="PS3.4 C.4.1.1.3", expected="the whole name in the stored character set")
def answer_in_the_stored_charset(bench: Bench) -> str:
    _named(bench, JAPANESE, ["", "ISO 2022 IR 87"])
    row = _answered(bench, "ISO_IR 100", PatientName=None)
    check(str(row.PatientName) == JAPANESE, f"{row.PatientName} in {row.get('SpecificCharacterSet')}")
    check("ISO 2022 IR 87" in (row.get("SpecificCharacterSet") or ""), f"in {row.get('SpecificCharacterSet')}")
    return f"whole, in {'/'.join(row.SpecificCharacterSet)}"


@case(C_FIND, "answer charset", "never lossy: 山田^太郎 asked for without a character set", clause="PS3.4 C.4.1.1.3",
      expected="the whole name, with a character set that has it")
def answer_is_never_lossy(bench: Bench) -> str:
    _named(bench, JAPANESE, "ISO_IR 192")
    row = _answered(bench, None, PatientName=None)
    check(str(row.PatientName) == JAPANESE, f"{row.PatientName} in {row.get('SpecificCharacterSet')}")
    return f"whole, in {row.get('SpecificCharacterSet')}"


@case(C_FIND, "answer charset", "else ISO_IR 192: Greek patient, Cyrillic series in one row", clause="PS3.4 C.4.1.1.3",
      expected="both whole, ISO_IR 192")
def answer_in_utf8(bench: Bench) -> str:
    _named(bench, "Διονυσιος", "ISO_IR 126")
    other = bench.uid()
    # The second file names the patient alike, in the one repertoire that it has in common with Cyrillic: UTF-8 rows
    # of other tables stay Cyrillic.
    bench.put(bench.image(SpecificCharacterSet="ISO_IR 144", SeriesInstanceUID=other, SeriesDescription="Люкceмбypг",
                          PatientName=""))
    row = _answered(bench, "ISO_IR 100", level="SERIES", StudyInstanceUID=bench.study, SeriesInstanceUID=other,
                    PatientName=None, SeriesDescription=None)
    name, text = str(row.get("PatientName", "")), str(row.get("SeriesDescription", ""))
    check(text == "Люкceмбypг", f"series {text!r} in {row.get('SpecificCharacterSet')}")
    if not name:
        return f"series whole, in {row.get('SpecificCharacterSet')}; the patient's name is the second file's"
    check(name == "Διονυσιος", f"{name}, {text} in {row.get('SpecificCharacterSet')}")
    check(row.SpecificCharacterSet == "ISO_IR 192", f"in {row.SpecificCharacterSet}")
    return "both whole, ISO_IR 192"


# Person names

@case(C_FIND, "PN", "case- and accent-insensitive", clause="PS3.4 C.2.2.2.1 (may)",
      expected="doe^JOHN, Muller^Jorg found")
def pn_folded(bench: Bench) -> str:
    _named(bench, "Doe^John", "ISO_IR 192")
    _found_by(bench, "doe^JOHN", None)
    bench.renew()
    _named(bench, "Müller^Jörg", "ISO_IR 192")
    _found_by(bench, "muller^jorg", None)
    _found_by(bench, "MÜLLER^JÖRG", "ISO_IR 192")
    return "found"


@case(C_FIND, "PN", "trailing ^ is ignored", clause="PS3.5 6.2.1.1", expected="both ways")
def pn_trailing(bench: Bench) -> str:
    _named(bench, "Doe^John", "ISO_IR 192")
    _found_by(bench, "Doe^John^^^", None)
    bench.renew()
    _named(bench, "Doe^John^^", "ISO_IR 192")
    _found_by(bench, "Doe^John", None)
    return "found"


@case(C_FIND, "PN", "any component group matches: 山田*, Yamada^Tarou, やまだ*", clause="PS3.5 6.2.1.2",
      expected="one row each")
def pn_groups(bench: Bench) -> str:
    _named(bench, JAPANESE, "ISO_IR 192")
    for name in ("Yamada^Tarou", "yamada*", "山田*", "やまだ*"):
        _found_by(bench, name, "ISO_IR 192")
    return "found"


# Optional keys

@case(C_FIND, "unsupported optional key", "FF01, or FF00 where it is truly matched and returned",
      clause="PS3.4 C.4.1.1.4",
      expected="FF01 for every key that is not matched")
def unsupported_key(bench: Bench) -> str:
    bench.put(bench.image(PatientReligiousPreference="Probe", RegionOfResidence="Here"))
    for keyword in ("PatientReligiousPreference", "RegionOfResidence"):
        answers = bench.find("P", "PATIENT", PatientID=bench.patient, **{keyword: None})
        check(len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
        if answers.messages[0].status == 0xFF00:
            check(answers.rows[0].get(keyword), f"{keyword}: FF00, yet not returned")
            none = bench.find("P", "PATIENT", PatientID=bench.patient, **{keyword: "Elsewhere"})
            check(not none.rows, f"{keyword}: FF00, yet not matched")
            return "FF00, matched and returned"
        check(answers.messages[0].status == 0xFF01, f"{answers.messages[0].status:04X}")
    return "FF01"


@case(C_FIND, "unsupported optional key", "FF00 where every key is supported", clause="PS3.4 C.4.1.1.4",
      expected="FF00")
def supported_keys(bench: Bench) -> str:
    bench.put(bench.image())
    answers = bench.find("S", "STUDY", StudyInstanceUID=bench.study, PatientName=None, PatientID=None, StudyDate=None,
                         StudyTime=None, AccessionNumber=None, StudyID=None)
    check(len(answers.rows) == 1, f"{len(answers.rows)} rows")
    check(answers.messages[0].status == 0xFF00, f"{answers.messages[0].status:04X}")
    return "FF00"


@case(C_FIND, "key of a lower level", "Modality = CT at STUDY level is ignored, FF01", clause="PS3.4 C.4.1.2.2.1",
      expected="the MR study, FF01")
def key_of_a_lower_level(bench: Bench) -> str:
    bench.put(bench.image(Modality="MR", SOPClassUID=str(MRImageStorage)))
    answers = bench.find("S", "STUDY", StudyInstanceUID=bench.study, Modality="CT")
    check(answers.status == 0 and len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
    check(answers.messages[0].status == 0xFF01, f"row with {answers.messages[0].status:04X}")
    return "ignored, FF01"


# Many rows

MANY = 300


_STORED: dict[tuple[str, int], tuple[str, str]] = {}
"""Folder and port of a node → study and series of the images that the cases of many rows only read."""


def _many(bench: Bench) -> None:
    key = (str(bench.node.data), bench.node.port)
    if key in _STORED:
        bench.study, bench.series = _STORED[key]
        return
    contexts = [Context(CTImageStorage, (str(ImplicitVRLittleEndian),))]
    with bench.associate(contexts) as association:
        for _ in range(MANY):
            image = bench.image()
            data = encode(image, ImplicitVRLittleEndian)
            answer = bench.store_message(association, data, CTImageStorage, str(image.SOPInstanceUID))
            check(answer.status == 0, f"C-STORE answered {answer.status:04X}")
    _STORED[key] = bench.study, bench.series


@case(C_FIND, "C-CANCEL", f"sent right behind a query of {MANY} rows", clause="PS3.7 9.3.2.3, PS3.4 C.4.1.1.4 (FE00)",
      expected="FE00 within a few rows")
def cancel(bench: Bench) -> str:
    _many(bench)
    return _cancelled(bench, 20, cancel_after=0)


@case(C_FIND, "C-CANCEL", f"sent after the first of {MANY} rows, to a client that reads slowly",
      clause="PS3.7 9.3.2.3, PS3.4 C.4.1.1.4 (FE00)", expected="FE00 before the end: rows are streamed")
def cancel_in_the_stream(bench: Bench) -> str:
    _many(bench)
    return _cancelled(bench, MANY // 2, cancel_after=1, receive_buffer=4096)


def _cancelled(bench: Bench, most: int, **how: int) -> str:
    keys = dict.fromkeys((
        "SOPInstanceUID", "SOPClassUID", "InstanceNumber", "ImageComments", "Rows", "Columns", "PatientName",
        "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber", "Modality", "SeriesNumber",
    ))
    answers = bench.find("S", "IMAGE", **how, **series_keys(bench), **keys)
    did = f"{answers.code} after {len(answers.rows)} rows"
    check(answers.status == 0xFE00 and len(answers.rows) <= most, did)
    return did


@case(C_FIND, "too broad", f"all of {MANY} rows, none missing, none twice", clause="PS3.4 C.4.1.3.1",
      expected=f"{MANY} rows, 0000")
def broad(bench: Bench) -> str:
    _many(bench)
    found = bench.values("SOPInstanceUID", "S", "IMAGE", **series_keys(bench))
    check(len(found) == len(set(found)) == MANY, f"{len(found)} rows, {len(set(found))} different")
    return f"{MANY} rows, 0000"


@case(C_FIND, "too broad", "every study of the node, without any key", clause="PS3.4 C.4.1.3.1",
      expected="0000, with the one that was just stored")
def everything(bench: Bench) -> str:
    bench.put(bench.image())
    found = bench.values("StudyInstanceUID", "S", "STUDY")
    check(bench.study in found, f"0000 after {len(found)} rows without the newest")
    check(len(found) == len(set(found)), f"{len(found)} rows, {len(set(found))} different")
    return f"{len(found)} studies, 0000"


@case(C_FIND, "RetrieveAETitle, InstanceAvailability", "both are returned", clause="PS3.4 C.4.1.1.3.2",
      expected="the node's AE title, ONLINE")
def retrieve_aet(bench: Bench) -> str:
    bench.put(bench.image())
    row = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, RetrieveAETitle=None, InstanceAvailability=None)[0]
    got = f"{row.get('RetrieveAETitle') or '–'}, {row.get('InstanceAvailability') or '–'}"
    check(got == f"{bench.node.title}, ONLINE", got)
    return got


STRIPPED = "group length, retired, private keys"


@case(C_FIND, STRIPPED, "they are stripped from the answers", clause="PS3.4 C.2.2.1, PS3.5 7.2",
      expected="one row without them")
def stripped(bench: Bench) -> str:
    bench.put(bench.image())
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", bench.study
    keys.add_new(0x00080001, "UL", 200)  # Length to End, retired
    keys.add_new(0x00090010, "LO", "PROBE 1.0")
    keys.add_new(0x00091001, "LO", "something")
    raw = encode(keys, ImplicitVRLittleEndian)
    raw = b"\x08\0\0\0\x04\0\0\0\x1c\0\0\0" + raw
    answers = bench.find("S", "STUDY", raw=raw)
    check(answers.status == 0 and len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
    left = [str(one.tag) for one in answers.rows[0] if one.tag.is_private or one.tag == 0x00080001 or not one.tag.elem]
    check(not left, f"answered with {', '.join(left)}")
    return "stripped"


@case(C_FIND, STRIPPED, "Tharsis' own private block is honoured", clause="docs/similarity.md",
      expected="C001 for a query image that is not in the archive; 0124 for an AE without the right")
def own_private_block(bench: Bench) -> str:
    if bench.node.key != "tharsis":
        raise NotTried("not applicable: the block is Tharsis' own")
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.SeriesInstanceUID = "SERIES", ""
    keys.add_new(0x00730010, "LO", "THARSIS SIMILARITY 1.0")
    keys.add_new(0x00731002, "UI", bench.uid())
    answers = bench.find("S", "SERIES", raw=encode(keys, ImplicitVRLittleEndian), calling="SIMILAR")
    check(answers.status == 0xC001, answers.code)
    others = bench.find("S", "SERIES", raw=encode(keys, ImplicitVRLittleEndian))
    check(others.status == 0x0124, f"an AE without the right: {others.code}")
    return f"{answers.code}; {others.code}"
