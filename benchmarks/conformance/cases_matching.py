"""C-FIND: how each kind of key matches."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage

from benchmarks.conformance.case import case, check
from benchmarks.conformance.probe import Bench

C_FIND = "C-FIND"
INVALID = 0xA900


def series_keys(bench: Bench) -> dict[str, str]:
    return {"StudyInstanceUID": bench.study, "SeriesInstanceUID": bench.series}


def refused_with(bench: Bench, wanted: int, model: str, level: str | None, **keys: Any) -> str:
    answers = bench.find(model, level, **keys)
    check(answers.status == wanted, f"{answers.code}, {len(answers.rows)} rows")
    return answers.code


def store_studies(bench: Bench, **told: Any) -> list[str]:
    """Store studies of one patient; `told` has a list of values for each attribute. Return their Study UIDs."""
    count = len(next(iter(told.values())))
    images = [
        bench.image(
            StudyInstanceUID=bench.uid(), SeriesInstanceUID=bench.uid(),
            **{keyword: values[number] for keyword, values in told.items()},
        )
        for number in range(count)
    ]
    bench.put(*images)
    return [str(image.StudyInstanceUID) for image in images]


def _matched(bench: Bench, studies: list[str], level: str = "STUDY", model: str = "P", **keys: Any) -> list[int]:
    """Return which of `studies` a query within this case's patient finds."""
    keys = {"PatientID": bench.patient, **keys}
    found = bench.values("StudyInstanceUID", model, level, **keys)
    return sorted(studies.index(uid) if uid in studies else -1 for uid in found)


def _expect(bench: Bench, studies: list[str], wanted: list[int], **keys: Any) -> None:
    got = _matched(bench, studies, **keys)
    asked = ", ".join(f"{keyword} {value!r}" for keyword, value in keys.items())
    check(got == wanted, f"{asked}: rows {got} instead of {wanted}")


# Wild cards

@case(C_FIND, "wildcards", "* and ? on CS, LO, SH, PN", clause="PS3.4 C.2.2.2.4", expected="what they match")
def wildcards(bench: Bench) -> str:
    studies = store_studies(
        bench, StudyDescription=["Head CT", "Head MR", "Knee"], AccessionNumber=["A-1", "A-2", "B-10"],
        PatientSex=["M", "M", "M"],
    )
    _expect(bench, studies, [0, 1], StudyDescription="Head*")
    _expect(bench, studies, [0, 1], StudyDescription="Head ??")
    _expect(bench, studies, [2], StudyDescription="*ee")
    _expect(bench, studies, [0, 1], AccessionNumber="A-?")
    _expect(bench, studies, [2], AccessionNumber="*1?")
    name = bench.values("PatientName", "P", "PATIENT", PatientID=bench.patient, PatientSex="?", PatientName="Pro*^*")
    check(len(name) == 1, f"PN Pro*^*: {len(name)} rows")
    rows = bench.rows("P", "SERIES", PatientID=bench.patient, StudyInstanceUID=studies[0], SeriesInstanceUID=None,
                      Modality="C*")
    check(len(rows) == 1, f"CS C*: {len(rows)} rows")
    return "as the standard says"


@case(C_FIND, "wildcards", "on ST, LT, UC/UT and AE keys: matched, or FF01 where the key is not supported",
      clause="PS3.4 C.2.2.2.4", expected="no false filter")
def wildcards_on_text(bench: Bench) -> str:
    bench.put(bench.image(PatientComments="likes tests", InstitutionAddress="1 Probe Street"))
    told = []
    asked = (("PATIENT", "PatientComments", "likes*"), ("SERIES", "InstitutionAddress", "1 ?rob*"))
    for level, keyword, pattern in asked:
        keys = {"StudyInstanceUID": bench.study, "SeriesInstanceUID": None} if level == "SERIES" else {}
        answers = bench.find("P", level, PatientID=bench.patient, **keys, **{keyword: pattern})
        check(answers.status == 0 and len(answers.rows) == 1, f"{keyword} {pattern}: {answers.code}, no row")
        if answers.messages[0].status == 0xFF00:
            check(str(answers.rows[0].get(keyword, "")).startswith(pattern[0]), f"{keyword}: FF00, but not returned")
        told.append(f"{keyword} {answers.messages[0].status:04X}")
    return ", ".join(told)


@case(C_FIND, "wildcards", "on UI", clause="PS3.4 C.2.2.2.4 (no UI)", expected="A900")
def wildcard_in_uid(bench: Bench) -> str:
    bench.put(bench.image())
    return refused_with(bench, INVALID, "S", "STUDY", StudyInstanceUID=bench.study[:-2] + "*")


@case(C_FIND, "wildcards", "* alone is universal: matches what has no value", clause="PS3.4 C.2.2.2.4, C.2.2.2.3",
      expected="both studies")
def star_alone(bench: Bench) -> str:
    studies = store_studies(bench, StudyDescription=["Head", None], AccessionNumber=["A1", ""])
    _expect(bench, studies, [0, 1], StudyDescription="*")
    _expect(bench, studies, [0, 1], AccessionNumber="*")
    return "both"


