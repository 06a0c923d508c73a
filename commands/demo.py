"""``tharsis demo``: the node's main job on this machine, from scan to similar case, over DICOM."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydicom.dataset import Dataset
from rich.table import Table

from commands.beside import node_beside
from commands.console import err, fail, out, progress_bar, settings_from
from commands.demo_data import SCANS, Sample, real_images, simulate_sample
from commands.demo_report import Report, show
from commands.network import identifier_from
from commands.similar import similarity_identifier
from commands.state import read_state
from config import logs
from config.settings import Settings, load_settings
from index.archive import Archive
from index.keys import Level
from scp import client
from scp.client import Requestor
from scp.contexts import SIMILARITY_FIND, STUDY_ROOT_FIND, STUDY_ROOT_MOVE
from scp.errors import PeerError
from scp.private_elements import CREATOR, ELEMENTS, GROUP
from scp.requestor import Peer
from scp.server import Server

_TITLE = "DEMO"
_RECEIVER = "DEMO_STORE"
_VIEWER_PORT = 11113
_MARK = ".tharsis-demo"
_NEIGHBOURS = 5
_WORK_S = 1800.0
"""Longest that the demo waits for the node's work, seconds."""


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "demo-output"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the node running, for a viewer, until Ctrl-C.")] = False,
    views: Annotated[int, typer.Option(min=12, help="Views of each simulated scan.")] = 180,
    columns: Annotated[int, typer.Option(min=16, help="Detector columns of each simulated scan.")] = 144,
) -> None:
    """Show the whole loop on this machine: scan, store, reconstruct, segment, embed, ask, retrieve, look.

    Starts a node on a free port with its own data, simulates spectral micro-CT scans of several phantoms (one of them
    twice, with other noise) and sends them together with real CT and MR images; waits while the node works; then asks
    it over DICOM for what it holds and for cases similar to the first scan, through both doors, and has them sent to a
    receiver. Ends with a table and pictures. Takes two to five minutes.
    """
    _prepare(folder)
    logs.configure("WARNING", "demo")
    started = time.monotonic()
    report = Report()
    with _receiver(folder / "received") as receiver, _node(folder, receiver.port) as (settings, peer):
        try:
            samples = _scan_and_send(folder, peer, views, columns, report)
            _send_images(peer, report)
            _wait_for_work(Archive.from_settings(settings.archive), samples, report)
            _ask(peer, samples[0], report)
            _retrieve(peer, samples, report)
        except PeerError as error:
            fail(str(error))
        pictures = _draw(folder, receiver.archive, samples, report)
        show(report, pictures, time.monotonic() - started)
        if keep:
            _leave_running(settings, peer, samples[0])


