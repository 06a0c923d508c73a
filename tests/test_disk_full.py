"""A full disk, at every step of a C-STORE: A700, nothing half-written, reads go on (PS3.4 B.2.3, status A7xx)."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections import namedtuple
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from index import database as database_module
from index import files as files_module
from index import fsck
from index.archive import Archive
from index.errors import OutOfSpace
from index.files import FileStore
from index.fsck import Options
from scp import client
from scp.client import Requestor
from scp.contexts import VERIFICATION
from scp.requestor import Peer

FULL = OSError(28, "No space left on device")
Usage = namedtuple("Usage", "total used free")


def problems(archive):
    return list(fsck.check(archive, Options(), lambda *_step: None))


def refuse(*_arguments, **_keywords):
    raise FULL


def no_reserve(patch, archive):
    patch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 30, 1 << 30, 1 << 20))
    patch.setattr(archive.files, "_reserve_bytes", 2 << 20)


def no_room_for_the_file(patch, archive):
    """Every write below `incoming` fails, as on a full disk."""
    write, incoming = os.write, str(archive.incoming)

    def write_full(descriptor, data):
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(incoming):
            raise FULL
        return write(descriptor, data)

    patch.setattr(os, "write", write_full)


def no_room_at_the_flush(patch, _archive):
    patch.setattr(files_module.os, "fsync", refuse)
    patch.setattr(files_module.os, "pwrite", refuse)


def no_room_for_the_name(patch, _archive):
    patch.setattr(FileStore, "place", refuse)


def no_room_for_the_rows(patch, archive):
    """SQLite finds no room for one more page: it raises what it raises on a full disk."""
    connect = database_module._connect
    (pages,) = archive.database.execute("PRAGMA page_count").fetchone()

    def connect_full(path):
        connection = connect(path)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    patch.setattr(database_module, "_connect", connect_full)


STEPS = [no_reserve, no_room_for_the_file, no_room_at_the_flush, no_room_for_the_name, no_room_for_the_rows]


@pytest.mark.parametrize("step", STEPS, ids=[step.__name__ for step in STEPS])
def test_a_c_store_is_answered_a700_and_reads_go_on(step, start_node, make_file, dcmtk, tmp_path):
    node = start_node()
    peer = Peer("127.0.0.1", node.port, "THARSIS")
    (first,) = client.send(peer, [make_file(0)], Requestor())
    assert first.is_stored
    files = [make_file(number, ImageComments="x" * 5000) for number in range(1, 40)]
    files.append(make_file(40, PixelData=bytes(300_000)))  # of those that are not kept in memory
    with pytest.MonkeyPatch.context() as patch:
        step(patch, node.archive)
        results = list(client.send(peer, files, Requestor()))
        refused = [result for result in results if not result.is_stored]
        assert refused
        assert {result.status.code for result in refused} == {0xA700}
        assert all(result.status.comment for result in refused)
        if step is not no_room_for_the_rows:  # some rows still find room in the pages that there are
            assert len(refused) == len(files)
        found = dcmtk("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=doe*", "-aec", "THARSIS",
                      "127.0.0.1", node.port).stdout
        assert "Doe^Jane" in found
        out = tmp_path / "out"
        out.mkdir()
        dcmtk("getscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.826.0.1.3680043.9.7133.1",
              "-aec", "THARSIS", "-od", out, "127.0.0.1", node.port)
        assert len(list(out.iterdir())) == 1 + len(results) - len(refused)
    assert [path for path in node.archive.incoming.iterdir() if path.stat().st_size] == []
    assert problems(node.archive) == []
    again = list(client.send(peer, [result.path for result in refused], Requestor()))
    assert all(result.is_stored for result in again)
    assert problems(node.archive) == []


@pytest.mark.parametrize("called", ["THARSIS", "THARSIS_ANON", "THARSIS_SIM"])
@pytest.mark.parametrize("pixels", [700 << 10, 5 << 20], ids=["in memory", "block by block"])
def test_the_reserve_is_kept_while_an_object_comes(start_node, make_file, monkeypatch, called, pixels):
    """Its size is told to nobody before; what would take the reserve is not written."""
    titles = [{"title": "THARSIS_ANON", "deidentify": "ingest", "profile": "research"}]
    node = start_node(titles=titles, profiles=[{"name": "research"}])
    room, reserve, left = pixels * 3 // 4, 2 << 20, []

    def disk_usage(_path):
        taken = sum(path.stat().st_size for path in node.archive.incoming.iterdir())
        left.append(room - taken)
        return Usage(1 << 30, 0, reserve + room - taken)

    sent = make_file(1, PixelData=bytes(pixels), Rows=pixels // 512, Columns=256)
    peer = Peer("127.0.0.1", node.port, called)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", disk_usage)
        patch.setattr(node.archive.files, "_reserve_bytes", reserve)
        refused, fits = client.send(peer, [sent, make_file(2)], Requestor())
    assert (refused.status.code, "in reserve" in refused.status.comment) == (0xA700, True)
    assert fits.is_stored or called == "THARSIS_SIM"
    assert min(left) >= 0
    assert [path for path in node.archive.incoming.iterdir() if path.stat().st_size] == []
    [again] = client.send(peer, [sent], Requestor())
    assert again.is_stored or called == "THARSIS_SIM"


def test_on_a_file_system_that_has_gone_read_only_objects_are_refused_and_the_association_goes_on(
    start_node, make_file, monkeypatch
):
    """What was begun of the first cannot be removed either: the next start does that."""
    node = start_node()
    write, incoming, written = os.write, str(node.archive.incoming), []
    entity = AE("SENDER")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(VERIFICATION)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")

    def refuse_to_write(descriptor, data):
        if not str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(incoming):
            return write(descriptor, data)
        if written:
            raise OSError(errno.EROFS, "Read-only file system")
        written.append(len(data))
        return write(descriptor, data)

    def refuse_to_remove(path, *, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    files = [make_file(number, PixelData=bytes(size)) for number, size in enumerate((5 << 20, 300_000, 128), 1)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse_to_write)
        patch.setattr(Path, "unlink", refuse_to_remove)
        answers = [assoc.send_c_store(path) for path in files]
        assert [answer.get("Status") for answer in answers] == [0x0110] * 3
        assert {answer.ErrorComment for answer in answers} == {"processing failed: Read-only file system"}
        assert assoc.send_c_echo().Status == 0
    assert [assoc.send_c_store(path).Status for path in files] == [0] * 3
    assoc.release()
    assert node.archive.clear_incoming() == 1
    assert not list(node.archive.incoming.iterdir())
    assert problems(node.archive) == []


def test_what_sqlite_says_of_a_full_disk_is_out_of_space(archive, make_instance):
    (pages,) = archive.database.execute("PRAGMA page_count").fetchone()
    archive.database.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for number in range(200):
            archive.ingest(make_instance(number, SeriesDescription="x" * 500, SeriesInstanceUID=f"1.{number}"))

    with pytest.raises(OutOfSpace, match="disk is full") as caught:
        fill()
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert problems(Archive(archive.data)) == []


def test_a_broken_catalogue_is_no_full_disk(archive):
    with pytest.raises(sqlite3.OperationalError), archive.transaction() as database:
        database.execute("SELECT * FROM no_such_table")


def test_a_deletion_gives_room_and_needs_little(archive, make_instance):
    from index.keys import Level

    for number in range(30):
        archive.ingest(make_instance(number))
    (pages,) = archive.database.execute("PRAGMA page_count").fetchone()
    archive.database.execute(f"PRAGMA max_page_count = {pages}")
    assert archive.delete(Level.PATIENT, "P1") == 30
    assert problems(archive) == []
