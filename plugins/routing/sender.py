"""What the router needs of the network: who brings objects to a peer. `scp` has it, `commands` hands it on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from index.archive import StoredInstance
from index.commitments import Reference, Report
from index.sending import Sent


class Line(Protocol):
    """A way to send objects to one destination, over associations that it opens as it needs them."""

    def send(self, instance: StoredInstance) -> Sent:
        """Send one object; raises `index.sending.Unreachable` and `Lost`."""


class Sender(Protocol):
    """Brings objects to peers."""

    def line(
        self, title: str, kinds: Iterable[tuple[str, str]], *, priority: str, max_instances: int
    ) -> AbstractContextManager[Line]:
        """Return a line to the destination `title`; no association is open before the first object is sent.

        Parameters
        ----------
        kinds
            (SOP Class UID, Transfer Syntax UID) of what will be sent.
        priority
            Of the C-STORE requests: ``low``, ``medium`` or ``high``.
        max_instances
            Objects that go over one association; 0: any number.
        """

    def ask(
        self, title: str, transaction_uid: str, references: Sequence[Reference], *, wait_s: float
    ) -> Report | None:
        """Ask the destination for storage commitment (PS3.4 J.3).

        Returns
        -------
        Report or None
            None: its report has not come on the same association within `wait_s` seconds; it will come to this node.

        Raises
        ------
        Unreachable, Lost, NotOffered
        """
