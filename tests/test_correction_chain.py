"""Corrections of a stored scan, end to end: what was made by a faulty scanner ends where a faultless one ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scipy.ndimage import binary_erosion

from config.settings import SettingsError, load_settings
from plugins.reconstruction import parameters_from
from reconstruct import spectral_phantoms
from reconstruct.corrections.chain import calibrated, correct, corrected_integrals, tells_principal_point
from reconstruct.corrections.counts import CountCorrections
from reconstruct.corrections.wanted import Corrections
from reconstruct.fdk import fdk
from reconstruct.geometry import ConeBeamGeometry, VolumeGrid
from reconstruct.materials import BONE, WATER
from reconstruct.phantoms import Ellipsoid, line_integrals
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.scan import CounterKind, EnergyBin, PixelMeaning, Scan, ScanError
from reconstruct.quality import rmse
from reconstruct.simulate import simulate_scan
from reconstruct.simulated_positions import Positions
from reconstruct.simulated_scanner import Scanner
from reconstruct.spectral_phantoms import Part, SpectralPhantom

SIZE: dict[str, Any] = {"views": 90, "rows": 14, "columns": 48, "thresholds_kev": (20.0, 45.0), "seed": 3}
SOUND = Scanner(dead_pixels=0)
GRID = VolumeGrid((10, 44, 44), (0.75, 0.75, 0.75))


def simulated(scanner: Scanner, **changes: Any) -> Scan:
    return read_p1(simulate_scan("calibration", scanner=scanner, **SIZE | changes))


def volume_of(scan: Scan, bin_number: int = 1, **wanted: Any) -> np.ndarray:
    corrections = Corrections(**wanted).left_to_do(scan)
    scan, corrections = calibrated(scan, corrections)
    before, after = corrections.margins(scan)
    geometry = scan.geometry.extended(before, after)
    out = np.empty((geometry.views, geometry.rows, geometry.columns), dtype=np.float32)
    corrected_integrals(scan, bin_number, corrections, out=out)
    return fdk(out, geometry, GRID)


@pytest.fixture(scope="module")
def faultless() -> np.ndarray:
    return volume_of(simulated(SOUND, photons_per_pixel=50_000))


@pytest.fixture(scope="module")
def noise(faultless: np.ndarray) -> float:
    """How much two scans without faults differ."""
    return rmse(volume_of(simulated(SOUND, photons_per_pixel=50_000, seed=9)), faultless)


FAULTS: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({"source_drift": 0.3}, {"drift": True}, 4.0),
    ({"gain_change": 0.05}, {"rings": "combined"}, 1.3),
    ({"failing_pixels": 12}, {"unsteady_pixels": 8.0}, 3.0),
    ({"hot_pixels": 30}, {"saturated": True}, 2.5),
    ({"scatter": 0.15}, {"scatter_fraction": 0.15 / 1.15, "drift": True}, 4.0),
    ({"dead_time_ns": 3000.0}, {"dead_time_ns": 3000.0}, 4.0),
    ({"axis_offset_px": 1.4}, {"principal_point": "estimated"}, 2.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "wanted", "better"), FAULTS, ids=[next(iter(fault)) for fault, _, _ in FAULTS])
def test_each_fault_of_a_scanner_is_corrected(
    faultless: np.ndarray, noise: float, fault: dict[str, Any], wanted: dict[str, Any], better: float
) -> None:
    scan = simulated(replace(SOUND, **fault), photons_per_pixel=50_000)
    before = rmse(volume_of(scan), faultless)
    after = rmse(volume_of(scan, **wanted), faultless)
    assert before > 1.3 * noise, (before, noise)
    # What is left is told apart from the noise of another scan.
    assert max(after**2 - noise**2, 0) ** 0.5 < (before**2 - noise**2) ** 0.5 / better, (before, after, noise)


DONE_UNLESS_TOLD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dark_counts": 1500.0, "dark_frames": 10}, {"dark": False}),
    ({"dead_pixels": 12}, {"dead_pixels": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "neglected"), DONE_UNLESS_TOLD, ids=[next(iter(fault)) for fault, _ in DONE_UNLESS_TOLD]
)
def test_what_is_corrected_unless_told_otherwise_would_be_seen(
    faultless: np.ndarray, noise: float, fault: dict[str, Any], neglected: dict[str, Any]
) -> None:
    scan = simulated(replace(SOUND, **fault), photons_per_pixel=50_000)
    before, after = rmse(volume_of(scan, **neglected), faultless), rmse(volume_of(scan), faultless)
    assert before > 2 * noise, (before, noise)
    assert max(after**2 - noise**2, 0) ** 0.5 < (before**2 - noise**2) ** 0.5 / 6.0, (before, after, noise)


@pytest.mark.slow
def test_a_tile_alone_is_truncated_and_the_stitched_scan_is_not(faultless: np.ndarray, noise: float) -> None:
    """Three positions of a camera half as wide as the shadow: the middle one alone, then all."""
    positions = Positions((3, 1))
    scan = simulated(SOUND, photons_per_pixel=50_000, positions=positions)
    assert scan.tiles is not None
    middle = list(positions.places(SOUND.geometry(SIZE["views"], SIZE["rows"], SIZE["columns"])))[1].geometry
    alone = replace(scan, geometry=middle, counters=scan.tiles.counters[1], tiles=None)
    seen = within(7.0)
    assert rmse(volume_of(alone), faultless, seen) > 3 * noise
    assert rmse(volume_of(scan), faultless) < 1.1 * noise
    assert rmse(volume_of(scan), faultless, seen) < 1.3 * noise, "the middle is the noisiest part"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["water", "cosine"])
def test_a_scan_whose_object_is_wider_than_the_detector_loses_its_bright_rim(
    faultless: np.ndarray, method: str
) -> None:
    """A detector two thirds as wide, of the same pixels: its field of view has a radius of 12.5 mm, the object 15."""
    narrow = replace(SOUND, detector_width_mm=SOUND.detector_width_mm * 32 / SIZE["columns"])
    scan = simulated(narrow, photons_per_pixel=50_000, columns=32)
    inside, rim = within(8.0), within(12.0) & ~within(10.5)

    def brightness(volume: np.ndarray) -> float:
        """Of the rim against the inside, compared with that of a scan that sees all."""
        return float(abs((volume - faultless)[rim].mean() - (volume - faultless)[inside].mean()))

    plain, mended = volume_of(scan), volume_of(scan, truncation=method)
    assert brightness(plain) > 0.05 * faultless[inside].mean()
    assert brightness(mended) < brightness(plain) / 2.5
    assert rmse(mended, faultless, within(12.0)) < rmse(plain, faultless, within(12.0)) / 2


def within(radius_mm: float) -> np.ndarray:
    y, x = np.meshgrid(GRID.y_mm, GRID.x_mm, indexing="ij")
    return np.broadcast_to(np.hypot(x, y) < radius_mm, GRID.shape_zyx)


def test_beam_hardening_of_a_stored_scan_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Water, 30 mm thick, in a beam from 15 to 118 keV: hollow and too faint before, flat and true after."""
    body = Part("water", WATER, (0.0, 0.0, 0.0), (15.0, 14.0, 12.0))
    monkeypatch.setattr(spectral_phantoms, "PHANTOMS", {"water": SpectralPhantom("water", "", (body,))})
    wide = SIZE | {"thresholds_kev": (15.0,), "photons_per_pixel": 30_000}
    scan = read_p1(simulate_scan("water", scanner=SOUND, **wide))
    water = scan.bins[0].water_per_cm
    assert water is not None
    middle, rim = (np.isin(np.arange(GRID.shape_zyx[0]), range(3, 7))[:, None, None] & where for where in (
        within(5.0), within(12.0) & ~within(10.0)
    ))  # fmt: skip

    def of_water(volume: np.ndarray, where: np.ndarray) -> float:
        return float(10 * volume[where].mean() / water)

    plain, mended = volume_of(scan), volume_of(scan, beam_hardening="water")
    assert of_water(plain, middle) < 0.96
    assert of_water(plain, rim) - of_water(plain, middle) > 0.02, "the cup"
    assert of_water(mended, middle) == pytest.approx(1, abs=0.005)
    assert of_water(mended, rim) == pytest.approx(1, abs=0.005)


