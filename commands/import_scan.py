"""The command that brings in scans which are no DICOM: they become P1 instances and go through the archive's door."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pydicom
import typer
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from commands.archive import open_archive
from commands.console import FAILED, USAGE, ConfigOption, DataOption, fail, out, progress_bar
from commands.scans import write_objects
from index import jobs
from index.archive import Archive
from index.errors import ArchiveError, NotFound, NotRemoved
from index.keys import Level

if TYPE_CHECKING:
    from reconstruct.imports.identity import ScanUids
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
            help="Study Instance UID of a study that the scan belongs to, and its patient; else its own.",
            rich_help_panel=_PATIENT,
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

    The same scan brought in again, of the same patient and with the same options, is recognised by its pixels: nothing
    is stored twice, and what an import that was killed has left out is added. All images are read once to find out.

    Examples
    --------
    tharsis import-scan bone/scan.json --patient-id B-17 --patient-name Bone^Seventeen

    tharsis import-scan stone_.log --unattenuated 60000 --data ./tharsis-data

    tharsis import-scan geometry.xml --projections projections.mha

    tharsis import-scan scan.h5 --source-to-isocentre 150 --source-to-detector 400 --pitch 0.05 --out dicom/
    """
    from commands.imported_header import Told, header_of
    from reconstruct.projections.frames import ScanError

    if file.suffix.lower() not in _FORMATS:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in _FORMATS.items())
        fail(f"{file.name} is of no format that can be read: {known}", USAGE)
    try:
        whose = Told(patient_id, patient_name, study_uid, study_description, accession_number, body_part)
        whose.check(file.stem)
        scan = _read(file, projections, _pair("--pitch", pitch, square=True))
        beside = {"--source-to-isocentre": source_to_isocentre, "--principal-point": principal_point}
        _refuse_beside_matrices(scan, beside if file.suffix.lower() == ".xml" else beside | {"--pitch": pitch})
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
        scan.check()
        scan.geometry()  # what is missing or impossible is told before all images are read
        scan.check_values()
        notes = list(scan.notes)
        if out_folder is not None:
            header = header_of(whose, file.stem, scan.described, None)
            count = _write(scan, header, _uids(scan, header), out_folder, notes.append)
            for note in notes:
                out.print(note, highlight=False)
            out.print(f"{count} files in {out_folder}", highlight=False)
            return
        archive = open_archive(config, data, must_exist=False)
        header = header_of(whose, file.stem, scan.described, archive)
        uids = _uids(scan, header)
        with _alone(archive, uids.series):
            stored = _store(scan, header, uids, archive, notes.append)
    except (ScanError, ArchiveError) as error:
        fail(str(error), FAILED)
    if not stored.new:
        told = f"this scan is stored already, in study {uids.study} as series {uids.series}, and was not stored again"
        out.print(told, highlight=False, soft_wrap=True)
        return
    for note in notes:
        out.print(note, highlight=False)
    if stored.before:
        told = f"{stored.before} instances of this scan were there, and {stored.new} that were missing are stored"
    else:
        told = f"{len(scan.views)} views stored in {stored.new} instances"
    out.print(
        f"{told} in {archive.data}; a node that serves it reconstructs them, else: tharsis reconstruct {uids.series} "
        f"--data {archive.data}",
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


def _refuse_beside_matrices(scan: RawScan, options: Mapping[str, object]) -> None:
    """Refuse options that matrices stand for."""
    from reconstruct.projections.frames import ScanError

    told = [option for option, value in options.items() if value is not None]
    if scan.setup.matrices is not None and told:
        raise ScanError(f"projection matrices say all of the geometry: {' and '.join(told)} would change nothing")


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


def _uids(scan: RawScan, header: Dataset) -> ScanUids:
    from reconstruct.imports.identity import uids_of

    with progress_bar("Reading") as bar:
        return uids_of(scan, header, bar.fraction)


def _write(scan: RawScan, header: Dataset, uids: ScanUids, folder: Path, tell: Callable[[str], None]) -> int:
    _date(header, folder / f"{uids.instance(1)}.dcm")
    return _each(scan, header, uids, (), lambda instance: write_objects([instance], folder), tell)


@contextmanager
def _alone(archive: Archive, series: str) -> Iterator[None]:
    """Keep other processes from importing the same scan: one that fails removes what it has stored.

    Raises
    ------
    ScanError
        One does.
    """
    from reconstruct.projections.frames import ScanError

    with (archive.incoming / f"{series}.lock").open("w") as file:  # goes when a node starts, unless it is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScanError(f"another process is importing this scan, as series {series}: nothing stored") from None
        yield


@dataclass(frozen=True)
class _Stored:
    """How many instances of a scan were in the archive before, and how many have come to them."""

    before: int
    new: int


def _store(
    scan: RawScan, header: Dataset, uids: ScanUids, archive: Archive, tell: Callable[[str], None]
) -> _Stored:
    """Store what is not there yet, and announce the series when it is whole.

    After a failure nothing of the scan stays, unless some of it had been there: that is kept for the next import.
    """

    def ingest(instance: Dataset) -> None:
        buffer = BytesIO()
        instance.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue(), announce=False)

    there = _there(archive, uids.series)
    _date(header, next(iter(there.values()), None), _date_of_study(archive, uids.study))
    try:
        new = _each(scan, header, uids, there, ingest, tell)
    except BaseException:
        if not there:
            with suppress(NotFound, NotRemoved):  # the next start removes what this cannot
                archive.delete(Level.SERIES, uids.series)
        raise
    with archive.transaction() as database:
        # One that was killed between its last instance and this has announced nothing.
        if new or not jobs.was_pushed(database, jobs.SERIES_STABLE, uids.series):
            jobs.push(database, jobs.SERIES_STABLE, uids.series)
    return _Stored(len(there), new)


