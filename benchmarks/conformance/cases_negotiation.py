"""C-FIND: what SOP Class Extended Negotiation changes."""

from __future__ import annotations

from pydicom.uid import ImplicitVRLittleEndian

from benchmarks.conformance.case import case, check
from benchmarks.conformance.cases_matching import INVALID, refused_with, store_studies
from benchmarks.conformance.probe import FIND, MOVE, Bench
from benchmarks.conformance.wire import Context

C_FIND = "C-FIND"


@case(C_FIND, "date + time combined",
      "when negotiated, 2024-01-01 10:00 to 2024-01-02 18:00 has 20:00 of the first day",
      clause="PS3.4 C.2.2.2.5.4, C.5.1.1", expected="negotiated: found; not negotiated: not found")
def combined(bench: Bench) -> str:
    store_studies(bench, StudyDate=["20240101"], StudyTime=["200000"])
    keys = {"PatientID": bench.patient, "StudyInstanceUID": None, "StudyDate": "20240101-20240102",
            "StudyTime": "1000-1800"}
    answers = bench.find("P", "STUDY", **keys)
    check(answers.status == 0 and not answers.rows, f"not negotiated: {answers.code}, {len(answers.rows)} rows")
    _granted(bench, 1, "P")
    answers = bench.find("P", "STUDY", extended=b"\0\1\0\0", **keys)
    check(answers.status == 0 and len(answers.rows) == 1, f"negotiated: {answers.code}, {len(answers.rows)} rows")
    return "combined when negotiated"


RELATIONAL = "SERIES without Study UID"


def _granted(bench: Bench, place: int, model: str = "S", *, need: bool = True) -> bool:
    """Whether extended negotiation of C-FIND grants the sub-field at `place`; fail where it is needed."""
    asked = bytes(int(number == place) for number in range(4))
    contexts = [Context(FIND[model], (str(ImplicitVRLittleEndian),))]
    with bench.associate(contexts, extended={FIND[model]: asked}) as association:
        answer = association.extended.get(FIND[model])
    granted = answer is not None and len(answer) > place and answer[place] == 1
    check(granted or not need, f"extended negotiation answered {answer.hex() if answer else 'nothing'}")
    return granted


@case(C_FIND, RELATIONAL, "not negotiated", clause="PS3.4 C.4.1.2.1", expected="A900")
def series_without_study(bench: Bench) -> str:
    bench.put(bench.image())
    return refused_with(bench, INVALID, "S", "SERIES", SeriesInstanceUID=bench.series)


@case(C_FIND, RELATIONAL, "negotiated", clause="PS3.4 C.4.1.2.2.1, C.5.1.1", expected="the row")
def relational(bench: Bench) -> str:
    bench.put(bench.image())
    _granted(bench, 0)
    answers = bench.find("S", "SERIES", extended=b"\1\0\0\0", SeriesInstanceUID=bench.series)
    check(answers.status == 0 and len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
    return "answered"


@case(C_FIND, RELATIONAL, "a lenient AE", clause="-", expected="the row")
def relational_for_lenient(bench: Bench) -> str:
    bench.put(bench.image())
    answers = bench.find("S", "SERIES", calling="LENIENT", SeriesInstanceUID=bench.series)
    check(answers.status == 0 and len(answers.rows) == 1, f"{answers.code}, {len(answers.rows)} rows")
    return "answered"


NEGOTIATION = "extended negotiation"


@case(C_FIND, NEGOTIATION, "not proposed, not answered; proposed as 0, answered as 0", clause="PS3.7 D.3.3.5",
      expected="no sub-item; 00 00 00 00")
def negotiation_is_truthful(bench: Bench) -> str:
    contexts = [Context(FIND["S"], (str(ImplicitVRLittleEndian),))]
    with bench.associate(contexts) as association:
        check(not association.extended, "answered what was not proposed")
    with bench.associate(contexts, extended={FIND["S"]: bytes(4)}) as association:
        answer = association.extended.get(FIND["S"])
    check(answer is not None, "no answer")
    check(not any(answer or b""), f"answered {answer.hex() if answer else ''}")
    return "truthful"


@case(C_FIND, NEGOTIATION, "fuzzy matching of names: granted only where it works", clause="PS3.4 C.2.2.2.1.1, C.5.1.1",
      expected="granted and John Doe finds Doe^John, or not granted")
def fuzzy(bench: Bench) -> str:
    bench.put(bench.image(PatientName="Doe^John"))
    if not _granted(bench, 2, "P", need=False):
        answered = bench.find("P", "PATIENT", extended=b"\0\0\1\0", PatientID=bench.patient, PatientName="Doe^John")
        check(len(answered.rows) == 1, "not granted, and the literal name is not found either")
        contexts = [Context(FIND["P"], (str(ImplicitVRLittleEndian),))]
        with bench.associate(contexts, extended={FIND["P"]: b"\0\0\1\0"}) as association:
            check(FIND["P"] in association.extended, "proposed, but not answered at all")
        return "answered: not granted"
    for name in ("Doe^John", "John Doe", "doe john"):
        rows = bench.find("P", "PATIENT", extended=b"\0\0\1\0", PatientID=bench.patient, PatientName=name).rows
        check(len(rows) == 1, f"granted, but {name} finds {len(rows)} rows")
    return "granted, works"


@case(C_FIND, NEGOTIATION, "timezone adjustment: granted only where it works", clause="PS3.4 C.5.1.1",
      expected="granted and 01:00 at +0200 is 23:00 of the day before at +0000, or not granted")
def timezone(bench: Bench) -> str:
    studies = store_studies(bench, StudyDate=["20240102"], StudyTime=["010000"], TimezoneOffsetFromUTC=["+0200"])
    if not _granted(bench, 3, need=False):
        contexts = [Context(FIND["S"], (str(ImplicitVRLittleEndian),))]
        with bench.associate(contexts, extended={FIND["S"]: b"\0\0\0\1"}) as association:
            check(FIND["S"] in association.extended, "proposed, but not answered at all")
        return "answered: not granted"
    keys = {"StudyInstanceUID": studies[0], "StudyDate": "20240101", "StudyTime": "2300-2330"}
    rows = bench.find("S", "STUDY", extended=b"\0\1\0\1", TimezoneOffsetFromUTC="+0000", **keys).rows
    check(len(rows) == 1, f"granted, but 20240101 23:00 at +0000 finds {len(rows)} rows")
    got = f"{rows[0].get('StudyDate')} {str(rows[0].get('StudyTime'))[:4]}"
    check(got == "20240101 2300", f"granted, answered {got}")
    return "granted, works"


@case("C-MOVE and C-GET", "extended negotiation", "relational retrieval: granted only where it works",
      clause="PS3.4 C.5.2.1, C.4.2.2.2.1", expected="granted and SOP Instance UID alone retrieves, or not granted")
def relational_retrieval(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    contexts = [Context(MOVE["S"], (str(ImplicitVRLittleEndian),))]
    with bench.associate(contexts, extended={MOVE["S"]: b"\1"}) as association:
        answer = association.extended.get(MOVE["S"])
    check(answer is not None, "proposed, but not answered at all")
    answers = bench.move("RECEIVER", level="IMAGE", extended=b"\1", SOPInstanceUID=str(image.SOPInstanceUID))
    sent = len(bench.receivers.everything.received)
    if not answer or answer[0] != 1:
        check(sent == 0, "not granted, and sent all the same")
        return "answered: not granted"
    check(answers.status == 0 and sent == 1, f"granted, but {answers.code}, {sent} sent")
    return "granted, works"