def test_the_series_says_what_was_corrected(tmp_path: Path) -> None:
    objects = simulate_scan("calibration", **SIZE | {"views": 40, "thresholds_kev": (20.0,)})
    wanted = Corrections(drift=True, rings="sorted", truncation="cosine", principal_point="estimated")
    made = {}
    for name, corrections in (("plain", Corrections()), ("corrected", wanted)):
        parameters = Parameters(corrections=corrections)
        [series] = reconstruct_scan(read_p1(objects), parameters, lambda _fraction: None, tmp_path)
        made[name] = next(iter(series.instances))
    plain, corrected = made["plain"], made["corrected"]
    assert "rings" not in plain.DerivationDescription
    for words in ("drift=True", "rings=sorted", "truncation=cosine", "from conjugate views"):
        assert words in corrected.DerivationDescription
    assert plain.SeriesInstanceUID != corrected.SeriesInstanceUID
    assert Parameters().recipe().keys() == {"kind", "method", "version", "filter", "cutoff", "voxel_mm"}


def test_memory_maps_are_corrected_like_arrays(tmp_path: Path) -> None:
    objects = simulate_scan("calibration", **SIZE | {"views": 60, "thresholds_kev": (20.0,)})
    wanted = Corrections(drift=True, rings="combined", truncation="water", unsteady_pixels=8.0, scatter_fraction=0.05)
    pixels = []
    for memory_mb in (512, 3):
        parameters = Parameters(memory_mb=memory_mb, corrections=wanted)
        [series] = reconstruct_scan(read_p1(objects), parameters, lambda _fraction: None, tmp_path)
        pixels.append(np.stack([instance.pixel_array for instance in series.instances]))
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1


