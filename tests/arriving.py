"""What the tests of the journal of arrivals share: an instance that arrives, a power cut, a disk that fails."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest

from index import arrivals
from index.durable import FileSystem
from index.fsck import Options, check
from scp.reception import ReceivedFile, Reception

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
UID = "1.2.826.0.1.3680043.9.7133.9.{}"
SMALL, LARGE = 0, 200_000
"""Bytes of pixels: of an object that goes to the journal with its bytes, of one that is flushed beside it."""


@pytest.fixture
def arrive(make_instance):
    """Store an instance as a C-STORE does, in fragments, and return what became of it and the bytes of its file."""

    def arrive(archive, number, size=SMALL, **values):
        content = make_instance(number, **({"PixelData": bytes(size)} if size else {}), **values)
        data_set = content[132 + 12 + int.from_bytes(content[140:144], "little") :]
        file = ReceivedFile(Reception(archive.new_file, "SENDER"), (CT, UID.format(number)), EXPLICIT)
        for begin in range(0, len(data_set), 50_000):
            file.write(data_set[begin : begin + 50_000])
        file.close()
        written = file.path.read_bytes()
        known = file.known
        assert bool(known.content) == (len(written) < 160 << 10)
        return archive.ingest(file.path, source_aet="SENDER", received=known).outcome, written

    return arrive


def catalogue_of(archive):
    """Return the catalogue as it is now, as one file."""
    copy = archive.data.parent / f"catalogue-{len(list(archive.data.parent.iterdir()))}"
    with closing(sqlite3.connect(archive.data / "catalogue.sqlite")) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)
    return copy


def cut_power(archive, monkeypatch, catalogue=None):
    """Leave what a power cut may leave: the catalogue, or an older state of it; the system starts anew."""
    archive.close()
    if catalogue is not None:
        for suffix in ("", "-wal", "-shm"):
            (archive.data / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
        shutil.copy(catalogue, archive.data / "catalogue.sqlite")
    monkeypatch.setattr(arrivals, "boot", lambda: "another one")


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path):
    path.write_bytes(bytes(path.stat().st_size))


def lose(path):
    path.unlink()


def lose_folder(path):
    shutil.rmtree(path.parent.parent)


def require_whole(archive, sent):
    for number, content in sent.items():
        assert archive.open_instance(UID.format(number)).path.read_bytes() == content
    assert list(check(archive, Options(idle_s=1e9), lambda *_step: None)) == []


def written(path, content):
    path.write_bytes(content)
    return path


class Stop(Exception):
    """Whatever comes between."""


def failing_once(monkeypatch):
    """Have the system tell once that something could not be written, as it does (syncfs(2))."""
    flush, told = FileSystem.flush, []

    def failing(file_system):
        if not told:
            told.append(threading.current_thread().name)
            raise OSError(errno.EIO, "Input/output error")
        flush(file_system)

    monkeypatch.setattr(FileSystem, "flush", failing)
    return told
