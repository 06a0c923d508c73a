"""Material decomposition: the constrained fit is exact, the choice of materials sensible, the noise as it is."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import nnls

from reconstruct.basis import (
    MATERIALS,
    Basis,
    Beam,
    calibrated,
    measured_attenuation,
    tabulated,
    water_path_mm,
)
from reconstruct.decomposition import Method, Supports, decompose, noise_covariance
from reconstruct.materials import WATER
from reconstruct.spectrum import bin_spectra

THRESHOLDS = (25.0, 33.2, 50.3, 80.8)
BEAM = Beam(THRESHOLDS, 118.0, 2.0)
ALL = [MATERIALS[name] for name in ("water", "hydroxyapatite", "iodine", "gadolinium", "gold")]
EXACT = Method(penalty=0.0, model_error=0.0, most_filled=1e9, smoothing_voxels=0.0, choice_voxels=0.0)


def covariance(bins: int, random: np.random.Generator) -> NDArray[np.float64]:
    factor = 0.02 * (np.eye(bins) + 0.3 * random.standard_normal((bins, bins)))
    return factor @ factor.T


def as_volumes(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """(voxel, bin) as (bin, 1, 1, voxel)."""
    return np.ascontiguousarray(values.T[:, None, None, :], dtype=np.float32)


@pytest.mark.parametrize(("bins", "materials"), [(4, 3), (4, 4), (5, 3), (2, 2), (8, 3)])
def test_without_a_limit_the_fit_is_that_of_nnls(bins: int, materials: int) -> None:
    random = np.random.default_rng(bins * 10 + materials)
    per_cm = random.uniform(0.1, 3.0, (bins, materials))
    noise = covariance(bins, random)
    values = as_volumes(random.normal(0.3, 0.6, (300, bins)))
    found = decompose(values, per_cm, Method(**{**vars(EXACT), "together": materials}), noise=noise)
    whitening = np.linalg.inv(np.linalg.cholesky(noise))
    for voxel in range(values.shape[-1]):
        expected, length = nnls(whitening @ per_cm, whitening @ values[:, 0, 0, voxel].astype(np.float64))
        np.testing.assert_allclose(found.fractions[:, 0, 0, voxel], expected, atol=2e-5)
        assert found.residual[0, 0, voxel] == pytest.approx(length / np.sqrt(bins), rel=1e-4, abs=1e-4)


def test_with_a_limit_the_fit_is_that_of_nnls_with_a_slack() -> None:
    """What is left to the limit is one more material, without attenuation; a heavy row makes the sum 1."""
    random = np.random.default_rng(5)
    per_cm = random.uniform(0.1, 3.0, (4, 3))
    noise = covariance(4, random)
    values = as_volumes(random.uniform(0.0, 3.0, (200, 4)))
    limited = Method(**{**vars(EXACT), "together": 3, "most_filled": 1.0})
    found = decompose(values, per_cm, limited, noise=noise)
    whitening, heavy = np.linalg.inv(np.linalg.cholesky(noise)), 1e7
    matrix = np.vstack([np.column_stack([whitening @ per_cm, np.zeros(4)]), heavy * np.ones((1, 4))])
    slacks = []
    for voxel in range(values.shape[-1]):
        measured = whitening @ values[:, 0, 0, voxel].astype(np.float64)
        *expected, slack = nnls(matrix, np.append(measured, heavy))[0]
        np.testing.assert_allclose(found.fractions[:, 0, 0, voxel], expected, atol=2e-4)
        slacks.append(slack)
    assert 0 < np.count_nonzero(np.array(slacks) > 1e-6) < len(slacks), "both cases were tried"


def test_each_material_is_recognised_without_noise() -> None:
    basis = tabulated(ALL, BEAM, 20.0)
    fractions = np.zeros((7, 5))
    for row, (number, mg_per_ml) in enumerate([(1, 200), (2, 5), (3, 5), (4, 5)], start=1):
        fractions[row, number] = mg_per_ml / basis.mg_per_ml[number]
    fractions[:5, 0] = 1 - fractions[:5].sum(axis=1)
    fractions[5, 0] = 0.5  # half a voxel of water; the last row is air
    values = as_volumes(fractions @ basis.per_cm.T)
    found = decompose(
        values, basis.per_cm, Method(smoothing_voxels=0.0, choice_voxels=0.0, model_error=0.001), noise=np.eye(4) * 1e-6
    )
    np.testing.assert_allclose(found.fractions[:, 0, 0].T, fractions, atol=2e-4)


def test_a_penalty_leaves_out_what_noise_suggests() -> None:
    basis = tabulated(ALL, BEAM, 20.0)
    random = np.random.default_rng(3)
    values = basis.per_cm[:, :1, None, None] + random.normal(0, 0.02, (4, 1, 60, 60))
    share = {}
    for penalty in (0.0, 9.0):
        method = Method(penalty=penalty, smoothing_voxels=0.0, choice_voxels=0.0)
        found = decompose(values.astype(np.float32), basis.per_cm, method)
        share[penalty] = float((found.fractions[1:].sum(axis=0) > 0).mean())
    assert share[0.0] > 0.6
    assert share[9.0] < 0.05


def test_only_admissible_sets_are_found() -> None:
    basis = tabulated(ALL, BEAM, 20.0)
    random = np.random.default_rng(4)
    values = random.uniform(0.1, 1.0, (4, 2, 30, 30)).astype(np.float32)
    found = decompose(values, basis.per_cm, Method(), admissible=[(0, 1), (2,)], noise=np.eye(4) * 1e-4)
    present = {tuple(np.flatnonzero(voxel)) for voxel in found.fractions.reshape(5, -1).T}
    assert present <= {(), (0,), (1,), (2,), (0, 1)}


def test_the_sets_are_all_small_ones_with_their_subsets() -> None:
    supports = Supports.of(4, 2)
    sets = [tuple(int(m) for m in row if m >= 0) for row in supports.members]
    assert sets == [part for size in range(3) for part in combinations(range(4), size)]
    whole = sets.index((1, 3))
    assert {sets[n] for n in supports.subsets[whole] if n >= 0} == {(), (1,), (3,), (1, 3)}


def test_noise_is_measured_beside_edges() -> None:
    random = np.random.default_rng(1)
    expected = np.array([[4e-4, 1e-4], [1e-4, 2.5e-4]])
    noise = np.moveaxis(random.multivariate_normal([0, 0], expected, (20, 40, 40)), -1, 0)
    noise[:, 5:15, 10:30, 10:30] += 0.7
    np.testing.assert_allclose(noise_covariance(noise.astype(np.float32)), expected, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"per_cm": np.ones((3, 2))}, r"expected volumes \(bin, z, y, x\)"),
        ({"per_cm": np.array([[1.0, 0.0], [1.0, 1.0]])}, "attenuation above 0 in every bin"),
        ({"per_cm": np.array([[1.0, 2.0], [2.0, 4.0]])}, r"do not tell the materials \[0, 1\] apart"),
        ({"admissible": [(0, 7)]}, "expected sets of materials 0 to 1"),
        ({"noise": -np.eye(2)}, "has no inverse"),
        ({"threads": -1}, "expected a number of threads from 0"),
        (
            {"per_cm": np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]), "method": Method(together=3)},
            "2 energy bins do not tell 3 materials",
        ),
    ],
)
def test_what_cannot_be_decomposed_is_refused(changes: dict[str, Any], sentence: str) -> None:
    told = {
        "volumes": np.ones((2, 3, 4, 5), np.float32), "per_cm": np.array([[1.0, 2.0], [2.0, 1.0]]),
        "method": Method(), "noise": np.eye(2), **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        decompose(told.pop("volumes"), told.pop("per_cm"), told.pop("method"), **told)


def test_the_filtration_follows_from_what_the_scan_tells_of_water() -> None:
    water = [10 * s.effective_per_mm(WATER, 15.0) for s in bin_spectra(THRESHOLDS, 118.0, 3.4)]
    assert Beam.fitted(THRESHOLDS, 118.0, water, 15.0).filtration_mm_al == pytest.approx(3.4, abs=0.05)
    with pytest.raises(ValueError, match="the materials have to be calibrated"):
        Beam.fitted(THRESHOLDS, 118.0, [0.9, 0.3, 0.2, 0.1], 15.0)


def test_a_bin_with_a_k_edge_weighs_it_by_the_spectrum() -> None:
    """The monochromatic energy that water suggests lies above the edge, where iodine attenuates far more."""
    iodine = MATERIALS["iodine"]
    beam = Beam((18.0, 30.0, 45.0, 60.0), 118.0, 2.0)
    second = beam.spectra()[1]
    weighted = tabulated([iodine], beam, 0.0).per_cm[1, 0]
    assert weighted < 0.95 * 10 * float(iodine.per_mm(second.effective_kev(15.0)))


def test_measured_attenuation_takes_the_place_of_tabulated() -> None:
    basis = tabulated(ALL[:3], BEAM, 10.0)
    changed = calibrated(basis, [("iodine", [0.01, 0.02, 0.005, 0.002])])
    np.testing.assert_allclose(changed.per_cm[:, 2], 4930 * np.array([0.01, 0.02, 0.005, 0.002]))
    np.testing.assert_array_equal(changed.per_cm[:, :2], basis.per_cm[:, :2])
    with pytest.raises(ValueError, match="gold is calibrated but not used"):
        calibrated(basis, [("gold", [1, 1, 1, 1])])
    with pytest.raises(ValueError, match="expected 4 values above 0 for water"):
        calibrated(basis, [("water", [1])])


def test_inserts_of_known_composition_calibrate() -> None:
    basis = tabulated(ALL[:3], BEAM, 10.0)
    per_mg = basis.per_cm / basis.mg_per_ml
    held = np.array([[1000, 990, 980, 930.0], [0, 0, 0, 200], [0, 9, 18, 0]])
    np.testing.assert_allclose(measured_attenuation(per_mg @ held, held), per_mg, rtol=1e-6)
    with pytest.raises(ValueError, match="2 inserts do not tell 3 materials apart"):
        measured_attenuation(np.ones((4, 2)), held[:, :2])


def test_the_path_through_the_object_is_that_of_a_disc() -> None:
    y, x = np.mgrid[-32:32, -32:32] * 0.5
    disc = (np.hypot(y, x) < 12).astype(np.float32) * np.float32(0.2)
    assert water_path_mm(np.stack([disc, 0 * disc]), 0.2, 0.25) == pytest.approx(8 / (3 * np.pi) * 24, rel=0.01)
    assert water_path_mm(np.zeros((1, 4, 4), np.float32), 0.2, 0.25) == 0.0


def test_a_basis_knows_the_concentration_of_what_is_pure() -> None:
    assert Basis((MATERIALS["gold"],), np.ones((2, 1))).mg_per_ml == pytest.approx([19300])
