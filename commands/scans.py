"""Commands about scans: simulate one, reconstruct one.

Kernels and plug-ins are imported when a command runs, so that the others, `serve` among them, do without them.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydicom import dcmread
from pydicom.dataset import Dataset
from rich.table import Table

from commands.console import (
    UNREACHABLE,
    USAGE,
    ConfigOption,
    DataOption,
    ProgressBar,
    fail,
    out,
    progress_bar,
    settings_from,
)
from commands.network import TitleOption, peer_from
from commands.state import read_state
from config.settings import Settings
from index.archive import Archive
from index.files import is_part10
from index.jobs import Job
from scp import client
from scp.client import Requestor
from scp.errors import PeerError

if TYPE_CHECKING:
    from reconstruct.pipeline import PlannedSeries
    from reconstruct.projections.scan import EnergyBin, ReconstructionRequest

_VOLUME = "The volume, where it is to be another than the scan or the settings say"

_PAUSE_S = 0.02
"""Between two looks at the queue while this process does a job itself, seconds."""


def simulate(
    phantom: Annotated[str, typer.Option(help="What is scanned; --list names them all.")] = "mouse-thigh",
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write the DICOM files there.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="AET@HOST:PORT", help="Send them there with C-STORE.")
    ] = None,
    views: Annotated[int, typer.Option(min=3, help="Views of the full circle.")] = 180,
    rows: Annotated[int, typer.Option(min=4, help="Detector rows.")] = 128,
    columns: Annotated[int, typer.Option(min=4, help="Detector columns; a slice has about as many.")] = 160,
    photons: Annotated[float, typer.Option(help="Counts of a pixel in the open beam, lowest counter.")] = 20_000.0,
    thresholds: Annotated[str, typer.Option(help="Of the cumulative counters, keV, ascending.")] = "18,30,45,60",
    tiles: Annotated[
        str, typer.Option(metavar="COLUMNSxROWS", help="Tiles that the camera sees of the detector one by one.")
    ] = "1x1",
    camera_positions: Annotated[
        int, typer.Option(min=1, help="Positions of a narrower camera along the columns, told in mm.")
    ] = 1,
    axial_positions: Annotated[
        str, typer.Option(metavar="MM,MM,…", help="Axial positions of the sample: step and shoot.")
    ] = "0",
    seed: Annotated[int, typer.Option(help="Of the noise, the gains and the dead pixels.")] = 0,
    aet: TitleOption = "MARS_SIM",
    listed: Annotated[bool, typer.Option("--list", help="Name the phantoms and stop.")] = False,
) -> None:
    """Simulate a spectral cone-beam scan, as a MARS-like photon-counting micro-CT makes it, in DICOM.

    Photon counts of cumulative counters, flat fields, Poisson noise and a few dead pixels, as Enhanced XA
    with the block THARSIS PROJECTION 1.0 (encoding P1).

    Examples:  tharsis simulate-scan --phantom plaque --peer THARSIS@127.0.0.1:11112

    tharsis simulate-scan --tiles 3x2 --axial-positions=-8,8 --rows 64 --out scan/
    """
    from reconstruct.simulate import simulate_scan
    from reconstruct.simulated_positions import Positions
    from reconstruct.spectral_phantoms import PHANTOMS

    if listed:
        out.print("\n".join(PHANTOMS))
        return
    if (out_folder is None) == (peer is None):
        fail("say where the scan goes: either --out FOLDER or --peer AET@HOST:PORT", USAGE)
    try:
        kev = tuple(float(part) for part in thresholds.split(","))
        across, _, down = tiles.partition("x")
        axial_mm = tuple(float(part) for part in axial_positions.split(","))
        positions = Positions((int(across), int(down or 1)), camera_positions, axial_mm)
        with progress_bar(f"Scanning {phantom}") as bar:
            instances = simulate_scan(
                phantom, views=views, rows=rows, columns=columns, thresholds_kev=kev, photons_per_pixel=photons,
                seed=seed, positions=positions, progress=bar.fraction,
            )
    except ValueError as error:
        fail(str(error), USAGE)
    if out_folder is not None:
        files = write_objects(instances, out_folder)
        size = sum(file.stat().st_size for file in files) / 1e6
        out.print(f"{len(files)} files, {size:.1f} MB, in {out_folder}", highlight=False)
        return
    with tempfile.TemporaryDirectory(prefix="tharsis-scan-") as folder:
        _send(write_objects(instances, Path(folder)), peer or "", aet)


def write_objects(objects: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write objects to ``<SOP Instance UID>.dcm`` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for dataset in objects:
        files.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def _send(files: Sequence[Path], peer: str, aet: str) -> None:
    target = peer_from(peer)
    try:
        with progress_bar(f"Sending to {target.title}", len(files)) as bar:
            for sent in client.send(target, files, Requestor(aet)):
                bar.advance()
                if not sent.is_stored:
                    fail(f"{target.title} did not store {sent.path.name}: {sent.error}")
    except PeerError as error:
        fail(str(error), UNREACHABLE)
    out.print(f"{len(files)} instances stored by {target.title}", highlight=False)


def reconstruct(
    what: Annotated[str, typer.Argument(metavar="FOLDER|SERIES", help="A folder of projections, or a stored series.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="For a folder: where the CT series go.")
    ] = None,
    voxel_mm: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z", help="Edges of a voxel, mm; one number for cubes. Else as the scan says, or the settings.",
            rich_help_panel=_VOLUME,
        ),
    ] = None,
    matrix: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            metavar="X Y Z", help="Columns, rows and slices. Else what fills the field of view.",
            rich_help_panel=_VOLUME,
        ),
    ] = None,
    centre: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="X Y Z",
            help="Centre of the volume, mm from the isocentre, to the patient's left, back and head. Else that of the "
            "field of view.",
            rich_help_panel=_VOLUME,
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--filter", help="Window of the ramp: ram-lak, shepp-logan, cosine, hamming or hann.",
            rich_help_panel=_VOLUME,
        ),
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(help="Where the window ends, above 0 to 1, of the Nyquist frequency.", rich_help_panel=_VOLUME),
    ] = None,
    scheduler: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="Let the workers of this Dask scheduler do it.")
    ] = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Reconstruct a scan into one CT series for each energy bin.

    A FOLDER is reconstructed here and now, without any node or archive: --out says where the CT files go.
    A SERIES (its UID) is reconstructed within the archive: by the running node, or here when none runs.
    What was reconstructed before in the same way is not done again; files of the same series are written again.
    A folder of --out that holds slices of another reconstruction is refused: they would stay among the new ones.
    A region of interest, or another grid of voxels, becomes series of its own beside those of the whole volume.

    Examples:  tharsis reconstruct scan/ --out ct/

    tharsis reconstruct 1.2.3.4 --data ./tharsis-data

    tharsis reconstruct scan/ --out roi/ --voxel-mm 0.02 --matrix 400 400 200 --centre 3 -12.5 0
    """
    from reconstruct.projections.frames import ScanError
    from reconstruct.projections.request import request_of_options

    settings = settings_from(config, data=data)
    try:
        request = request_of_options(_edges(voxel_mm), matrix, centre, window, cutoff)
    except ScanError as error:
        fail(str(error), USAGE)
    if Path(what).is_dir():
        if out_folder is None:
            fail("say with --out FOLDER where the CT series go", USAGE)
        _reconstruct_folder(Path(what), out_folder, settings, scheduler, request)
    elif out_folder is not None:
        fail(f"--out is for a folder, and {what} is none: what comes of a stored series goes into its archive", USAGE)
    else:
        _reconstruct_series(what, settings, scheduler, request)


