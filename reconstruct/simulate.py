"""A simulated MARS scanner: spectral cone-beam scans of known objects, as the DICOM instances that a scanner sends.

Exact line integrals of each material, a polychromatic sum per energy bin, pixels that differ in gain, Poisson noise,
cumulative counters, dead pixels, flat fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import new_uid
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.materials import WATER
from reconstruct.phantoms import line_integrals
from reconstruct.projections.acquisition import Acquisition, CounterImages, Exposure
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.scan import CounterKind, EnergyBin, ReconstructionRequest
from reconstruct.projections.tiled_writer import TileImages, write_tiles
from reconstruct.simulated_positions import Positions
from reconstruct.simulated_scanner import Detector, Scanner
from reconstruct.spectral_phantoms import SpectralPhantom, spectral_phantom
from reconstruct.spectrum import BinSpectrum, bin_spectra

DEFAULT_THRESHOLDS_KEV = (18.0, 30.0, 45.0, 60.0)
REFERENCE_PATH_MM = 15.0
"""Water path at which the attenuation of water in a bin is told: about what a ray through a mouse crosses."""

_VIEWS_AT_ONCE = 8


@dataclass(frozen=True)
class Identification:
    """Who was scanned, when; what is empty is made from the phantom's name, UIDs are new.

    `started` is local time; the defaults are obviously simulated.
    """

    patient_name: str = ""
    patient_id: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    study_description: str = ""
    study_id: str = "1"
    accession_number: str = ""
    series_number: int = 1
    started: datetime = datetime(2025, 6, 2, 9, 30)


def simulate_scan(
    phantom: str,
    *,
    views: int = 180,
    rows: int = 96,
    columns: int = 128,
    thresholds_kev: Sequence[float] = DEFAULT_THRESHOLDS_KEV,
    photons_per_pixel: float = 20_000.0,
    seed: int = 0,
    identification: Identification | None = None,
    scanner: Scanner | None = None,
    request: ReconstructionRequest | None = None,
    positions: Positions | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Dataset]:
    """Return the instances of a scan, ready to be sent: one a counter with its views, one a counter with its flats.

    A camera that is smaller than the detector of this size makes so many at each of its places.

    Parameters
    ----------
    phantom
        Name of one of `spectral_phantoms.PHANTOMS`.
    views, rows, columns
        Size of the scan, of each circle where there are several; pixels are as wide as the detector allows.
    thresholds_kev
        Of the cumulative counters, ascending.
    photons_per_pixel
        Counts of the lowest counter without an object.
    seed
        Of noise, gains and dead pixels: the same seed gives the same counts.
    identification
        Patient and study.
    scanner
        The scanner.
    request
        The reconstruction that the operator asks for; None: what fits the field of view.
    positions
        Where the camera is taken to; None: it stays, and sees all.
    progress
        Called with the fraction done; may raise to stop the work.

    Raises
    ------
    ValueError
        An unknown phantom, or parameters out of range.
    """
    scanner = scanner or Scanner()
    spectral = spectral_phantom(phantom)
    if photons_per_pixel <= 0 or min(views, rows, columns) < 1:
        raise ValueError(
            f"expected views, rows, columns and photons above 0, got {views}, {rows}, {columns}, {photons_per_pixel:g}"
        )
    spectra = bin_spectra(thresholds_kev, scanner.kvp, scanner.filtration_mm_al)
    positions = positions or Positions()
    virtual = positions.along_axis(scanner.geometry(views, rows, columns))
    camera = (len(spectra), *positions.camera_shape(rows, columns))
    detector = Detector(scanner, camera, photons_per_pixel, np.random.default_rng(seed))
    open_beam = np.array([spectrum.weights.sum() for spectrum in spectra])[:, None, None]
    bins, places, tiles = energy_bins(thresholds_kev, spectra, scanner), list(positions.places(virtual)), []
    for number, place in enumerate(places):
        tell = None if progress is None else _part_of(progress, number, len(places))
        counts = _scan(spectral, spectra, _true(place.geometry, scanner), detector, tell, scanner.source_drift)
        flats = np.stack([detector.measure(open_beam) for _ in range(scanner.flat_frames)], axis=1)
        darks = [detector.measure(np.zeros_like(open_beam)) for _ in range(scanner.dark_frames)]
        counters = [
            CounterImages(each, counts[index], flats[index], np.stack(darks, axis=1)[index] if darks else None)
            for index, each in enumerate(bins)
        ]
        tiles.append(TileImages(counters, place.geometry, place.origin_px, place.camera_mm))
    acquisition = Acquisition(
        counter_kind=CounterKind.CUMULATIVE,
        counting_mode="SPM",
        exposure=Exposure(scanner.kvp, scanner.tube_current_ma, scanner.view_ms, scanner.view_ms),
        bits_stored=scanner.counter_bits,
        request=request or ReconstructionRequest(),
    )
    header = _header(spectral, identification or Identification())
    if positions.is_tiled:
        return write_tiles(tiles, header, acquisition)
    return write_p1(tiles[0].counters, virtual, header, acquisition)


def _part_of(progress: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    return lambda fraction: progress((number + fraction) / count)


def energy_bins(
    thresholds_kev: Sequence[float], spectra: Sequence[BinSpectrum], scanner: Scanner
) -> tuple[EnergyBin, ...]:
    """Return the energy bins of a simulated scan; the last one ends at the tube voltage."""
    edges = [*thresholds_kev, scanner.kvp]
    return tuple(
        EnergyBin(
            index=number + 1,
            low_kev=edges[number],
            high_kev=edges[number + 1],
            effective_kev=round(spectrum.effective_kev(REFERENCE_PATH_MM), 2),
            water_per_cm=10 * spectrum.effective_per_mm(WATER, REFERENCE_PATH_MM),
        )
        for number, spectrum in enumerate(spectra)
    )


def _scan(
    phantom: SpectralPhantom,
    spectra: Sequence[BinSpectrum],
    geometry: ConeBeamGeometry,
    detector: Detector,
    progress: Callable[[float], None] | None,
    source_drift: float,
) -> NDArray[np.uint16]:
    """Return the counts of all views, (counter, view, row, column)."""
    counts = np.empty((len(spectra), geometry.views, geometry.rows, geometry.columns), dtype=np.uint16)
    per_mm = [np.stack([spectrum.per_mm(m) for m in phantom.materials], axis=1) for spectrum in spectra]
    presences = [phantom.presence(material) for material in phantom.materials]
    for start in range(0, geometry.views, _VIEWS_AT_ONCE):
        block = geometry.select(slice(start, start + _VIEWS_AT_ONCE))
        paths_mm = np.stack([line_integrals(presence, block) for presence in presences], axis=1)
        for view, paths in enumerate(paths_mm, start=start):
            flat_paths = paths.reshape(len(presences), -1)
            transmitted = [
                spectrum.weights @ np.exp(-(coefficients.astype(np.float32) @ flat_paths))
                for spectrum, coefficients in zip(spectra, per_mm, strict=True)
            ]
            shape = (len(spectra), geometry.rows, geometry.columns)
            output = 1 - source_drift * view / max(1, geometry.views - 1)
            counts[:, view] = detector.measure_view(np.reshape(transmitted, shape), output)
        if progress is not None:
            progress(min(1.0, (start + _VIEWS_AT_ONCE) / geometry.views))
    return counts


def _true(geometry: ConeBeamGeometry, scanner: Scanner) -> ConeBeamGeometry:
    """Return where the detector really is."""
    if scanner.axis_offset_px == 0:
        return geometry
    # Moved back, so that columns further on see the axis.
    moved = geometry.detector_centres - scanner.axis_offset_px * geometry.column_steps
    return replace(geometry, detector_centres=moved)


def _header(phantom: SpectralPhantom, who: Identification) -> Dataset:
    """Return the patient, study and equipment attributes of a simulated scan."""
    words = phantom.name.replace("-", " ")
    begun = who.started + timedelta(minutes=2)
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = who.patient_name or f"Phantom^{words.title().replace(' ', '')}"
    header.PatientID = who.patient_id or f"SIM-{phantom.name.upper()}"
    header.PatientBirthDate = None
    header.PatientSex = "O"
    header.QualityControlSubject = "YES"
    header.PatientComments = "Simulated: no such patient exists"
    header.StudyInstanceUID = who.study_instance_uid or new_uid()
    header.StudyDate, header.StudyTime = f"{who.started:%Y%m%d}", f"{who.started:%H%M%S}"
    header.StudyID, header.AccessionNumber = who.study_id, who.accession_number or None
    header.StudyDescription = who.study_description or f"Simulated spectral micro-CT, {words}"
    header.ReferringPhysicianName = None
    header.SeriesInstanceUID = who.series_instance_uid or new_uid()
    header.SeriesNumber = who.series_number
    header.SeriesDescription = f"Projections, {words}"
    header.AcquisitionDateTime = f"{begun:%Y%m%d%H%M%S}"
    header.Manufacturer = "Tharsis simulator"
    header.ManufacturerModelName = "MARS-like spectral micro-CT"
    header.DeviceSerialNumber = "SIM-1"
    header.ProtocolName = header.AcquisitionProtocolName = "Spectral cone-beam, full circle"
    if phantom.body_part:
        header.BodyPartExamined = phantom.body_part
    return header