def test_what_the_scanner_has_done_is_not_done_again() -> None:
    objects = simulate_scan("calibration", **SIZE | {"views": 40, "thresholds_kev": (20.0,)})
    for dataset in objects:
        elements.put(dataset, CorrectionsApplied=["DRIFT", "RING", "SCATTER"])
    wanted = Corrections(drift=True, rings="combined", scatter_fraction=0.2, unsteady_pixels=8.0)
    assert wanted.left_to_do(read_p1(objects)) == Corrections(unsteady_pixels=8.0)


def test_values_that_are_no_counts_have_no_pile_up() -> None:
    scan = replace(simulated(SOUND, views=12), pixel_meaning=PixelMeaning.LINE_INTEGRAL)
    wanted = Corrections(dead_time_ns=100.0, saturated=True, flats="interpolated", drift=True)
    assert wanted.left_to_do(scan) == Corrections(drift=True)


def test_the_defaults_change_nothing() -> None:
    scan = simulated(Scanner(), views=30)
    out = np.empty(scan.shape, dtype=np.float32)
    corrected_integrals(scan, 1, Corrections(), out=out)
    np.testing.assert_array_equal(out, scan.line_integrals(1))
    assert parameters_from(load_settings(environment={})).corrections == Corrections()
    same, left = calibrated(scan, Corrections(principal_point="missing"))
    assert same is scan, "the vectors tell it"
    assert left == Corrections(), "and the recipe does not change"
    assert tells_principal_point(scan)


def test_settings_become_corrections_and_refuse_what_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('[corrections]\nrings = "combined"\nbeam_hardening = "polynomial"\n'
                    "beam_hardening_polynomial = [[1.0, 0.02]]\n", encoding="utf-8")
    corrections = parameters_from(load_settings(file, environment={})).corrections
    assert (corrections.rings, corrections.beam_hardening_polynomial) == ("combined", ((1.0, 0.02),))
    for key, value, words in (
        ("rings", "fourier", "expected 'none', 'sorted' or 'combined', got 'fourier'"),
        ("ring_columns", 8, "expected 0 or an odd number from 3, got 8"),
        ("beam_hardening", "polynomial", "needs beam_hardening_polynomial"),
    ):
        with pytest.raises(SettingsError, match=words):
            load_settings(environment={}, overrides={"corrections": {key: value}})


