"""When frames were taken and for how long, from the attributes that each encoding has for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scan_encodings import OPEN_BEAM, SITE, VIEWS, WRITERS

from reconstruct.corrections.counts import CountCorrections
from reconstruct.dicom_items import item_of
from reconstruct.projections.assembly import assemble
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.scan import Scan, ScanError

ENCODINGS = encodings_from([SITE])
SINGLE = ("P2-series", "P3", "P4", "P5", "P6")
BEGUN, STEP_S, LOST = datetime(2025, 3, 14, 23, 59, 50), 1.5, 0.3
FOLLOWED = CountCorrections(interpolated_flats=True)

Frame = tuple[Dataset, float]
"""An image, and when it was taken, seconds after the scan began."""


def read(datasets: list[Dataset]) -> Scan:
    return assemble(next(e for e in map(ENCODINGS.of, datasets) if e is not None), datasets)


def counts_of(dataset: Dataset) -> np.ndarray:
    stored = np.frombuffer(dataset.PixelData, "<u2").astype(np.float64)
    if "RescaleSlope" not in dataset:
        return stored
    return OPEN_BEAM * np.exp(-stored * float(dataset.RescaleSlope))


def put(dataset: Dataset, counts: np.ndarray) -> None:
    dataset.PixelData = np.rint(counts).astype("<u2").tobytes()
    if "RescaleSlope" in dataset:  # P3: now before its logarithm
        dataset.RescaleSlope = 1
        for offset in (0x05, 0x06, 0x09):
            dataset[0x7039, 0x1000 | offset].value = "NO"


def is_flat(dataset: Dataset) -> bool:
    from reconstruct.projections.encoding import is_without_object

    return is_without_object(dataset)


def flat_like(view: Dataset, number: int) -> Dataset:
    flat = copy.deepcopy(view)
    flat.SOPInstanceUID, flat.InstanceNumber = generate_uid(), VIEWS + 1 + number
    flat.ImageType = ["ORIGINAL", "PRIMARY", "FLAT"]
    if (0x0071, 0x1010) in flat:
        flat[0x0071, 0x1010].value = "FLAT"
    return flat


@pytest.fixture(scope="module")
def written() -> dict[str, list[Dataset]]:
    return {name: [each for each in WRITERS[name]("HFS") if not is_flat(each)] for name in (*SINGLE, "P2")}


def drifting(views: list[Dataset]) -> list[Frame]:
    """Single images under a source that loses light all the time, with flat fields before and after."""
    taken = [(copy.deepcopy(view), STEP_S * (number + 1)) for number, view in enumerate(views)]
    taken += [(flat_like(views[0], number), s) for number, s in enumerate((0.0, STEP_S * (VIEWS + 1)))]
    for dataset, seconds in taken:
        open_beam = OPEN_BEAM if is_flat(dataset) else counts_of(dataset)
        put(dataset, open_beam * output(seconds) * np.ones(dataset.Rows * dataset.Columns))
    return taken


def output(seconds: float) -> float:
    return 1 - LOST * seconds / (STEP_S * (VIEWS + 1))


def by_date_time(dataset: Dataset, moment: datetime) -> None:
    dataset.AcquisitionDateTime = f"{moment:%Y%m%d%H%M%S.%f}"


def by_acquisition(dataset: Dataset, moment: datetime) -> None:
    dataset.AcquisitionDate, dataset.AcquisitionTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"


def by_content(dataset: Dataset, moment: datetime) -> None:
    """And the time at which the series was begun, of all alike."""
    by_acquisition(dataset, BEGUN)
    dataset.ContentDate, dataset.ContentTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"


def clocked(taken: list[Frame], clock: Callable[[Dataset, datetime], None]) -> list[Dataset]:
    for dataset, seconds in taken:
        clock(dataset, BEGUN + timedelta(seconds=seconds))
    return [dataset for dataset, _ in taken]


def true_integrals(views: list[Dataset]) -> np.ndarray:
    flats = [flat_like(views[0], 0)]
    steady = [copy.deepcopy(view) for view in views] + flats
    for dataset in steady:
        size = dataset.Rows * dataset.Columns
        put(dataset, np.full(size, OPEN_BEAM) if is_flat(dataset) else counts_of(dataset))
    return read(steady).line_integrals(1)


@pytest.mark.parametrize("clock", [by_date_time, by_acquisition, by_content])
@pytest.mark.parametrize("name", SINGLE)
def test_flat_fields_before_and_after_follow_the_source(written, name: str, clock) -> None:
    """Over midnight."""
    scan, truth = read(clocked(drifting(written[name]), clock)), true_integrals(written[name])
    assert np.abs(scan.line_integrals(1) - truth).max() > 0.1
    assert np.abs(scan.line_integrals(1, corrections=FOLLOWED) - truth).max() < 2e-3


@pytest.mark.parametrize("vector", [False, True])
def test_the_frames_of_a_rotational_run_follow_each_other_in_frame_time(written, vector: bool) -> None:
    (still,) = written["P2"]
    run = copy.deepcopy(still)
    frames = counts_of(run).reshape(VIEWS, -1)
    put(run, frames * np.array([output(STEP_S * (number + 1)) for number in range(VIEWS)])[:, None])
    if vector:
        run.FrameTimeVector = [0, *[1000 * STEP_S] * (VIEWS - 1)]
    else:
        run.FrameTime = 1000 * STEP_S
    flats = []
    for seconds in (0.0, STEP_S * (VIEWS + 1)):
        flat = flat_like(still, len(flats))
        flat.NumberOfFrames = 1
        del flat.PositionerPrimaryAngleIncrement, flat.PositionerSecondaryAngleIncrement
        put(flat, np.full(flat.Rows * flat.Columns, OPEN_BEAM * output(seconds)))
        flats.append((flat, seconds))
    taken = [(run, STEP_S), *flats]
    truth = -np.log(frames / OPEN_BEAM)
    scan = read(clocked(taken, by_acquisition))
    after = scan.line_integrals(1, corrections=FOLLOWED).reshape(VIEWS, -1)
    assert np.abs(after - truth).max() < 2e-3
    for keyword in ("FrameTime", "FrameTimeVector"):
        run.pop(keyword, None)
    with pytest.raises(ScanError, match=r"\(0018,9074\) is missing of some frames"):
        read([each for each, _ in taken]).line_integrals(1, corrections=FOLLOWED)


@pytest.mark.parametrize("name", SINGLE)
def test_without_times_or_with_that_of_the_series_alone_interpolation_is_refused(written, name: str) -> None:
    for clock in (lambda _dataset, _moment: None, lambda dataset, _moment: by_acquisition(dataset, BEGUN)):
        scan = read(clocked(drifting(written[name]), clock))
        with pytest.raises(ScanError, match="missing of some frames, or the same in all projections"):
            scan.line_integrals(1, corrections=FOLLOWED)


def exposed(dataset: Dataset, milliseconds: float) -> None:
    if dataset.get("GantryAngle") is None:
        dataset.ExposureTime = round(milliseconds)
    else:
        dataset.ExposureSequence = [item_of(ExposureTime=round(milliseconds))]


DEAD_NS = 400.0


@pytest.mark.parametrize("name", SINGLE)
def test_pile_up_is_undone_and_flat_fields_compared_by_exposure_time(written, name: str) -> None:
    """Flat fields of half the time: half the counts, and another rate than behind the object."""
    datasets = [*(copy.deepcopy(view) for view in written[name]), flat_like(written[name][0], 0)]
    for dataset in datasets:
        size = dataset.Rows * dataset.Columns
        milliseconds = 50.0 if is_flat(dataset) else 100.0
        passed = np.full(size, OPEN_BEAM / 2) if is_flat(dataset) else counts_of(dataset)
        put(dataset, passed / (1 + passed * DEAD_NS * 1e-6 / milliseconds))
        exposed(dataset, milliseconds)
    scan, truth = read(datasets), true_integrals(written[name])
    assert np.abs(scan.line_integrals(1) - truth).max() > 0.05
    undone = scan.line_integrals(1, corrections=CountCorrections(dead_time_ns=DEAD_NS))
    assert np.abs(undone - truth).max() < 2e-3


def test_microseconds_go_first_and_exposures_of_some_images_count_for_none(written) -> None:
    datasets = [copy.deepcopy(view) for view in written["P6"]]
    for dataset in datasets:
        dataset.ExposureTime, dataset.ExposureTimeInuS = 1, 700
    assert {frame.duration_ms for frame in read(datasets).counters[0].views} == {0.7}
    datasets[0].ExposureTimeInuS = 0
    assert {frame.duration_ms for frame in read(datasets).counters[0].views} == {1.0}
    del datasets[1].ExposureTime
    scan = read(datasets)
    with pytest.raises(ScanError, match=r"\(0018,9220\) is missing, and so is an Exposure Time \(0018,1150\)"):
        scan.line_integrals(1, corrections=CountCorrections(dead_time_ns=DEAD_NS))
