"""Frames decoded alone, from a file that is not read as a whole."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import ServedNode
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from index import decoder_process, decoding
from index.decoder_process import DecoderDied
from index.decoding import Undecodable, frames, open_image, stored_pixels
from index.errors import InvalidInstance


def in_no_file(size):
    raise AssertionError(f"{size} bytes fit into the memory")


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm",
     "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm", "liver_1frame.dcm", "examples_jpeg2k.dcm", "JPEG2000.dcm",
     "SC_rgb_jpeg_gdcm.dcm"],
)  # fmt: skip
@pytest.mark.parametrize("deferred", [16, 1 << 20])
def test_a_frame_is_the_same_alone(monkeypatch, name, deferred):
    monkeypatch.setattr(decoding, "_DEFERRED_BYTES", deferred)
    path = Path(get_testdata_file(name))
    truth = pydicom.dcmread(path).pixel_array
    count = int(pydicom.dcmread(path).get("NumberOfFrames", 1) or 1)
    stack = truth if count > 1 else truth[None]
    with open_image(path, in_no_file) as (dataset, file):
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        for index in {0, count // 2, count - 1}:
            [(frame, _)] = frames(dataset, stored_pixels(dataset, file), syntax, indices=[index])
            assert np.array_equal(frame, stack[index])
        every = [frame for frame, _ in frames(dataset, stored_pixels(dataset, file), syntax)]
    assert np.array_equal(np.stack(every), stack)


def test_what_is_no_part_10_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("no image at all" * 20)
    with pytest.raises(InvalidInstance), open_image(tmp_path / "text", in_no_file):
        pass


def test_no_more_is_inflated_than_the_limit(monkeypatch):
    monkeypatch.setattr(decoding, "_LARGEST_INFLATED", 1000)
    path = Path(get_testdata_file("image_dfl.dcm"))
    with pytest.raises(ValueError, match="more than 1000"), open_image(path, in_no_file):
        pass


def test_what_inflates_to_much_goes_to_a_file_that_does_not_stay(monkeypatch, tmp_path):
    """The file is asked for with its size, so that the archive's reserve is kept."""
    monkeypatch.setattr(decoding, "_IN_MEMORY_BYTES", 1000)
    path, sizes = Path(get_testdata_file("image_dfl.dcm")), []

    def new_file(size):
        sizes.append(size)
        return tmp_path / "scratch"

    with open_image(path, new_file) as (dataset, file):
        assert (tmp_path / "scratch").stat().st_size == sizes[0] > 1000
        [(frame, _)] = frames(dataset, stored_pixels(dataset, file), str(dataset.file_meta.TransferSyntaxUID))
    assert np.array_equal(frame, pydicom.dcmread(path).pixel_array)
    assert list(tmp_path.iterdir()) == []


def test_a_deflated_frame_inflates_to_what_it_should_have_at_most(make_dataset):
    """A bomb of 100 MB gives a frame of 128 bytes, and costs no more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(100 << 20)) + packer.flush()
    [(frame, _)] = frames(make_dataset(), encapsulate([bomb]), decoding.DEFLATED_IMAGE_FRAME)
    assert frame.shape == (8, 8)


def test_a_frame_that_would_not_fit_is_refused_before_it_is_decoded(make_dataset):
    dataset = make_dataset(Rows=65535, Columns=65535)
    with pytest.raises(Undecodable, match="8589672450"):
        next(frames(dataset, encapsulate([b"\0\0"]), decoding.ENCAPSULATED_UNCOMPRESSED))


def test_a_codec_that_crashes_takes_nobody_with_it(monkeypatch, make_dataset):
    """The child ends over one frame; the next one is decoded by another."""
    path = Path(get_testdata_file("JPEG2000.dcm"))
    dataset = pydicom.dcmread(path)
    value, syntax = dataset.PixelData, str(dataset.file_meta.TransferSyntaxUID)
    with decoder_process.child() as codec:
        codec._popen.kill()
        codec._popen.wait()
        with pytest.raises(DecoderDied):
            codec.ask({"transfer_syntax_uid": syntax, "described": {}}, b"")
    [(frame, _)] = frames(dataset, value, syntax)
    assert np.array_equal(frame, dataset.pixel_array)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_answer_that_nobody_took_is_not_given_to_the_next(monkeypatch, error):
    """Who is interrupted between question and answer leaves no child behind that is a frame late."""
    one, other = (pydicom.dcmread(get_testdata_file(name)) for name in ("JPEG2000.dcm", "examples_jpeg2k.dcm"))

    def interrupted(_pipe):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(decoder_process, "receive", interrupted)
        with pytest.raises(error):
            next(frames(one, one.PixelData, str(one.file_meta.TransferSyntaxUID)))
    [(frame, _)] = frames(other, other.PixelData, str(other.file_meta.TransferSyntaxUID), raw=True)
    assert frame.shape == (other.Rows, other.Columns, other.SamplesPerPixel)
    assert frame.shape[:2] != (one.Rows, one.Columns)


@pytest.mark.slow
def test_damaged_images_end_in_an_error_or_in_pixels(shared_data):
    """Bytes of real JPEG and JPEG-LS images changed at random: some of this ends the process of GDCM with an abort."""
    folder = shared_data / "cornerstone3D" / "packages" / "dicomImageLoader" / "testImages"
    random = np.random.default_rng(5)
    died = 0
    for part in (f"1.2.840.10008.1.2.4.{process}" for process in (51, 57, 70, 80)):
        [path] = folder.glob(f"CTImage.dcm_*_{part}.dcm")
        dataset = pydicom.dcmread(path)
        whole = next(generate_frames(dataset.PixelData, number_of_frames=1))
        for _ in range(12):
            frame = bytearray(whole)
            for position in random.integers(0, 200, 5):
                frame[position] = random.integers(256)
            try:
                [(pixels, _)] = frames(dataset, encapsulate([bytes(frame)]), part)
                assert pixels.shape == (512, 512)
            except Undecodable as error:
                died += "crashed" in str(error)
    assert died, "nothing crashed: either the codecs have become better, or this test is too gentle"


def test_a_child_does_not_outlive_its_parent(wait_until):
    program = "from index.decoder_process import Child; print(Child()._popen.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not ServedNode.alive([pid]))


def of_bits(make_dataset, truth):
    packed = np.packbits(truth.ravel(), bitorder="little").tobytes()
    return make_dataset(
        Rows=truth.shape[1], Columns=truth.shape[2], NumberOfFrames=truth.shape[0], BitsAllocated=1, BitsStored=1,
        HighBit=0, PixelData=packed + b"\0" * (len(packed) % 2),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 9), (5, 5), (8, 9), (1, 3)])
@pytest.mark.parametrize("indices", [None, [0], [1], [12], [11, 2, 3]])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_frames_of_bits_may_begin_within_a_byte(make_dataset, shape, indices, syntax):
    truth = np.random.default_rng(1).integers(0, 2, (13, *shape), np.uint8)
    dataset = of_bits(make_dataset, truth)
    found = [pixels for pixels, _ in frames(dataset, dataset.PixelData, syntax, indices=indices)]
    np.testing.assert_array_equal(found, truth if indices is None else truth[indices])


def test_frames_of_bits_that_are_not_all_there_are_told(make_dataset):
    dataset = of_bits(make_dataset, np.ones((3, 7, 9), np.uint8))
    with pytest.raises(Undecodable, match="end within frame 3"):
        list(frames(dataset, dataset.PixelData[:-2], ExplicitVRLittleEndian))