def _prepare(folder: Path) -> None:
    if read_state(folder / "data") is not None:
        fail(f"the node of an earlier demo is still running in {folder}; stop it first, or choose another --folder")
    if folder.is_file():
        fail(f"{folder} is a file; choose another --folder")
    if folder.exists() and not (folder / _MARK).exists() and any(folder.iterdir()):
        fail(f"{folder} holds something that is not an earlier demo; choose another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


@dataclass(frozen=True)
class _Receiver:
    archive: Archive
    port: int


@contextmanager
def _receiver(folder: Path) -> Iterator[_Receiver]:
    """A C-STORE SCP that stands for a viewer: it stores what C-MOVE sends it."""
    overrides: dict[str, dict[str, Any]] = {
        "scp": {"aet": _RECEIVER, "host": "127.0.0.1", "port": 0},
        "archive": {"data": folder},
    }
    settings = load_settings(environment={}, overrides=overrides)
    archive = Archive.from_settings(settings.archive)
    server = Server(archive, settings)
    server.start()
    try:
        yield _Receiver(archive, server.port)
    finally:
        server.stop(2.0)


@contextmanager
def _node(folder: Path, receiver_port: int) -> Iterator[tuple[Settings, Peer]]:
    """A node in processes of its own, as `tharsis serve` runs it, with the settings file that a user would write."""
    config = folder / "tharsis.toml"
    config.write_text(_SETTINGS.format(data=(folder / "data").resolve(), port=receiver_port), encoding="utf-8")
    settings = settings_from(config)
    signal.signal(signal.SIGTERM, _interrupt)
    with node_beside(config) as port:
        err.print(f"Node {settings.scp.aet} runs on port {port}, data in {settings.archive.data}", markup=False)
        yield settings, Peer("127.0.0.1", port, settings.scp.aet)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_SETTINGS = """# The settings of the demo's node. `tharsis serve --config` starts it again on the same data.
[scp]
host = "127.0.0.1"
port = 0

[archive]
data = "{data}"
settle_time_s = 1.0

[logs]
level = "WARNING"

[[application_entities]]           # who asks: allowed to see similar cases
title = "DEMO"
rights = ["store", "find", "move", "similar"]

[[application_entities]]           # the scanner
title = "MARS"
rights = ["store"]

[[application_entities]]           # the demo's own receiver
title = "DEMO_STORE"
host = "127.0.0.1"
port = {port}

[[application_entities]]           # your viewer: C-MOVE reaches it here
title = "VIEWER"
host = "127.0.0.1"
port = 11113
rights = ["store", "find", "move", "similar"]
"""


def _scan_and_send(folder: Path, peer: Peer, views: int, columns: int, report: Report) -> list[Sample]:
    samples = []
    for sample_scan in SCANS:
        row: dict[str, Any] = {"phantom": sample_scan.name}
        started = time.monotonic()
        with progress_bar(f"Scanning {sample_scan.name}") as bar:
            sample = simulate_sample(sample_scan, folder / "scans", views, columns, bar.fraction)
        row["simulated_s"] = time.monotonic() - started
        row["instances"], row["megabytes"] = len(sample.files), sum(f.stat().st_size for f in sample.files) / 1e6
        started = time.monotonic()
        for sent in client.send(peer, sample.files, Requestor("MARS")):
            if not sent.is_stored:
                fail(f"the node did not store {sent.path}: {sent.error}")
        row["sent_s"] = time.monotonic() - started
        report.scans.append(row)
        samples.append(sample)
    return samples


def _send_images(peer: Peer, report: Report) -> None:
    files = real_images()
    started = time.monotonic()
    with progress_bar("Sending CT and MR images", len(files)) as bar:
        stored = 0
        for sent in client.send(peer, files, Requestor("MODALITY")):
            stored += sent.is_stored
            bar.advance()
    report.images = {"sent": len(files), "stored": stored, "seconds": time.monotonic() - started}


def _wait_for_work(archive: Archive, samples: list[Sample], report: Report) -> None:
    """Wait until the node has nothing left to do: everything that follows from what it was sent is in its queue."""
    deadline = time.monotonic() + _WORK_S
    with progress_bar("The node reconstructs, segments and embeds") as bar:
        while archive.jobs.pending():
            if time.monotonic() > deadline:
                fail(f"the node is still working after {_WORK_S:.0f} s; see `tharsis jobs list --data {archive.data}`")
            jobs = archive.jobs.recent(limit=10_000)
            bar.fraction(sum(1.0 if job.finished else job.progress for job in jobs) / max(1, len(jobs)))
            time.sleep(0.2)
        bar.fraction(1.0)
    for failed in archive.jobs.recent(states=("failed",)):
        err.print(f"{failed.kind} of {failed.subject}: {failed.error}", highlight=False)
    for sample, row in zip(samples, report.scans, strict=True):
        row.update(_outcome(archive, sample))


def _outcome(archive: Archive, sample: Sample) -> dict[str, Any]:
    """What came of a scan, read from the catalogue: derived series and the time until the SEG was stored."""
    rows = archive.database.execute(
        "SELECT series.modality, count(DISTINCT series.id), count(*), max(julianday(instance.received_at)) * 86400 "
        "FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE study.study_instance_uid = ? GROUP BY series.modality",
        (sample.study,),
    )
    by_modality = {modality: (series, instances, last) for modality, series, instances, last in rows}
    if not {"XA", "CT", "SEG"} <= set(by_modality):
        fail(f"the scan of {sample.scan.name} did not become CT and SEG; see `tharsis jobs list --data {archive.data}`")
    return {
        "ct": by_modality["CT"][:2],
        "seg": by_modality["SEG"][1],
        "to_seg_s": by_modality["SEG"][2] - by_modality["XA"][2],
    }


def _ask(peer: Peer, sample: Sample, report: Report) -> None:
    """Ask for studies and series, then for cases similar to the first scan, through both doors."""
    requestor = Requestor(_TITLE)
    studies = list(client.find(peer, identifier_from([], Level.STUDY), STUDY_ROOT_FIND, requestor))
    series_keys = [f"StudyInstanceUID={sample.study}"]
    series = list(client.find(peer, identifier_from(series_keys, Level.SERIES), STUDY_ROOT_FIND, requestor))
    out.print(f"\nC-FIND: {len(studies)} studies; {len(series)} series in the first scan's study:", highlight=False)
    table = Table("Modality", "Number", "Description", "Instances")
    for match in sorted(series, key=lambda match: int(match.SeriesNumber or 0)):
        count = match.NumberOfSeriesRelatedInstances
        table.add_row(match.Modality, str(match.SeriesNumber), match.SeriesDescription, str(count))
    out.print(table)
    keys = ["StudyDescription", "PatientName"]
    asked = similarity_identifier(keys, Level.STUDY, QueryStudyInstanceUID=sample.study, MaximumResults=_NEIGHBOURS)
    found = list(client.find(peer, asked, SIMILARITY_FIND, requestor))
    report.neighbours = [_neighbour(rank, match) for rank, match in enumerate(found, start=1)]
    second = Peer(peer.host, peer.port, f"{peer.title}_SIM")
    reference = identifier_from([f"StudyID=~{sample.study}", "StudyDescription"], Level.STUDY)
    by_reference = list(client.find(second, reference, STUDY_ROOT_FIND, requestor))[:_NEIGHBOURS]
    for row, match in zip(report.neighbours, by_reference, strict=True):
        row["decorated"] = str(match.StudyDescription)
    uids = [row["study"] for row in report.neighbours]
    report.same_through_both_doors = uids == [str(match.StudyInstanceUID) for match in by_reference]
    if not report.same_through_both_doors:
        fail("the two doors answered differently")


def _neighbour(rank: int, match: Dataset) -> dict[str, Any]:
    block = match.private_block(GROUP, CREATOR)
    return {
        "rank": rank,
        "score": float(block[ELEMENTS["Score"].number].value),
        "study": str(match.StudyInstanceUID),
        "patient": str(match.get("PatientName") or ""),
        "description": str(match.get("StudyDescription") or ""),
    }


def _retrieve(peer: Peer, samples: list[Sample], report: Report) -> None:
    """Have the neighbours, and the derived series of every scan, sent to the receiver with C-MOVE."""
    studies = dict.fromkeys([*(row["study"] for row in report.neighbours), *(sample.study for sample in samples)])
    requestor = Requestor(_TITLE)
    wanted = []
    for study in studies:
        keys = identifier_from([f"StudyInstanceUID={study}"], Level.SERIES)
        found = client.find(peer, keys, STUDY_ROOT_FIND, requestor)
        wanted += [(study, str(match.SeriesInstanceUID)) for match in found if match.Modality != "XA"]
    started = time.monotonic()
    with progress_bar(f"C-MOVE to {_RECEIVER}", len(wanted)) as bar:
        for study, series in wanted:
            keys = Dataset()
            keys.QueryRetrieveLevel, keys.StudyInstanceUID, keys.SeriesInstanceUID = "SERIES", study, series
            *_, final = client.move(peer, keys, _RECEIVER, STUDY_ROOT_MOVE, requestor)
            if not final.status.is_success:
                fail(f"C-MOVE of series {series} ended with status {final.status}")
            report.moved += final.counts.completed if final.counts else 0
            bar.advance()
    report.moved_s = time.monotonic() - started


def _draw(folder: Path, received: Archive, samples: list[Sample], report: Report) -> list[Path]:
    from commands import demo_pictures

    with progress_bar("Drawing") as bar:
        return demo_pictures.draw(folder / "pictures", received, samples, report.neighbours, bar.fraction)


def _leave_running(settings: Settings, peer: Peer, sample: Sample) -> None:
    out.print(
        f"""
The node keeps running. Point a viewer (3D Slicer, Weasis, Horos, …) at it. For C-MOVE give the viewer the AE title
VIEWER and let it listen on port {_VIEWER_PORT}; for C-GET any port will do.
  AE title {peer.title}, host {peer.host}, port {peer.port}
  Similar cases: AE title {settings.scp.similarity_aet}, same host and port; search for Study ID  ~{sample.study}
Or with DCMTK:
  findscu -S -aet VIEWER -aec {peer.title} {peer.host} {peer.port} -k QueryRetrieveLevel=STUDY \\
          -k PatientName -k StudyInstanceUID
  findscu -S -aet VIEWER -aec {settings.scp.similarity_aet} {peer.host} {peer.port} -k QueryRetrieveLevel=STUDY \\
          -k StudyID="~{sample.study}" -k StudyDescription -k PatientName -k StudyInstanceUID
Ctrl-C stops it.""",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        out.print("Stopping.")
