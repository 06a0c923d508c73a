"""The application entities that a node sends to: SCPs of the probe with settable manners."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from benchmarks.conformance.node import Peer, free_port
from benchmarks.conformance.wire import decode_data

EVERYTHING = tuple(str(syntax) for syntax in ALL_TRANSFER_SYNTAXES)
HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")


@dataclass(frozen=True)
class Received:
    """An instance that came by C-STORE."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    data: bytes
    request: Any = None

    @property
    def dataset(self) -> Dataset:
        """What came, decoded."""
        return decode_data(self.data, self.transfer_syntax)


@dataclass
class Receiver:
    """A storage SCP; `answer` may set the Status of each C-STORE and may take its time.

    Attributes
    ----------
    events
        N-EVENT-REPORTs that came: (event type, event information).
    most_at_once
        The largest number of C-STOREs that were under way at the same time.
    """

    title: str
    syntaxes: tuple[str, ...] = EVERYTHING + HTJ2K
    sop_classes: tuple[str, ...] | None = None
    rejects: bool = False
    received: list[Received] = field(default_factory=list)
    events: list[tuple[int, Dataset]] = field(default_factory=list)
    answer: Callable[[int], int] | None = None
    most_at_once: int = 0
    attempts: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._server: Any = None

    def reset(self) -> None:
        """Forget what came; accept everything."""
        with self._lock:
            self.received, self.events, self.answer = [], [], None
            self.most_at_once = self.attempts = 0

    def open(self) -> None:
        """Listen, on the port that was named before where there is one."""
        entity = AE(self.title)
        entity.maximum_associations = 50
        entity.network_timeout = entity.dimse_timeout = 60
        if self.rejects:
            entity.require_called_aet = True
            entity.ae_title = "NOBODY"
        classes = self.sop_classes or tuple(str(c.abstract_syntax) for c in AllStoragePresentationContexts)
        for sop_class in classes:
            entity.add_supported_context(sop_class, list(self.syntaxes))
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        entity.add_supported_context("1.2.840.10008.1.1")
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_EVENT_REPORT, self._event)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, event: Any) -> int:
        request = event.request
        with self._lock:
            self._busy += 1
            self.most_at_once = max(self.most_at_once, self._busy)
            number = self.attempts
            self.attempts += 1
            answer = self.answer
        try:
            status = answer(number) if answer else 0
            if status == 0 or status & 0xF000 == 0xB000:
                instance = Received(
                    str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID),
                    str(event.context.transfer_syntax), event.encoded_dataset(include_meta=False), request,
                )
                with self._lock:
                    self.received.append(instance)
        finally:
            with self._lock:
                self._busy -= 1
        return status

    def _event(self, event: Any) -> tuple[int, None]:
        with self._lock:
            self.events.append((int(event.event_type), event.event_information))
        return 0, None

    def wait_for_event(self, timeout: float) -> tuple[int, Dataset] | None:
        """Wait for an N-EVENT-REPORT."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._lock:
                if self.events:
                    return self.events[0]
            time.sleep(0.02)
        return None


class Receivers:
    """Every application entity of the probe, for all nodes alike."""

    def __init__(self) -> None:
        self.everything = Receiver("RECEIVER")
        self.ct_only = Receiver("CTONLY", sop_classes=(str(CTImageStorage),))
        self.implicit = Receiver("IMPLICIT", syntaxes=(str(ImplicitVRLittleEndian),))
        self.plain = Receiver("PLAIN", syntaxes=(str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)))
        self.rejecting = Receiver("REJECTING", rejects=True)
        self.probe = Receiver("PROBE")
        self.later = Receiver("LATER", port=free_port())
        for receiver in self.running:
            receiver.open()
        self.closed_port = free_port()

    @property
    def running(self) -> tuple[Receiver, ...]:
        """Those that listen from the beginning."""
        return (self.everything, self.ct_only, self.implicit, self.plain, self.rejecting, self.probe)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """What the nodes are told of."""
        return (
            *(Peer(receiver.title, receiver.port) for receiver in self.running),
            Peer("LATER", self.later.port),
            Peer("CLOSED", self.closed_port),
            Peer("LENIENT", self.closed_port, lenient=True),
            Peer("MARS", self.closed_port, private_sop_classes=True),
            Peer("OTHER", self.closed_port),
            Peer("FINDONLY", self.closed_port, rights=("find",)),
            Peer("STOREONLY", self.closed_port, rights=("store",)),
            Peer("SIMILAR", self.closed_port, rights=("find", "similar")),
            Peer("ELSEWHERE", self.closed_port, addresses=("192.0.2.1",)),
        )

    def reset(self) -> None:
        """Make all forget."""
        for receiver in (*self.running, self.later):
            receiver.reset()

    def close(self) -> None:
        """Close all."""
        for receiver in (*self.running, self.later):
            receiver.close()


CLASSES = tuple(UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts)
"""Storage SOP classes that pynetdicom names."""
