"""A C-MOVE that another archive does for this node, for what that archive holds (here: an Orthanc).

It knows the destinations, and what it sends are its own objects. Instances go in pieces, as C-MOVE requests at level
IMAGE. Archives tell counts, but seldom which instance failed: a piece that did not arrive whole is asked for again one
instance at a time, so that each has a Status of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from types import TracebackType

from pydicom.dataset import Dataset

from index.archive import StoredInstance
from scp import transport
from scp.contexts import QUERY_SYNTAXES, STUDY_ROOT_MOVE, Proposal
from scp.errors import AssociationLost, PeerError
from scp.link import Link, status_of_response
from scp.outcomes import LOOK_S, Outcome, Outcomes
from scp.status import PROCESSING_FAILURE, SUCCESS, Status, status_of

_LOG = logging.getLogger(__name__)

_PIECE = 50
"""Instances of one request; the counts that the requestor of our C-MOVE sees grow by so many."""

_HOPELESS = 3
"""After so many instances in a row that did not arrive, the destination is not bothered with the others."""

_GRACE_S = 1.0
_MESSAGE_ID = 1


class HandOver:
    """Has instances sent by the archive that holds them; a context manager, like `scp.destination.Destination`.

    Parameters
    ----------
    instances
        What is to be sent.
    open_link
        Opens an association with the archive with these contexts; raises `PeerError`.
    archive
        AE title of the archive, for what is told.
    destination
        AE title that the archive is to send to.
    """

    def __init__(
        self,
        instances: Sequence[StoredInstance],
        open_link: Callable[[list[Proposal]], Link],
        *,
        archive: str,
        destination: str,
    ) -> None:
        self._pieces = list(_pieces(instances))
        self._open_link = open_link
        self._archive = archive
        self._destination = destination
        self._outcomes = Outcomes(len(instances))
        self._stopped = threading.Event()
        self._link: Link | None = None
        self._failed_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="hand-over", daemon=True)

    def __enter__(self) -> HandOver:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for _ in self.stop(grace_s=0.0):
            pass

    def outcomes(self) -> Iterator[Outcome | None]:
        """Yield each sub-operation as it ends, and None now and then while none does."""
        return self._outcomes.each()

    def stop(self, grace_s: float = _GRACE_S) -> Iterator[Outcome]:
        """Pass a C-CANCEL on, and yield what ends within `grace_s` seconds; then the association is aborted."""
        self._stopped.set()
        link = self._link if self._outcomes.left else None  # when all has been told, the thread releases it
        if link is not None and link.is_open:
            try:
                link.assoc.send_c_cancel(_MESSAGE_ID, query_model=STUDY_ROOT_MOVE)
            except (RuntimeError, ValueError) as error:  # the association has just ended
                _LOG.info("C-CANCEL was not passed on to %s: %s", self._archive, error)
        self._thread.join(grace_s)
        deadline = time.monotonic() + _GRACE_S
        while link is not None and self._thread.is_alive() and time.monotonic() < deadline:
            link.abort()
            self._thread.join(LOOK_S)
        yield from self._outcomes.known()

    # In the thread

    def _run(self) -> None:
        try:
            for piece in self._pieces:
                if self._stopped.is_set():
                    return
                self._hand_over(piece)
        finally:
            link, self._link = self._link, None  # from here on nobody cancels or aborts it
            if link is not None:
                link.release()

    def _hand_over(self, piece: Sequence[StoredInstance]) -> None:
        """Have a piece sent, and tell what became of each instance of it."""
        if self._failed_in_a_row >= _HOPELESS:
            status = Status(PROCESSING_FAILURE, f"not tried: {_HOPELESS} others did not reach {self._destination}")
            self._tell(piece, status)
            return
        status, arrived = self._move(piece)
        if arrived == len(piece):
            self._failed_in_a_row = 0
            self._tell(piece, SUCCESS)
        elif self._stopped.is_set():  # the others were not sent, which is no failure
            self._tell(piece[:arrived], SUCCESS)
        elif len(piece) == 1:
            self._failed_in_a_row += 1
            self._tell(piece, status)
        else:
            for instance in piece:
                if self._stopped.is_set():
                    return
                self._hand_over([instance])

    def _tell(self, piece: Sequence[StoredInstance], status: Status) -> None:
        for instance in piece:
            self._outcomes.put(instance, status)

    def _move(self, piece: Sequence[StoredInstance]) -> tuple[Status, int]:
        """Send one C-MOVE; return why what is missing did not arrive, and how many instances did."""
        try:
            if self._link is None or not self._link.is_open:
                self._link = self._open_link([Proposal(STUDY_ROOT_MOVE, QUERY_SYNTAXES)])
            status, arrived = self._final(self._link, _identifier(piece))
        except PeerError as error:
            self._failed_in_a_row = _HOPELESS  # there is nobody to ask for the others
            return status_of(error), 0
        except Exception as error:  # noqa: BLE001  (whatever happens to one piece is its own status)
            _LOG.exception("a C-MOVE at %s failed", self._archive)
            return status_of(error), 0
        if status.is_success:
            return Status(PROCESSING_FAILURE, f"{self._archive} does not have it any more"), arrived
        comment = status.comment or f"{self._archive} could not send to {self._destination}, or knows no such AE"
        return Status(PROCESSING_FAILURE, f"{status.code:04X}: {comment}"), arrived

    def _final(self, link: Link, identifier: Dataset) -> tuple[Status, int]:
        """Return the final status, and how many sub-operations were completed, if need be with a warning."""
        transport.hold(link.assoc)
        for response, _ in link.assoc.send_c_move(
            identifier, self._destination, STUDY_ROOT_MOVE, msg_id=_MESSAGE_ID
        ):
            if "Status" not in response:
                break
            status = status_of_response(response)
            if not status.is_pending:
                done = (response.get(f"NumberOf{how}Suboperations") or 0 for how in ("Completed", "Warning"))
                return status, sum(map(int, done))
        raise AssociationLost(f"{self._archive} aborted the association, or fell silent, before it answered")


def _pieces(instances: Sequence[StoredInstance]) -> Iterator[list[StoredInstance]]:
    """Cut `instances` into pieces of one series each, in their order as far as series are not mixed."""
    for _, group in groupby(instances, key=lambda each: (each.study_instance_uid, each.series_instance_uid)):
        series = list(group)
        for start in range(0, len(series), _PIECE):
            yield series[start : start + _PIECE]


def _identifier(piece: Sequence[StoredInstance]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    identifier.StudyInstanceUID = piece[0].study_instance_uid
    identifier.SeriesInstanceUID = piece[0].series_instance_uid
    identifier.SOPInstanceUID = [instance.sop_instance_uid for instance in piece]
    return identifier
