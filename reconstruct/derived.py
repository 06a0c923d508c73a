"""A reconstructed volume as a CT Image Storage series, one instance a slice (PS3.3 A.3).

Everything in it follows from the scan, the recipe and the voxels: doing the same work again gives the same objects,
byte for byte, so dates are those of the scan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from config.identity import derived_uid
from reconstruct.dicom_items import code, decimal, item_of
from reconstruct.geometry import VolumeGrid
from reconstruct.multi_energy import add_multi_energy
from reconstruct.part10 import copy_of_encoded, encoded, with_file_meta
from reconstruct.patient_position import patient_position
from reconstruct.projections import elements
from reconstruct.projections.functional_groups import first_attributes
from reconstruct.projections.scan import EnergyBin, Scan
from reconstruct.provenance import add_equipment, add_sources, canonical, copy_patient_and_study, in_words
from reconstruct.redundancy import Coverage, redundancy
from reconstruct.stations import coverages, stations_of
from reconstruct.stored_values import StoredValues, attenuation, hounsfield
from reconstruct.working_memory import release

_VOXEL_BYTES, _SLICE_BYTES = 16, 2 << 20
"""For each voxel of a slice: as mapped, its 16 bits as pixels, as bytes and in a file; and what all else takes."""

_PAIRED = frozenset(
    [
        *("ANKLE", "ARM", "BREAST", "CLAVICLE", "EAR", "ELBOW", "EYE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND"),
        *("HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LUNG", "SHOULDER", "THIGH", "TIBIA", "TOE", "WRIST"),
    ]
)
"""Body parts for which Laterality (0020,0060) is required, if only empty (PS3.3 C.7.3.1, PS3.16 annex L)."""


def ct_series(
    volume: NDArray[np.float32],
    grid: VolumeGrid,
    *,
    scan: Scan,
    energy_bin: EnergyBin,
    recipe: Mapping[str, Any],
    progress: Callable[[float], None] | None = None,
) -> Iterator[Dataset]:
    """Yield the CT images of a volume, from feet to head, each with file meta information (Explicit VR Little Endian).

    Hounsfield units when the attenuation of water in the bin is known; otherwise attenuation with Rescale Type US. Both
    carry a Real World Value Mapping to 1/cm.

    Parameters
    ----------
    volume
        Attenuation, 1/mm, (z, y, x) float32; may be a memory map.
    grid
        Where its voxels are, patient LPS.
    scan
        What it was reconstructed from.
    energy_bin
        Which energy bin of the scan.
    recipe
        Every parameter. Study, scan, recipe and bin make the UIDs: another recipe makes another series, and the same
        one replaces what it made before.
    progress
        Called with the fraction done; may raise to stop the work.

    Raises
    ------
    ValueError
        A volume that does not fit the grid, voxels that are not finite, or water that does not attenuate.
    """
    if volume.shape != grid.shape_zyx:
        raise ValueError(f"expected a volume of shape {grid.shape_zyx}, got {volume.shape}")
    water = energy_bin.water_per_cm
    if Coverage.LIMITED in coverages(scan.geometry):
        values = attenuation(volume, has_scale=False)
    else:
        values = attenuation(volume) if water is None else hounsfield(volume, water)
    series = encoded(_series(scan, energy_bin, recipe, grid, values))
    slices = grid.shape_zyx[0]
    for index in range(slices):
        pixels = values.pixels(volume[index])
        release(volume[index])
        yield _slice(series, index, grid, pixels)
        if progress is not None:
            progress((index + 1) / slices)


def slice_bytes(grid: VolumeGrid) -> int:
    """Return what one slice takes while it becomes an instance and is written."""
    _, rows, columns = grid.shape_zyx
    return _VOXEL_BYTES * rows * columns + _SLICE_BYTES


def series_uid(scan: Scan, energy_bin: EnergyBin, recipe: Mapping[str, Any]) -> str:
    """Return the Series Instance UID of what a recipe makes of an energy bin of a scan."""
    return derived_uid(_study_uid(scan), scan.uid, canonical(recipe), f"bin {energy_bin.index}")


def frame_of_reference_uid(scan: Scan) -> str:
    """Return the Frame of Reference UID that everything reconstructed from a scan shares."""
    return derived_uid(_study_uid(scan), scan.uid, "frame of reference")


def _study_uid(scan: Scan) -> str:
    """Return the study's UID: part of every other one, for a Scan Set UID may come again with another patient."""
    return str(scan.header.get("StudyInstanceUID", ""))


