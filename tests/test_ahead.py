"""The next object is made ready while one is being sent, and nothing is left behind when that stops.

Over the associations of a C-MOVE: tests/test_sub_associations.py.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from index.read_ahead import READ_AHEAD, read_ahead
from scp.ahead import Sender, in_order
from scp.destination import Destination
from scp.errors import AssociationLost, ConversionError
from scp.retrieve import takes_time
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

    def send(self, instance, *, early=None, meanwhile=None):
        if early is not None:
            self.early.append(instance)
        try:
            with early or self.ready(instance) as found:
                assert found.name == instance
                if meanwhile is not None:
                    meanwhile()
                self.during(instance)
                return SUCCESS
        except ConversionError as error:
            return status_of(error)


def _in_order(names, desk, *, takes_time):
    return in_order(names, Sender(desk.send, desk.ready, lambda _: takes_time))


def test_the_next_object_is_made_ready_while_one_is_sent():
    desk = Desk()
    after = dict(zip("ABC", "BCD", strict=True))

    def wait_for_the_next(name):
        if name in after:
            assert desk.begun[after[name]].wait(WAIT_S), f"{after[name]} was not begun while {name} was sent"

    desk.during = wait_for_the_next
    outcomes = list(_in_order("ABCD", desk, takes_time=True))

    assert outcomes == [(name, SUCCESS) for name in "ABCD"]
    assert desk.early == ["B", "C", "D"]
    assert desk.held == set()


def test_what_is_sent_as_it_stands_is_read_while_the_response_is_waited_for_and_needs_no_other_thread():
    desk = Desk()
    before = set(threading.enumerate())  # of which some may be about to end

    def look(name):
        assert set(threading.enumerate()) <= before, "a thread was started"
        assert desk.held == set(name + after.get(name, ""))

    after = {"A": "B", "B": "C"}
    desk.during = look

    assert [status for _, status in _in_order("ABC", desk, takes_time=False)] == [SUCCESS] * 3
    assert desk.early == ["B", "C"]
    assert desk.held == set()


@pytest.mark.parametrize("takes_time", [True, False])
def test_one_that_cannot_be_made_ready_fails_alone(takes_time):
    desk = Desk(refused="B")

    outcomes = dict(_in_order("ABC", desk, takes_time=takes_time))

    assert outcomes["A"] == outcomes["C"] == SUCCESS
    assert isinstance(outcomes["B"], Status)
    assert outcomes["B"].comment == "it cannot be decoded"


@pytest.mark.parametrize("takes_time", [True, False])
def test_what_was_begun_is_put_away_when_the_peer_is_lost_or_the_request_cancelled(takes_time):
    for refused in ("", "B"):
        lost = Desk(refused)
        lost.during = lambda name: (_ for _ in ()).throw(AssociationLost("gone"))
        with pytest.raises(AssociationLost):
            list(_in_order("AB", lost, takes_time=takes_time))
        assert lost.held == set()

        cancelled = Desk(refused)
        outcomes = _in_order("ABC", cancelled, takes_time=takes_time)
        next(outcomes)
        outcomes.close()
        assert cancelled.held == set()


def test_what_was_begun_and_cannot_be_sent_is_put_away():
    """Of a SOP class that the peer does not take, for one."""
    desk = Desk()
    send = desk.send
    desk.send = lambda name, **told: send(name, **told) if name != "B" else Status(0x0122, "not taken")

    assert [status.code for _, status in _in_order("ABC", desk, takes_time=False)] == [0, 0x0122, 0]
    assert desk.held == set()


@pytest.mark.parametrize(
    ("accepted", "syntax", "damage", "is_changed", "expected"),
    [
        (("1.2", "1.3"), "1.2", "", False, False),
        (("1.2", "1.3"), "1.4", "", False, True),  # decoded
        (("1.2", "1.3"), "1.2", "", True, True),  # de-identified
        ((), "1.2", "", True, False),  # not sent
        (("1.2",), "1.4", "cut off", True, False),
    ],
)
def test_what_is_decoded_or_de_identified_and_will_be_sent_takes_time(accepted, syntax, damage, is_changed, expected):
    link = Mock(accepted=lambda _: accepted)
    instance = SimpleNamespace(sop_class_uid="1.1", transfer_syntax_uid=syntax, damage=damage)
    assert takes_time(link, instance, is_changed=is_changed) is expected


def test_files_are_brought_into_the_cache_some_objects_before_they_are_needed(monkeypatch):
    told = []
    monkeypatch.setattr("index.read_ahead.bring_to_cache", lambda path, _size: told.append(path))

    def send(instance):
        told.append(instance.path.lower())

    for each in read_ahead([SimpleNamespace(path=name, size=0) for name in "ABCDEFGH"]):
        send(each)
    assert "".join(told) == "ABCDEaFbGcHdefgh"
    assert READ_AHEAD == 4
    assert list(read_ahead([])) == []


@pytest.mark.parametrize("associations", [1, 3])
def test_a_move_brings_each_file_into_the_cache_once_and_before_it_is_sent(tmp_path, monkeypatch, associations):
    told, lock = [], threading.Lock()

    def note(what):
        with lock:
            told.append(what)
        return SUCCESS

    monkeypatch.setattr("scp.destination.bring_to_cache", lambda path, size: note(("brought", path.name, size)))
    instances = [
        SimpleNamespace(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2", transfer_syntax_uid="1.2.840.10008.1.2.1",
            path=tmp_path / str(number), size=number, sop_instance_uid=f"1.2.{number}",
        )
        for number in range(20)
    ]  # fmt: skip
    sending = Destination(
        instances,
        lambda _: Mock(is_open=True),
        lambda _: Sender(lambda each, **_: note(("sent", each.path.name, each.size)), nullcontext, lambda _: False),
        associations=associations,
    )
    with sending:
        assert sum(outcome is not None for outcome in sending.outcomes()) == len(instances)
    brought = [rest for what, *rest in told if what == "brought"]
    assert sorted(brought) == sorted([each.path.name, each.size] for each in instances)
    assert all(told.index(("brought", *one)) < told.index(("sent", *one)) for one in brought)
