"""The command that brings in scans which are no DICOM: they become P1 instances and go through the archive's door."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydicom.dataset import Dataset

from commands.archive import open_archive
from commands.console import FAILED, USAGE, ConfigOption, DataOption, fail, out, progress_bar
from commands.scans import write_objects
from config.identity import new_uid
from index import jobs
from index.archive import Archive
from index.errors import ArchiveError, NotFound
from index.keys import Level

if TYPE_CHECKING:
    from reconstruct.imports.raw_scan import RawScan

_FORMATS = {
    ".json": "images beside a JSON file",
    ".log": "Bruker SkyScan",
    ".xtekct": "Nikon",
    ".xml": "RTK geometry",
    ".h5": "Data Exchange HDF5",
    ".hdf5": "Data Exchange HDF5",
    ".hdf": "Data Exchange HDF5",
}
_PATIENT = "Patient and study"
_SCANNER = "What the file does not say, or says wrongly"


def import_scan(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The file that describes the scan: .json, .log, .xtekct, .xml or .h5."),
    ],
    projections: Annotated[
        Path | None,
        typer.Option(help="For .xml: the stack of projections (.mha, .mhd or TIFF).", rich_help_panel=_SCANNER),
    ] = None,
    source_to_isocentre: Annotated[
        float | None,
        typer.Option(metavar="MM", help="From the source to the rotation axis, mm.", rich_help_panel=_SCANNER),
    ] = None,
    source_to_detector: Annotated[
        float | None, typer.Option(metavar="MM", help="From the source to the detector, mm.", rich_help_panel=_SCANNER)
    ] = None,
    pitch: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN", help="Detector pitch, mm; one number for square pixels.", rich_help_panel=_SCANNER
        ),
    ] = None,
    principal_point: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,ROW",
            help="Where the axis is seen, pixels from 0; else the middle.",
            rich_help_panel=_SCANNER,
        ),
    ] = None,
    unattenuated: Annotated[
        float | None,
        typer.Option(
            metavar="I0",
            help="What a pixel holds without an object, where there are no flats.",
            rich_help_panel=_SCANNER,
        ),
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="COUNTS, INTENSITY, TRANSMISSION or LINE_INTEGRAL.", rich_help_panel=_SCANNER)
    ] = None,
    water: Annotated[
        float | None,
        typer.Option(
            metavar="1/CM", help="Attenuation of water in this beam, for Hounsfield units.", rich_help_panel=_SCANNER
        ),
    ] = None,
    patient_id: Annotated[
        str, typer.Option(help="Patient ID; the file's name if empty.", rich_help_panel=_PATIENT)
    ] = "",
    patient_name: Annotated[str, typer.Option(help="Patient's Name, Family^Given.", rich_help_panel=_PATIENT)] = "",
    study_uid: Annotated[
        str,
        typer.Option(
            help="Study Instance UID of a study that the scan belongs to; else a new one.", rich_help_panel=_PATIENT
        ),
    ] = "",
    study_description: Annotated[str, typer.Option(help="Study Description.", rich_help_panel=_PATIENT)] = "",
    accession_number: Annotated[str, typer.Option(help="Accession Number.", rich_help_panel=_PATIENT)] = "",
    body_part: Annotated[
        str, typer.Option(help="Body Part Examined, for example CHEST.", rich_help_panel=_PATIENT)
    ] = "",
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write the DICOM files there, and store nothing.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Bring in a scan that is no DICOM: it is stored as projections (P1) and reconstructed like any other.

    The ending of FILE says the format: .json (TIFF images or raw pixels), .log (Bruker SkyScan), .xtekct (Nikon),
    .xml (RTK geometry), .h5 (Data Exchange). What it does not say is said by options. docs/scans.md has an example of
    each. Views are read and written a few at a time: memory does not grow with the scan.

    Examples
    --------
    tharsis import-scan bone/scan.json --patient-id B-17 --patient-name Bone^Seventeen

    tharsis import-scan stone_.log --unattenuated 60000 --data ./tharsis-data

    tharsis import-scan geometry.xml --projections projections.mha

    tharsis import-scan scan.h5 --source-to-isocentre 150 --source-to-detector 400 --pitch 0.05 --out dicom/
    """
    from reconstruct.projections.frames import ScanError

    if file.suffix.lower() not in _FORMATS:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in _FORMATS.items())
        fail(f"{file.name} is of no format that can be read: {known}", USAGE)
    try:
        scan = _read(file, projections, _pair("--pitch", pitch, square=True))
        scan = _completed(
            scan,
            source_to_isocentre_mm=source_to_isocentre,
            source_to_detector_mm=source_to_detector,
            pitch_mm=_pair("--pitch", pitch, square=True),
            principal_point_px=_pair("--principal-point", principal_point),
            unattenuated=unattenuated,
            pixels=pixels,
            water=water,
        )
        header = _header(
            scan, file, patient_id, patient_name, study_uid, study_description, accession_number, body_part
        )
        if out_folder is not None:
            count = _write(scan, header, out_folder)
            out.print(f"{count} files in {out_folder}", highlight=False)
            return
        archive = open_archive(config, data, must_exist=False)
        count = _store(scan, header, archive)
    except (ScanError, ArchiveError) as error:
        fail(str(error), FAILED)
    for note in scan.notes:
        out.print(note, highlight=False)
    out.print(
        f"{len(scan.views)} views stored in {count} instances in {archive.data}; a node that serves it reconstructs "
        f"them, else: tharsis reconstruct {header.SeriesInstanceUID} --data {archive.data}",
        highlight=False,
        soft_wrap=True,
    )


