"""The upper layer of the probe, written from PS3.8: an association whose every byte the probe decides.

It checks nothing that it sends, so that it can send what no well-behaved client would.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLEMENTATION = "1.2.826.0.1.3680043.9.7133.99"
TIMEOUT_S = 30.0
NO_DATA_SET = 0x0101
_QUICK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""A node that writes a response in pieces should not wait for our delayed acknowledgement."""


class Gone(Exception):
    """The association is no more: closed, aborted, or released by the node."""


class Rejected(Exception):
    """A-ASSOCIATE-RJ (PS3.8 9.3.4), with its three reasons."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"rejected: result {result}, source {source}, reason {reason}")
        self.result, self.source, self.reason = result, source, reason


class Silent(Exception):
    """Nothing came in the time that the probe waits."""


@dataclass(frozen=True)
class Context:
    """A presentation context to propose, with SCP/SCU role selection where `roles` is (scu, scp)."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    roles: tuple[int, int] | None = None


@dataclass(frozen=True)
class Accepted:
    """What became of a proposed context: result 0 is acceptance (PS3.8 9.3.3.2)."""

    abstract_syntax: str
    result: int
    transfer_syntax: str


@dataclass
class Message:
    """A DIMSE message as it came."""

    context_id: int
    command: Dataset
    data: bytes | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def status(self) -> int:
        """Status (0000,0900); -1 where it is missing."""
        return int(self.command.get("Status", -1))


