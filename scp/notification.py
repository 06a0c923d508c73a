"""N-EVENT-REPORT: telling the peer of an association that something has happened (PS3.7 10.1.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from scp.carrier import Carrier
from scp.errors import AssociationLost
from scp.link import status_of_response
from scp.status import Status

_LOOK_S = 0.1
_PAUSE_S = 0.02
_IDLE_WITHIN_S = 10.0
"""How long to wait for a moment at which the peer has no request under way, seconds: a simple peer expects its response
then and nothing else."""


class Silent(AssociationLost):
    """The peer takes reports on this association and leaves them without response."""


class Interrupted(Exception):
    """The node stops: the report was not waited for."""


class Notifier:
    """An open association as a way to send reports to its peer.

    Parameters
    ----------
    carrier
        The association, opened by either side.
    sop_class_uid
        Of what is reported.

    Raises
    ------
    AssociationLost
        It has no presentation context for the SOP class.
    """

    def __init__(self, carrier: Carrier, sop_class_uid: str) -> None:
        context = next((each for each in carrier.contexts if each.abstract_syntax == sop_class_uid), None)
        messages = carrier.messages
        if context is None or messages is None:
            raise AssociationLost(f"no presentation context for {UID(sop_class_uid).name}")
        self._carrier = carrier
        self._sop_class_uid = sop_class_uid
        self._context_id = int(context.context_id or 0)
        self._syntax = context.transfer_syntax[0]
        self._messages = messages

    @property
    def is_usable(self) -> bool:
        """Whether the association is open, and its peer answers reports as far as is known."""
        return self._carrier.is_open and not self._messages.is_silent

    def report(
        self, sop_instance_uid: str, event_type: int, information: Dataset, *, stopping: Callable[[], bool]
    ) -> Status:
        """Send a report and return the Status of its response.

        Parameters
        ----------
        stopping
            Whether to wait no longer.

        Raises
        ------
        AssociationLost
            The association ended first, or its peer had requests under way all the time.
        Silent
            No response within the DIMSE timeout.
        Interrupted
            `stopping` became true.
        """
        request = N_EVENT_REPORT()
        request.AffectedSOPClassUID = self._sop_class_uid
        request.AffectedSOPInstanceUID = sop_instance_uid
        request.EventTypeID = event_type
        request.EventInformation = BytesIO(self._encoded(information))
        with self._turn(stopping):
            request.MessageID = self._messages.next_report()
            self._send_between_requests(request, stopping)
            return status_of_response(self._await_response(stopping))

    def _encoded(self, information: Dataset) -> bytes:
        syntax = self._syntax
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        if encoded is None:
            raise ValueError("Event Information cannot be encoded")
        return encoded

    @contextmanager
    def _turn(self, stopping: Callable[[], bool]) -> Iterator[None]:
        """Wait until no other report is under way on the association."""
        while not self._messages.reporting.acquire(timeout=_LOOK_S):
            if stopping():
                raise Interrupted
        try:
            yield
        finally:
            self._messages.reporting.release()

    def _send_between_requests(self, request: N_EVENT_REPORT, stopping: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _IDLE_WITHIN_S
        while time.monotonic() < deadline:
            if stopping():
                raise Interrupted
            if not self.is_usable:
                raise AssociationLost("the association has ended")
            with self._carrier.between_requests(_LOOK_S) as is_idle:
                if is_idle:
                    self._carrier.send(request, self._context_id)
                    return
            time.sleep(_PAUSE_S)
        raise AssociationLost(f"the peer had requests under way for {_IDLE_WITHIN_S:g} s")

    def _await_response(self, stopping: Callable[[], bool]) -> N_EVENT_REPORT:
        timeout = self._carrier.dimse_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is None or time.monotonic() < deadline:
            ended = not self._carrier.is_open
            if (answer := self._messages.answer(0.0 if ended else _LOOK_S)) is not None:
                return answer
            if ended:
                raise AssociationLost("the association ended before the report was answered")
            if stopping():
                raise Interrupted
        self._messages.is_silent = True
        raise Silent(f"the report was not answered within {timeout:g} s")
