"""What the CT images of an energy bin say of the multi-energy acquisition (PS3.3 C.8.2.1, C.8.2.2, C.8.15.3).

One source, and for each energy bin of the photon-counting detector an item of the detector and a path. All images of a
scan list all paths, for there have to be two at least; the description says which of them an image shows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydicom.dataset import Dataset

from reconstruct.dicom_items import decimal, item_of
from reconstruct.projections.scan import EnergyBin

IMAGE_TYPE = "ENERGY_BIN"
"""Value 4 of Image Type. None of the Defined Terms (PS3.3 C.8.2.1.1.1) is the image of an energy window: all of them
name what is computed of several. Implementers may add terms (PS3.5 6.2)."""

_DISTANCES = {
    "DistanceSourceToDetector": "DistanceSourceToDetector",
    "DistanceSourceToPatient": "DistanceSourceToDataCollectionCenter",
}


def add_multi_energy(dataset: Dataset, bins: Sequence[EnergyBin], shown: EnergyBin, header: Dataset) -> None:
    """Add the Multi-energy CT Image Module to what the images of an energy bin have in common.

    Left as it is where the scan has one bin, or does not tell what the module requires: the energies of each bin and
    when it was taken.

    Parameters
    ----------
    dataset
        Has the CT Image Module: KVP, which moves into the new sequence, dates and distances.
    bins
        All energy bins of the scan.
    shown
        The one of the images.
    header
        Of the scan: what it tells of detector and exposure.
    """
    begun = f"{dataset.AcquisitionDate}{dataset.AcquisitionTime}" if dataset.AcquisitionDate else ""
    kvp = None if dataset.KVP is None else float(dataset.KVP)
    edges = [told for each in bins if (told := _edges(each, kvp)) is not None]
    if len(bins) < 2 or not begun or len(edges) < len(bins):
        return
    paths = list(range(1, len(bins) + 1))
    dataset.MultienergyCTAcquisition = "YES"
    dataset.MultienergyCTAcquisitionSequence = [
        item_of(
            MultienergyAcquisitionDescription=f"{describe(len(bins))}; these images show path {shown.index}",
            MultienergyCTXRaySourceSequence=[_source(begun)],
            MultienergyCTXRayDetectorSequence=[
                _detector(each, between, header) for each, between in zip(bins, edges, strict=True)
            ],
            MultienergyCTPathSequence=[
                item_of(MultienergyCTPathIndex=path, ReferencedXRayDetectorIndex=path, ReferencedXRaySourceIndex=1)
                for path in paths
            ],
            CTExposureSequence=[_exposure(header)],
            CTXRayDetailsSequence=[_x_ray_details(kvp, header, paths)],
            CTAcquisitionDetailsSequence=[item_of(ReferencedPathIndex=paths)],
            CTGeometrySequence=[_geometry(dataset, paths)],
        )
    ]
    dataset.ImageType = [*dataset.ImageType, IMAGE_TYPE]
    dataset.KVP = None


def describe(bins: int) -> str:
    """Return the acquisition in words."""
    return f"One spectrum, photons counted in {bins} energy bins"


def tube_voltage(header: Dataset) -> float | None:
    """Return the KVP of a CT image, kV, at the top or where multi-energy images tell it; None where they do not."""
    items = [header]
    for acquisition in header.get("MultienergyCTAcquisitionSequence") or []:
        items += acquisition.get("CTXRayDetailsSequence") or []
    return next((float(item.KVP) for item in items if item.get("KVP") is not None), None)


def tube_current_ma(header: Dataset) -> float | None:
    """Return the tube current, mA, None where nothing tells it.

    A micro-focus source has so little that only the element in µA (0018,8151) can say it; (0018,1151) is of whole mA.
    """
    for keyword, per_ma in (("XRayTubeCurrentInmA", 1), ("XRayTubeCurrentInuA", 1000), ("XRayTubeCurrent", 1)):
        if header.get(keyword) is not None:
            return float(header[keyword].value) / per_ma
    return None


def _edges(each: EnergyBin, kvp: float | None) -> tuple[float, float] | None:
    """Return lowest and highest energy, keV; what has no upper threshold ends at the tube voltage."""
    highest = kvp if each.high_kev is None else each.high_kev
    return None if each.low_kev is None or highest is None else (each.low_kev, highest)


def _source(begun: str) -> Dataset:
    """Return the X-ray source. When it was last used is not told: it begins and ends with the acquisition."""
    return item_of(
        XRaySourceIndex=1,
        XRaySourceID="1",
        MultienergySourceTechnique="CONSTANT_SOURCE",
        SourceStartDateTime=begun,
        SourceEndDateTime=begun,
    )


def _detector(each: EnergyBin, edges: tuple[float, float], header: Dataset) -> Dataset:
    """Return the detector as the counter of one energy bin."""
    item = item_of(
        XRayDetectorIndex=each.index,
        XRayDetectorID=str(header.get("DeviceSerialNumber") or header.get("ManufacturerModelName") or "1"),
        MultienergyDetectorType="PHOTON_COUNTING",
        XRayDetectorLabel=f"Energy bin {each.index}, {each.label}",
        NominalMaxEnergy=decimal(edges[1]),
        NominalMinEnergy=decimal(edges[0]),
    )
    if each.effective_kev is not None:
        item.EffectiveBinEnergy = decimal(each.effective_kev)
    return item


def _exposure(header: Dataset) -> Dataset:
    """Return the exposure as far as the scan tells it: all of it is required of original images only (C.8.15.3.8)."""
    item = item_of(ReferencedXRaySourceIndex=1)
    time, current = header.get("ExposureTimeInms"), tube_current_ma(header)
    if time is not None:
        item.ExposureTimeInms = float(time)
    if current is not None:
        item.XRayTubeCurrentInmA = current
    if time is not None and current is not None:
        item.ExposureInmAs = float(time) * current / 1000
    return item


def _x_ray_details(kvp: float | None, header: Dataset, paths: list[int]) -> Dataset:
    item = item_of(ReferencedPathIndex=paths)
    if kvp is not None:
        item.KVP = decimal(kvp)
    for keyword in ("FocalSpots", "FilterType", "FilterMaterial"):
        if header.get(keyword):
            item[keyword] = copy.deepcopy(header[keyword])
    return item


def _geometry(dataset: Dataset, paths: list[int]) -> Dataset:
    item = item_of(ReferencedPathIndex=paths)
    for keyword, into in _DISTANCES.items():
        if dataset.get(keyword) is not None:
            setattr(item, into, float(dataset[keyword].value))
    return item
