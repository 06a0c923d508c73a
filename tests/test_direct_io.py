"""Files written past the system's cache: the same bytes as in any other way, whatever becomes of O_DIRECT."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from index import direct_io
from index.direct_io import BLOCK_BYTES, PAGE, SMALL, Memory, NewFile
from index.read_ahead import bring_to_cache
from scp.reception import ReceivedFile, Reception

CLASS, INSTANCE = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
SIZES = [1, PAGE - 1, PAGE, PAGE + 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 4321]


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def written(path, content: bytes, *, past_cache: bool) -> NewFile:
    memory = Memory().take()
    file = NewFile(path, past_cache=past_cache)
    try:
        for begin in range(0, len(content), BLOCK_BYTES):
            piece = content[begin : begin + BLOCK_BYTES]
            memory[: len(piece)] = piece
            file.write(memory, len(piece))
        file.flush()
    finally:
        file.close()
    return file


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_just_what_was_written(tmp_path, size, past_cache):
    content = noise(size)
    written(tmp_path / "file", content, past_cache=past_cache)
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_system_that_does_not_open_files_so(tmp_path, monkeypatch):
    opened = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(direct_io.os, "open", refusing)
    file = written(tmp_path / "file", noise(5000), past_cache=True)
    assert not file.is_direct
    assert (tmp_path / "file").read_bytes() == noise(5000)


@pytest.mark.parametrize("at_once", [BLOCK_BYTES, 3 * PAGE])
def test_a_file_system_that_opens_them_but_does_not_write(tmp_path, monkeypatch, at_once):
    """Also when it stops in the middle of a block."""
    write, calls = os.write, []

    def refusing(descriptor, data):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(errno.EINVAL, "Invalid argument")
            data = data[:at_once]
        return write(descriptor, data)

    monkeypatch.setattr(direct_io.os, "write", refusing)
    content = noise(2 * BLOCK_BYTES + 77)
    file = written(tmp_path / "file", content, past_cache=True)
    assert not file.is_direct
    assert len(calls) == 2
    assert (tmp_path / "file").read_bytes() == content


def test_only_the_begin_of_what_is_not_small_is_brought_into_the_cache(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(direct_io.os, "posix_fadvise", lambda _file, *what: asked.append(what), raising=False)
    for name, size in (("small", SMALL), ("image", SMALL + 1), ("large", 5 * BLOCK_BYTES)):
        (tmp_path / name).write_bytes(bytes(size))
        bring_to_cache(tmp_path / name, size)
    assert asked == [(0, BLOCK_BYTES, os.POSIX_FADV_WILLNEED)] * 2


def test_a_file_that_is_missing_or_cannot_be_brought_is_for_its_reader_to_tell_of(tmp_path, monkeypatch):
    bring_to_cache(tmp_path / "missing", 500_000)

    def refusing(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "image").write_bytes(noise(500_000))
    monkeypatch.setattr(direct_io.os, "posix_fadvise", refusing, raising=False)
    bring_to_cache(tmp_path / "image", 500_000)
    assert (tmp_path / "image").read_bytes() == noise(500_000)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(_descriptor, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_io.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "file", noise(10), past_cache=True)


def received(folder, size: int, syntax=ExplicitVRLittleEndian, *, fragment: int = 70_001) -> tuple[ReceivedFile, bytes]:
    numbers = iter(range(100))
    reception = Reception(lambda _size: folder / str(next(numbers)), "SENDER", past_cache=True)
    file, data = ReceivedFile(reception, (CLASS, INSTANCE), syntax), noise(size)
    for begin in range(0, size, fragment):
        file.write(memoryview(data)[begin : begin + fragment])
    file.close()
    file.close()  # as pynetdicom does: once more does no harm
    return file, data


@pytest.mark.parametrize("size", [10, 150_000, 170_000, 526_000, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 99])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless], ids=["native", "encapsulated"])
def test_what_is_known_of_a_received_file_is_what_is_in_it(tmp_path, size, syntax):
    file, data = received(tmp_path, size, syntax)
    assert file.error is None
    content, known = file.path.read_bytes(), file.known
    assert content[known.offset :] == data
    assert (known.size, known.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert known.content == (content if size < 160_000 else b"")
    assert known.memory is None if len(content) > BLOCK_BYTES else known.memory == content
    file.path.rename(tmp_path / "stored")
    file.leave()
    assert (tmp_path / "stored").read_bytes() == content


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("size", [150_000, 170_000, BLOCK_BYTES // 2, 3 * BLOCK_BYTES + 99])
def test_for_all_that_is_written_there_has_to_be_room(tmp_path, size, waits):
    """What is small has its size told when its file is asked for, and is not asked about again."""
    told, room = [], []

    def new_file(known):
        told.append(known)
        return tmp_path / "file"

    reception = Reception(new_file, "SENDER", past_cache=True, waits=waits, require_space=room.append)
    file = ReceivedFile(reception, (CLASS, INSTANCE), ExplicitVRLittleEndian)
    file.write(noise(size))
    file.close()
    whole = file.known.size
    assert (told, room) == ([whole], []) if whole < SMALL else (told, sum(room)) == ([0], whole)
    assert all(asked <= BLOCK_BYTES for asked in room)
    file.leave()


def test_only_what_is_read_from_its_ends_is_written_past_the_cache(tmp_path, monkeypatch):
    """The fragments of a large encapsulated object are looked at before it is stored, one after the other."""
    asked = []
    monkeypatch.setattr(
        "scp.reception.NewFile",
        lambda path, *, past_cache: asked.append(past_cache) or NewFile(path, past_cache=past_cache),
    )
    for size in (526_000, 2 * BLOCK_BYTES):
        for syntax in (ExplicitVRLittleEndian, JPEG2000Lossless):
            received(tmp_path, size, syntax)[0].discard()
    assert asked == [True, True, True, False]


def test_of_many_who_receive_at_the_same_time_a_few_have_large_blocks():
    memory = Memory()
    blocks = [memory.take() for _ in range(20)]
    assert [len(block) for block in blocks] == [BLOCK_BYTES] * 8 + [BLOCK_BYTES // 4] * 12
    memory.give_back(blocks.pop(0))
    memory.give_back(blocks.pop())
    assert [len(memory.take()) for _ in range(2)] == [BLOCK_BYTES, BLOCK_BYTES // 4]
    del blocks[0]  # one whose association was lost
    assert len(memory.take()) == BLOCK_BYTES


@pytest.mark.parametrize("size", [10, 150_000, 250_000, 526_000, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless], ids=["native", "encapsulated"])
def test_what_came_in_a_small_block_is_the_same(tmp_path, monkeypatch, size, syntax):
    monkeypatch.setattr(direct_io, "_MOST_LARGE", 0)
    monkeypatch.setattr("scp.reception._MEMORY", Memory())
    file, data = received(tmp_path, size, syntax)
    content, known = file.path.read_bytes(), file.known
    assert content[known.offset :] == data
    assert (known.size, known.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert known.memory is None if len(content) > BLOCK_BYTES // 4 else known.memory == content
    file.leave()


def test_memory_is_used_again_but_never_by_two(tmp_path, monkeypatch):
    monkeypatch.setattr("scp.reception._MEMORY", Memory())  # large blocks are few, and others may have them
    first, one = received(tmp_path, 400_000)
    second, other = received(tmp_path, 300_000)
    assert bytes(first.known.memory[first.known.offset :]) == one
    assert bytes(second.known.memory[second.known.offset :]) == other
    first.leave()
    third, _ = received(tmp_path, 200_000)
    assert bytes(second.known.memory[second.known.offset :]) == other
    second.leave()
    second.leave()  # once more does no harm
    fourth, more = received(tmp_path, 500_000)
    fifth, last = received(tmp_path, 500_001)
    assert bytes(fourth.known.memory[fourth.known.offset :]) == more
    assert bytes(fifth.known.memory[fifth.known.offset :]) == last
    for each in (third, fourth, fifth):
        each.leave()
    assert not list(tmp_path.iterdir())
