"""What Corrections Applied (0071,xx08) and the flags of DICOM-CT-PD say was done is not done again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scan_encodings import WRITERS

from reconstruct.corrections.counts import CountCorrections
from reconstruct.corrections.wanted import APPLIED, Corrections
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.phantoms import Ellipsoid, line_integrals
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.assembly import assemble
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.p3 import P3
from reconstruct.projections.scan import CounterKind, EnergyBin, PixelMeaning, Scan, ScanError

VIEWS, ROWS, COLUMNS, OPEN, DARK = 6, 8, 24, 30_000.0, 900.0
GEOMETRY = ConeBeamGeometry.circular(
    source_to_isocenter_mm=200, source_to_detector_mm=300, view_angles_rad=np.arange(VIEWS) * 2 * np.pi / VIEWS,
    rows=ROWS, columns=COLUMNS, row_pitch_mm=1.0, column_pitch_mm=1.0,
)  # fmt: skip
TRUTH = line_integrals([Ellipsoid((1.0, 0.0, 0.0), (5.0, 4.0, 6.0), value_per_mm=0.1)], GEOMETRY)
GAIN = 1 + 0.1 * np.random.default_rng(4).standard_normal((ROWS, COLUMNS))
PASSED = OPEN * np.exp(-TRUTH)


def scan_of(views: np.ndarray, flats: Any, darks: Any = None, i0: float | None = None, **applied: list[str]) -> Scan:
    """A scan in whose frames, by their role, corrections were applied."""
    stacks = [None if frames is None else np.rint(frames).astype(np.uint16) for frames in (views, flats, darks)]
    counter = CounterImages(EnergyBin(1), *stacks, unattenuated=i0)
    told = Acquisition(counter_kind=CounterKind.DIFFERENTIAL, pixel_meaning=PixelMeaning.INTENSITY)
    objects = write_p1([counter], GEOMETRY, Dataset(), told)
    for dataset in objects:
        elements.put(dataset, CorrectionsApplied=applied.get(elements.read(dataset)["FrameRole"]))
    return read_p1(objects)


def stack(frame: Any, count: int = 2) -> np.ndarray:
    return np.broadcast_to(frame, (count, ROWS, COLUMNS))


def error_of(scan: Scan, **counts: Any) -> float:
    return float(np.abs(scan.line_integrals(1, corrections=CountCorrections(**counts)) - TRUTH).max())


def test_dark_signal_is_not_removed_again() -> None:
    removed = {"PROJECTION": ["DARK"], "FLAT": ["DARK"]}
    assert error_of(scan_of(PASSED, stack(OPEN), stack(DARK), **removed)) < 2e-3
    assert error_of(scan_of(PASSED, stack(OPEN), stack(DARK))) > 0.01, "as if it were there"
    raw_flats = scan_of(PASSED, stack(OPEN + DARK), stack(DARK), PROJECTION=["DARK"])
    assert error_of(raw_flats) < 2e-3, "of the flat fields alone it is removed"


def test_dark_signal_is_removed_from_i0_as_from_the_projections() -> None:
    """I0 is what a pixel holds without an object."""
    dark = DARK * (1 + np.arange(COLUMNS) / COLUMNS)
    raw = OPEN + DARK
    views = dark + (raw - dark) * np.exp(-TRUTH)
    assert error_of(scan_of(views, None, stack(dark), i0=raw)) < 2e-3
    assert error_of(scan_of(PASSED, None, stack(DARK), i0=OPEN, PROJECTION=["DARK"])) < 2e-3, "and not again"
    assert error_of(scan_of(PASSED, None, stack(DARK), i0=OPEN), dark=False) < 2e-3


def test_a_pixel_whose_dark_signal_leaves_nothing_of_i0_is_dead_and_a_scan_of_them_refused() -> None:
    dark = np.full((ROWS, COLUMNS), DARK)
    dark[3, 7] = 60_000
    views = DARK + PASSED
    views[:, 3, 7] = 60_000
    scan = scan_of(views, None, stack(dark), i0=OPEN + DARK)
    assert np.isfinite(scan.line_integrals(1)).all()
    assert error_of(scan) < 0.3, "replaced by its neighbours"
    nothing = scan_of(PASSED, None, stack(DARK), i0=DARK)
    with pytest.raises(ScanError, match=r"leave nothing of the unattenuated value I0 \(0071,xx09\) in 100% of the"):
        nothing.line_integrals(1)


@pytest.mark.parametrize(
    ("flats", "told"),
    [
        (stack(OPEN * GAIN), {"i0": OPEN, "PROJECTION": ["FLAT"]}),
        (stack(OPEN), {"PROJECTION": ["FLAT"], "FLAT": ["FLAT"]}),
        (None, {"i0": OPEN, "PROJECTION": ["FLAT"]}),
    ],
    ids=["I0", "flat frames that were corrected alike", "no flat frames"],
)
def test_flat_fields_are_not_divided_out_again(flats: Any, told: dict[str, Any]) -> None:
    scan = scan_of(PASSED, flats, **told)
    assert error_of(scan) < 2e-3
    assert error_of(scan, interpolated_flats=True) < 2e-3
    if flats is not None and "FLAT" not in told:
        assert error_of(scan_of(PASSED, flats)) > 0.1


def test_flat_fields_that_are_divided_out_still_show_dead_pixels() -> None:
    views, flats = PASSED.copy(), stack(OPEN * GAIN).copy()
    views[:, 3, 7] = flats[:, 3, 7] = 0
    told = {"i0": OPEN, "PROJECTION": ["FLAT"]}
    assert error_of(scan_of(views, flats, **told)) < 0.3, "replaced by its neighbours"
    told["PROJECTION"] = ["FLAT", "DEAD_PIXEL"]
    repaired = PASSED.copy()
    assert error_of(scan_of(repaired, flats, **told)) < 2e-3, "and left where the scanner replaced it"


@pytest.mark.parametrize(
    ("applied", "words"),
    [
        ({"PROJECTION": ["FLAT"]}, r"divided out already, says Corrections Applied \(0071,xx08\): that takes .*I0"),
        ({"FLAT": ["FLAT"]}, r"says FLAT of the flat fields and not of all projections"),
        ({"PROJECTION": ["GAIN"]}, r"says GAIN of the projections and not of all flat fields"),
        ({"FLAT": ["GAIN"]}, r"says GAIN of the flat fields and not of all projections"),
    ],
)
def test_flat_fields_that_would_correct_twice_are_refused(applied: dict[str, list[str]], words: str) -> None:
    with pytest.raises(ScanError, match=words):
        scan_of(PASSED, stack(OPEN * GAIN), **applied)


def test_a_gain_that_was_corrected_in_views_and_flat_fields_leaves_the_beam_to_divide_by() -> None:
    beam = OPEN * (1 + 0.3 * np.linspace(-1, 1, COLUMNS) ** 2)
    applied = {"PROJECTION": ["GAIN"], "FLAT": ["GAIN"]}
    assert error_of(scan_of(PASSED * beam / OPEN, stack(beam), **applied)) < 2e-3


WANTED = Corrections(
    flats="interpolated", dead_time_ns=100.0, unsteady_pixels=8.0, scatter_fraction=0.1, drift=True, rings="sorted",
    beam_hardening="water", truncation="cosine",
)  # fmt: skip


@pytest.mark.parametrize("word", APPLIED)
def test_no_setting_repeats_what_a_word_says(word: str) -> None:
    """Every other correction stays."""
    from dataclasses import replace

    i0 = {"i0": OPEN} if word == "FLAT" else {}
    scan = scan_of(PASSED, stack(OPEN), **i0, PROJECTION=[word], FLAT=[word])
    counts = replace(scan, pixel_meaning=PixelMeaning.COUNTS)
    off = {name: getattr(Corrections(), name) for name in APPLIED[word]}
    assert WANTED.left_to_do(counts) == replace(WANTED, **off)
    assert (WANTED.left_to_do(counts) == WANTED) is (word in ("DARK", "GAIN")), "these two have no setting"


def test_projections_that_were_corrected_differently_are_refused_and_unknown_words_noted() -> None:
    datasets = copy.deepcopy(P3_VIEWS)
    flagged(datasets[:1], 0x08, "YES")
    with pytest.raises(ScanError, match=r"\(0071,xx08\) differs between the projections: DARK, FLAT and .*SCATTER"):
        assemble(P3, datasets)
    scan = scan_of(PASSED, stack(OPEN), PROJECTION=["BEAMHARDENING"])
    assert any("says BEAMHARDENING, which changes nothing" in note for note in scan.notes)


P3_VIEWS = WRITERS["P3"]("HFS")


def flagged(datasets: list[Dataset], offset: int, value: str) -> None:
    for dataset in datasets:
        dataset.add_new((0x7039, 0x1000 | offset), "CS", value)


@pytest.mark.parametrize(
    ("offset", "word"),
    [(0x03, "BEAM_HARDENING"), (0x04, "GAIN"), (0x05, "DARK"), (0x06, "FLAT"), (0x07, "DEAD_PIXEL"), (0x08, "SCATTER")],
)
def test_every_flag_of_ct_pd_counts(offset: int, word: str) -> None:
    datasets = copy.deepcopy(P3_VIEWS)
    for each in (0x05, 0x06):
        flagged(datasets, each, "NO")
    flagged(datasets, offset, "YES")
    scan = assemble(P3, datasets)
    assert scan.corrections == {word}
    for name in APPLIED[word]:
        assert getattr(WANTED.left_to_do(scan), name) == getattr(Corrections(), name)
    flagged(datasets, offset, "PERHAPS")
    with pytest.raises(ScanError, match=rf"Flag \(7039,xx0{offset}\) is PERHAPS, expected YES or NO"):
        assemble(P3, datasets)