def _series(
    scan: Scan, energy_bin: EnergyBin, recipe: Mapping[str, Any], grid: VolumeGrid, values: StoredValues
) -> Dataset:
    """Return what all slices have in common."""
    header = scan.header
    dataset = Dataset()
    copy_patient_and_study(header, dataset)
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = series_uid(scan, energy_bin, recipe)
    dataset.SeriesNumber = _series_number(header, energy_bin)
    method = "FDK" if values.has_scale else "Tomosynthesis"
    dataset.SeriesDescription = f"{method} {energy_bin.label}".strip()
    dataset.PatientPosition = patient_position(header)
    dataset.FrameOfReferenceUID = frame_of_reference_uid(scan)
    dataset.PositionReferenceIndicator = None
    _add_acquisition(dataset, header)
    add_equipment(dataset, header)
    add_sources(dataset, scan.sources, _description(scan, energy_bin, recipe, grid))
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    kernel = scan.request.filter or recipe.get("filter")
    if kernel:
        dataset.ConvolutionKernel = str(kernel).upper()[:16]
    _add_grid(dataset, scan, grid)
    _add_values(dataset, values)
    _add_energies(dataset, energy_bin)
    add_multi_energy(dataset, scan.bins, energy_bin, header)
    return dataset


def _series_number(header: Dataset, energy_bin: EnergyBin) -> int:
    """Number the series next to that of the scan; where that would be no IS (PS3.5 table 6.2-1), by the bin alone."""
    number = 100 * int(header.get("SeriesNumber") or 1) + energy_bin.index
    return number if abs(number) < 1 << 31 else energy_bin.index


def _add_energies(dataset: Dataset, energy_bin: EnergyBin) -> None:
    """Say which energies the image shows, in the private elements of projections.

    The standard attributes say it only of scans with several bins, and have no number for which of them an image shows.
    """
    elements.put(
        dataset,
        EnergyBinIndex=energy_bin.index,
        EnergyThresholdLow=energy_bin.low_kev,
        EnergyThresholdHigh=energy_bin.high_kev,
        EffectiveEnergy=energy_bin.effective_kev,
        WaterAttenuation=energy_bin.water_per_cm,
    )
    elements.declare(dataset)


def _add_acquisition(dataset: Dataset, header: Dataset) -> None:
    """Add the dates and the exposure of the scan; Content Date is that of the scan as well (see the module)."""
    attributes = first_attributes(header)
    started = str(attributes.get("AcquisitionDateTime") or "")
    date = str(attributes.get("AcquisitionDate") or started[:8] or header.get("SeriesDate") or "")
    time = str(attributes.get("AcquisitionTime") or started[8:] or header.get("SeriesTime") or "")
    for what in ("Series", "Acquisition", "Content"):
        setattr(dataset, f"{what}Date", date)
        setattr(dataset, f"{what}Time", time)
    dataset.AcquisitionNumber = attributes.get("AcquisitionNumber")
    kvp = attributes.get("KVP")
    dataset.KVP = None if kvp is None else decimal(float(kvp))
    for keyword in ("ProtocolName", "BodyPartExamined", "Laterality", "OperatorsName", "PerformingPhysicianName"):
        if header.get(keyword):
            dataset[keyword] = copy.deepcopy(header[keyword])
    if "Laterality" not in dataset and str(header.get("BodyPartExamined") or "") in {"", *_PAIRED}:
        dataset.Laterality = None


def _description(scan: Scan, energy_bin: EnergyBin, recipe: Mapping[str, Any], grid: VolumeGrid) -> str:
    asked = {"requested_filter": scan.request.filter, "requested_cutoff": scan.request.cutoff}
    told = {
        **recipe,
        **{name: value for name, value in asked.items() if value is not None},
        "views": scan.geometry.views,
        **_coverage(scan),
        **_put_together(scan),
        "geometry_from": scan.geometry_from,
        "pixels": str(scan.pixel_meaning),
        "counters": str(scan.counter_kind),
        "matrix_zyx": "x".join(str(count) for count in grid.shape_zyx),
        "voxel_mm_zyx": "x".join(f"{edge:g}" for edge in grid.voxel_mm_zyx),
        "water_per_cm": energy_bin.water_per_cm if energy_bin.water_per_cm is not None else "unknown",
    }
    if energy_bin.effective_kev is not None:
        told["effective_kev"] = energy_bin.effective_kev
    window = f" ({energy_bin.label})" if energy_bin.label else ""
    method = "Cone-beam reconstruction (Feldkamp, Davis, Kress)"
    return f"{method} of energy bin {energy_bin.index}{window}: {in_words(told)}"


