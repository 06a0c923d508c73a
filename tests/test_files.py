"""The file store: names made from UIDs that nobody can misuse, files that appear whole, folders that come and go."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from index import files
from index.errors import OutOfSpace
from index.files import FileStore, flush_and_digest, is_valid_uid

ODD_UIDS = [
    "", ".", "..", "../../x", "/etc/passwd", "1.2/../../3", "1.2\\3", "1.2\0", "1.2\n", "1..2", ".1", "1.", "1.2a",
    "1" * 65, "１.２", "1.2 ", "-1", "CON", "x" * 5000, "é",
]


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "data", reserve_mb=0)


@pytest.mark.parametrize("uid", ODD_UIDS)
def test_an_odd_uid_never_becomes_part_of_a_path(uid, store):
    assert not is_valid_uid(uid)
    for uids in [(uid, "1.2", "1.3"), ("1.1", uid, "1.3"), ("1.1", "1.2", uid)]:
        parts = store.new_path(*uids).split("/")
        assert len(parts) == 4
        assert parts[0] == "files"
        assert all(part not in (".", "..") and len(part) < 100 and part.isascii() for part in parts)
        path = store.path("/".join(parts)).resolve()
        assert path.is_relative_to(store.root / "files")


@pytest.mark.parametrize("uid", ["0", "1.2.840.10008.1.1", "1.02.3", "1" * 64, "2.25." + "9" * 39])
def test_a_valid_uid_is_readable_in_the_path(uid, store):
    assert is_valid_uid(uid)
    study, series, name = store.new_path(uid, uid, uid).split("/")[1:]
    assert (study, series) == (uid, uid)
    assert name.startswith(uid + "-")


def test_odd_uids_do_not_share_a_folder_and_no_path_is_given_twice(store):
    folders = {store.new_path(uid, "1", "1").split("/")[1] for uid in ODD_UIDS}
    assert len(folders) == len(ODD_UIDS)
    assert len({store.new_path("1", "2", "3") for _ in range(1000)}) == 1000


def test_bytes_and_foreign_paths_are_copied_and_own_paths_stay(store, tmp_path):
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(b"abc")
    for source in (b"abc", outside):
        received = store.receive(source)
        assert received.parent == store.incoming
        assert received.read_bytes() == b"abc"
    assert outside.read_bytes() == b"abc"
    own = store.incoming / "1.part"
    own.write_bytes(b"abc")
    assert store.receive(own) == own
    assert own.exists()


def test_an_incoming_path_through_a_link_is_moved_not_copied(store, tmp_path):
    (tmp_path / "link").symlink_to(store.root)
    own = store.incoming / "1.part"
    own.write_bytes(b"abc")
    received = store.receive(tmp_path / "link" / "incoming" / "1.part")
    assert received.samefile(own)
    assert len(list(store.incoming.iterdir())) == 1


def test_a_copy_that_breaks_off_leaves_nothing(store, tmp_path, monkeypatch):
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(b"abc")

    def fail(*_arguments):
        raise OSError("read error")

    monkeypatch.setattr(files.shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="read error"):
        store.receive(outside)
    assert list(store.incoming.iterdir()) == []


def test_the_reserve_is_kept_before_anything_is_written(store, monkeypatch):
    store = FileStore(store.root, reserve_mb=10)
    free = 10 * (1 << 20) + 100
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _root: SimpleNamespace(free=free))
    store.receive(b"x" * 100).unlink()
    with pytest.raises(OutOfSpace, match="10 MiB"):
        store.receive(b"x" * 101)
    own = store.incoming / "1.part"
    own.write_bytes(b"x")
    free -= 101
    with pytest.raises(OutOfSpace):
        store.receive(own)
    assert list(store.incoming.iterdir()) == []


def test_placing_makes_folders_and_removing_takes_empty_ones_away(store):
    paths = [store.new_path("1", "2", "3"), store.new_path("1", "2", "4"), store.new_path("1", "5", "6")]
    for path in paths:
        incoming = store.receive(b"abc")
        assert flush_and_digest(incoming) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        store.place(incoming, path)
        assert not incoming.exists()
        assert store.path(path).read_bytes() == b"abc"
    assert sorted(path for folder in store.all_paths() for path in folder) == sorted(paths)
    store.remove(paths[0])
    assert store.path(paths[1]).exists()
    store.remove(paths[1])
    assert not store.path(paths[1]).parent.exists()
    store.remove(paths[2])
    store.remove(paths[2])  # again: nothing to do
    assert list((store.root / "files").iterdir()) == []


def test_a_folder_taken_away_at_the_last_moment_is_made_again(store, monkeypatch):
    path = store.new_path("1", "2", "3")
    incoming = store.receive(b"abc")
    make, made = files._make_durable_folder, []

    def make_and_lose(folder):
        make(folder)
        if not made:
            folder.rmdir()
        made.append(folder)

    monkeypatch.setattr(files, "_make_durable_folder", make_and_lose)
    store.place(incoming, path)
    assert store.path(path).read_bytes() == b"abc"


def test_a_vanished_incoming_file_is_an_error_at_once(store):
    with pytest.raises(FileNotFoundError):
        store.place(store.incoming / "gone.part", store.new_path("1", "2", "3"))


def test_placing_and_removing_in_one_folder_at_the_same_time(store):
    errors = []

    def work():
        try:
            for _ in range(50):
                path = store.new_path("1", "2", "3")
                store.place(store.receive(b"abc"), path)
                assert store.path(path).read_bytes() == b"abc"
                store.remove(path)
        except Exception as error:  # noqa: BLE001 -- shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_an_earlier_run_left_is_cleared(store):
    for name in ("1-a.part", ".1-a.scratch.1.ab12", "2-b.part"):
        (store.incoming / name).write_bytes(b"abc")
    bringing = store.receive(b"abc")
    assert store.clear_incoming(1) == 2
    assert store.clear_incoming() == 1
    assert list(store.incoming.iterdir()) == [bringing]
    store.release(bringing)
    assert list(store.incoming.iterdir()) == []