def encode_command(command: Dataset) -> bytes:
    """Encode a command set: Implicit VR Little Endian, its group length first (PS3.7 6.3.1)."""
    body = encode_data(command, implicit=True)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def encode_data(dataset: Dataset, *, implicit: bool = True, little: bool = True) -> bytes:
    """Encode a data set without File Meta Information."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def decode_data(data: bytes, transfer_syntax: str) -> Dataset:
    """Decode a data set in a transfer syntax that pydicom reads."""
    uid = transfer_syntax.encode() + b"\0" * (len(transfer_syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    head = b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta
    dataset = dcmread(BytesIO(head + data), force=True)
    plain = Dataset()
    plain.update(dataset)
    plain.file_meta = dataset.file_meta
    return plain


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _title(title: str) -> bytes:
    return title.encode("ascii").ljust(16)[:16]


def associate_request(
    calling: str, called: str, contexts: Sequence[Context], *, extended: dict[str, bytes] | None = None,
    max_pdu: int = 131072,
) -> bytes:
    """Encode an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    items = _item(0x10, APPLICATION_CONTEXT.encode())
    for number, context in enumerate(contexts):
        body = struct.pack(">BBBB", 2 * number + 1, 0, 0, 0) + _item(0x30, context.abstract_syntax.encode())
        body += b"".join(_item(0x40, syntax.encode()) for syntax in context.transfer_syntaxes)
        items += _item(0x20, body)
    user = _item(0x51, struct.pack(">L", max_pdu)) + _item(0x52, IMPLEMENTATION.encode())
    for uid, (scu, scp) in {c.abstract_syntax: c.roles for c in contexts if c.roles}.items():
        user += _item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))
    for uid, information in (extended or {}).items():
        user += _item(0x56, struct.pack(">H", len(uid)) + uid.encode() + information)
    items += _item(0x50, user)
    body = struct.pack(">HH", 1, 0) + _title(called) + _title(calling) + b"\0" * 32 + items
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _sub_items(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(body):
        kind, _, length = struct.unpack_from(">BBH", body, at)
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + length


class Association:
    """An association as requestor.

    Attributes
    ----------
    contexts
        Presentation context ID → what the node answered.
    extended
        SOP class → the application information of its SOP Class Extended Negotiation (PS3.7 D.3.3.5).
    """

    def __init__(
        self, port: int, called: str, calling: str, contexts: Sequence[Context], *,
        extended: dict[str, bytes] | None = None, max_pdu: int = 131072, timeout: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None, receive_buffer: int = 0,
    ) -> None:
        self.timeout = timeout
        self.contexts: dict[int, Accepted] = {}
        self.extended: dict[str, bytes] = {}
        self.peer_max_pdu = 16384
        self.proposed = contexts
        self._message_id = 0
        self._buffer = b""
        self._pdvs: list[tuple[int, int, bytes]] = []
        plain = socket.socket()
        plain.settimeout(timeout)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.connect(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
            self.send_bytes(associate_request(calling, called, contexts, extended=extended, max_pdu=max_pdu))
            self._negotiated(contexts)
        except BaseException:
            plain.close()
            raise

    def _negotiated(self, proposed: Sequence[Context]) -> None:
        kind, body = self.receive_pdu()
        if kind == 3:
            raise Rejected(body[1], body[2], body[3])
        if kind != 2:
            raise Gone(f"PDU of type {kind} instead of A-ASSOCIATE-AC")
        for item, content in _sub_items(body[68:]):
            if item == 0x21:
                accepted = dict(_sub_items(content[4:])).get(0x40, b"")
                syntax = accepted.rstrip(b"\0").decode() if content[2] == 0 else ""
                wanted = proposed[content[0] // 2].abstract_syntax
                self.contexts[content[0]] = Accepted(wanted, content[2], syntax)
            elif item == 0x50:
                self._user_information(content)

    def _user_information(self, content: bytes) -> None:
        for item, value in _sub_items(content):
            if item == 0x51:
                self.peer_max_pdu = struct.unpack(">L", value)[0] or 1 << 20
            elif item == 0x56:
                (length,) = struct.unpack_from(">H", value)
                self.extended[value[2 : 2 + length].decode()] = value[2 + length :]

    # PDUs

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they stand."""
        try:
            self.socket.sendall(data)
        except TimeoutError as error:
            raise Silent("the node does not read") from error
        except OSError as error:
            raise Gone(f"the connection was lost: {error}") from error

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                if _QUICK is not None:
                    self.socket.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)
                got = self.socket.recv(1 << 18)
            except TimeoutError as error:
                raise Silent(f"no answer within {self.timeout:g} s") from error
            except OSError as error:
                raise Gone(f"the connection was lost: {error}") from error
            if not got:
                raise Gone("the connection was closed")
            self._buffer += got
        result, self._buffer = self._buffer[:count], self._buffer[count:]
        return result

    def receive_pdu(self) -> tuple[int, bytes]:
        """Receive a PDU: its type and what follows its length."""
        self.socket.settimeout(self.timeout)
        kind, _, length = struct.unpack(">BBL", self._exactly(6))
        return kind, self._exactly(length)

    # DIMSE

    def context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> int:
        """Return the ID of an accepted context; `LookupError` where there is none."""
        for number, answer in self.contexts.items():
            if answer.result == 0 and answer.abstract_syntax == abstract_syntax and transfer_syntax in (
                None, answer.transfer_syntax,
            ):
                return number
        offered = (UID(one).name for context in self.proposed for one in context.transfer_syntaxes
                   if context.abstract_syntax == abstract_syntax)
        raise LookupError(f"does not accept {UID(abstract_syntax).name} in {transfer_syntax or ' or '.join(offered)}")

    def next_id(self) -> int:
        """Return a message ID that this association has not used."""
        self._message_id += 1
        return self._message_id

    def send_message(self, context_id: int, command: Dataset, data: bytes | Iterable[bytes] | None = None) -> None:
        """Send a message; `data` may be chunks of any size."""
        self.send_bytes(pdata(context_id, 3, encode_command(command)))
        if data is None:
            return
        for chunk, last in _ahead(split(data, self.peer_max_pdu - 6)):
            self.send_bytes(pdata(context_id, 2 if last else 0, chunk))

    def receive(self, timeout: float | None = None) -> Message:
        """Receive a message; raises `Gone` when the node ends the association, `Silent` when nothing comes."""
        before, self.timeout = self.timeout, timeout if timeout is not None else self.timeout
        try:
            context_id, raw = self._fragments(command=True)
            command = decode_data(raw, "1.2.840.10008.1.2")
            data = None
            if command.get("CommandDataSetType", NO_DATA_SET) != NO_DATA_SET:
                _, data = self._fragments(command=False)
            return Message(context_id, command, data)
        finally:
            self.timeout = before

    def _fragments(self, *, command: bool) -> tuple[int, bytes]:
        parts: list[bytes] = []
        while True:
            while not self._pdvs:
                kind, body = self.receive_pdu()
                if kind == 7:
                    raise Gone(f"aborted by the node (source {body[2]}, reason {body[3]})")
                if kind != 4:
                    raise Gone(f"PDU of type {kind}")
                at = 0
                while at < len(body):
                    (length,) = struct.unpack_from(">L", body, at)
                    self._pdvs.append((body[at + 4], body[at + 5], body[at + 6 : at + 4 + length]))
                    at += 4 + length
            context_id, header, fragment = self._pdvs.pop(0)
            if bool(header & 1) != command:
                raise Gone("a command fragment where data was due, or the other way round")
            parts.append(fragment)
            if header & 2:
                return context_id, b"".join(parts)

    def data_set(self, message: Message) -> Dataset:
        """Decode the data set of a message."""
        return decode_data(message.data or b"", self.contexts[message.context_id].transfer_syntax)

    def release(self) -> None:
        """Release, wait for the answer, close."""
        try:
            self.send_bytes(struct.pack(">BBLL", 5, 0, 4, 0))
            while self.receive_pdu()[0] not in (6, 7):
                pass
        except (Gone, Silent):
            pass
        finally:
            self.socket.close()

    def abort(self) -> None:
        """Abort and close."""
        try:
            self.send_bytes(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))
        except (Gone, Silent):
            pass
        finally:
            self.socket.close()

    def __enter__(self) -> Association:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()


def pdata(context_id: int, header: int, fragment: bytes) -> bytes:
    """Encode a P-DATA-TF PDU of one presentation data value (PS3.8 9.3.5)."""
    return struct.pack(">BBLLBB", 4, 0, len(fragment) + 6, len(fragment) + 2, context_id, header) + fragment


def split(data: bytes | Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut `data` into pieces of at most `size` bytes, an even number."""
    size = min(size, 1 << 17) & ~1
    for chunk in [data] if isinstance(data, bytes) else data:
        for start in range(0, max(len(chunk), 1), size):
            yield chunk[start : start + size]


def _ahead(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    waiting: bytes | None = None
    for piece in pieces:
        if waiting is not None:
            yield waiting, False
        waiting = piece
    yield waiting or b"", True
