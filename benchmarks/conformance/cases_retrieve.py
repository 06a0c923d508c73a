"""C-MOVE and C-GET, row by row."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from benchmarks.conformance.case import (
    Answers,
    NotTried,
    case,
    check,
    counted,
    counts,
    ended,
    explained,
    failed_list,
    told,
)
from benchmarks.conformance.probe import Bench, encode
from benchmarks.conformance.receivers import CLASSES
from benchmarks.conformance.wire import Context

RETRIEVE = "C-MOVE and C-GET"
LONGEST_STORING_S = 900
"""So long is tried to store what the case of many sub-operations needs, seconds."""
CT_GET = [Context(str(CTImageStorage), (str(ExplicitVRLittleEndian),), (0, 1))]
MR = {"Modality": "MR", "SOPClassUID": str(MRImageStorage)}


def _images(bench: Bench, count: int, **values: Any) -> list[str]:
    images = [bench.image(**values) for _ in range(count)]
    bench.put(*images)
    return [str(image.SOPInstanceUID) for image in images]


# Destinations

@case(RETRIEVE, "unknown destination", "C-MOVE to an AE title that the node does not know", clause="PS3.4 C.4.2.1.5",
      expected="A801")
def unknown_destination(bench: Bench) -> str:
    _images(bench, 1)
    answers = bench.move("NOWHERE", StudyInstanceUID=bench.study)
    check(answers.status == 0xA801, told(answers))
    return answers.code


@case("All services", "Status", "a C-MOVE failure carries Error Comment in the command set",
      clause="PS3.7 C.4, 9.3.4.2",
      expected="(0000,0902) ≤ 64 characters")
def move_failure_is_explained(bench: Bench) -> str:
    _images(bench, 1)
    return explained(bench.move("NOWHERE", StudyInstanceUID=bench.study).final, None)


@case("All services", "Status", "a partly failed C-GET carries Error Comment in the command set",
      clause="PS3.7 C.4, 9.3.3.2",
      expected="(0000,0902) ≤ 64 characters")
def get_warning_is_explained(bench: Bench) -> str:
    _images(bench, 2)
    answers = bench.get(CT_GET, answer=lambda number: 0xA700 if number == 0 else 0, StudyInstanceUID=bench.study)
    check(answers.status not in (0, 0xFF00), told(answers))
    return explained(answers.final, None)


@case(RETRIEVE, "destination closed or rejecting", "nobody listens", clause="PS3.4 C.4.2.1.5, C.4.2.3.1",
      expected="A702, all counted as failed and listed")
def closed_destination(bench: Bench) -> str:
    uids = _images(bench, 3)
    return ended(bench.move("CLOSED", StudyInstanceUID=bench.study), 0xA702, (0, 3, 0), uids)


@case(RETRIEVE, "destination closed or rejecting", "the association is rejected", clause="PS3.4 C.4.2.1.5, C.4.2.3.1",
      expected="A702, all counted as failed and listed")
def rejecting_destination(bench: Bench) -> str:
    uids = _images(bench, 3)
    return ended(bench.move("REJECTING", StudyInstanceUID=bench.study), 0xA702, (0, 3, 0), uids)


@case(RETRIEVE, "nothing matches", "C-MOVE", clause="PS3.4 C.4.2.3.1, C.4.2.1.5", expected="0000, counts 0/0/0")
def nothing_to_move(bench: Bench) -> str:
    return ended(bench.move("RECEIVER", StudyInstanceUID=bench.study), 0, (0, 0, 0))


@case(RETRIEVE, "nothing matches", "C-GET", clause="PS3.4 C.4.3.3.1, C.4.3.1.4", expected="0000, counts 0/0/0")
def nothing_to_get(bench: Bench) -> str:
    return ended(bench.get(CT_GET, StudyInstanceUID=bench.study), 0, (0, 0, 0))


# Failing sub-operations

@case(RETRIEVE, "one sub-operation fails", "C-MOVE goes on", clause="PS3.4 C.4.2.1.5, C.4.2.3.1",
      expected="B000, counts 3/1/0, the one listed")
def one_move_fails(bench: Bench) -> str:
    _images(bench, 4)
    receiver = bench.receivers.everything
    receiver.answer = lambda number: 0xA700 if number == 1 else 0
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
    check(receiver.attempts == 4, f"{receiver.attempts} of 4 were tried; {told(answers)}")
    check(len(failed_list(answers)) == 1, told(answers))
    return ended(answers, 0xB000, (3, 1, 0))


@case(RETRIEVE, "one sub-operation fails", "C-GET goes on", clause="PS3.4 C.4.3.1.4, C.4.3.3.1",
      expected="B000, counts 3/1/0, the one listed")
def one_get_fails(bench: Bench) -> str:
    _images(bench, 4)
    answers = bench.get(CT_GET, answer=lambda number: 0xA700 if number == 1 else 0, StudyInstanceUID=bench.study)
    check(len(failed_list(answers)) == 1, told(answers))
    return ended(answers, 0xB000, (3, 1, 0))


@case(RETRIEVE, "one sub-operation fails", "a warning of the destination is counted as a warning",
      clause="PS3.4 C.4.2.1.9, C.4.2.3.1", expected="B000 (or 0000), counts 3/0/1")
def one_move_warns(bench: Bench) -> str:
    _images(bench, 4)
    bench.receivers.everything.answer = lambda number: 0xB000 if number == 1 else 0
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
    check(answers.status in (0xB000, 0), told(answers))
    return ended(answers, answers.status, (3, 0, 1))


@case(RETRIEVE, "all fail", "C-MOVE", clause="PS3.4 C.4.2.1.5 (A702)", expected="A702, counts 0/3/0, all listed")
def all_moves_fail(bench: Bench) -> str:
    uids = _images(bench, 3)
    bench.receivers.everything.answer = lambda _: 0xC000
    return ended(bench.move("RECEIVER", StudyInstanceUID=bench.study), 0xA702, (0, 3, 0), uids)


@case(RETRIEVE, "all fail", "C-GET", clause="PS3.4 C.4.3.1.4 (A702)", expected="A702, counts 0/3/0, all listed")
def all_gets_fail(bench: Bench) -> str:
    uids = _images(bench, 3)
    answers = bench.get(CT_GET, answer=lambda _: 0xC000, StudyInstanceUID=bench.study)
    return ended(answers, 0xA702, (0, 3, 0), uids)


@case(RETRIEVE, "destination lacks a SOP class", "a CT and an MR to a receiver of CT", clause="PS3.4 C.4.2.3.1",
      expected="the CT is sent; B000, counts 1/1/0, the MR listed")
def lacking_class(bench: Bench) -> str:
    _images(bench, 1)
    mr = _images(bench, 1, SeriesInstanceUID=bench.uid(), **MR)
    answers = bench.move("CTONLY", StudyInstanceUID=bench.study)
    check(len(bench.receivers.ct_only.received) == 1, f"{len(bench.receivers.ct_only.received)} sent; {told(answers)}")
    return ended(answers, 0xB000, (1, 1, 0), mr)


@case(RETRIEVE, "> 128 presentation contexts", "a study of more SOP classes than an association has contexts",
      clause="PS3.8 9.3.2.2", expected="all sent, in several associations")
def many_contexts(bench: Bench) -> str:
    images = []
    for start in range(0, len(CLASSES), 100):
        chunk = [str(uid) for uid in CLASSES[start : start + 100]]
        contexts = [Context(uid, (str(ExplicitVRLittleEndian),)) for uid in chunk]
        with bench.associate(contexts) as association:
            for context in association.contexts.values():
                if context.result == 0:
                    image = bench.image(SOPClassUID=context.abstract_syntax)
                    data = encode(image, ExplicitVRLittleEndian)
                    uid = str(image.SOPInstanceUID)
                    if bench.store_message(association, data, context.abstract_syntax, uid).status == 0:
                        images.append(uid)
    if len(images) <= 128:
        raise NotTried(f"not applicable: it stores {len(images)} SOP classes of {len(CLASSES)}")
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
    got = {one.sop_instance_uid for one in bench.receivers.everything.received}
    check(set(images) <= got, f"{len(got)} of {len(images)} arrived; {told(answers)}")
    return ended(answers, 0, (len(images), 0, 0))


# Identifier

@case(RETRIEVE, "wrong parent UID", "the right instance under a wrong study or series",
      clause="PS3.4 C.4.2.2.1, C.2.2.2.1",
      expected="nothing is sent")
def wrong_parent(bench: Bench) -> str:
    uids = _images(bench, 1)
    did = ""
    for study, series in ((bench.uid(), bench.series), (bench.study, bench.uid())):
        answers = bench.move("RECEIVER", level="IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series,
                             SOPInstanceUID=uids[0])
        did = told(answers)
        check(not bench.receivers.everything.received, f"sent all the same; {did}")
    return did


BY_OTHER_KEYS = "STUDY by AccessionNumber or PatientID only, level absent"


def _loosely(bench: Bench, calling: str, level: str | None, **keys: Any) -> Answers:
    bench.receivers.reset()
    return bench.move("RECEIVER", level=level, calling=calling, **keys)


@case(RETRIEVE, BY_OTHER_KEYS, "any AE", clause="PS3.4 C.4.2.2.1 (unique keys)", expected="A900 for each")
def not_by_other_keys(bench: Bench) -> str:
    _images(bench, 1)
    for level, keys in (("STUDY", {"AccessionNumber": f"A{bench.token}"}), ("STUDY", {"PatientID": bench.patient}),
                        (None, {"StudyInstanceUID": bench.study})):
        answers = _loosely(bench, "PROBE", level, **keys)
        check(answers.status == 0xA900, f"{level or 'no level'} by {next(iter(keys))}: {told(answers)}")
    return "A900"


@case(RETRIEVE, BY_OTHER_KEYS, "a lenient AE", clause="-", expected="sent for each")
def lenient_by_other_keys(bench: Bench) -> str:
    _images(bench, 1)
    for level, keys in (("STUDY", {"AccessionNumber": f"A{bench.token}"}), ("STUDY", {"PatientID": bench.patient}),
                        (None, {"StudyInstanceUID": bench.study})):
        answers = _loosely(bench, "LENIENT", level, **keys)
        sent = len(bench.receivers.everything.received)
        check(answers.status == 0 and sent == 1,
              f"{level or 'no level'} by {next(iter(keys))}: {told(answers)}, {sent} sent")
    return "sent"


@case(RETRIEVE, "malformed Identifier", "a cut-off data set, and a STUDY without its UID", clause="PS3.4 C.4.2.1.5",
      expected="A900")
def malformed_identifier(bench: Bench) -> str:
    _images(bench, 1)
    whole = Dataset()
    whole.QueryRetrieveLevel, whole.StudyInstanceUID = "STUDY", bench.study
    cut = encode(whole, ImplicitVRLittleEndian)[:-7]
    for name, answers in (("cut off", bench.move("RECEIVER", raw=cut)), ("no Study UID", bench.move("RECEIVER"))):
        check(answers.status == 0xA900, f"{name}: {told(answers)}")
    return "A900"


# Pending, cancel, originator

@case(RETRIEVE, "Pending", "one at once, then at least one a second; exact counts; none of the remaining in the final",
      clause="PS3.4 C.4.2.1.6, C.4.2.3.1", expected="first within 1 s, gaps ≤ 1.6 s, counts that add up")
def pending(bench: Bench) -> str:
    _images(bench, 4)
    bench.receivers.everything.answer = lambda number: _slowly(2.4 if number == 1 else 0.1)
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
    did = ended(answers, 0, (4, 0, 0))
    check("NumberOfRemainingSuboperations" not in answers.final.command, "the final response counts remaining ones")
    check(answers.pending, "no pending response")
    times = [answers.began, *(message.at for message in answers.messages)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    check(gaps[0] < 1.0, f"the first pending response after {gaps[0]:.1f} s")
    check(max(gaps) < 1.6, f"{max(gaps):.1f} s between two responses")
    done = -1
    for message in answers.pending:
        remaining = message.command.get("NumberOfRemainingSuboperations")
        numbers = [remaining, *counted(message)]
        check(None not in numbers and sum(numbers) == 4, f"pending counts {counts(message)}, {remaining} remain")
        check(numbers[1] >= done, f"completed goes back from {done} to {numbers[1]}")
        done = numbers[1]
    return f"{len(answers.pending)} pending, longest gap {max(gaps):.1f} s, {did}"


def _slowly(seconds: float, status: int = 0) -> int:
    time.sleep(seconds)
    return status


@case(RETRIEVE, "C-CANCEL", "C-MOVE: stops with counts and the list of what failed",
      clause="PS3.7 9.3.4.3, PS3.4 C.4.2.1.5, C.4.2.1.4.2",
      expected="FE00 before the end, counts, the failed one listed")
def cancel_move(bench: Bench) -> str:
    _images(bench, 30)
    bench.receivers.everything.answer = lambda number: _slowly(0.1, 0xA700 if number == 0 else 0)
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study, cancel_after=2)
    did = told(answers)
    check(answers.status == 0xFE00, did)
    done = [one or 0 for one in counted(answers.final)]
    check(None not in counted(answers.final) and sum(done) < 30, did)
    check(done[1] == 1 and len(failed_list(answers)) == 1, did)
    return did


@case(RETRIEVE, "C-CANCEL", "C-GET: stops with counts", clause="PS3.7 9.3.3.3, PS3.4 C.4.3.1.4",
      expected="FE00 before the end, counts")
def cancel_get(bench: Bench) -> str:
    _images(bench, 30)
    answers = bench.get(CT_GET, answer=lambda _: _slowly(0.02), StudyInstanceUID=bench.study, cancel_after=3)
    did = told(answers)
    check(answers.status == 0xFE00, did)
    check(None not in counted(answers.final) and sum(counted(answers.final)) < 30, did)
    return did


@case(RETRIEVE, "priority, Move Originator AE and Message ID", "are copied into the C-STORE",
      clause="PS3.7 9.1.1.1, 9.3.1.1",
      expected="priority HIGH, originator PROBE and the C-MOVE's Message ID")
def originator(bench: Bench) -> str:
    _images(bench, 1)
    bench.move("RECEIVER", StudyInstanceUID=bench.study, priority=1)
    check(bench.receivers.everything.received, "nothing arrived")
    request = bench.receivers.everything.received[0].request
    aet = str(request.MoveOriginatorApplicationEntityTitle or "").strip()
    did = f"priority {request.Priority}, originator {aet or '–'}, message {request.MoveOriginatorMessageID}"
    check(request.Priority == 1 and aet == "PROBE" and request.MoveOriginatorMessageID == 1, did)
    return did


@case(RETRIEVE, "> 65,535 sub-operations", "sent; counts clamped", clause="PS3.7 9.3.3.2 (US)",
      expected="all sent, 0000, counts at most 65,535", variant="many")
def many_sub_operations(bench: Bench) -> str:
    wanted = int(bench.options["many"])
    if wanted <= 65_535:
        raise NotTried("takes minutes; ask for it with --many 65600")
    stored, lock, deadline = [0], threading.Lock(), time.monotonic() + LONGEST_STORING_S

    def store() -> None:
        contexts = [Context(CTImageStorage, (str(ExplicitVRLittleEndian),))]
        with bench.associate(contexts) as association:
            while time.monotonic() < deadline:
                with lock:
                    if stored[0] >= wanted:
                        return
                    stored[0] += 1
                    image = bench.image()
                data = encode(image, ExplicitVRLittleEndian)
                bench.store_message(association, data, CTImageStorage, str(image.SOPInstanceUID))

    threads = [threading.Thread(target=store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if stored[0] < wanted:
        raise NotTried(f"it stored {stored[0]} in {LONGEST_STORING_S} s")
    received = [0]

    def count(_: int) -> int:
        received[0] += 1
        return 0

    answers = bench.get(CT_GET, answer=count, keep=False, StudyInstanceUID=bench.study)
    check(received[0] == wanted, f"{received[0]} of {wanted} sent; {told(answers)}")
    check(answers.status == 0, told(answers))
    return f"{received[0]} sent, {told(answers)}"


@case(RETRIEVE, "C-GET without a context for one SOP class", "a CT and an MR, only CT negotiated",
      clause="PS3.4 C.4.3.3.1, C.5.3", expected="the CT is sent; B000, counts 1/1/0, the MR listed")
def get_without_context(bench: Bench) -> str:
    _images(bench, 1)
    mr = _images(bench, 1, SeriesInstanceUID=bench.uid(), **MR)
    answers = bench.get(CT_GET, StudyInstanceUID=bench.study)
    check(len(answers.received) == 1, f"{len(answers.received)} sent; {told(answers)}")
    return ended(answers, 0xB000, (1, 1, 0), mr)


@case(RETRIEVE, "sub-associations", "a settable number in parallel for one destination (here 3)", clause="-",
      expected="more than one C-STORE at the same time, all sent", variant="parallel")
def sub_associations(bench: Bench) -> str:
    _images(bench, 12)
    receiver = bench.receivers.everything
    receiver.answer = lambda _: _slowly(0.1)
    answers = bench.move("RECEIVER", StudyInstanceUID=bench.study)
    did = f"{ended(answers, 0, (12, 0, 0))}; {receiver.most_at_once} at the same time"
    check(receiver.most_at_once > 1, did)
    return did