@case(C_FIND, "wildcards", "%, _, [ are ordinary characters", clause="PS3.4 C.2.2.2.1, C.2.2.2.4",
      expected="only what has them")
def ordinary_characters(bench: Bench) -> str:
    studies = store_studies(bench, StudyDescription=["100%", "1000", "A_B", "AXB", "[A]x", "Ax"])
    for pattern, wanted in (("100%", [0]), ("100%*", [0]), ("A_B", [2]), ("A_*", [2]), ("[A]*", [4]), ("?A]x", [4])):
        _expect(bench, studies, wanted, StudyDescription=pattern)
    return "ordinary"


# Lists of UIDs

@case(C_FIND, "UID list", "three UIDs, two of which exist", clause="PS3.4 C.2.2.2.2", expected="two rows")
def uid_list(bench: Bench) -> str:
    studies = store_studies(bench, StudyDescription=["1", "2", "3"])
    found = bench.values("StudyInstanceUID", "S", "STUDY", StudyInstanceUID=[studies[0], bench.uid(), studies[2]])
    check(found == sorted([studies[0], studies[2]]), f"{len(found)} rows")
    return "two rows"


@case(C_FIND, "UID list", "3,000 UIDs", clause="PS3.4 C.2.2.2.2", expected="one row")
def long_uid_list(bench: Bench) -> str:
    bench.put(bench.image())
    uids = [bench.uid() for _ in range(2_999)]
    found = bench.values("StudyInstanceUID", "S", "STUDY", StudyInstanceUID=[*uids, bench.study])
    check(found == [bench.study], f"{len(found)} rows")
    return "one row"


# Counted keys

COUNTED = "ModalitiesInStudy, NumberOf…Related…, SOPClassesInStudy"


def _mixed_study(bench: Bench) -> None:
    mr = {"SeriesInstanceUID": bench.uid(), "Modality": "MR", "SOPClassUID": str(MRImageStorage)}
    bench.put(bench.image(), bench.image(), bench.image(**mr))


@case(C_FIND, COUNTED, "Modalities in Study is returned and matched", clause="PS3.4 C.3.4, C.2.2.2.6",
      expected="CT and MR; CT\\MR, MR, C* match, US does not")
def modalities_in_study(bench: Bench) -> str:
    _mixed_study(bench)
    for asked, wanted in ((None, 1), ("CT", 1), ("MR", 1), (["CT", "MR"], 1), (["US", "MR"], 1), ("C*", 1), ("US", 0)):
        rows = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, ModalitiesInStudy=asked)
        check(len(rows) == wanted, f"{asked}: {len(rows)} rows")
        if rows:
            value = rows[0].get("ModalitiesInStudy")
            got = sorted([value] if isinstance(value, str) else value or [])
            check(got == ["CT", "MR"], f"returned {got}")
    return "returned and matched"


@case(C_FIND, COUNTED, "SOP Classes in Study is returned and matched", clause="PS3.4 C.3.4", expected="both classes")
def sop_classes_in_study(bench: Bench) -> str:
    _mixed_study(bench)
    for asked, wanted in ((None, 1), (str(MRImageStorage), 1), ("1.2.840.10008.5.1.4.1.1.6.1", 0)):
        rows = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, SOPClassesInStudy=asked)
        check(len(rows) == wanted, f"{asked}: {len(rows)} rows")
        if rows:
            value = rows[0].get("SOPClassesInStudy")
            got = sorted([value] if isinstance(value, str) else value or [])
            check(got == sorted([str(CTImageStorage), str(MRImageStorage)]), f"returned {got}")
    return "returned and matched"


@case(C_FIND, COUNTED, "Number of … Related … is returned, matched and right at once", clause="PS3.4 C.3.4",
      expected="2 series and 3 instances; one more after one more C-STORE")
def numbers(bench: Bench) -> str:
    _mixed_study(bench)
    series, instances = "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"
    for more, wanted in ((0, (2, 3)), (1, (2, 4))):
        if more:
            bench.put(bench.image())
        row = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, **{series: None, instances: None})[0]
        got = (row.get(series), row.get(instances))
        check(got == wanted, f"{got} instead of {wanted}")
    for asked, wanted_rows in ((4, 1), (5, 0)):
        rows = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, **{instances: asked})
        check(len(rows) == wanted_rows, f"{instances} {asked}: {len(rows)} rows")
    names = [f"NumberOfPatientRelated{one}" for one in ("Studies", "Series", "Instances")]
    row = bench.rows("P", "PATIENT", PatientID=bench.patient, **dict.fromkeys(names))[0]
    got_patient = [row.get(name) for name in names]
    check(got_patient == [1, 2, 4], f"patient: {got_patient}")
    row = bench.rows("S", "SERIES", **series_keys(bench), NumberOfSeriesRelatedInstances=None)[0]
    check(row.get("NumberOfSeriesRelatedInstances") == 3, f"series: {row.get('NumberOfSeriesRelatedInstances')}")
    return "returned, matched, right"


# Dates and times

DATES = "date, time, their ranges"


@case(C_FIND, DATES, "single dates and ranges, open at either end", clause="PS3.4 C.2.2.2.5",
      expected="what lies within")
