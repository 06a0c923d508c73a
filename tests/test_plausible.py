"""Values that cannot be meant: few are clipped, so that the others keep their steps, and many are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from reconstruct.imports.identity import uids_of
from reconstruct.imports.raw_scan import Images, RawScan, Setup
from reconstruct.imports.writing import instances_of
from reconstruct.projections.frames import ScanError
from reconstruct.projections.p1 import read_p1
from reconstruct.projections.scan import PixelMeaning

SHAPE = (6, 20, 30)
TRANSMISSIONS = np.random.default_rng(6).uniform(0.02, 1.05, SHAPE).astype(np.float32)
VALUES = {
    PixelMeaning.TRANSMISSION: TRANSMISSIONS,
    PixelMeaning.LINE_INTEGRAL: -np.log(TRANSMISSIONS),
    PixelMeaning.INTENSITY: 50_000 * TRANSMISSIONS,
}


def raw(views: np.ndarray, meaning: PixelMeaning, **more: Any) -> RawScan:
    setup = Setup(
        source_to_isocentre_mm=200.0, source_to_detector_mm=320.0, pitch_mm=(0.5, 0.5),
        angles_deg=60.0 * np.arange(len(views)), pixels=meaning, unattenuated=5e4,
    )  # fmt: skip
    return RawScan(Images(lambda index: views[index], len(views), str), setup, **more)


def stored(scan: RawScan) -> tuple[np.ndarray, list[str]]:
    """Line integrals of what is stored, and what is told about them."""
    told: list[str] = []
    return read_p1(list(instances_of(scan, Dataset(), tell=told.append))).line_integrals(1), told


@pytest.mark.parametrize("hot", [1e3, -1e5, 1e7])
@pytest.mark.parametrize("meaning", VALUES)
def test_a_hot_pixel_takes_no_steps_from_the_others(meaning: PixelMeaning, hot: float) -> None:
    views = VALUES[meaning].copy()
    views[:, 3, 5] = hot * (5e4 if meaning is PixelMeaning.INTENSITY else 1)
    integrals, told = stored(raw(views, meaning))
    sound = np.ones(SHAPE, dtype=bool)
    sound[:, 3, 5] = False
    np.testing.assert_allclose(integrals[sound], -np.log(TRANSMISSIONS)[sound], atol=1e-3)
    (sentence,) = told
    assert sentence.startswith("6 values of the views cannot be meant")


@pytest.mark.parametrize("meaning", VALUES)
def test_what_is_ordinary_is_kept_in_full(meaning: PixelMeaning) -> None:
    """Noise that goes below 0 and above 1, a pixel ten times as bright, a shadow of metal."""
    views = VALUES[meaning].copy()
    unusual = {
        PixelMeaning.TRANSMISSION: [-0.4, 3.9], PixelMeaning.LINE_INTEGRAL: [-2, 24], PixelMeaning.INTENSITY: [-9, 5e5],
    }[meaning]  # fmt: skip
    views[0, 0, :2] = unusual
    told: list[str] = []
    (instance,) = instances_of(raw(views, meaning), Dataset(), tell=told.append)
    scale = instance.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    values = instance.pixel_array * float(scale.RescaleSlope) + float(scale.RescaleIntercept)
    assert (values.min(), values.max()) == pytest.approx(unusual, abs=1e-3 * unusual[1])
    assert told == []


def test_hot_dark_frames_are_measured_by_the_views() -> None:
    """A dark frame is dim but for its hot pixels, and they are subtracted."""
    darks = np.random.default_rng(7).normal(0, 1, (3, 20, 30)).astype(np.float32)
    darks[:, 4, 4] = 3000
    frames = Images(lambda index: darks[index], 3, str)
    told: list[str] = []
    views = VALUES[PixelMeaning.INTENSITY]
    for kind in (np.float32, np.uint16):
        scan = raw(np.rint(views).astype(kind), PixelMeaning.INTENSITY, darks=frames)
        list(instances_of(scan, Dataset(), tell=told.append))
    assert told == []


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("meaning", [PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL])
def test_values_of_another_meaning_are_refused_before_all_are_read(meaning: PixelMeaning, dtype: Any) -> None:
    views = np.rint(VALUES[PixelMeaning.INTENSITY]).astype(dtype)
    with pytest.raises(ScanError, match=r"100% of the values of the views can be no .* expected -\d to \d+; say"):
        raw(views, meaning).check_values()
    raw(views, PixelMeaning.INTENSITY).check_values()
    raw(VALUES[meaning], meaning).check_values()


def test_the_writer_refuses_them_too() -> None:
    with pytest.raises(ScanError, match="can be no line integrals"):
        stored(raw(VALUES[PixelMeaning.INTENSITY], PixelMeaning.LINE_INTEGRAL))


def test_only_images_that_are_rescaled_have_a_new_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had been written before of whole numbers is the same still."""
    from reconstruct.imports import identity

    whole = raw(np.rint(VALUES[PixelMeaning.INTENSITY]).astype(np.uint16), PixelMeaning.INTENSITY)
    scaled = raw(TRANSMISSIONS, PixelMeaning.TRANSMISSION)
    before = [uids_of(scan, Dataset()).series for scan in (whole, scaled)]
    monkeypatch.setattr(identity, "_RESCALED", identity._RECIPE)
    after = [uids_of(scan, Dataset()).series for scan in (whole, scaled)]
    assert before[0] == after[0]
    assert before[1] != after[1]
