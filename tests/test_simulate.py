"""The simulated scanner: its physics against tables, its objects against themselves, its scans against the truth."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from reconstruct.fdk import fdk
from reconstruct.geometry import VolumeGrid
from reconstruct.materials import (
    AIR,
    BONE,
    IODINE,
    LIPID,
    PMMA,
    SOFT_TISSUE,
    WATER,
    Material,
    k_edge_kev,
    mass_attenuation,
    solution,
)
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.scan import CounterKind, Scan
from reconstruct.simulate import DEFAULT_THRESHOLDS_KEV, Identification, simulate_scan
from reconstruct.simulated_scanner import Scanner
from reconstruct.spectral_phantoms import PHANTOMS, spectral_phantom
from reconstruct.spectrum import bin_spectra, tungsten

Validator = Callable[[Path], list[str]]

GRID = VolumeGrid((40, 64, 64), (0.6, 0.55, 0.55))


@pytest.mark.parametrize(
    ("material", "expected"),
    [
        # NIST XCOM and SRD 126, cm²/g at 20, 40, 60, 100 keV.
        (WATER, (0.8096, 0.2683, 0.2059, 0.1707)),
        (BONE, (4.001, 0.6655, 0.3148, 0.1855)),
        (PMMA, (0.5714, 0.2350, 0.1924, 0.1641)),
    ],
)
def test_mixtures_agree_with_the_tables_of_compounds(material: Material, expected: tuple[float, ...]) -> None:
    mass = 10 * material.per_mm([20, 40, 60, 100]) / material.density_g_per_cm3
    np.testing.assert_allclose(mass, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        # NIST SRD 126, cm²/g at 10, 20, 30, 40, 60, 80, 100, 150 keV.
        ("H", (0.3854, 0.3695, 0.3570, 0.3458, 0.3260, 0.3091, 0.2944, 0.2651)),
        ("O", (5.952, 0.8651, 0.3779, 0.2585, 0.1907, 0.1678, 0.1551, 0.1361)),
        ("P", (40.35, 5.352, 1.700, 0.8096, 0.3494, 0.2324, 0.1865, 0.1432)),
        ("Ca", (93.41, 13.06, 4.080, 1.830, 0.6578, 0.3656, 0.2571, 0.1674)),
        ("I", (162.6, 25.43, 8.561, 22.10, 7.579, 3.510, 1.942, 0.6978)),
    ],
)
def test_elements_agree_with_published_tables(element: str, expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(
        mass_attenuation(element, [10, 20, 30, 40, 60, 80, 100, 150]), expected, rtol=1.5e-3
    )


@pytest.mark.parametrize(
    ("element", "edge_kev", "jump"),
    [("I", 33.169, 5.47), ("Gd", 50.239, 4.89), ("Au", 80.725, 4.17)],
)
def test_k_edges_are_where_they_are(element: str, edge_kev: float, jump: float) -> None:
    """Bearden and Burr (1967) for the energies; the jump is the ratio of NIST's two values at the edge."""
    assert k_edge_kev(element) == pytest.approx(edge_kev, abs=2e-3)
    below, above = mass_attenuation(element, [edge_kev - 0.01, edge_kev + 0.01])
    assert above / below == pytest.approx(jump, rel=0.02)


def test_the_k_edge_of_iodine() -> None:
    below, above = mass_attenuation("I", [33.16, 33.18])
    assert below == pytest.approx(6.56, rel=0.01)
    assert above == pytest.approx(35.8, rel=0.01)


def test_solutions_add_what_is_dissolved() -> None:
    mixed = solution("mixed", IODINE, 10.0)
    expected = 0.01 * mass_attenuation("I", [40.0]) + (1 - 0.01 / 4.93) * mass_attenuation("H", [40.0]) * 0.1119
    expected = expected + (1 - 0.01 / 4.93) * mass_attenuation("O", [40.0]) * 0.8881
    np.testing.assert_allclose(10 * mixed.per_mm([40.0]), expected, rtol=1e-6)


@pytest.mark.parametrize(("element", "energy"), [("H", 9.0), ("I", 151.0), ("Xx", 50.0)])
def test_what_is_not_in_the_tables_is_refused(element: str, energy: float) -> None:
    with pytest.raises(ValueError, match=r"expected (energies of 10 to 150 keV|the symbol of an element)"):
        mass_attenuation(element, [energy])


