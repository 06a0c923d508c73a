"""The other services: C-ECHO, storage commitment, TLS, access, limits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage

from benchmarks.conformance.case import case, check, code
from benchmarks.conformance.probe import PLAIN, VERIFICATION, Bench
from benchmarks.conformance.wire import Association, Context, Gone, Message, Silent

OTHER = "Other services"
ECHO = [Context(VERIFICATION, PLAIN)]


@case(OTHER, "C-ECHO", "answered", clause="PS3.4 A.4, PS3.7 9.3.5", expected="0000")
def echo(bench: Bench) -> str:
    status = bench.echo()
    check(status == 0, f"{status:04X}")
    return "0000"


# Storage commitment

COMMITMENT = "Storage Commitment"


def _report(association: Association, bench: Bench, timeout: float = 60.0) -> tuple[int, Dataset]:
    """Wait for the N-EVENT-REPORT: on the association, or at the AE of the probe."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if bench.receivers.probe.events:
            return bench.receivers.probe.events[0]
        with contextlib.suppress(Silent, Gone):
            message = association.receive(0.3)
            return _acknowledged(association, message)
        bench.receivers.probe.wait_for_event(0.2)
    check(False, f"no N-EVENT-REPORT within {timeout:g} s")
    raise AssertionError


def _acknowledged(association: Association, message: Message) -> tuple[int, Dataset]:
    command = message.command
    check(int(command.CommandField) == 0x0100, f"command {int(command.CommandField):04X} instead of N-EVENT-REPORT")
    reply = Dataset()
    reply.AffectedSOPClassUID, reply.CommandField = command.AffectedSOPClassUID, 0x8100
    reply.MessageIDBeingRespondedTo, reply.CommandDataSetType, reply.Status = command.MessageID, 0x0101, 0
    reply.AffectedSOPInstanceUID, reply.EventTypeID = command.AffectedSOPInstanceUID, command.EventTypeID
    association.send_message(message.context_id, reply)
    return int(command.EventTypeID), association.data_set(message)


def _committed(bench: Bench, references: list[tuple[str, str]]) -> tuple[int, Dataset, str]:
    """Ask for commitment and return event type, report and Transaction UID."""
    transaction = bench.uid()
    with bench.commitment() as association:
        answer = bench.commit(association, references, transaction)
        check(answer.status == 0, f"N-ACTION answered {code(answer)}")
        kind, report = _report(association, bench)
    check(report.get("TransactionUID") == transaction, "another Transaction UID in the report")
    return kind, report, transaction


def _failures(report: Dataset) -> dict[str, int]:
    return {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", -1))
            for item in report.get("FailedSOPSequence") or []}


def _successes(report: Dataset) -> list[str]:
    return sorted(str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or [])


def _told(kind: int, report: Dataset) -> str:
    reasons = ", ".join(f"{reason:04X}" for reason in _failures(report).values())
    return f"event {kind}, {len(_successes(report))} committed, failed: {reasons or 'none'}"


@case(OTHER, COMMITMENT, "what is stored is committed", clause="PS3.4 J.3.2, J.3.3", expected="0000; event 1 with both")
def committed(bench: Bench) -> str:
    images = [bench.image(), bench.image()]
    bench.put(*images)
    uids = sorted(str(image.SOPInstanceUID) for image in images)
    kind, report, _ = _committed(bench, [(CTImageStorage, uid) for uid in uids])
    check(kind == 1 and _successes(report) == uids, _told(kind, report))
    check(not _failures(report), _told(kind, report))
    return _told(kind, report)


@case(OTHER, COMMITMENT, "an instance that is not there", clause="PS3.4 J.3.3.1.1, PS3.3 C.14.1.1",
      expected="event 2, reason 0112 for it, the other one committed")
