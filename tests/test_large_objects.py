"""Objects of more than 2 GiB: in, through the workers, and out again, in little memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from scp.part10 import data_set_offset

MB = 1 << 20
MOST_ABOVE_IDLE = 200 * MB
SIDE, FRAMES = 1024, 1025  # of 2 MiB each: the pixels are 2 MiB longer than 2^31 bytes
IMAGE = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
ME = Requestor("ME")
UID = "1.2.826.0.1.3680043.9.7133.9.1"
STUDY = "1.2.826.0.1.3680043.9.7133.1"


class Memory:
    """Resident memory of processes above what they had at the beginning, watched by a thread."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._idle = {name: _status_kb(pid, "VmRSS") for name, pid in processes.items()}
        for pid in processes.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew

    def above_idle(self) -> dict[str, int]:
        """Peak of each process above idle, bytes."""
        peaks = {name: _status_kb(pid, "VmHWM") for name, pid in self._processes.items()}
        return {name: 1024 * (peak - self._idle[name]) for name, peak in peaks.items()}


def _status_kb(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@pytest.fixture
def image(make_dataset: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """Make the description of a multi-frame image; its pixels are left to the test."""

    def make(frames: int, syntax: str) -> Dataset:
        return make_dataset(
            1, transfer_syntax=syntax, SOPClassUID=IMAGE, Rows=SIDE, Columns=SIDE, NumberOfFrames=frames,
            BitsStored=16, HighBit=15, PixelData=None,
        )  # fmt: skip

    return make


FRAME = np.random.default_rng(3).integers(0, 4096, (SIDE, SIDE), np.uint16).tobytes()
BLACK = bytes(len(FRAME))


@pytest.fixture
def large_file(tmp_path: Path, image: Callable[..., Dataset]) -> Path:
    """A multi-frame image, sparse on the disk: only some of its frames are not black."""
    path = tmp_path / "large.dcm"
    image(FRAMES, ExplicitVRLittleEndian).save_as(path, enforce_file_format=True)
    length = FRAMES * len(FRAME)
    assert length > 1 << 31
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little"))
        begin = file.tell()
        file.truncate(begin + length)
        for number in range(0, FRAMES, 40):
            file.seek(begin + number * len(FRAME))
            file.write(FRAME)
    return path


def _study() -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    return identifier


def _digest(path: Path, offset: int = 0) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow(60)
def test_two_gigabytes_in_and_out_in_little_memory(serve, start_node, large_file, make_file, tmp_path, wait_until):
    """Every process of the node stays below 200 MB above idle; the bytes are the same at the end."""
    destination = start_node()
    more = f'[[application_entities]]\ntitle = "THARSIS"\nhost = "127.0.0.1"\nport = {destination.port}\n'
    node = serve(settle_time_s=0.2, more=more)
    [warm] = client.send(node.peer, [make_file(2, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4")], ME)
    assert warm.is_stored
    wait_until(lambda: set(node.jobs()) == {"done"})
    memory = Memory(node.processes())
    digest = _digest(large_file, data_set_offset(large_file))
    identifier = _study()
    [stored] = client.send(node.peer, [large_file], ME)
    assert stored.is_stored, stored
    *_, last = client.move(node.peer, identifier, "THARSIS", STUDY_ROOT_MOVE, ME)
    assert last.status.is_success, last
    moved = destination.archive.open_instance(UID).path
    assert _digest(moved, data_set_offset(moved)) == digest
    moved.unlink()
    expected = [(IMAGE, ExplicitVRLittleEndian)]
    *_, last = client.get(node.peer, identifier, tmp_path / "got", STUDY_ROOT_GET, ME, objects=expected)
    assert last.status.is_success, last
    [got] = (tmp_path / "got").glob("*.dcm")
    assert _digest(got, data_set_offset(got)) == digest

    wait_until(lambda: set(node.jobs()) == {"done"})
    assert max(memory.above_idle().values()) < MOST_ABOVE_IDLE, memory.above_idle()


@pytest.mark.slow(30)
def test_frames_of_undefined_length_are_decoded_one_by_one(serve, image, make_file, tmp_path, wait_until):
    """600 MB of encapsulated frames, for a requestor that takes Implicit VR only: neither they nor the result fit."""
    node = serve(settle_time_s=0.2)
    [warm] = client.send(node.peer, [make_file(2, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4")], ME)
    assert warm.is_stored
    wait_until(lambda: set(node.jobs()) == {"done"})
    memory, frames, path = Memory(node.processes()), 300, tmp_path / "encapsulated.dcm"
    image(frames, ENCAPSULATED_UNCOMPRESSED).save_as(path, enforce_file_format=True)
    pixels = hashlib.sha256()
    with path.open("ab") as file:
        file.write(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0")
        for number in range(frames):
            frame = BLACK if number % 40 else FRAME
            file.write(b"\xfe\xff\x00\xe0" + len(frame).to_bytes(4, "little") + frame)
            pixels.update(frame)
        file.write(b"\xfe\xff\xdd\xe0\0\0\0\0")
    [stored] = client.send(node.peer, [path], ME)
    assert stored.is_stored, stored
    expected = [(IMAGE, ImplicitVRLittleEndian)]
    *_, last = client.get(node.peer, _study(), tmp_path / "got", STUDY_ROOT_GET, ME, objects=expected)
    assert last.status.is_success, last
    [got] = (tmp_path / "got").glob("*.dcm")
    assert _digest(got, got.stat().st_size - frames * len(FRAME)) == pixels.hexdigest()
    assert not list((node.data / "incoming").glob("*.converted"))
    wait_until(lambda: set(node.jobs()) == {"done"})
    assert max(memory.above_idle().values()) < MOST_ABOVE_IDLE, memory.above_idle()