def object_and_flats(**acquisition: Any) -> tuple[list[Dataset], np.ndarray]:
    """A scan whose gains change linearly from flats before to flats after the views, and its true line integrals."""
    random, views, rows, columns = np.random.default_rng(2), 40, 8, 24
    geometry = ConeBeamGeometry.circular(
        source_to_isocenter_mm=200, source_to_detector_mm=300, view_angles_rad=np.arange(views) * 2 * np.pi / views,
        rows=rows, columns=columns, row_pitch_mm=1.0, column_pitch_mm=1.0,
    )  # fmt: skip
    integrals = line_integrals([Ellipsoid((1.0, 0.0, 0.0), (5.0, 4.0, 6.0), value_per_mm=0.1)], geometry)
    first, last = (30_000 * (1 + 0.1 * random.standard_normal((rows, columns))) for _ in range(2))
    shares = (np.arange(views) + 1)[:, None, None] / (views + 1)
    counts = np.rint((first * (1 - shares) + last * shares) * np.exp(-integrals)).astype(np.uint16)
    flats = np.rint(np.stack([first, first, last, last])).astype(np.uint16)
    told = Acquisition(counter_kind=CounterKind.DIFFERENTIAL, **acquisition)
    return write_p1([CounterImages(EnergyBin(1), counts, flats)], geometry, Dataset(), told), integrals


def test_flats_before_and_after_a_stored_scan_follow_the_gains() -> None:
    times = {"view_times_s": tuple(10.0 * (n + 1) for n in range(40)), "flat_times_s": (-1.0, 1.0, 409.0, 411.0)}
    objects, integrals = object_and_flats(**times)
    scan = read_p1(objects)
    before = np.abs(scan.line_integrals(1) - integrals).max()
    after = np.abs(scan.line_integrals(1, corrections=CountCorrections(interpolated_flats=True)) - integrals).max()
    assert before > 0.05
    assert after < 2e-3


def test_corrections_name_what_the_scan_does_not_tell() -> None:
    objects, _ = object_and_flats()
    scan = read_p1(objects)
    for wanted, words in (
        (Corrections(dead_time_ns=100.0), r"Frame Acquisition Duration \(0018,9220\) is missing"),
        (Corrections(beam_hardening="water"), r"energy bin 1: beam hardening cannot be computed: KVP \(0018,0060\)"),
        (Corrections(truncation="water"), r"attenuation of water \(0071,xx29\) is missing"),
    ):
        before, after = wanted.margins(scan)
        out = np.empty((40, 8, 24 + before + after), dtype=np.float32)
        with pytest.raises(ScanError, match=words):
            corrected_integrals(scan, 1, wanted, out=out)
    for dataset in objects:
        for item in dataset.PerFrameFunctionalGroupsSequence:
            del item.FrameContentSequence[0].FrameAcquisitionDateTime
    with pytest.raises(ScanError, match=r"Frame Acquisition DateTime \(0018,9074\) is missing of some frames"):
        read_p1(objects).line_integrals(1, corrections=CountCorrections(interpolated_flats=True))


# the proof: a real CT, projected by another projector, counted with noise, dead pixels, rings and drift