def _pair(option: str, text: str | None, *, square: bool = False) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if square and len(found) == 1:
        found *= 2
    if len(found) != 2:
        fail(f"{option} is {text!r}, expected two numbers separated by a comma", USAGE)
    return found[0], found[1]


def _read(file: Path, projections: Path | None, pitch: tuple[float, float] | None) -> RawScan:
    suffix = file.suffix.lower()
    if not file.is_file():
        fail(f"{file} is no file", USAGE)
    if suffix == ".json":
        from reconstruct.imports.tiff_json import read_tiff_json

        return read_tiff_json(file)
    if suffix in (".log", ".xtekct"):
        from reconstruct.imports.ini_logs import read_bruker, read_nikon

        return read_bruker(file) if suffix == ".log" else read_nikon(file)
    if suffix == ".xml":
        from reconstruct.imports.rtk import read_rtk

        return read_rtk(file, projections, pitch)
    from reconstruct.imports.data_exchange import read_data_exchange

    return read_data_exchange(file)


def _completed(scan: RawScan, *, pixels: str | None, water: float | None, **told: object) -> RawScan:
    from dataclasses import replace

    from reconstruct.projections.scan import PixelMeaning

    if pixels is not None and pixels not in list(PixelMeaning):
        fail(f"--pixels is {pixels!r}, expected one of {', '.join(PixelMeaning)}", USAGE)
    setup = scan.setup.with_told(pixels=None if pixels is None else PixelMeaning(pixels), **told)
    if water is not None:
        if water <= 0:
            fail(f"--water is {water:g}, expected a number above 0", USAGE)
        setup = replace(setup, energy=replace(setup.energy, water_per_cm=water))
    return replace(scan, setup=setup)


def _header(
    scan: RawScan,
    file: Path,
    patient_id: str,
    patient_name: str,
    study_uid: str,
    description: str,
    accession: str,
    body: str,
) -> Dataset:
    now = datetime.now().astimezone()
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientID = patient_id or file.stem
    header.PatientName = patient_name or file.stem
    header.PatientBirthDate = header.PatientSex = header.ReferringPhysicianName = None
    header.StudyInstanceUID = study_uid or new_uid()
    header.StudyDate, header.StudyTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    header.StudyID = None
    header.AccessionNumber = accession or None
    if description:
        header.StudyDescription = description
    header.SeriesInstanceUID = new_uid()
    header.SeriesNumber = 1
    header.SeriesDescription = f"Projections {scan.described}".strip()[:64]
    if body:
        header.BodyPartExamined = body
    return header


def _write(scan: RawScan, header: Dataset, folder: Path) -> int:
    return _each(scan, header, lambda instance: write_objects([instance], folder))


def _store(scan: RawScan, header: Dataset, archive: Archive) -> int:
    """Store all instances, and announce the series when it is whole; after a failure nothing of it stays."""

    def ingest(instance: Dataset) -> None:
        buffer = BytesIO()
        instance.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue(), announce=False)

    series = str(header.SeriesInstanceUID)
    try:
        count = _each(scan, header, ingest)
    except BaseException:
        with suppress(NotFound):
            archive.delete(Level.SERIES, series)
        raise
    with archive.transaction() as database:
        jobs.push(database, jobs.SERIES_STABLE, series)
    return count


def _each(scan: RawScan, header: Dataset, take: Callable[[Dataset], object]) -> int:
    from reconstruct.imports.writing import instances_of

    count = 0
    with progress_bar("Importing") as bar:
        for instance in instances_of(scan, header, bar.fraction):
            take(instance)
            count += 1
    return count
