"""C-GET makes the next object ready while one is being sent, and leaves nothing behind when it stops."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from scp.ahead import in_order
from scp.errors import AssociationLost, ConversionError
from scp.status import SUCCESS, Status, status_of

WAIT_S = 60


class Desk:
    """Makes ready and sends; knows what is ready and not yet put away."""

    def __init__(self, refused=()):
        self.begun = {name: threading.Event() for name in "ABCD"}
        self.held: set[str] = set()
        self.early: list[str] = []
        self.refused = refused
        self.during = lambda name: None

    @contextmanager
    def ready(self, instance):
        self.begun[instance].set()
        if instance in self.refused:
            raise ConversionError("it cannot be decoded")
        self.held.add(instance)
        try:
            yield SimpleNamespace(name=instance)
        finally:
            self.held.discard(instance)

    def send(self, instance, *, early=None):
        if early is not None:
            self.early.append(instance)
        try:
            with early or self.ready(instance) as found:
                assert found.name == instance
                self.during(instance)
                return SUCCESS
        except ConversionError as error:
            return status_of(error)


def test_the_next_object_is_made_ready_while_one_is_sent():
    desk = Desk()
    after = dict(zip("ABC", "BCD", strict=True))

    def wait_for_the_next(name):
        if name in after:
            assert desk.begun[after[name]].wait(WAIT_S), f"{after[name]} was not begun while {name} was sent"

    desk.during = wait_for_the_next
    outcomes = list(in_order("ABCD", desk.send, desk.ready, lambda _: True))

    assert outcomes == [(name, SUCCESS) for name in "ABCD"]
    assert desk.early == ["B", "C", "D"]
    assert desk.held == set()


def test_what_is_sent_as_it_stands_needs_no_other_thread():
    desk = Desk()
    before = threading.active_count()
    desk.during = lambda name: threading.active_count() == before or pytest.fail("a thread was started")

    assert [status for _, status in in_order("ABC", desk.send, desk.ready, lambda _: False)] == [SUCCESS] * 3
    assert desk.early == []


def test_one_that_cannot_be_decoded_fails_alone():
    desk = Desk(refused="B")

    outcomes = dict(in_order("ABC", desk.send, desk.ready, lambda _: True))

    assert outcomes["A"] == outcomes["C"] == SUCCESS
    assert isinstance(outcomes["B"], Status)
    assert outcomes["B"].comment == "it cannot be decoded"


def test_what_was_begun_is_put_away_when_the_peer_is_lost_or_the_request_cancelled():
    for refused in ("", "B"):
        lost = Desk(refused)
        lost.during = lambda name: (_ for _ in ()).throw(AssociationLost("gone"))
        with pytest.raises(AssociationLost):
            list(in_order("AB", lost.send, lost.ready, lambda _: True))
        assert lost.held == set()

        cancelled = Desk(refused)
        outcomes = in_order("ABC", cancelled.send, cancelled.ready, lambda _: True)
        next(outcomes)
        outcomes.close()
        assert cancelled.held == set()
