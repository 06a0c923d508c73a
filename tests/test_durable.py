"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from index import durable


def test_a_file_is_written_whole_into_a_folder_that_is_made(tmp_path):
    file = tmp_path / "models" / "a.pt"
    durable.write_whole(file, b"one")
    durable.write_whole(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(file.parent.iterdir()) == [file]


def test_what_was_there_stays_when_the_new_content_cannot_be_flushed(tmp_path, monkeypatch):
    file = tmp_path / "a.pt"
    durable.write_whole(file, b"one")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write_whole(file, b"two")
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file], "a draft takes room"


def test_content_and_then_the_name_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(durable, "flush", lambda path: flushed.append((path.name, Path(tmp_path / "a.pt").exists())))
    durable.write_whole(tmp_path / "a.pt", b"one")
    assert [there for _, there in flushed] == [False, True]
    assert flushed[1][0] == tmp_path.name
