"""The probe: what a case asks a node, and what a case is."""

from __future__ import annotations

import secrets
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from benchmarks.conformance.case import Answers, check, code
from benchmarks.conformance.node import Node
from benchmarks.conformance.receivers import Received, Receivers
from benchmarks.conformance.wire import (
    Association,
    Context,
    Gone,
    Message,
    Silent,
    encode_command,
    encode_data,
    pdata,
)

ROOT = "1.2.826.0.1.3680043.9.7133.77"
VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
_MODEL = {"P": "1.2.840.10008.5.1.4.1.2.1", "S": "1.2.840.10008.5.1.4.1.2.2"}
FIND = {model: f"{uid}.1" for model, uid in _MODEL.items()}
MOVE = {model: f"{uid}.2" for model, uid in _MODEL.items()}
GET = {model: f"{uid}.3" for model, uid in _MODEL.items()}
PLAIN = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


@dataclass
class Bench:
    """A node, the receivers, and names that no other case uses."""

    node: Node
    receivers: Receivers
    options: dict[str, Any]
    certificates: Path

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Take names that no case has used."""
        self.token = secrets.token_hex(4).upper()
        self._number = 0
        self.study = self.uid()
        self.series = self.uid()
        self.patient = f"P{self.token}"

    def uid(self) -> str:
        """Return a new UID."""
        self._number += 1
        return f"{ROOT}.{int(self.token, 16)}.{self._number}"

    # Objects

    def image(self, **values: Any) -> Dataset:
        """Make a small CT image of this case's patient, study and series; None deletes an attribute."""
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, self.uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study, self.series
        dataset.PatientID, dataset.PatientName = self.patient, f"Probe^{self.token}"
        dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20240102", "101500", "CT"
        dataset.AccessionNumber, dataset.StudyID, dataset.StudyDescription = f"A{self.token}", "S1", "Head"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, self._number
        dataset.Rows = dataset.Columns = 16
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = bytes((number * 7 + self._number) & 0x0F for number in range(512))
        dataset["PixelData"].VR = "OW"
        for keyword, value in values.items():
            if value is None:
                if keyword in dataset:
                    del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        return dataset

    # Associations

    def associate(
        self, contexts: Sequence[Context], *, calling: str = "PROBE", called: str | None = None, **more: Any
    ) -> Association:
        """Open an association."""
        return Association(self.node.port, called or self.node.title, calling, contexts, **more)

    def echo(self, association: Association | None = None, **more: Any) -> int:
        """Return the Status of a C-ECHO."""
        if association is None:
            with self.associate([Context(VERIFICATION, PLAIN)], **more) as association:
                return self.echo(association)
        command = Dataset()
        command.AffectedSOPClassUID, command.CommandField = VERIFICATION, 0x0030
        command.MessageID, command.CommandDataSetType = association.next_id(), 0x0101
        association.send_message(association.context_for(VERIFICATION), command)
        return association.receive().status

    # C-STORE

    def store_message(
        self, association: Association, data: bytes | Iterable[bytes], sop_class: str, uid: str, *,
        syntax: str | None = None, priority: int = 0, patience: float = 180.0,
    ) -> Message:
        """Send a C-STORE of encoded bytes and return its response."""
        command = Dataset()
        command.AffectedSOPClassUID, command.CommandField = sop_class, 0x0001
        command.MessageID, command.Priority, command.CommandDataSetType = association.next_id(), priority, 1
        command.AffectedSOPInstanceUID = uid
        association.send_message(association.context_for(sop_class, syntax), command, data)
        return association.receive(patience)

    def store(
        self, dataset: Dataset | bytes, *, syntax: str = ExplicitVRLittleEndian, sop_class: str | None = None,
        uid: str | None = None, calling: str = "PROBE", patience: float = 180.0,
    ) -> Message:
        """Store one object on an association of its own."""
        data = dataset if isinstance(dataset, bytes) else encode(dataset, syntax)
        if isinstance(dataset, Dataset):
            sop_class = sop_class or str(dataset.SOPClassUID)
            uid = uid or str(dataset.SOPInstanceUID)
        assert sop_class is not None
        assert uid is not None
        with self.associate([Context(sop_class, (str(syntax),))], calling=calling) as association:
            return self.store_message(association, data, sop_class, uid, patience=patience)

    def put(self, *datasets: Dataset, syntax: str = ExplicitVRLittleEndian, calling: str = "PROBE") -> None:
        """Store what a case needs; a node that refuses it fails the case."""
        classes = list(dict.fromkeys(str(dataset.SOPClassUID) for dataset in datasets))
        contexts = [Context(sop_class, (str(syntax),)) for sop_class in classes]
        with self.associate(contexts, calling=calling) as association:
            for dataset in datasets:
                uid = str(dataset.SOPInstanceUID)
                answer = self.store_message(association, encode(dataset, syntax), str(dataset.SOPClassUID), uid)
                check(answer.status == 0, f"C-STORE of what the case needs answered {code(answer)}")

    # C-FIND

    def find(
        self, model: str, level: str | None, *, calling: str = "PROBE", extended: bytes | None = None,
        cancel_after: int | None = None, receive_buffer: int = 0, raw: bytes | None = None, **keys: Any,
    ) -> Answers:
        """Ask; keys by keyword, None for a universal one; `cancel_after` so many rows it is cancelled."""
        identifier = keys_of(level, keys)
        sop_class = FIND[model]
        syntax = str(ImplicitVRLittleEndian)
        told = {sop_class: extended} if extended is not None else None
        contexts = [Context(sop_class, (syntax,))]
        with self.associate(
            contexts, calling=calling, extended=told, receive_buffer=receive_buffer
        ) as association:
            message_id = association.next_id()
            data = raw if raw is not None else encode(identifier, syntax)
            context_id = association.context_for(sop_class)
            request = _request(0x0020, sop_class, message_id)
            if cancel_after == 0:  # in one write, so that the node has it before it answers
                commands = encode_command(request), encode_command(cancellation(message_id))
                association.send_bytes(
                    pdata(context_id, 3, commands[0]) + pdata(context_id, 2, data) + pdata(context_id, 3, commands[1])
                )
            else:
                association.send_message(context_id, request, data)
            answers = Answers([])
            while True:
                if cancel_after and len(answers.messages) == cancel_after:
                    association.send_message(context_id, cancellation(message_id))
                message = association.receive()
                answers.messages.append(message)
                if message.status not in (0xFF00, 0xFF01):
                    return answers
                answers.rows.append(association.data_set(message))

    def rows(self, model: str, level: str, **keys: Any) -> list[Dataset]:
        """Return the rows of a C-FIND that has to end in 0000."""
        answers = self.find(model, level, **keys)
        check(answers.status == 0, f"C-FIND ended in {answers.code}")
        return answers.rows

    def values(self, keyword: str, model: str, level: str, **keys: Any) -> list[str]:
        """Return the sorted values of `keyword` in the rows of a C-FIND."""
        return sorted(str(row.get(keyword, "")) for row in self.rows(model, level, **{keyword: None, **keys}))

    # C-MOVE and C-GET

    def move(
        self, destination: str, model: str = "S", level: str | None = "STUDY", *, calling: str = "PROBE",
        raw: bytes | None = None, priority: int = 0, cancel_after: int | None = None, extended: bytes | None = None,
        **keys: Any,
    ) -> Answers:
        """Ask for a C-MOVE; `cancel_after` pending responses it is cancelled."""
        sop_class, syntax = MOVE[model], str(ImplicitVRLittleEndian)
        told = {sop_class: extended} if extended is not None else None
        with self.associate([Context(sop_class, (syntax,))], calling=calling, extended=told) as association:
            request = _request(0x0021, sop_class, association.next_id(), priority)
            request.MoveDestination = destination
            data = raw if raw is not None else encode(keys_of(level, keys), syntax)
            context_id = association.context_for(sop_class)
            began = time.monotonic()
            association.send_message(context_id, request, data)
            answers = Answers([], began=began)
            while True:
                message = association.receive(180.0)
                answers.messages.append(message)
                if message.status != 0xFF00:
                    answers.identifier = association.data_set(message) if message.data else None
                    return answers
                if cancel_after is not None and len(answers.messages) == cancel_after:
                    association.send_message(context_id, cancellation(request.MessageID))

    def get(
        self, accept: Sequence[Context], model: str = "S", level: str | None = "STUDY", *, calling: str = "PROBE",
        answer: Callable[[int], int] | None = None, cancel_after: int | None = None,
        raw: bytes | None = None, keep: bool = True, **keys: Any,
    ) -> Answers:
        """Ask for a C-GET; `accept` are the storage contexts, `answer` gives the Status of each C-STORE."""
        sop_class, syntax = GET[model], str(ImplicitVRLittleEndian)
        contexts = [Context(sop_class, (syntax,)), *accept]
        with self.associate(contexts, calling=calling) as association:
            request = _request(0x0010, sop_class, association.next_id())
            data = raw if raw is not None else encode(keys_of(level, keys), syntax)
            context_id = association.context_for(sop_class)
            association.send_message(context_id, request, data)
            answers, stores = Answers([]), 0
            while True:
                message = association.receive(180.0)
                if int(message.command.CommandField) != 0x0001:
                    answers.messages.append(message)
                    if message.status != 0xFF00:
                        answers.identifier = association.data_set(message) if message.data else None
                        return answers
                    continue
                status = answer(stores) if answer else 0
                stores += 1
                if keep and status == 0:
                    answers.received.append(_received(association, message))
                reply = Dataset()
                reply.AffectedSOPClassUID = message.command.AffectedSOPClassUID
                reply.CommandField, reply.MessageIDBeingRespondedTo = 0x8001, message.command.MessageID
                reply.CommandDataSetType, reply.Status = 0x0101, status
                reply.AffectedSOPInstanceUID = message.command.AffectedSOPInstanceUID
                association.send_message(message.context_id, reply)
                if cancel_after is not None and stores == cancel_after:
                    association.send_message(context_id, cancellation(request.MessageID))

    def get_one(self, dataset: Dataset, syntax: str, *, uid: str | None = None) -> Received:
        """Return an instance in one transfer syntax by C-GET at IMAGE level."""
        sop_class = str(dataset.SOPClassUID)
        answers = self.get(
            [Context(sop_class, (str(syntax),), (0, 1))], level="IMAGE",
            StudyInstanceUID=str(dataset.StudyInstanceUID), SeriesInstanceUID=str(dataset.SeriesInstanceUID),
            SOPInstanceUID=uid or str(dataset.SOPInstanceUID),
        )
        check(answers.received, f"0000 was answered, C-GET gives nothing back: {answers.code}, {answers.counts()}")
        return answers.received[0]

    # Storage commitment

    def commit(
        self, association: Association, references: Sequence[tuple[str, str]], transaction: str | None = None
    ) -> Message:
        """Send the N-ACTION and return its response, or the N-EVENT-REPORT where that comes first."""
        request = Dataset()
        request.RequestedSOPClassUID, request.CommandField = COMMITMENT, 0x0130
        request.MessageID, request.CommandDataSetType = association.next_id(), 1
        request.RequestedSOPInstanceUID, request.ActionTypeID = COMMITMENT_INSTANCE, 1
        information = Dataset()
        information.TransactionUID = transaction or self.uid()
        information.ReferencedSOPSequence = []
        for sop_class, uid in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            information.ReferencedSOPSequence.append(item)
        association.send_message(
            association.context_for(COMMITMENT), request, encode(information, ImplicitVRLittleEndian)
        )
        return association.receive()

    def commitment(self, calling: str = "PROBE") -> Association:
        """Open an association for storage commitment, as SCU."""
        return self.associate([Context(COMMITMENT, (str(ImplicitVRLittleEndian),))], calling=calling)

    def tls(self, *, with_certificate: bool) -> ssl.SSLContext:
        """Return a client's TLS context that trusts the test CA, with or without a certificate of its own."""
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
        if with_certificate:
            context.load_cert_chain(self.certificates / "probe.pem", self.certificates / "probe.key")
        return context

    def lives(self) -> bool:
        """Whether the node answers a C-ECHO."""
        try:
            return self.echo() == 0
        except (OSError, Gone, Silent, LookupError):
            return False