def _edges(voxel_mm: str | None) -> list[float] | None:
    if voxel_mm is None:
        return None
    try:
        edges = [float(part) for part in voxel_mm.split(",")]
    except ValueError:
        fail(f"--voxel-mm is {voxel_mm!r}, expected one number, or three separated by commas", USAGE)
    return edges * 3 if len(edges) == 1 else edges


def _reconstruct_folder(
    folder: Path, out_folder: Path, settings: Settings, scheduler: str, request: ReconstructionRequest
) -> None:
    from plugins.reconstruction import parameters_from
    from reconstruct.cluster import ClusterError
    from reconstruct.geometry import GeometryError
    from reconstruct.pipeline import reconstruct_scan
    from reconstruct.projections.p6 import encodings_from
    from reconstruct.projections.scan import ScanError

    files = sorted(file for file in folder.rglob("*") if file.is_file() and is_part10(file))
    table = Table("energy bin", "slices", "folder")
    started = time.monotonic()
    try:
        scan = encodings_from(settings.site_mappings).read_scan(files)
        with progress_bar("Reconstructing") as bar:
            out_folder.mkdir(parents=True, exist_ok=True)
            parameters = parameters_from(settings, scheduler, request)
            made = reconstruct_scan(
                scan, parameters, bar.fraction, out_folder, planned=lambda series: _refuse_used(out_folder, series)
            )
            for series in made:
                target = _bin_folder(out_folder, series.energy_bin)
                target.mkdir(parents=True, exist_ok=True)
                for name, instance in zip(_slice_names(series.slices), series.instances, strict=True):
                    instance.save_as(target / name, enforce_file_format=True)
                table.add_row(series.energy_bin.label, str(series.slices), str(target))
    except (ScanError, GeometryError, ClusterError, OSError) as error:
        fail(str(error))
    for note in scan.notes:
        out.print(note, highlight=False)
    out.print(table)
    out.print(f"{time.monotonic() - started:.1f} s", highlight=False)