def dates(bench: Bench) -> str:
    studies = store_studies(bench, StudyDate=["20231231", "20240101", "20240131", "20240201"])
    for asked, wanted in (("20240101", [1]), ("20240101-20240131", [1, 2]), ("-20240101", [0, 1]),
                          ("20240131-", [2, 3]), ("20240202-", [])):
        _expect(bench, studies, wanted, StudyDate=asked)
    return "as the standard says"


@case(C_FIND, DATES, "1015 matches 10:15:30; ranges of times", clause="PS3.4 C.2.2.2.5, PS3.5 6.2 TM",
      expected="what lies within")
def times(bench: Bench) -> str:
    studies = store_studies(bench, StudyTime=["095959", "101530", "101500.5", "110000"])
    for asked, wanted in (("1015", [1, 2]), ("101530", [1]), ("1000-1030", [1, 2]), ("-1000", [0]), ("1100-", [3])):
        _expect(bench, studies, wanted, StudyTime=asked)
    return "as the standard says"


@case(C_FIND, DATES, "a malformed range", clause="PS3.4 C.2.2.2.5, C.4.1.1.4", expected="A900")
def malformed_range(bench: Bench) -> str:
    bench.put(bench.image())
    told = []
    ranges = (("StudyDate", "2024XX01-20240131"), ("StudyDate", "20240101-20240131-"), ("StudyTime", "10am-"))
    for keyword, value in ranges:
        told.append(refused_with(bench, INVALID, "S", "STUDY", PatientID=bench.patient, StudyInstanceUID=None,
                            **{keyword: value}))
    return told[0]


@case(C_FIND, "IS, DS", "02 = 2, 70 = 70.0", clause="PS3.5 6.2 IS, DS", expected="numeric")
def numbers_are_numbers(bench: Bench) -> str:
    bench.put(bench.image(SeriesNumber="2", PatientWeight="70.0", InstanceNumber="7"))
    keys = {"StudyInstanceUID": bench.study, "SeriesInstanceUID": None}
    for asked, wanted in (("02", 1), ("2", 1), ("+2", 1), ("3", 0)):
        rows = bench.rows("S", "SERIES", **keys, SeriesNumber=asked)
        check(len(rows) == wanted, f"Series Number {asked}: {len(rows)} rows")
    for text, wanted in (("70", 1), ("7E1", 1), ("71", 0)):
        answers = bench.find("S", "STUDY", StudyInstanceUID=bench.study, PatientWeight=text)
        if answers.rows and answers.messages[0].status == 0xFF01:
            continue
        check(len(answers.rows) == wanted, f"Patient's Weight {text}: {len(answers.rows)} rows")
    return "numeric"


# Sequences

def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99PROBE", "Probe"
    return item


SEQUENCES = "sequence keys"


@case(C_FIND, SEQUENCES, "Procedure Code Sequence is matched and returned", clause="PS3.4 C.2.2.2.6",
      expected="one of two studies, with its code")
def procedure_code(bench: Bench) -> str:
    studies = store_studies(bench, ProcedureCodeSequence=[[_code("HEAD1")], [_code("KNEE2")]])
    key = Dataset()
    key.CodeValue = "KNEE2"
    rows = bench.rows("P", "STUDY", PatientID=bench.patient, StudyInstanceUID=None, ProcedureCodeSequence=[key])
    found = [row.StudyInstanceUID for row in rows]
    check(found == [studies[1]], f"{len(found)} rows")
    items = rows[0].get("ProcedureCodeSequence") or []
    check(items and items[0].get("CodeValue") == "KNEE2", "matched, but not returned")
    return "matched and returned"


@case(C_FIND, SEQUENCES, "Request Attributes Sequence is matched", clause="PS3.4 C.2.2.2.6, C.6.1.1.4",
      expected="one of two series")
def request_attributes(bench: Bench) -> str:
    def request(step: str) -> list[Dataset]:
        item = Dataset()
        item.ScheduledProcedureStepID, item.RequestedProcedureID = step, "RP1"
        return [item]

    other = bench.uid()
    bench.put(bench.image(RequestAttributesSequence=request("STEP1")),
              bench.image(SeriesInstanceUID=other, RequestAttributesSequence=request("STEP2")))
    key = Dataset()
    key.ScheduledProcedureStepID = "STEP2"
    found = bench.values("SeriesInstanceUID", "S", "SERIES", StudyInstanceUID=bench.study,
                         RequestAttributesSequence=[key])
    check(found == [other], f"{len(found)} rows")
    return "matched"


@case(C_FIND, SEQUENCES, "a sequence that is not supported", clause="PS3.4 C.4.1.1.4", expected="FF01, not filtered")
def unsupported_sequence(bench: Bench) -> str:
    bench.put(bench.image())
    key = Dataset()
    key.CodeValue = "NOT-THERE"
    answers = bench.find("S", "STUDY", StudyInstanceUID=bench.study, PatientBreedCodeSequence=[key])
    check(answers.status == 0 and len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
    check(answers.messages[0].status == 0xFF01, f"{answers.messages[0].status:04X}")
    return "FF01"
