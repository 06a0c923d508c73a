"""pynetdicom as the requestor of the tests, without the races between its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.association import Association

from scp.requestor import RequestingEntity


class Pause:
    """Where an association's loop waits while somebody sends, and whether it does."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self.is_waited_at = False

    def clear(self) -> None:
        with self._changed:
            self._is_open = False

    def set(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            while not self._is_open:
                self.is_waited_at = True
                self._changed.wait()
            self.is_waited_at = False


class SteadyAssociation(Association):
    """An association that loses no response.

    Its loop says that it is paused just before it looks whether it is to pause; whoever sends then may have the loop
    take the response away. And it serves a report (N-EVENT-REPORT) in a thread of its own, which at its end says that
    the loop is not paused, and whose answer may get between the fragments of a request. Here the loop is paused while
    it waits, and at no other time, and a message is sent whole.
    """

    def fit(self) -> None:
        """Take the place of what pynetdicom made, before the loop starts."""
        self._reactor_checkpoint = Pause()
        send, one_at_a_time = self.dimse.send_msg, threading.Lock()

        def send_whole(*arguments: Any) -> None:
            with one_at_a_time:
                send(*arguments)

        self.dimse.send_msg = send_whole

    @property
    def _is_paused(self) -> bool:
        is_over = self._kill or not self.is_alive()
        return self._reactor_checkpoint.is_waited_at or is_over or threading.current_thread() is self

    @_is_paused.setter
    def _is_paused(self, _value: bool) -> None:
        pass


class SteadyEntity(RequestingEntity):
    """The node's entity, which sees a rejection that comes at once; for tests that send messages themselves."""

    def _create_socket(self, assoc: Association, *arguments: Any) -> Any:
        assoc.__class__ = SteadyAssociation
        assoc.fit()
        return super()._create_socket(assoc, *arguments)


def make_steady(event: Any) -> None:
    """Handle EVT_CONN_OPEN of a test's own acceptor that also sends on its associations: they lose no response."""
    event.assoc.__class__ = SteadyAssociation
    event.assoc.fit()


@contextmanager
def paused(assoc: SteadyAssociation) -> Iterator[None]:
    """Keep the loop of an association from taking the responses to what the block sends."""
    pause = threading.Event()
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        pause.wait(0.001)
    try:
        yield
    finally:
        assoc._reactor_checkpoint.set()


@pytest.fixture(scope="session", autouse=True)
def steady_requestors() -> Iterator[None]:
    """Have each association that a test's `AE` opens be a `SteadyAssociation`; the nodes' own are left alone."""
    create_socket = AE._create_socket

    def fit_and_create_socket(entity: AE, assoc: Association, *arguments: Any) -> Any:
        if type(entity) is AE:
            assoc.__class__ = SteadyAssociation
            assoc.fit()
        return create_socket(entity, assoc, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AE, "_create_socket", fit_and_create_socket)
        yield
