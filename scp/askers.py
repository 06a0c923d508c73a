"""Who waits for a report on which association, as long as it is open: what only the process knows that has it."""

from __future__ import annotations

import threading

from scp.carrier import Carrier


class Askers:
    """Associations on which storage commitment was asked for. Safe to share between threads.

    Parameters
    ----------
    process
        Name of the process that has them.

    Attributes
    ----------
    process
        The same.
    """

    def __init__(self, process: str = "") -> None:
        self.process = process
        self._changed = threading.Condition()
        self._associations: dict[tuple[str, str], Carrier] = {}
        self._rung = 0

    def note(self, requestor: str, transaction_uid: str, association: Carrier) -> None:
        """Remember on which association the AE `requestor` asks."""
        with self._changed:
            open_ones = {key: assoc for key, assoc in self._associations.items() if assoc.is_established}
            self._associations = {**open_ones, (requestor, transaction_uid): association}

    def association(self, requestor: str, transaction_uid: str) -> Carrier | None:
        """Return the association on which that AE asked last, None when it is not known (any more)."""
        with self._changed:
            return self._associations.get((requestor, transaction_uid))

    def forget(self, requestor: str, transaction_uid: str) -> None:
        """Remember it no longer: it was answered."""
        with self._changed:
            self._associations.pop((requestor, transaction_uid), None)

    def ring(self) -> None:
        """Wake who waits for something to do."""
        with self._changed:
            self._rung += 1
            self._changed.notify_all()

    @property
    def rung(self) -> int:
        """How often `ring` was called."""
        return self._rung

    def wait(self, rung: int, timeout_s: float) -> None:
        """Wait until `ring` was called more than `rung` times, or `timeout_s` seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._rung != rung, timeout_s)
