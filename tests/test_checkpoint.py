"""The gate of an association's loop: once the loop is said to stand, it takes nothing any more."""

from __future__ import annotations

import sys
import threading

import pytest

from scp.checkpoint import Checkpoint


@pytest.fixture
def hasty_switching():
    """Switch threads as often as possible, so that a race that can happen does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_the_loop_takes_nothing_while_it_is_stopped(hasty_switching):
    checkpoint, ended = Checkpoint(), threading.Event()
    stopped, slipped, rounds = False, 0, 0

    def loop():
        nonlocal slipped, rounds
        while not ended.is_set():
            checkpoint.wait()
            rounds += 1
            slipped += stopped

    thread = threading.Thread(target=loop)
    thread.start()
    for _ in range(2000):
        checkpoint.stop_the_loop(thread.is_alive)
        stopped = True
        before = rounds
        for _ in range(20):
            pass
        assert rounds == before
        stopped = False
        checkpoint.set()
    ended.set()
    thread.join()
    assert slipped == 0
    assert rounds > 0


def test_a_loop_that_has_ended_is_not_waited_for():
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
    Checkpoint().stop_the_loop(thread.is_alive)


def test_it_is_an_event_to_those_who_expect_one():
    checkpoint = Checkpoint()
    assert checkpoint.is_set()
    checkpoint.clear()
    assert not checkpoint.is_set()
    assert not checkpoint.wait(0.01)
    checkpoint.set()
    assert checkpoint.wait(0.01)