def test_the_spectrum_ends_at_the_tube_voltage_and_hardens_behind_aluminium() -> None:
    energies, soft = tungsten(80.0, 1.0)
    _, hard = tungsten(80.0, 5.0)
    assert energies[-1] < 80.0
    assert np.average(energies, weights=hard) > np.average(energies, weights=soft) + 2
    assert tungsten(60.0, 1.0)[1].argmax() < 40, "no K lines below their edge"


def test_bins_share_the_photons_and_their_energies_ascend() -> None:
    bins = bin_spectra(DEFAULT_THRESHOLDS_KEV, 118.0, 2.0)
    assert sum(b.weights.sum() for b in bins) == pytest.approx(1.0)
    effective = [b.effective_kev(15.0) for b in bins]
    edges = [*DEFAULT_THRESHOLDS_KEV, 118.0]
    assert all(low < kev < high for low, kev, high in zip(edges, effective, edges[1:], strict=False))
    thin, thick = (bins[0].effective_per_mm(BONE, path) for path in (0.1, 10.0))
    assert thick < thin, "a beam hardens on its way"


@pytest.mark.parametrize("thresholds", [(), (5.0,), (30.0, 20.0), (30.0, 119.0)])
def test_thresholds_out_of_order_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected thresholds that ascend"):
        bin_spectra(thresholds, 118.0, 2.0)


def test_there_are_phantoms_enough() -> None:
    assert {"calibration", "mouse-thigh", "mouse-thorax", "plaque", "kidney-stone"} <= set(PHANTOMS)
    with pytest.raises(ValueError, match="no phantom 'unicorn'; there are calibration"):
        spectral_phantom("unicorn")


@pytest.mark.parametrize("name", PHANTOMS)
def test_parts_lie_wholly_inside_the_part_they_name(name: str) -> None:
    """Then no voxel has a negative share of a material, and no two parts claim the same place."""
    fractions = spectral_phantom(name).fractions(GRID, supersampling=2)
    assert fractions.min() >= -1e-6
    assert fractions.max() <= 1 + 1e-6
    assert fractions.sum(axis=0).max() <= 1 + 1e-6


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_look_different_from_every_side(name: str) -> None:
    labels = spectral_phantom(name).labels(GRID)
    for axes in [(0,), (1,), (2,), (1, 2), (0, 1), (0, 2), (0, 1, 2)]:
        assert np.mean(labels != np.flip(labels, axes)) > 5e-4, axes


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_fit_into_the_field_of_view(name: str) -> None:
    radius = 18.0
    for part in spectral_phantom(name).parts:
        assert np.hypot(*part.centre_mm_xyz[:2]) + max(part.semi_axes_mm[:2]) < radius


def test_phantoms_differ_from_each_other() -> None:
    per_mm = {m.name: float(m.per_mm([50.0])[0]) for p in PHANTOMS.values() for m in p.materials}
    images = {name: phantom.attenuation(GRID, per_mm) for name, phantom in PHANTOMS.items()}
    for a, b in combinations(images, 2):
        difference = np.sqrt(np.mean((images[a] - images[b]) ** 2))
        assert difference > 0.15 * np.sqrt(np.mean(images[a] ** 2)), (a, b)


@cache
def thigh(seed: int = 1) -> Scan:
    scanner = Scanner(dead_pixels=9)
    return read_p1(
        simulate_scan(
            "mouse-thigh", views=90, rows=48, columns=64, photons_per_pixel=40_000, seed=seed, scanner=scanner
        )
    )


def test_a_scan_is_one_instance_a_counter_and_role() -> None:
    scan = thigh()
    assert len(scan.sources) == 8
    assert scan.counter_kind is CounterKind.CUMULATIVE
    assert [b.low_kev for b in scan.bins] == list(DEFAULT_THRESHOLDS_KEV)
    assert scan.bins[-1].high_kev == 118.0
    assert len(scan.notes) == 1, scan.notes
    water = [b.water_per_cm for b in scan.bins]
    assert water == sorted(water, reverse=True)