def not_there(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    missing = bench.uid()
    kind, report, _ = _committed(bench, [(CTImageStorage, str(image.SOPInstanceUID)), (CTImageStorage, missing)])
    told = _told(kind, report)
    check(kind == 2 and _failures(report) == {missing: 0x0112}, told)
    check(_successes(report) == [str(image.SOPInstanceUID)], told)
    return told


@case(OTHER, COMMITMENT, "another SOP class than the stored one", clause="PS3.3 C.14.1.1",
      expected="event 2, reason 0119")
def class_conflict(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    uid = str(image.SOPInstanceUID)
    kind, report, _ = _committed(bench, [(str(MRImageStorage), uid)])
    check(kind == 2 and _failures(report) == {uid: 0x0119}, _told(kind, report))
    return _told(kind, report)


@case(OTHER, COMMITMENT, "a file whose bytes changed on disk is not committed", clause="PS3.3 C.14.1.1",
      expected="event 2, reason 0110")
def damaged(bench: Bench) -> str:
    marker = f"BYTES-OF-{bench.token}".encode()
    image = bench.image(ImageComments=marker.decode())
    bench.put(image)
    for path in bench.node.files():
        _flip(path, marker)
    uid = str(image.SOPInstanceUID)
    kind, report, _ = _committed(bench, [(CTImageStorage, uid)])
    check(kind == 2 and _failures(report) == {uid: 0x0110}, _told(kind, report))
    return _told(kind, report)


def _flip(path: Path, marker: bytes) -> None:
    """Change one byte of the pixel data in a DICOM file that holds `marker`."""
    data = path.read_bytes()
    if data[128:132] == b"DICM" and marker in data:
        path.chmod(0o600)
        changed = bytearray(data)
        changed[-5] ^= 0xFF
        path.write_bytes(changed)


@case(OTHER, COMMITMENT, "on a new association to the requestor when the first is closed", clause="PS3.4 J.3.3",
      expected="event 1 at the AE of the requestor")
def reported_later(bench: Bench) -> str:
    image = bench.image()
    bench.put(image)
    with bench.commitment() as association:
        answer = bench.commit(association, [(CTImageStorage, str(image.SOPInstanceUID))])
        if int(answer.command.CommandField) == 0x0100:
            _acknowledged(association, answer)
            return "reported before the N-ACTION was answered"
        check(answer.status == 0, f"N-ACTION answered {code(answer)}")
        association.abort()
    event = bench.receivers.probe.wait_for_event(60.0)
    check(event is not None, "no N-EVENT-REPORT within 60 s")
    return _told(*event) if event else ""


def _later(bench: Bench, between: Callable[[], None]) -> str:
    """Ask as LATER, which does not listen yet; listen after `between`; expect the report."""
    image = bench.image()
    bench.put(image)
    association = bench.commitment("LATER")
    answer = bench.commit(association, [(CTImageStorage, str(image.SOPInstanceUID))])
    check(answer.status == 0, f"N-ACTION answered {code(answer)}")
    association.abort()
    between()
    bench.receivers.later.open()
    try:
        event = bench.receivers.later.wait_for_event(60.0)
    finally:
        bench.receivers.later.close()
    check(event is not None, "no N-EVENT-REPORT within 60 s")
    return _told(*event) if event else ""


@case(OTHER, COMMITMENT, "retried while the requestor does not listen", clause="PS3.4 J.3.3",
      expected="the report comes after the requestor listens again")
def retried(bench: Bench) -> str:
    return _later(bench, lambda: time.sleep(2.5))


@case(OTHER, COMMITMENT, "a request that was answered 0000 survives kill -9", clause="PS3.4 J.3.2",
      expected="the report comes after the restart", variant="killed")
def request_is_durable(bench: Bench) -> str:
    return _later(bench, bench.node.restart)


@case(OTHER, "Modality Worklist, MPPS, IAN, UPS", "left to others: not negotiated", clause="PS3.8 9.3.3.2",
      expected="contexts rejected, result 3")
def left_to_others(bench: Bench) -> str:
    classes = {"MWL": "1.2.840.10008.5.1.4.31", "MPPS": "1.2.840.10008.3.1.2.3.3",
               "IAN": "1.2.840.10008.5.1.4.33", "UPS": "1.2.840.10008.5.1.4.34.6.1"}
    with bench.associate([*(Context(uid, PLAIN) for uid in classes.values()), *ECHO]) as association:
        results = [association.contexts[2 * number + 1].result for number in range(len(classes))]
    taken = [name for name, result in zip(classes, results, strict=True) if result == 0]
    if taken:
        return f"offers {', '.join(taken)}"
    check(set(results) == {3}, f"results {results}")
    return "rejected, result 3"



