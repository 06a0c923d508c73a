"""Energies that the Multi-energy CT Image Module nests (PS3.3 C.8.2.2) are those of the frame's bin."""

from __future__ import annotations

import copy

import pytest
from pydicom.dataset import Dataset
from scan_encodings import WRITERS

from reconstruct.dicom_items import item_of
from reconstruct.projections.assembly import assemble
from reconstruct.projections.p4 import P4
from reconstruct.projections.scan import Scan

WINDOWS = ((25, 40), (40, 65.5))


@pytest.fixture(scope="module")
def written() -> list[Dataset]:
    return WRITERS["P4"]("HFS")


def detector(index: int) -> Dataset:
    low, high = WINDOWS[index - 1]
    return item_of(XRayDetectorIndex=index, NominalMinEnergy=low, NominalMaxEnergy=high, EffectiveBinEnergy=low + 5)


def two_bins(written: list[Dataset], detectors_of, **told) -> Scan:
    """The same views twice, with what `detectors_of` says of each bin."""
    datasets = []
    for index in (1, 2):
        for number, dataset in enumerate(copy.deepcopy(written)):
            dataset.SOPInstanceUID = f"2.25.3{index}{number}"
            dataset.MultienergyCTAcquisitionSequence = [
                item_of(
                    MultienergyCTXRayDetectorSequence=detectors_of(index),
                    MultienergyCTPathSequence=[
                        item_of(MultienergyCTPathIndex=path, ReferencedXRayDetectorIndex=3 - path) for path in (1, 2)
                    ],
                )
            ]
            dataset.add_new((0x0071, 0x1025), "CS", "DIFFERENTIAL")
            for keyword, value in told.items():
                setattr(dataset, keyword, value(index))
            datasets.append(dataset)
    return assemble(P4, datasets)


def energies(scan: Scan) -> list[tuple[float | None, float | None]]:
    return [(each.low_kev, each.high_kev) for each in scan.bins]


def test_the_one_detector_of_an_image_tells_its_bin(written) -> None:
    scan = two_bins(written, lambda index: [detector(index)])
    assert energies(scan) == list(WINDOWS)
    assert [each.effective_kev for each in scan.bins] == [30.0, 45.0]


def test_of_several_detectors_the_path_of_the_frame_tells_which(written) -> None:
    scan = two_bins(written, lambda _index: [detector(1), detector(2)], ReferencedPathIndex=lambda index: 3 - index)
    assert energies(scan) == list(WINDOWS)


def test_of_several_detectors_the_number_of_the_bin_tells_which(written) -> None:
    datasets = copy.deepcopy(written)
    for dataset in datasets:
        sequence = [item_of(MultienergyCTXRayDetectorSequence=[detector(1), detector(2)])]
        dataset.MultienergyCTAcquisitionSequence = sequence
        dataset.add_new((0x0071, 0x1020), "US", 2)
    assert energies(assemble(P4, datasets)) == [(40, 65.5)]
    for dataset in datasets:
        del dataset[0x0071, 0x1020]
    assert energies(assemble(P4, datasets)) == [(None, None)], "nobody says which"


def test_energies_of_the_frame_go_before_those_of_its_detector(written) -> None:
    scan = two_bins(written, lambda index: [detector(index)], NominalMinEnergy=lambda index: 20 + 10 * index)
    assert energies(scan) == [(30, 40), (40, 65.5)]