@pytest.mark.parametrize("bin_number", [1, 2, 3, 4])
def test_reconstructed_materials_have_their_attenuation(bin_number: int) -> None:
    scan = thigh()
    grid = scan.grid()
    volume = fdk(scan.line_integrals(bin_number), scan.geometry, grid)
    labels = spectral_phantom("mouse-thigh").labels(grid)
    materials = spectral_phantom("mouse-thigh").materials
    spectrum = bin_spectra(DEFAULT_THRESHOLDS_KEV, 118.0, 2.0)[bin_number - 1]
    for material in (SOFT_TISSUE, LIPID):
        region = binary_erosion(labels == materials.index(material) + 1)
        assert volume[region].mean() == pytest.approx(spectrum.effective_per_mm(material, 15.0), rel=0.06)
    region = labels == 0
    region[:, :8] = region[:, -8:] = False
    assert abs(volume[region & (np.hypot(*np.meshgrid(grid.y_mm, grid.x_mm, indexing="ij")) < 15)].mean()) < 1e-3


def test_the_same_seed_counts_the_same_photons() -> None:
    def pixels(seed: int) -> list[bytes]:
        return [ds.PixelData for ds in simulate_scan("plaque", views=4, rows=8, columns=12, seed=seed)]

    assert pixels(3) == pixels(3)
    assert pixels(3) != pixels(4)


def test_noise_is_that_of_photons() -> None:
    """Beside the object, views differ from each other by the root of their counts."""
    scanner = Scanner(dead_pixels=0, gain_spread=0, threshold_spread=0, flat_frames=2)
    dataset = simulate_scan("plaque", views=60, rows=4, columns=40, photons_per_pixel=2500, scanner=scanner)[0]
    edge = dataset.pixel_array[:, :, :2].astype(float)
    assert edge.mean() == pytest.approx(2500, rel=0.02)
    assert edge.var() == pytest.approx(2500, rel=0.2)


def test_dead_pixels_are_dead_and_found() -> None:
    scanner = Scanner(dead_pixels=9)
    datasets = simulate_scan("plaque", views=6, rows=24, columns=32, seed=2, scanner=scanner)
    flats = datasets[1].pixel_array
    blind = (flats == 0).all(axis=0)
    stuck = (np.ptp(flats, axis=0) == 0) & ~blind
    assert (blind.sum(), stuck.sum()) == (3, 3)
    integrals = read_p1(datasets).line_integrals(2)
    assert np.isfinite(integrals).all()
    assert np.abs(integrals[:, blind]).max() < 5


def test_counters_end_where_their_bits_end() -> None:
    scanner = Scanner(counter_bits=12)
    dataset = simulate_scan("plaque", views=3, rows=6, columns=16, photons_per_pixel=20_000, scanner=scanner)[0]
    assert dataset.BitsStored == 12
    assert dataset.pixel_array.max() == 4095


def test_who_was_scanned_can_be_told() -> None:
    who = Identification(
        patient_name="Mouse^Seven", patient_id="7", study_instance_uid="1.2.3", series_instance_uid="1.2.3.4",
        accession_number="ACC", started=datetime(2024, 12, 31, 23, 59),
    )  # fmt: skip
    for ds in simulate_scan("mouse-head", views=2, rows=4, columns=6, identification=who):
        assert (str(ds.PatientName), ds.PatientID, ds.AccessionNumber) == ("Mouse^Seven", "7", "ACC")
        assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == ("1.2.3", "1.2.3.4")
        assert (ds.StudyDate, ds.AcquisitionDateTime) == ("20241231", "20250101000100")
    anonymous = simulate_scan("mouse-head", views=2, rows=4, columns=6)[0]
    assert str(anonymous.PatientName) == "Phantom^MouseHead"
    assert anonymous.PatientID == "SIM-MOUSE-HEAD"


def test_progress_goes_to_one_and_may_stop_the_scan() -> None:
    fractions: list[float] = []
    simulate_scan("plaque", views=17, rows=3, columns=4, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    def stop(_: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        simulate_scan("plaque", views=17, rows=3, columns=4, progress=stop)


@pytest.mark.parametrize("changes", [{"views": 0}, {"rows": 0}, {"photons_per_pixel": 0.0}])
def test_impossible_scans_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        simulate_scan("plaque", **{"views": 2, "rows": 2, "columns": 2} | changes)


@pytest.mark.parametrize("name", PHANTOMS)
def test_dciodvfy_finds_no_error(name: str, tmp_path: Path, validator_errors: Validator) -> None:
    path = tmp_path / "counter.dcm"
    simulate_scan(name, views=3, rows=6, columns=8)[0].save_as(path, enforce_file_format=True)
    assert validator_errors(path) == []


def test_air_is_next_to_nothing() -> None:
    assert AIR.per_mm([30.0])[0] < 1e-4
