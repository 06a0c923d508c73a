"""C-STORE, row by row."""

from __future__ import annotations

import random
import struct
import threading

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from benchmarks.conformance.case import case, check, code, explained
from benchmarks.conformance.probe import PLAIN, VERIFICATION, Bench, element, encapsulated, encode
from benchmarks.conformance.wire import Context, Gone, Silent

STORE = "C-STORE"
TRANSFER_SYNTAXES = [uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"]
DURABLE = "PS3.4 B.2.3"


# Success means ...

@case(STORE, "Success means", "what was answered 0000 can be found and fetched", clause=DURABLE,
      expected="the row in C-FIND, the same data set by C-GET")
def success_is_findable(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    found = bench.values("SOPInstanceUID", "S", "IMAGE", StudyInstanceUID=bench.study, SeriesInstanceUID=bench.series)
    check(found == [image.SOPInstanceUID], f"0000, but C-FIND lists {found}")
    check(bench.get_one(image, ExplicitVRLittleEndian).dataset.PatientID == bench.patient, "another data set came back")
    return "found and fetched"


@case(STORE, "Success means", "kill -9 at any moment loses nothing that was answered 0000", clause=DURABLE,
      expected="after each of 3 kills everything confirmed is found and fetched unchanged", variant="killed")
def success_survives_kills(bench: Bench) -> str:
    dice = random.Random(20261120)
    total = 0
    for _ in range(3):
        bench.renew()
        confirmed: dict[str, bytes] = {}
        killer = threading.Timer(dice.uniform(0.1, 0.5), bench.node.kill)
        with_text = "x" * 20_000
        try:
            association = bench.associate([Context(CTImageStorage, (str(ExplicitVRLittleEndian),))])
            for number in range(5_000):
                if number == 10:
                    killer.start()
                image = bench.image(ImageComments=with_text)
                data = encode(image, ExplicitVRLittleEndian)
                if bench.store_message(association, data, CTImageStorage, str(image.SOPInstanceUID)).status == 0:
                    confirmed[str(image.SOPInstanceUID)] = data
        except (Gone, Silent):
            pass
        finally:
            if killer.ident is not None:
                killer.join()
        bench.node.restart()
        found = set(bench.values(
            "SOPInstanceUID", "S", "IMAGE", StudyInstanceUID=bench.study, SeriesInstanceUID=bench.series
        )) if confirmed else set()
        lost = set(confirmed) - found
        check(not lost, f"{len(lost)} of {len(confirmed)} confirmed instances were not found after a kill")
        contexts = [Context(CTImageStorage, (str(ExplicitVRLittleEndian),), (0, 1))]
        got = {one.sop_instance_uid: one.data for one in bench.get(contexts, StudyInstanceUID=bench.study).received}
        other = [uid for uid, data in confirmed.items() if got.get(uid) != data]
        check(not other, f"{len(other)} of {len(confirmed)} confirmed instances came back otherwise or not at all")
        total += len(confirmed)
    return f"{total} confirmed instances, all there after 3 kills"


# Encoding

def _fetch_the_same(bench: Bench, data: bytes, image: Dataset, syntax: str) -> str:
    answer = bench.store(data, sop_class=str(image.SOPClassUID), uid=str(image.SOPInstanceUID), syntax=syntax)
    check(answer.status == 0, f"C-STORE answered {code(answer)}")
    got = bench.get_one(image, syntax)
    if got.data == data:
        return f"{len(data)} bytes, the same"
    at = next((n for n, pair in enumerate(zip(data, got.data, strict=False)) if pair[0] != pair[1]), "the end")
    check(False, f"{len(data)} bytes sent, {len(got.data)} came back; they differ from byte {at} on")
    return ""


def _odd_but_legal(image: Dataset) -> bytes:
    """Data elements that a re-encoding changes: group length, undefined and empty sequences, private, padding."""
    head = encode(image, ExplicitVRLittleEndian)
    at = head.index(struct.pack("<HH2s", 0x28, 0x02, b"US"))
    item = element(0x08, 0x1150, "UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(0x08, 0x1155, "UI", b"1.2.3.4\0")
    undefined = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    private = element(0x0009, 0x10, "LO", b"PROBE 1.0 ") + element(0x0009, 0x1001, "UN", b"\x01\x02\x03\x04")
    before_group_10 = head.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    group_8 = head[:before_group_10] + undefined + private
    return group_8 + head[before_group_10:at] + head[at:] + element(0xFFFC, 0xFFFC, "OB", b"\0" * 6)


@case(STORE, "encoding", "Explicit VR LE with undefined lengths, private elements and padding: byte for byte",
      clause="PS3.4 B.4.1, level 2 storage", expected="the bytes that were sent")
def explicit_is_kept(bench: Bench) -> str:
    image = bench.image()
    return _fetch_the_same(bench, _odd_but_legal(image), image, ExplicitVRLittleEndian)


@case(STORE, "encoding", "Implicit VR LE with an unknown private element: byte for byte", clause="PS3.4 B.4.1",
      expected="the bytes that were sent, in Implicit VR LE")
def implicit_is_kept(bench: Bench) -> str:
    image = bench.image()
    image.add_new((0x0009, 0x0010), "LO", "PROBE 1.0")
    image.add_new((0x0009, 0x1001), "UN", b"\x01\x02\x03\x04")
    return _fetch_the_same(bench, encode(image, ImplicitVRLittleEndian), image, ImplicitVRLittleEndian)


@case(STORE, "encoding", "Explicit VR Big Endian: byte for byte", clause="PS3.5 A.3 (retired)",
      expected="the bytes that were sent")
def big_endian_is_kept(bench: Bench) -> str:
    image = bench.image()
    return _fetch_the_same(bench, encode(image, ExplicitVRBigEndian), image, ExplicitVRBigEndian)


@case(STORE, "encoding", "Deflated: byte for byte", clause="PS3.5 A.5", expected="the deflated bytes that were sent")
def deflated_is_kept(bench: Bench) -> str:
    image = bench.image()
    return _fetch_the_same(bench, encode(image, DeflatedExplicitVRLittleEndian), image, DeflatedExplicitVRLittleEndian)


# Transfer syntaxes

@case(STORE, "transfer syntaxes", "every one that pydicom names is accepted", clause="PS3.8 9.3.3, PS3.6 A.1",
      expected=f"all of {len(TRANSFER_SYNTAXES)} for CT Image Storage")
def every_transfer_syntax_is_accepted(bench: Bench) -> str:
    contexts = [Context(CTImageStorage, (syntax,)) for syntax in TRANSFER_SYNTAXES]
    with bench.associate(contexts) as association:
        accepted = {one.transfer_syntax for one in association.contexts.values() if one.result == 0}
    refused = [uid for uid in TRANSFER_SYNTAXES if uid not in accepted]
    names = ", ".join(UID_dictionary[uid][0] for uid in refused[:2])
    check(not refused, f"{len(accepted)} of {len(TRANSFER_SYNTAXES)} accepted; refused: {names} …")
    return f"{len(accepted)} accepted"


@case(STORE, "transfer syntaxes", "an object in each encapsulated one comes back as it was", clause="PS3.5 A.4",
      expected="stored and returned byte for byte in each")
def every_encapsulated_syntax_is_kept(bench: Bench) -> str:
    plain = (*PLAIN, str(ExplicitVRBigEndian), str(DeflatedExplicitVRLittleEndian))
    video_over_network = "1.2.840.10008.1.2.7"
    syntaxes = [s for s in TRANSFER_SYNTAXES if s not in plain and not s.startswith(video_over_network)
                and "JPIP" not in UID_dictionary[s][0] and "Encapsulated" not in UID_dictionary[s][0]
                and "XML" not in UID_dictionary[s][0] and "Papyrus" not in UID_dictionary[s][0]]
    kept, other = 0, []
    for syntax in syntaxes:
        image = bench.image()
        del image.PixelData
        data = encode(image, ExplicitVRLittleEndian) + encapsulated(b"\xff\xd8probe" + bytes(101))
        try:
            _fetch_the_same(bench, data, image, syntax)
            kept += 1
        except Exception as error:  # noqa: BLE001
            other.append(f"{UID_dictionary[syntax][0]}: {error}")
    check(not other, f"{kept} of {len(syntaxes)} kept; " + "; ".join(other[:2])[:160])
    return f"{kept} kept"


# Private SOP classes

PRIVATE_CLASS = "1.2.826.0.1.3680043.9.7133.77.1.99"


@case(STORE, "private SOP classes", "an AE that the settings allow may store them", clause="PS3.4 B.1",
      expected="accepted, 0000, found, fetched")
def private_class_for_mars(bench: Bench) -> str:
    image = bench.image(SOPClassUID=PRIVATE_CLASS)
    try:
        answer = bench.store(image, calling="MARS")
    except LookupError as error:
        check(False, f"rejected: {error}")
    check(answer.status == 0, code(answer))
    keys = {"StudyInstanceUID": bench.study, "SeriesInstanceUID": bench.series}
    found = bench.values("SOPInstanceUID", "S", "IMAGE", **keys)
    check(found == [image.SOPInstanceUID], f"C-FIND lists {found}")
    accept = [Context(PRIVATE_CLASS, (str(ExplicitVRLittleEndian),), (0, 1))]
    answers = bench.get(accept, StudyInstanceUID=bench.study, calling="MARS")
    check(len(answers.received) == 1, f"not fetched: {answers.code}, {answers.counts()}")
    return "stored, found and fetched"


@case(STORE, "private SOP classes", "from any other AE they are rejected", clause="PS3.8 9.3.3.2",
      expected="context rejected, result 3 (abstract syntax not supported)")
def private_class_for_others(bench: Bench) -> str:
    with bench.associate([Context(PRIVATE_CLASS, PLAIN), Context(VERIFICATION, PLAIN)]) as association:
        result = association.contexts[1].result
    check(result == 3, f"result {result}")
    return "rejected, result 3"


# UIDs of the data set

def _nothing_stored(bench: Bench) -> None:
    found = bench.rows("P", "PATIENT", PatientID=bench.patient)
    check(not found, "a failure was answered, but C-FIND lists the patient")


def _refused(bench: Bench, image: Dataset, wanted: int, **command: str) -> str:
    answer = bench.store(image, **command)
    check(answer.status == wanted, f"{code(answer)}")
    _nothing_stored(bench)
    return code(answer)


def _without(bench: Bench, keyword: str) -> str:
    told = []
    for value in (None, ""):
        bench.renew()
        told.append(_refused(bench, bench.image(**{keyword: value}), 0xA900))
    return "; ".join(told)


@case(STORE, "Study/Series UID missing or empty", "Study Instance UID", clause="PS3.4 B.2.3, PS3.3 C.7.2.1",
      expected="A900, nothing stored")
def study_uid_is_required(bench: Bench) -> str:
    return _without(bench, "StudyInstanceUID")


@case(STORE, "Study/Series UID missing or empty", "Series Instance UID", clause="PS3.4 B.2.3, PS3.3 C.7.3.1",
      expected="A900, nothing stored")
def series_uid_is_required(bench: Bench) -> str:
    return _without(bench, "SeriesInstanceUID")


@case(STORE, "PatientID missing", "missing, and empty: accepted with an empty ID", clause="PS3.3 C.7.1.1 (type 2)",
      expected="0000, found with an empty Patient ID")
def patient_id_may_be_missing(bench: Bench) -> str:
    for value in (None, ""):
        bench.renew()
        image = bench.image(PatientID=value)
        bench.put(image)
        rows = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, PatientID=None)
        check(len(rows) == 1, f"0000, but C-FIND lists {len(rows)} studies")
        check(not rows[0].get("PatientID"), f"Patient ID {rows[0].get('PatientID')!r}")
        bench.get_one(image, ExplicitVRLittleEndian)
    return "stored, empty ID"


@case(STORE, "command's SOP class/instance UID ≠ data set's", "SOP class", clause="PS3.4 B.2.3 (A9xx)",
      expected="A900, nothing stored")
def class_has_to_agree(bench: Bench) -> str:
    return _refused(bench, bench.image(), 0xA900, sop_class=str(MRImageStorage))


@case(STORE, "command's SOP class/instance UID ≠ data set's", "SOP instance", clause="PS3.4 B.2.3 (A9xx)",
      expected="A900, nothing stored")
def instance_has_to_agree(bench: Bench) -> str:
    return _refused(bench, bench.image(), 0xA900, uid=bench.uid())


def _odd_uid(bench: Bench, uid: str) -> str:
    before = bench.node.outside()
    image = bench.image(SOPInstanceUID=uid)
    bench.put(image)
    found = bench.values("SOPInstanceUID", "S", "IMAGE", StudyInstanceUID=bench.study, SeriesInstanceUID=bench.series)
    check(found == [uid], f"0000, but C-FIND lists {found}")
    bench.get_one(image, ExplicitVRLittleEndian)
    check(bench.node.outside() <= before, "wrote outside its folder")
    raw = [path for path in bench.node.files() if uid in path.name]
    check(not raw, f"the UID as it came is in a path: …/{raw[0].name[:70] if raw else ''}")
    return "stored, found, fetched; not in a path"


@case(STORE, "UID with letters or > 64", "letters", clause="PS3.5 9.1 (older modalities do this)",
      expected="0000, found, fetched, not used raw in a path")
def uid_with_letters(bench: Bench) -> str:
    return _odd_uid(bench, f"{bench.uid()}.Old-Scanner_7a")


@case(STORE, "UID with letters or > 64", "80 characters", clause="PS3.5 9.1",
      expected="0000, found, fetched, not used raw in a path")
def long_uid(bench: Bench) -> str:
    return _odd_uid(bench, (bench.uid() + ".1234567890" * 8)[:80])


@case(STORE, "`../../x` as a UID", "as Study, Series and SOP Instance UID", clause="PS3.5 9.1",
      expected="no file outside the data folder, no path made from it, the node lives")
def uid_is_no_path(bench: Bench) -> str:
    told = []
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        before = bench.node.outside()
        image = bench.image(**{keyword: f"../../x{bench.token}"})
        try:
            told.append(code(bench.store(image)))
        except (Gone, Silent) as error:
            told.append(str(error))
        outside = bench.node.outside() - before
        check(not outside, f"{keyword}: wrote {next(iter(outside)).name if outside else ''} outside its data folder")
        named = [path for path in bench.node.files() if f"x{bench.token}" in str(path)]
        check(not named, f"{keyword}: its text is in the path of a file")
    check(bench.lives(), "the node is gone")
    return ", ".join(told)


# Values that are too long or wrong

def _as_it_stands(bench: Bench, keyword: str, value: str) -> str:
    image = bench.image(**{keyword: value})
    bench.put(image)
    got = bench.values(keyword, "S", "STUDY", StudyInstanceUID=bench.study)
    check(got == [value], f"0000, C-FIND gives {[one[:50] for one in got]}")
    check(str(bench.get_one(image, ExplicitVRLittleEndian).dataset[keyword].value) == value, "fetched otherwise")
    return "indexed and returned as it stands"


@case(STORE, "PN of 80 characters, LO of 100, a bad DA", "PN of 80 characters", clause="PS3.5 6.2",
      expected="0000, found as it stands")
def long_pn(bench: Bench) -> str:
    return _as_it_stands(bench, "PatientName", "N" * 70 + "^" + "G" * 9)


@case(STORE, "PN of 80 characters, LO of 100, a bad DA", "LO of 100 characters", clause="PS3.5 6.2",
      expected="0000, found as it stands")
def long_lo(bench: Bench) -> str:
    return _as_it_stands(bench, "StudyDescription", "D" * 100)


@case(STORE, "PN of 80 characters, LO of 100, a bad DA", "DA 2024-13-45", clause="PS3.5 6.2",
      expected="0000, found as it stands")
def bad_date(bench: Bench) -> str:
    return _as_it_stands(bench, "StudyDate", "2024-13-45")


@case("All services", "Status", "a C-STORE failure carries Error Comment and Offending Element in the command set",
      clause="PS3.7 C.4, 9.3.1.2", expected="(0000,0902) ≤ 64 characters; (0000,0901) = (0020,000D)")
def store_failure_is_explained(bench: Bench) -> str:
    answer = bench.store(bench.image(StudyInstanceUID=None))
    check(answer.status not in (0, 0xFF00), code(answer))
    return explained(answer, 0x0020000D)
