"""What pixels hold: Pixel Intensity Relationship (0028,1040), its sign (0028,1041), and the rescale."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scan_encodings import SITE, WRITERS

from reconstruct.dicom_items import item_of
from reconstruct.projections import elements
from reconstruct.projections.assembly import assemble
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.scan import PixelMeaning, Scan, ScanError

ENCODINGS = encodings_from([SITE])
TOLD_BY_STANDARD = ("P1", "P2", "P2-series", "P4", "P4-multi-frame", "P5", "P6")
SLOPE, INTERCEPT = 1e-4, -0.5


@pytest.fixture(scope="module")
def written() -> dict[str, list[Dataset]]:
    return {name: WRITERS[name]("HFS") for name in TOLD_BY_STANDARD}


def read(datasets: list[Dataset]) -> Scan:
    return assemble(next(e for e in map(ENCODINGS.of, datasets) if e is not None), datasets)


def foreign(datasets: list[Dataset], relationship: str, sign: int | None, *, rescaled: bool = False) -> list[Dataset]:
    """The scan of somebody who knows no Pixel Meaning (0071,xx07)."""
    changed = copy.deepcopy(datasets)
    for dataset in changed:
        dataset.pop((elements.GROUP, 0x1007), None)
        shared = dataset.get("SharedFunctionalGroupsSequence")
        properties = dataset if shared is None else shared[0].FramePixelDataPropertiesSequence[0]
        properties.PixelIntensityRelationship = relationship
        if sign is None:
            properties.pop("PixelIntensityRelationshipSign", None)
        else:
            properties.PixelIntensityRelationshipSign = sign
        if rescaled:
            rescale: dict[str, Any] = {"RescaleIntercept": INTERCEPT, "RescaleSlope": SLOPE}
            if shared is None:
                dataset.update(item_of(**rescale))
            else:
                shared[0].PixelValueTransformationSequence = [item_of(**rescale)]
    return changed


def logarithm(datasets: list[Dataset], sign: int | None, *, rescaled: bool = True) -> list[Dataset]:
    """The same scan with the logarithm of transmission in its pixels; what is left of its flat fields is not needed."""
    changed = foreign(datasets, "LOG", sign, rescaled=rescaled)
    for dataset in changed:
        counts = np.frombuffer(dataset.PixelData, "<u2").astype(np.float64)
        integrals = -np.log(np.maximum(counts, 1) / 60_000.0)
        dataset.PixelData = np.rint((integrals - INTERCEPT) / SLOPE).astype("<u2").tobytes()
    return changed


@pytest.mark.parametrize("sign", [-1, None])
@pytest.mark.parametrize("name", TOLD_BY_STANDARD)
def test_a_logarithm_with_a_rescale_is_line_integrals(written, name: str, sign: int | None) -> None:
    scan, counted = read(logarithm(written[name], sign)), read(written[name])
    assert scan.pixel_meaning is PixelMeaning.LINE_INTEGRAL
    np.testing.assert_allclose(scan.line_integrals(1), counted.line_integrals(1), atol=1e-3)


@pytest.mark.parametrize("name", TOLD_BY_STANDARD)
@pytest.mark.parametrize(
    ("relationship", "sign", "rescaled"),
    [("LOG", -1, False), ("LOG", 1, True), ("LIN", -1, False), ("DISP", 1, False), ("OTHER", 1, True)],
)
def test_what_no_attenuation_can_be_computed_from_is_refused(
    written, name: str, relationship: str, sign: int, rescaled: bool
) -> None:
    datasets = foreign(written[name], relationship, sign, rescaled=rescaled)
    words = rf"\(0028,1040\) is {relationship} and its sign \(0028,1041\) {sign}: expected LIN and 1, or LOG, -1 and"
    with pytest.raises(ScanError, match=words):
        read(datasets)


@pytest.mark.parametrize("name", TOLD_BY_STANDARD)
def test_what_is_proportional_to_the_beam_is_compared_with_it(written, name: str) -> None:
    scan = read(foreign(written[name], "LIN", 1))
    assert scan.pixel_meaning is (PixelMeaning.INTENSITY if name[:2] in ("P2", "P5") else PixelMeaning.COUNTS)
    np.testing.assert_allclose(scan.line_integrals(1), read(written[name]).line_integrals(1), atol=1e-6)


@pytest.mark.parametrize("meaning", ["COUNTS", "LINE_INTEGRAL"])
def test_a_private_pixel_meaning_goes_before_the_standard_one(written, meaning: str) -> None:
    datasets = foreign(written["P4"], "DISP", 1)
    for dataset in datasets:
        dataset.add_new((0x0071, 0x1007), "CS", meaning)
    assert read(datasets).pixel_meaning == meaning