def _there(archive: Archive, series: str) -> dict[str, Path]:
    """Return the files of the series that are stored and, as far as is known, undamaged, by SOP Instance UID."""
    rows = archive.database.execute(
        "SELECT instance.sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid = ?",
        (series,),
    ).fetchall()
    stored = [archive.open_instance(uid) for (uid,) in rows]
    return {
        each.sop_instance_uid: each.path
        for each in stored
        if not each.damage and each.path.is_file() and each.path.stat().st_size == each.size
    }


def _date_of_study(archive: Archive, study: str) -> tuple[str, str]:
    """Return date and time of a study that is stored; empty for one that is not."""
    row = archive.database.execute(
        "SELECT study_date, study_time FROM study WHERE study_instance_uid = ?", (study,)
    ).fetchone()
    return (row[0] or "", row[1] or "") if row else ("", "")


def _date(header: Dataset, earlier: Path | None, study: tuple[str, str] = ("", "")) -> None:
    """Date the scan: now, or when an earlier import began, of which a file is left.

    Parameters
    ----------
    earlier
        Where that file is, if there is one.
    study
        Date and time of the study that the scan is added to; empty: it is new.
    """
    now = datetime.now().astimezone()
    header.SeriesDate, header.SeriesTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    header.StudyDate, header.StudyTime = study if study[0] else (header.SeriesDate, header.SeriesTime)
    if earlier is None or not earlier.is_file():
        return
    dates = ["StudyDate", "StudyTime", "SeriesDate", "SeriesTime"]
    with suppress(InvalidDicomError, EOFError, OSError):  # cut off while it was written
        header.update(pydicom.dcmread(earlier, stop_before_pixels=True, specific_tags=[*dates]))


def _each(
    scan: RawScan,
    header: Dataset,
    uids: ScanUids,
    leave_out: Container[str],
    take: Callable[[Dataset], object],
    tell: Callable[[str], None],
) -> int:
    from reconstruct.imports.writing import instances_of

    count = 0
    with progress_bar("Importing") as bar:
        for instance in instances_of(scan, header, bar.fraction, uids=uids, leave_out=leave_out, tell=tell):
            take(instance)
            count += 1
        bar.fraction(1.0)
    return count