def _bin_folder(out_folder: Path, energy_bin: EnergyBin) -> Path:
    return out_folder / f"bin{energy_bin.index}"


def _slice_names(slices: int) -> list[str]:
    digits = max(4, len(str(slices)))
    return [f"{number:0{digits}d}.dcm" for number in range(1, slices + 1)]


def _refuse_used(out_folder: Path, planned: Sequence[PlannedSeries]) -> None:
    """Refuse folders of bins with slices of another series, or more of the same one, than will be written again."""
    replaced = {
        _bin_folder(out_folder, series.energy_bin) / name: series.series_uid
        for series in planned
        for name in _slice_names(series.slices)
    }
    for file in sorted(out_folder.glob("bin*/*")):
        if not file.is_file() or not is_part10(file):
            continue
        header = dcmread(file, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
        uid = str(header.get("SeriesInstanceUID", ""))
        if replaced.get(file) != uid:
            fail(
                f"{file.parent} holds slices that would stay beside the new ones ({file.name} of series {uid}): "
                "give another folder with --out, or empty that one",
                USAGE,
            )


def _reconstruct_series(uid: str, settings: Settings, scheduler: str, request: ReconstructionRequest) -> None:
    from reconstruct.projections.request import request_parameters

    if not (settings.archive.data / "catalogue.sqlite").exists():
        fail(f"{uid} is no folder, and {settings.archive.data} is no data folder of a node")
    archive = Archive.from_settings(settings.archive)
    found = archive.database.execute("SELECT 1 FROM series WHERE series_instance_uid = ?", (uid,)).fetchone()
    if found is None:
        fail(f"{uid} is no folder, and the archive in {archive.data} has no such series")
    told = ({"scheduler": scheduler} if scheduler else {}) | request_parameters(request)
    number = archive.jobs.push("reconstruct", uid, told or None)
    if read_state(archive.data) is not None:
        out.print(f"queued as job {number}: the running node does it (see `tharsis jobs list`)", highlight=False)
        return
    job = _work_here(archive, settings, number)
    if job.state != "done":
        fail(job.error)
    out.print("done, and with it whatever follows from it (see `tharsis jobs list`)", highlight=False)


def _work_here(archive: Archive, settings: Settings, number: int) -> Job:
    """Do job `number` in this process, and then whatever else is due; return what became of it."""
    from plugins.worker import Worker

    worker, ended = Worker(archive, settings, "command-line"), threading.Event()

    def show(bar: ProgressBar) -> None:
        while not ended.wait(0.3):
            bar.fraction(archive.jobs.get(number).progress)

    with progress_bar("Reconstructing") as bar:
        watcher = threading.Thread(target=show, args=(bar,))
        watcher.start()
        try:
            while worker.run_one() or archive.jobs.get(number).state in ("queued", "running"):
                ended.wait(_PAUSE_S)
        finally:
            ended.set()
            watcher.join()
    return archive.jobs.get(number)