@pytest.fixture(scope="module")
def torso(torso_objects: Any) -> tuple[list[Dataset], list[Dataset]]:
    """The scan as it is, and the same thinned photon by photon: gains changed since the flats, the source drifts."""
    random = np.random.default_rng(8)
    sound, faulty = torso_objects(), torso_objects()
    views = [dataset for dataset in faulty if elements.read(dataset)["FrameRole"] == "PROJECTION"]
    counters = np.stack([dataset.pixel_array for dataset in views]).astype(np.int64)
    bins = np.maximum(np.concatenate([counters[:-1] - counters[1:], counters[-1:]]), 0)
    shape = bins.shape[1:]
    gains = np.clip(1 - np.abs(0.15 * random.standard_normal(shape[1:])) * (random.random(shape[1:]) < 0.1), 0.5, 1)
    output = 1 - 0.12 * np.linspace(0, 1, shape[0])
    thinned = random.binomial(bins, gains * output[:, None, None])
    for dataset, counts in zip(views, np.cumsum(thinned[::-1], axis=0)[::-1], strict=True):
        dataset.PixelData = counts.astype("<u2").tobytes()
    return sound, faulty


@pytest.mark.slow
@pytest.mark.parametrize("bin_number", [1, 2, 3])
def test_noisy_counts_with_rings_dead_pixels_and_drift_end_near_the_truth(
    torso: tuple[list[Dataset], list[Dataset]], shared_data: Path, bin_number: int
) -> None:
    """In each bin fat and soft tissue have the means of the truth, and every voxel is as far from it as without faults.

    Noise is most of the distance, and is the same before and after. In the lowest bin four photons in ten thousand
    pass the shoulders; bone, of which every ray to the spine sees more, comes out too faint there with faults or
    without: it is not judged.
    """
    hounsfield, truth = torso_truth(shared_data, bin_number)
    seen = slice(18, 22)
    grid = VolumeGrid(hounsfield.shape, (3.0, 3.0, 3.0)).slab(seen.start, seen.stop)
    sound, faulty = (read_p1(objects) for objects in torso)
    wanted = Corrections(drift=True, rings="combined", unsteady_pixels=8.0)
    integrals = faulty.line_integrals(bin_number)
    plain = fdk(integrals, faulty.geometry, grid)
    mended = fdk(correct(integrals, faulty, bin_number, wanted), faulty.geometry, grid)
    goal = fdk(sound.line_integrals(bin_number), sound.geometry, grid)
    tissues = {"fat": (-150, -50, 0.01), "soft tissue": (0, 80, {1: 0.03, 2: 0.02, 3: 0.01}[bin_number])}
    for name, (low, high, within) in tissues.items():
        inside = binary_erosion((hounsfield > low) & (hounsfield < high))[seen]
        assert mended[inside].mean() == pytest.approx(truth[seen][inside].mean(), rel=within), name
    patient = hounsfield[seen] > -500
    before, after, without = (rmse(volume, truth[seen], patient) for volume in (plain, mended, goal))
    assert after < 1.03 * without, (before, after, without)
    if bin_number == 3:  # elsewhere noise hides what rings and drift add
        assert after < before
        bone = binary_erosion(hounsfield > 250)[seen]
        assert mended[bone].mean() == pytest.approx(truth[seen][bone].mean(), rel=0.1), "blurred: bones are thin"


def torso_truth(shared_data: Path, bin_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units and attenuation in a bin, 1/mm, (z, y, x).

    From 150 HU on, the share of cortical bone rises to all at 1500 HU; the rest is water of another density. That is
    the attenuation that the data tell of the third bin, to 2 % of water.
    """
    folder = shared_data / "projections" / "torso_full"
    stored, told = np.load(folder / "truth.npz"), json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
    hounsfield = np.maximum(stored["hu"].transpose(2, 1, 0).astype(np.float64), -1000)
    known = stored["mu_per_mm_bin3"].transpose(2, 1, 0) / 1e5
    share = np.clip((hounsfield - 150) / 1350, 0, 1)

    def attenuation(number: int) -> np.ndarray:
        bone = BONE.per_mm([told["effective_kev"][number - 1]])[0]
        return (1 - share) * told["mu_water_per_mm"][number - 1] * (1 + hounsfield / 1000) + share * bone

    assert np.abs(attenuation(3) - known).mean() < 1e-5
    assert np.abs(attenuation(3) - known)[hounsfield > 300].mean() < 0.02 * told["mu_water_per_mm"][2]
    return hounsfield, known if bin_number == 3 else attenuation(bin_number)
