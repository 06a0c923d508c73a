"""An association as services, links and couriers see it, whichever transport carries it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from pydicom.uid import UID
from pynetdicom.dimse_primitives import DIMSEPrimitive
from pynetdicom.presentation import PresentationContext

from scp.message_queue import MessageQueue
from scp.messages import StoreCommand


class StoreAnswer(Protocol):
    """The response to a C-STORE-RQ, with or without the comment and the elements that explain its Status."""

    @property
    def Status(self) -> int | None:  # noqa: N802  (its name in pynetdicom)
        """Status (0000,0900)."""


class Carrier(Protocol):
    """One association."""

    @property
    def assoc(self) -> Any:
        """What its transport knows of it; pynetdicom's `Association` where that carries it."""

    @property
    def calling(self) -> str:
        """AE title of its requestor."""

    @property
    def called(self) -> str:
        """AE title that its requestor called."""

    @property
    def address(self) -> str:
        """IP address of its requestor."""

    @property
    def contexts(self) -> Sequence[PresentationContext]:
        """Its presentation contexts, the accepted ones."""

    @property
    def proposed(self) -> Mapping[UID, bytes]:
        """SOP class → Service Class Application Information that its requestor proposed (PS3.7 D.3.3.5)."""

    @property
    def is_established(self) -> bool:
        """Whether it stands."""

    @property
    def is_open(self) -> bool:
        """Whether it stands and both sides may send (state Sta6 of PS3.8 9.2)."""

    @property
    def dimse_timeout(self) -> float | None:
        """How long to wait for a response, seconds."""

    @property
    def messages(self) -> MessageQueue | None:
        """What its peer has answered to reports; None where reports cannot be sent on it."""

    def send(self, message: DIMSEPrimitive, context_id: int) -> None:
        """Send a message; raises `AssociationLost`."""

    def store(
        self,
        command: StoreCommand,
        data: bytes | memoryview | tuple[Path, int],
        meanwhile: Callable[[], object] | None = None,
    ) -> StoreAnswer:
        """Send a C-STORE-RQ and return its response.

        Parameters
        ----------
        data
            The encoded data set, or the file that holds it and its offset there: its bytes are sent as they stand.
        meanwhile
            Called when it has been sent, and before its response is waited for; raises nothing.

        Raises
        ------
        AssociationLost
            No response came: the association was aborted or the DIMSE timeout passed.
        """

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer sent a C-CANCEL for the request `message_id`, which is being served."""

    def wait_for_reader(self, is_cancelled: Callable[[], bool]) -> bool:
        """Wait until the peer has room for another answer; return whether it cancelled the request meanwhile.

        Raises
        ------
        AssociationLost
            The association ended, or the peer took nothing for the network timeout (it is aborted then).
        """

    def decoded(self) -> None:
        """Let others send large requests: the one that is served is decoded, however long it is served."""

    def between_requests(self, timeout_s: float) -> AbstractContextManager[bool]:
        """Keep the peer's requests from being served in this block; False: one is under way beyond `timeout_s`."""

    def release(self) -> None:
        """End it in order; nothing happens when it is gone already."""

    def abort(self) -> None:
        """End it at once; who waits for a response on it in another thread gets none.

        Somebody else may take that from under his nose: repeat this until he has gone.
        """
