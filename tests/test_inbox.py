"""What a peer may have in memory, and which fragments belong together (PS3.7 6.2, PS3.8 E.2)."""

from __future__ import annotations

import threading

import pytest

from scp import inbox
from scp.inbox import Inbox, InboxError

COMMAND, LAST_OF_COMMAND, DATA, LAST_OF_DATA = 1, 3, 0, 2
LARGE = (1 << 16) + 1


def receive(box, data_bytes, *, waiting=0):
    """The fragments of one request whose data set has so many bytes."""
    box.fragment(1, LAST_OF_COMMAND)
    box.received(100, 0, expects_data=True, waiting=waiting)
    box.fragment(1, LAST_OF_DATA)
    box.received(100, data_bytes, expects_data=True, waiting=waiting)
    box.completed(waiting + 1)


@pytest.mark.parametrize(
    ("before", "fragment", "sentence"),
    [
        ([], (1, DATA), "of a data set where one of a command"),
        ([(1, COMMAND)], (1, DATA), "of a data set where one of a command"),
        ([(1, COMMAND)], (3, LAST_OF_COMMAND), "context 3 within a message of context 1"),
    ],
)
def test_fragments_that_do_not_belong_together(before, fragment, sentence):
    box = Inbox()
    for earlier in before:
        box.fragment(*earlier)
        box.received(10, 0, expects_data=False, waiting=0)
    with pytest.raises(InboxError, match=sentence):
        box.fragment(*fragment)


def test_a_command_within_a_data_set():
    box = Inbox()
    box.fragment(1, LAST_OF_COMMAND)
    box.received(100, 0, expects_data=True, waiting=0)
    with pytest.raises(InboxError, match="of a command where one of a data set"):
        box.fragment(1, COMMAND)


@pytest.mark.parametrize(
    ("command", "data", "sentence"),
    [(65537, 0, "a command set of more than 65536"), (100, (1 << 24) + 1, "a data set of more than 16777216")],
)
def test_a_message_has_a_largest_size(command, data, sentence):
    with pytest.raises(InboxError, match=sentence):
        Inbox().received(command, data, expects_data=True, waiting=0)


def test_few_requests_may_wait():
    box = Inbox()
    for waiting in range(16):
        receive(box, 10, waiting=waiting)
    with pytest.raises(InboxError, match="more than 16 requests wait"):
        receive(box, 10, waiting=16)


def test_large_requests_wait_for_room_and_leave_it(monkeypatch):
    monkeypatch.setattr(inbox, "_PATIENCE_S", 0.05)
    boxes = [Inbox() for _ in range(8)]
    for box in boxes:
        receive(box, LARGE)
    late = Inbox()
    with pytest.raises(InboxError, match="no room for a large request"):
        receive(late, LARGE)
    late.clear()
    boxes[0].taken(is_message=True)  # served now
    boxes[0].taken(is_message=False)  # and done
    for box in boxes[1:]:
        box.clear()  # the association is gone
    for box in boxes:
        box.clear()  # once more does no harm
    monkeypatch.setattr(inbox, "_PATIENCE_S", 10.0)
    for _ in range(20):
        box = Inbox()
        receive(box, LARGE)
        box.clear()


def test_who_waits_for_room_gets_it():
    boxes = [Inbox() for _ in range(8)]
    for box in boxes:
        receive(box, LARGE)
    late = Inbox()
    thread = threading.Thread(target=receive, args=(late, LARGE))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    boxes[0].clear()
    thread.join(300)
    assert not thread.is_alive()
    for box in (late, *boxes):
        box.clear()


def fill():
    boxes = [Inbox() for _ in range(8)]
    for box in boxes:
        receive(box, LARGE)
    return boxes


def test_who_goes_while_waiting_for_room_takes_none(monkeypatch):
    """The association ends in one thread while another one waits for its room: no place is lost."""
    boxes, late, told = fill(), Inbox(), []

    def wait():
        with pytest.raises(InboxError, match="the association ended") as caught:
            receive(late, LARGE)
        told.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    late.clear()
    for box in boxes:
        box.clear()
    thread.join(300)
    assert told
    monkeypatch.setattr(inbox, "_PATIENCE_S", 0.05)
    for box in fill():
        box.clear()


def test_nothing_is_received_for_an_association_that_is_gone():
    box = Inbox()
    box.clear()
    assert box.is_closed
    with pytest.raises(InboxError, match="the association ended"):
        receive(box, LARGE)
    for other in fill():
        other.clear()


def test_a_request_leaves_the_room_when_it_is_decoded(monkeypatch):
    """It may be served for hours, as a C-MOVE is."""
    monkeypatch.setattr(inbox, "_PATIENCE_S", 0.05)
    served = fill()
    for box in served:
        box.taken(is_message=True)
        box.decoded()
    for box in (*fill(), *served):
        box.clear()


@pytest.mark.parametrize("is_complete", [False, True], ids=["trickles", "behind another one"])
def test_a_large_request_may_not_take_its_time(monkeypatch, is_complete):
    monkeypatch.setattr(inbox, "_SLOWEST_S", 0.05)
    late = threading.Event()
    box = Inbox(late.set)
    box.received(100, LARGE, expects_data=True, waiting=0)
    if is_complete:
        box.completed(1)
    assert late.wait(300)
    box.clear()


def test_a_large_request_that_is_served_may_take_its_time(monkeypatch):
    monkeypatch.setattr(inbox, "_SLOWEST_S", 3600.0)
    late = threading.Event()
    box = Inbox(late.set)
    receive(box, LARGE)
    timer = box._timer
    assert timer is not None
    box.taken(is_message=True)
    timer.join(60)  # it is called off
    assert not timer.is_alive()
    timer.function()  # as one that was under way already
    assert not late.is_set()
    box.clear()


def test_one_large_request_of_an_association_at_a_time():
    box = Inbox()
    receive(box, LARGE)
    with pytest.raises(InboxError, match="while another one waits"):
        receive(box, LARGE, waiting=1)
    box.clear()
