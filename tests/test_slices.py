"""Which slices are embedded: those that show something, in the order in which they lie, however long the series is."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
)

from index import decoding
from index.archive import Archive
from index.encoders.slices import (
    HEADER,
    LOOKED_AT,
    Place,
    chosen,
    contents,
    in_order,
    most_frames,
    no_number,
    places_of,
)
from plugins import slices
from plugins.node import CannotProceed, Series
from plugins.slices import Slices, choose_slices

Make = Callable[..., Dataset]
SERIES = "1.2.826.0.1.3680043.9.7133.2"
SIDE = 48


def body(radius: float, *, level: int = 800) -> np.ndarray:
    """A disc of that radius in noise: nothing but noise when it is 0."""
    noise = np.random.default_rng(int(radius * 1000) + 1).rayleigh(8, size=(SIDE, SIDE))
    rows, columns = np.indices((SIDE, SIDE)) - SIDE / 2
    return np.where(np.hypot(rows, columns) < radius, level, 0) + noise


def mr(make: Make, number: int, pixels: np.ndarray, position: float | None = None, **values: Any) -> Dataset:
    geometry = {} if position is None else {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                                            "ImagePositionPatient": [0, 0, position]}  # fmt: skip
    frames = {"NumberOfFrames": len(pixels)} if pixels.ndim == 3 else {}
    described = {"SOPClassUID": MRImageStorage, "Modality": "MR", "Rows": SIDE, "Columns": SIDE,
                 "PixelData": np.round(pixels).astype(np.uint16).tobytes()}  # fmt: skip
    return make(number, **described | geometry | frames | values)


def stored(folder: Path, datasets: list[Dataset]) -> tuple[Archive, Series]:
    archive = Archive(folder)
    for dataset in datasets:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue())
    return archive, Series(archive, SERIES)


def choose(folder: Path, datasets: list[Dataset], most: int) -> Slices:
    return choose_slices(*stored(folder, datasets), most, lambda _fraction: None)


def numbers(slices: Slices) -> list[int]:
    return [int(uid.rpartition(".")[2]) for uid, _ in slices.frames]


def test_empty_ends_are_left_out_and_the_rest_is_spread(make_dataset: Make, tmp_path: Path) -> None:
    radii = [0] * 10 + [15] * 20 + [0] * 10
    series = [mr(make_dataset, number, body(radius), float(number)) for number, radius in enumerate(radii, 1)]
    found = numbers(choose(tmp_path, series, 10))
    assert len(found) == 10
    assert set(found) <= set(range(11, 31))
    assert max(np.diff(found)) <= 3


def test_a_part_gets_slices_by_what_there_is_to_see(make_dataset: Make, tmp_path: Path) -> None:
    radii = [5] * 20 + [20] * 20
    series = [mr(make_dataset, number, body(radius), float(number)) for number, radius in enumerate(radii, 1)]
    found = numbers(choose(tmp_path, series, 10))
    assert len(found) == 10
    assert sum(number > 20 for number in found) == 9


@pytest.mark.parametrize("direction", [1, -1])
def test_order_is_by_position_not_by_number(make_dataset: Make, tmp_path: Path, direction: int) -> None:
    order = np.random.default_rng(0).permutation(24)
    series = [mr(make_dataset, number, body(10 + place / 4), float(direction * place))
              for number, place in enumerate(order, 1)]  # fmt: skip
    found = [order[number - 1] for number in numbers(choose(tmp_path, series, 6))]
    assert found == sorted(found, reverse=direction < 0)
    assert np.ptp(found) > 16


def test_frames_of_an_enhanced_object_have_their_own_positions(make_dataset: Make, tmp_path: Path) -> None:
    radii = [0, 12, 0, 14, 0, 16, 0, 18]  # two interleaved stacks: what is seen lies beyond what is empty
    dataset = mr(make_dataset, 1, np.stack([body(radius) for radius in radii]), SOPClassUID=EnhancedMRImageStorage)
    shared, orientation, groups = Dataset(), Dataset(), []
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = Sequence([orientation])
    for index in range(len(radii)):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, -float(index)]
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    slices = choose(tmp_path, [dataset], 8)
    assert [number for _, number in slices.frames] == [8, 6, 4, 2]
    assert len(slices.images) == 4


def test_a_single_image_is_taken_whatever_it_shows(make_dataset: Make, tmp_path: Path) -> None:
    for radius in (15, 0):
        slices = choose(tmp_path / str(radius), [mr(make_dataset, 7, body(radius))], 24)
        assert slices.frames == ((f"{SERIES[:-2]}.9.7", 0),)
    flat = choose(tmp_path / "flat", [mr(make_dataset, 7, np.zeros((3, SIDE, SIDE)))], 2)
    assert [number for _, number in flat.frames] == [1, 3]


def test_a_long_series_is_not_read_whole(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    whole = decoding.frames

    def counted(*arguments: Any, **options: Any) -> Any:
        decoded.extend(options["indices"])
        return whole(*arguments, **options)

    monkeypatch.setattr("index.encoders.pixels.frames", counted)
    pixels = np.repeat(body(15)[None], 300, axis=0)
    slices = choose(tmp_path, [mr(make_dataset, 1, pixels)], 4)
    assert len(decoded) == LOOKED_AT * 4
    assert len(slices.frames) == 4
    assert {number - 1 for _, number in slices.frames} <= set(decoded)
    assert min(decoded) < 20
    assert max(decoded) > 280


def test_what_cannot_be_decoded_is_left_out_unless_it_is_all(make_dataset: Make, tmp_path: Path) -> None:
    good, bad = mr(make_dataset, 1, body(15)), mr(make_dataset, 2, body(15))
    bad.PixelData = bad.PixelData[:100]
    assert numbers(choose(tmp_path / "both", [good, bad], 24)) == [1]
    with pytest.raises(CannotProceed, match="cannot be decoded"):
        choose(tmp_path / "one", [bad], 24)


def test_a_number_of_frames_that_is_none_is_told_as_it_stands(make_dataset: Make, tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    mr(make_dataset, 1, np.repeat(body(15)[None], 12, axis=0)).save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x08\0IS\2\x0012", b"\x28\0\x08\0IS\2\x001A"))
    header = dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
    with pytest.raises(ValueError, match="1A"):
        places_of(header, 0)
    assert no_number(header) == "Number of Frames (0028,0008) is '1A', no number"
    with pytest.raises(CannotProceed, match=r"Number of Frames \(0028,0008\) is '1A', no number"):
        choose_slices(None, SimpleNamespace(paths=[path]), 4, float)  # type: ignore[arg-type]


def test_choice_is_the_same_every_time(make_dataset: Make, tmp_path: Path) -> None:
    series = [mr(make_dataset, number, body(number % 17), float(number)) for number in range(1, 20)]
    first, second = (choose(tmp_path / name, series, 8) for name in "ab")
    assert first.frames == second.frames
    np.testing.assert_array_equal(first.images, second.images)


@pytest.mark.parametrize(
    ("content", "most", "expected"),
    [
        ([], 3, []),
        ([0.0, 0.0, 0.0], 1, [1]),
        ([0.0, 1.0, 1.0, 0.0], 3, [1, 2]),
        ([1.0] * 6, 3, [0, 2, 4]),
        ([100.0, 1.0, 0.1, 60.0], 2, [0, 3]),
        ([100.0, 10.0, 10.0, 10.0], 3, [0, 1, 2]),
        ([10.0, 10.0, 10.0, 100.0], 3, [1, 2, 3]),
    ],
)
def test_spread_over_content(content: list[float], most: int, expected: list[int]) -> None:
    assert chosen(np.asarray(content), most) == expected


def test_stacks_of_a_localizer_are_kept_apart() -> None:
    axial, sagittal = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    places = [Place(0, 1, axial, 5.0), Place(1, 1, sagittal, 2.0), Place(2, 1, axial, -5.0), Place(3, 1, sagittal, 1.0)]
    assert [place.instance for place in in_order(places)] == [2, 0, 3, 1]
    assert in_order([*places, Place(4, 1)]) == [*places, Place(4, 1)]
    again = [Place(0, 1, axial, 5.0), Place(1, 1, axial, 5.0), Place(2, 1, axial, 4.0)]
    assert [place.instance for place in in_order(again)] == [2, 0, 1]


@pytest.mark.parametrize("damage", ["missing", "zeros", "header"])
def test_one_damaged_file_is_left_out_and_told(
    make_dataset: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    archive, series = stored(
        tmp_path, [mr(make_dataset, number, body(15), float(number)) for number in range(1, 5)]
    )
    path = series.paths[1]
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(bytes(4096) if damage == "zeros" else content[:200] + b"\xff" * 64)
    with caplog.at_level("WARNING"):
        slices = choose_slices(archive, series, 24, lambda _fraction: None)
    assert numbers(slices) == [1, 3, 4]
    assert f"series {SERIES}: 1 of 4 files are left out: " in caplog.text


def test_a_series_whose_files_are_gone_may_be_tried_again(make_dataset: Make, tmp_path: Path) -> None:
    archive, series = stored(tmp_path, [mr(make_dataset, number, body(15)) for number in (1, 2)])
    for path in series.paths:
        path.unlink()
    with pytest.raises(FileNotFoundError):
        choose_slices(archive, series, 24, lambda _fraction: None)


def test_headers_that_say_nothing_or_nonsense(make_dataset: Make) -> None:
    for values in ({"NumberOfFrames": ""}, {"ImagePositionPatient": [0, 0]}):
        assert [place.normal for place in places_of(make_dataset(**values), 3)] == [None]


def test_noise_alone_shows_little() -> None:
    random = np.random.default_rng(0)
    images = np.stack([np.clip(random.normal(0.5, 0.2, (128, 128)), 0, 1), np.full((128, 128), 0.5)]).astype(np.float32)
    noise, tissue = contents(images, [30.0, 900.0])
    assert noise < 0.05 * tissue
    assert contents(images[:0], []).size == 0


@pytest.mark.parametrize("claimed", [3_000_000, 2_147_483_647])
def test_more_frames_than_the_file_can_hold_are_refused_at_once(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    monkeypatch.setattr(slices, "places_of", lambda *_arguments: pytest.fail("a place for each frame"))
    with pytest.raises(CannotProceed, match=rf"\(0028,0008\) is {claimed}, and the file has room for \d at most"):
        choose(tmp_path, [mr(make_dataset, 1, body(15), NumberOfFrames=claimed)], 4)


@pytest.mark.parametrize(
    ("syntax", "most"),
    [(ExplicitVRLittleEndian, 10), (DeflatedExplicitVRLittleEndian, 10_320), (JPEGLSLossless, 128)],
)
def test_how_many_frames_a_file_can_hold(syntax: str, most: int) -> None:
    header = Dataset()
    header.Rows, header.Columns, header.BitsAllocated = 8, 8, 16
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    assert most_frames(header, 1280) == most
