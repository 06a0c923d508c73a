"""The bytes of a stored file, block by block: the same through the system's cache and past it."""

from __future__ import annotations

import errno
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from index import blocks
from index.blocks import Blocks
from index.direct_io import BLOCK_BYTES, PAGE

STEP = 16378


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file of so many bytes, for which reading past the cache is chosen whatever the cache has."""
    monkeypatch.setattr(blocks, "LARGE", 1)
    monkeypatch.setattr(blocks, "_SLOW", blocks._Some(4))
    monkeypatch.setattr(Blocks, "_is_cached", lambda self: False)

    def make(size: int):
        path = tmp_path / f"{size}.dcm"
        path.write_bytes(random.Random(size).randbytes(size))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return path

    return make


@pytest.fixture
def ways(monkeypatch):
    """Which way was taken, each time."""
    taken = []
    for name in ("_past_cache", "_through_cache"):
        real = getattr(Blocks, name)
        monkeypatch.setattr(
            Blocks, name, lambda self, *rest, name=name, real=real: (taken.append(name), real(self, *rest))[1]
        )
    return taken


def content(path, offset: int) -> bytes:
    with Blocks(path, offset) as file:
        read = b"".join(bytes(block) for block in file.read(STEP))
        assert len(read) == file.size
    return read


def is_past_cache_possible(path) -> bool:
    with Blocks(path, 0) as file:
        return file._goes_past_cache()


@pytest.mark.parametrize("size", [2, PAGE, BLOCK_BYTES, BLOCK_BYTES + 2, 3 * BLOCK_BYTES, 5 * BLOCK_BYTES + 1234])
@pytest.mark.parametrize("offset", [0, 352, PAGE, PAGE + 10, BLOCK_BYTES, BLOCK_BYTES + 400])
def test_the_bytes_are_those_of_the_file_from_the_offset_on(large, ways, size, offset):
    path = large(size)
    assert content(path, offset) == path.read_bytes()[offset:]
    if offset < size and is_past_cache_possible(path):
        assert ways == ["_past_cache"]


def test_parts_have_an_even_length_though_the_file_has_an_odd_one(large, ways):
    """PS3.8 9.3.5.1; only the end of such a data set cannot be helped."""
    path = large(3 * BLOCK_BYTES + 1)
    for offset in (300, 301):
        with Blocks(path, offset) as file:
            lengths = [len(block) for block in file.read(STEP)]
        assert [length % 2 for length in lengths[:-1]] == [0] * (len(lengths) - 1)
        assert ways[-1] == "_through_cache" or offset == 300


def test_a_small_file_and_one_in_the_cache_are_read_through_it(large, ways, monkeypatch):
    path = large(2 * BLOCK_BYTES)
    monkeypatch.setattr(Blocks, "_is_cached", lambda self: True)
    content(path, 0)
    monkeypatch.setattr(Blocks, "_is_cached", lambda self: False)
    monkeypatch.setattr(blocks, "LARGE", 3 * BLOCK_BYTES)
    content(path, 0)
    assert ways == ["_through_cache", "_through_cache"]


@pytest.mark.parametrize(("error", "is_cached"), [(BlockingIOError(), False), (OSError(errno.EOPNOTSUPP, "no"), True)])
def test_what_the_cache_has_is_asked_of_the_system(tmp_path, monkeypatch, wait_until, error, is_cached):
    path = tmp_path / "written.dcm"
    path.write_bytes(bytes(4 * BLOCK_BYTES))
    with Blocks(path, 352) as file:
        wait_until(lambda: path.read_bytes() and file._is_cached())  # where memory is short it may be gone at once

        def preadv(descriptor, buffers, place, flags):
            assert flags == os.RWF_NOWAIT
            assert BLOCK_BYTES <= place < 4 * BLOCK_BYTES  # what lies before may have been read ahead
            raise error

        monkeypatch.setattr(blocks.os, "preadv", preadv)
        assert file._is_cached() is is_cached


def test_what_a_disk_is_slow_to_give_goes_into_the_cache_when_it_is_asked_for_again(large, ways, monkeypatch):
    path = large(3 * BLOCK_BYTES)
    if not is_past_cache_possible(path):
        pytest.skip("this file system has no O_DIRECT")
    monkeypatch.setattr(blocks, "_SLOW_BYTES_PER_S", 0)  # of which no disk gives less, however busy it is
    content(path, 0)
    content(path, 0)
    monkeypatch.setattr(blocks, "_SLOW_BYTES_PER_S", 1e15)  # of which any disk gives less
    with closing(Blocks(path, 0).read(STEP)) as another:
        assert next(another)
        assert blocks._READERS.count == 1  # which shares the disk
    assert blocks._READERS.count == 0
    content(path, 0)
    content(path, 0)
    assert ways == ["_past_cache"] * 4 + ["_through_cache"]


def test_those_that_were_slow_long_ago_are_forgotten():
    some = blocks._Some(2)
    for name in "abac":
        some.add(name)
    assert [some.has(name) for name in "abc"] == [True, False, True]


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_file_that_becomes_shorter_is_noticed(large, monkeypatch, is_cached):
    path = large(8 * BLOCK_BYTES)
    monkeypatch.setattr(Blocks, "_is_cached", lambda self: is_cached)
    with Blocks(path, 400) as file, closing(file.read(STEP)) as coming:
        assert next(coming)
        os.truncate(path, BLOCK_BYTES)
        with pytest.raises(OSError, match="become shorter"):
            list(coming)


def test_a_file_system_that_takes_the_flag_but_not_the_reads_is_read_through_the_cache(large, ways, monkeypatch):
    path = large(2 * BLOCK_BYTES)
    if not is_past_cache_possible(path):
        pytest.skip("this file system has no O_DIRECT")

    def refused(*_):
        raise OSError(errno.EINVAL, "not at this place")

    monkeypatch.setattr(blocks.os, "preadv", refused)
    assert content(path, 352) == path.read_bytes()[352:]
    assert ways == ["_past_cache", "_through_cache"]


def test_a_disk_that_fails_is_told_of(large, monkeypatch):
    path = large(2 * BLOCK_BYTES)
    if not is_past_cache_possible(path):
        pytest.skip("this file system has no O_DIRECT")

    def fails(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(blocks.os, "preadv", fails)
    with pytest.raises(OSError, match="broken"):
        content(path, 0)


def test_who_stops_in_the_middle_leaves_nothing_open_and_no_memory_in_use(large, monkeypatch):
    path = large(8 * BLOCK_BYTES)
    given = []
    give_back = blocks._MEMORY.give_back
    monkeypatch.setattr(blocks._MEMORY, "give_back", lambda block: (given.append(id(block)), give_back(block)))

    def is_open():
        return any(descriptor.resolve() == path for descriptor in Path("/proc/self/fd").iterdir())

    with Blocks(path, 0) as file, closing(file.read(STEP)) as coming:
        assert next(coming)
        assert next(coming)
        assert is_open()
    assert not is_open()
    if is_past_cache_possible(path):
        assert len(given) == 4  # one that was read, and three of which the first was being read