def _coverage(scan: Scan) -> dict[str, str]:
    """Say what the views cover, unless it is a full circle."""
    measured = [redundancy(station.geometry, limited_arc=True) for station in stations_of(scan.geometry)]
    worst = min(measured, key=lambda one: one.arc.length_rad)
    if all(one.coverage is Coverage.FULL for one in measured):
        return {}
    told = {"coverage": str(worst.coverage), "arc_degrees": f"{np.rad2deg(worst.arc.length_rad):.1f}"}
    return told | ({"values": "without a scale"} if worst.coverage is Coverage.LIMITED else {})


def _put_together(scan: Scan) -> dict[str, str]:
    """Say of which tiles the detector is stitched, and at which axial positions circles are merged."""
    told = {}
    if scan.tiles is not None:
        detector = scan.tiles.detector
        rows, columns = detector.tile_shape
        told["tiles"] = f"{len(detector.origins_px)} of {rows}x{columns} stitched to {detector.rows}x{detector.columns}"
        if gap := int(np.count_nonzero(detector.gap)):
            told["gap_pixels_interpolated"] = str(gap)
    stations = stations_of(scan.geometry)
    if len(stations) > 1:
        told["axial_positions_mm_merged"] = " ".join(f"{station.height_mm:.2f}" for station in stations)
    return told


def _add_grid(dataset: Dataset, scan: Scan, grid: VolumeGrid) -> None:
    slices, rows, columns = grid.shape_zyx
    thickness, row_spacing, column_spacing = grid.voxel_mm_zyx
    dataset.SliceThickness = dataset.SpacingBetweenSlices = decimal(thickness)
    dataset.PixelSpacing = [decimal(row_spacing), decimal(column_spacing)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.ImagesInAcquisition = slices
    dataset.ReconstructionDiameter = decimal(max(rows * row_spacing, columns * column_spacing))
    if scan.knows_detector_distance:
        dataset.DistanceSourceToDetector = decimal(float(scan.geometry.source_to_detector_mm.mean()))
    dataset.DistanceSourceToPatient = decimal(float(scan.geometry.source_to_isocenter_mm.mean()))


def _add_values(dataset: Dataset, values: StoredValues) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept = decimal(values.intercept)
    dataset.RescaleSlope = decimal(values.slope)
    dataset.RescaleType = values.rescale_type
    dataset.WindowCenter = decimal(values.window_center)
    dataset.WindowWidth = decimal(values.window_width)
    if values.window_width < 1:
        # LINEAR takes whole grey levels and forbids widths below 1 (PS3.3 C.11.2.1.2).
        dataset.VOILUTFunction = "LINEAR_EXACT"
    if not values.has_scale:
        return
    mapping = item_of(
        LUTExplanation="Linear attenuation coefficient",
        LUTLabel="ATTENUATION",
        MeasurementUnitsCodeSequence=[code("/cm", "UCUM", "/cm")],
        RealWorldValueIntercept=values.per_cm_intercept,
        RealWorldValueSlope=values.per_cm_slope,
    )
    # Stored pixels are signed, so these two are SS; inside an item that cannot be told from the data set alone.
    mapping.add_new("RealWorldValueFirstValueMapped", "SS", -32768)
    mapping.add_new("RealWorldValueLastValueMapped", "SS", 32767)
    dataset.RealWorldValueMappingSequence = [mapping]


def _slice(series: Dataset, index: int, grid: VolumeGrid, pixels: NDArray[np.int16]) -> Dataset:
    dataset = copy_of_encoded(series)
    dataset.SOPInstanceUID = derived_uid(str(series.SeriesInstanceUID), f"slice {index}")
    dataset.InstanceNumber = index + 1
    x, y, z = grid.origin_mm_xyz
    z += index * grid.voxel_mm_zyx[0]
    dataset.ImagePositionPatient = [decimal(x), decimal(y), decimal(z)]
    dataset.SliceLocation = decimal(z)
    dataset.PixelData = pixels.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    return with_file_meta(dataset)