def _received(association: Association, message: Message) -> Received:
    syntax = association.contexts[message.context_id].transfer_syntax
    command = message.command
    return Received(
        str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID), syntax, message.data or b"", command
    )


def keys_of(level: str | None, keys: dict[str, Any]) -> Dataset:
    """Make an Identifier."""
    identifier = Dataset()
    if level is not None:
        identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, "" if value is None and not keyword.endswith("Sequence") else value)
    return identifier


def encode(dataset: Dataset, syntax: str) -> bytes:
    """Encode a data set in an uncompressed or the deflated transfer syntax; pixel data goes as it stands."""
    if syntax == DeflatedExplicitVRLittleEndian:
        return deflate(encode_data(dataset, implicit=False))
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    return encode_data(dataset, implicit=implicit, little=little)


def deflate(data: bytes) -> bytes:
    """Deflate as PS3.5 A.5 says: RFC 1951, padded to even length."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(data) + packer.flush()
    return packed + b"\0" * (len(packed) % 2)


def cancellation(message_id: int) -> Dataset:
    """Make a C-CANCEL-RQ (PS3.7 9.3.2.3)."""
    command = Dataset()
    command.CommandField, command.MessageIDBeingRespondedTo, command.CommandDataSetType = 0x0FFF, message_id, 0x0101
    return command


def _request(field_code: int, sop_class: str, message_id: int, priority: int = 0) -> Dataset:
    command = Dataset()
    command.AffectedSOPClassUID, command.CommandField, command.MessageID = UID(sop_class), field_code, message_id
    command.Priority, command.CommandDataSetType = priority, 1
    return command


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """Encode an element in Explicit VR Little Endian by hand."""
    if vr in ("OB", "OW", "SQ", "UN", "UT", "UC", "UR"):
        return struct.pack("<HH2sHL", group, number, vr.encode(), 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value


def encapsulated(*frames: bytes) -> bytes:
    """Encode encapsulated pixel data as a whole element, with an empty offset table."""
    body = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    for frame in frames:
        even = frame + b"\0" * (len(frame) % 2)
        body += struct.pack("<HHL", 0xFFFE, 0xE000, len(even)) + even
    return struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + body + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
