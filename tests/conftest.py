"""Fixtures for every part: where the shared test data lies, a node on a free port, DCMTK as its peer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from config.settings import Settings, load_settings
from index.archive import Archive

# Processes that tests start run this checkout, too, whichever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

pytest_plugins = ["arriving", "cases", "peers", "requestors", "routed", "wire"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport", choices=["own", "pynetdicom"], default="own", help="what carries the associations of the nodes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take long first, and skip on pynetdicom's transport what only the own one has.

    A file stays as it is: at the end of a parallel run nobody waits for a long one. The marker's sentence says why a
    test is skipped.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        seconds[item.path] += (slow.args[0] if slow.args else 8.0) if slow else 0.3
    items.sort(key=lambda item: -seconds[item.path])
    if config.getoption("--transport") == "own":
        return
    for item in items:
        if (marker := item.get_closest_marker("own_transport")) is not None:
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


_HAS_FAILED = pytest.StashKey[bool]()
_LARGE_BYTES = 16 << 20


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note of a test whether it has failed, for `large_files_go`; let what it has logged go to another process.

    Half a character, as in the name of a file that is not UTF-8, does not.
    """
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    item.stash[_HAS_FAILED] = item.stash.get(_HAS_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def large_files_go(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the large files that a test leaves, unless it fails: pytest keeps the folders of three runs.

    Only those: objects of gigabytes fill a disk, and a file system may take long to give out an inode again.
    """
    yield
    folder = request.node.funcargs.get("tmp_path")
    if folder is None or request.node.stash.get(_HAS_FAILED, False):
        return
    for place, _, names in os.walk(folder):
        for path in (Path(place) / name for name in names):
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= _LARGE_BYTES:
                path.unlink()


@pytest.fixture(scope="session")
def transport_name(request: pytest.FixtureRequest) -> str:
    """What carries the associations that peers open with the nodes of the tests."""
    return str(request.config.getoption("--transport"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data: ``THARSIS_TEST_DATA``, else ``../shared/data`` beside the checkout."""
    told = os.environ.get("THARSIS_TEST_DATA")
    folder = Path(told) if told else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set THARSIS_TEST_DATA")
    return folder


@dataclass
class Node:
    """A running node: its archive, its server, and how to reach it."""

    archive: Archive
    settings: Settings
    server: Any

    @property
    def port(self) -> int:
        return self.server.port


@pytest.fixture
def start_node(
    tmp_path: Path, transport_name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Node]]:
    """Start nodes on 127.0.0.1 and free ports; keyword ``scp`` overrides settings, ``entities`` names peers.

    Whatever a test has them answer, the Conformance Statement has to say.
    """
    from answered import Answered

    from scp.server import Server

    nodes: list[Node] = []
    answers = Answered(monkeypatch)

    def start(
        *, entities: list[dict[str, Any]] | None = None, similarity: Any = None, overwrite: str = "never",
        patient_mismatch: str = "accept", data: Path | None = None, tls: dict[str, Any] | None = None,
        titles: list[dict[str, Any]] | None = None, profiles: list[dict[str, Any]] | None = None,
        carried_by: str = "", **scp: Any,
    ) -> Node:
        folder = data or tmp_path / f"node{len(nodes)}"
        overrides: dict[str, Any] = {
            "scp": {"host": "127.0.0.1", "port": 0, **scp},
            "network": {"transport": carried_by or transport_name},
            "tls": tls or {},
            "archive": {
                "data": str(folder), "overwrite": overwrite, "reserve_mb": 0, "patient_mismatch": patient_mismatch,
            },
            "application_entities": entities or [],
            "ae_titles": titles or [],
            "deidentification": profiles or [],
        }
        settings = load_settings(environment={}, overrides=overrides)
        archive = Archive.from_settings(settings.archive)
        server = Server(archive, settings, similarity(archive) if similarity else None)
        server.start()
        nodes.append(Node(archive, settings, server))
        return nodes[-1]

    yield start
    for node in nodes:
        node.server.stop(1.0)
        node.archive.close()
    assert answers.undeclared([node.settings for node in nodes]) == {}


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """Make a small CT image; keywords set attributes, None deletes one."""

    def make(number: int = 1, *, transfer_syntax: str = ExplicitVRLittleEndian, **values: Any) -> Dataset:
        dataset = Dataset()
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.9.7133.9.{number}"
        dataset.StudyInstanceUID = "1.2.826.0.1.3680043.9.7133.1"
        dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.9.7133.2"
        dataset.PatientID, dataset.PatientName = "P1", "Doe^Jane"
        dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20240102", "101500", "CT"
        dataset.AccessionNumber, dataset.StudyID, dataset.StudyDescription = "A1", "S1", "Head"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, number
        dataset.Rows = dataset.Columns = 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = np.full((8, 8), number, np.uint16).tobytes()
        for keyword, value in values.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
        return dataset

    return make


@pytest.fixture
def make_file(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> Callable[..., Path]:
    """Write what `make_dataset` makes as a Part 10 file and return its path."""

    def make(number: int = 1, **values: Any) -> Path:
        path = tmp_path / f"object{number}-{len(list(tmp_path.glob('object*')))}.dcm"
        make_dataset(number, **values).save_as(path, enforce_file_format=True)
        return path

    return make


@pytest.fixture(scope="session")
def dcmtk() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a DCMTK tool. Its absence is a failure: these peers are what the tests are about."""

    def run(tool: str, *arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
        path = shutil.which(tool)
        assert path is not None, f"DCMTK's {tool} is not installed (apt-get install dcmtk)"
        result = subprocess.run(
            [path, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=600, check=False
        )
        result.stdout += result.stderr
        if check:
            assert result.returncode == 0, result.stdout
        return result

    return run


_UNTOLD = r"Missing attribute Type 1C Conditional Element=<({elements})> Module=<{macro}>"
DCIODVFY_FALSE_POSITIVES = (
    # Its condition asks for (0018,9462) at the top of the data set; the standard has it in the functional groups.
    r"Attribute present when condition unsatisfied .*Element=<PositionOfIsocenterProjection> Module=<XRayDetector>",
    # Required of original images only (PS3.3 C.8.15.3.3, .8, .9). It goes by Frame Type, which CT images do not have.
    _UNTOLD.format(macro="CTExposureMacro", elements="ExposureTimeInms|XRayTubeCurrentInmA|ExposureInmAs"),
    _UNTOLD.format(macro="CTExposureMacro", elements="ExposureModulationType"),
    _UNTOLD.format(macro="CTXRayDetailsMacro", elements="FocalSpots|FilterType|FilterMaterial"),
    _UNTOLD.format(macro="CTAcquisitionDetailsMacro", elements="SingleCollimationWidth|TotalCollimationWidth"),
    _UNTOLD.format(macro="CTAcquisitionDetailsMacro", elements="TableHeight|GantryDetectorTilt|DataCollectionDiameter"),
    # Two or more items (PS3.3 C.8.15.3.13); it wants one.
    r"Bad (Sequence number of Items \d|attribute Value Multiplicity) .*Element=<DecompositionMaterialSequence> .*",
    # A label map is a segmentation since Supplement 243; it knows the older SOP Classes of segmentations only.
    r"Shall not be present for Referenced SOP Class that is not segmentation - attribute <ReferencedSegmentNumber>",
)


@pytest.fixture(scope="session")
def validator_errors() -> Callable[[Path], list[str]]:
    """What dciodvfy calls an error in a file, beyond its known false positives."""
    tool = Path(sys.executable).with_name("dciodvfy")
    assert tool.exists(), "dciodvfy is not installed (it comes with the package dicom3tools)"

    def errors(path: Path) -> list[str]:
        told = subprocess.run([tool, str(path)], capture_output=True, text=True, check=False)
        lines = (told.stdout + told.stderr).splitlines()
        assert lines, "dciodvfy said nothing, not even what it recognised"
        told = [line.removeprefix("Error - ") for line in lines if line.startswith("Error")]
        return [line for line in told if not any(re.fullmatch(known, line) for known in DCIODVFY_FALSE_POSITIVES)]

    return errors


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait until a condition holds; fail when it does not within `timeout` seconds."""

    def wait(condition: Callable[[], Any], timeout: float = 300.0) -> None:
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f"did not happen within {timeout:.0f} s"
            pause.wait(0.05)

    return wait


@pytest.fixture
def tharsis() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line and return what it printed."""

    def run(*arguments: Any, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "tharsis", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "250", "NO_COLOR": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )

    return run


class ServedNode:
    """A node in processes of its own, started by `tharsis serve`."""

    def __init__(self, folder: Path, settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.config = folder / "tharsis.toml"
        self._log = folder / "log.txt"
        self.config.write_text(settings.replace("DATA", str(self.data)), encoding="utf-8")
        self.port = 0
        self._popen: subprocess.Popen[str] | None = None
        self._archive: Archive | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "tharsis", "serve", "--config", str(self.config)]
        if self.port:
            command += ["--port", str(self.port)]
        with self._log.open("a", encoding="utf-8") as log:
            self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        told = re.search(r"listens on \S+:(\d+)", line)
        assert told, f"the node did not start: {line}{self.log()}"
        self.port = int(told[1])

    @property
    def peer(self) -> Any:
        from scp.requestor import Peer

        return Peer("127.0.0.1", self.port, "THARSIS")

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def processes(self) -> dict[str, int]:
        """Name → PID of everything that the node consists of."""
        state = self.state()
        return {"supervisor": state["pid"], **state["processes"]}

    def state(self) -> dict[str, Any]:
        """What the running node says of itself."""
        return json.loads((self.data / "node.json").read_text(encoding="utf-8"))

    @staticmethod
    def alive(pids: Iterable[int]) -> list[int]:
        """Those of `pids` that run (a zombie does not)."""
        running = []
        for pid in pids:
            try:
                state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                running.append(pid)
        return running

    def jobs(self) -> dict[str, int]:
        """Number of jobs by state, recurring ones aside."""
        self._archive = self._archive or Archive(self.data)
        return dict(self._archive.database.execute(
            "SELECT state, count(*) FROM job "
            "WHERE kind NOT IN ('scrub', 'retention', 'look_after_vectors') GROUP BY state"
        ).fetchall())

    def kill(self) -> None:
        """Kill every process of the node at once, as a power cut would, and wait until none is left."""
        pids = self.processes().values()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()
        pause = threading.Event()
        while self.alive(pids):
            pause.wait(0.01)

    def wait(self) -> int:
        assert self._popen is not None
        return self._popen.wait(300)

    def end(self) -> None:
        """Stop the node if it runs."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(60)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        if self._popen is not None and self._popen.stdout is not None:
            self._popen.stdout.close()


@contextlib.contextmanager
def serving(folder: Path, transport: str) -> Iterator[Callable[..., ServedNode]]:
    """Start nodes with `tharsis serve` on free ports of 127.0.0.1; all are ended, by their ids, after the block.

    To save time they draw no picture of the quality of scans, unless `more` says so, and one process accepts.
    """
    nodes: list[ServedNode] = []

    def start(
        *, settle_time_s: float = 0.5, accept_unknown: bool = True, acceptors: int = 1, stop_grace_s: float = 2.0,
        scp: str = "", more: str = "",
    ) -> ServedNode:
        settings = (
            f'[network]\ntransport = "{transport}"\nacceptors = {acceptors}\n[scp]\nhost = "127.0.0.1"\nport = 0\n'
            f'accept_unknown = {str(accept_unknown).lower()}\nstop_grace_s = {stop_grace_s}\n{scp}'
            f'[archive]\ndata = "DATA"\nsettle_time_s = {settle_time_s}\nreserve_mb = 0\n{more}'
            + ("" if "[scan_quality]" in more else "\n[scan_quality]\nenabled = false\n")
        )
        nodes.append(ServedNode(folder / f"served{len(nodes)}", settings))
        nodes[-1].start()
        return nodes[-1]

    try:
        yield start
    finally:
        for node in nodes:
            node.end()


@pytest.fixture
def serve(tmp_path: Path, transport_name: str) -> Iterator[Callable[..., ServedNode]]:
    """Start nodes for one test; see `serving`."""
    with serving(tmp_path, transport_name) as start:
        yield start


@pytest.fixture(scope="module")
def serve_all(tmp_path_factory: pytest.TempPathFactory, transport_name: str) -> Iterator[Callable[..., ServedNode]]:
    """Start nodes that tests of a file share, where each leaves the others their ground; see `serving`."""
    with serving(tmp_path_factory.mktemp("shared"), transport_name) as start:
        yield start


@pytest.fixture
def make_instance(make_dataset: Callable[..., Dataset]) -> Callable[..., bytes]:
    """Make what `make_dataset` makes as the bytes of a Part 10 file; ``meta`` sets File Meta Information."""

    def make(number: int = 1, *, meta: dict[str, Any] | None = None, **values: Any) -> bytes:
        dataset = make_dataset(number, **values)
        for keyword, value in (meta or {}).items():
            setattr(dataset.file_meta, keyword, value)
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    return make


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty archive whose series are stable at once."""
    return Archive(tmp_path / "archive", settle_time_s=0.0)


@pytest.fixture(scope="session")
def torso_objects(shared_data: Path) -> Callable[..., list[Dataset]]:
    """Make the P1 objects of ``torso_full``: a real CT, projected and counted by another projector."""

    def make(**acquisition: Any) -> list[Dataset]:
        from reconstruct.geometry import ConeBeamGeometry
        from reconstruct.projections.acquisition import Acquisition, CounterImages, Exposure
        from reconstruct.projections.p1_writer import write_p1
        from reconstruct.projections.scan import EnergyBin

        folder = shared_data / "projections" / "torso_full"
        told = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
        measured, views = np.load(folder / "scan.npz"), np.load(folder / "views.npz")
        rows, columns = measured["counts"].shape[2:]
        geometry = ConeBeamGeometry.from_matrices(
            views["projection_matrix"],
            rows=rows,
            columns=columns,
            source_to_detector_mm=told["source_to_detector_mm"],
        )
        np.testing.assert_allclose(geometry.sources, views["source_mm"], atol=1e-6)
        edges = [*told["thresholds_kev"], None]
        counters = [
            CounterImages(
                EnergyBin(k + 1, edges[k], edges[k + 1], told["effective_kev"][k], 10 * told["mu_water_per_mm"][k]),
                measured["counts"][k],
                measured["flat"][k][None],
            )
            for k in range(3)
        ]
        header = Dataset()
        header.PatientName, header.PatientID = "Torso^Full", "TORSO"
        # The flats hold eight times the counts of an open view.
        exposure = Exposure(kvp=120.0, view_ms=10.0, flat_ms=80.0)
        return write_p1(counters, geometry, header, Acquisition(exposure=exposure, **acquisition))

    return make


@pytest.fixture(scope="session")
def transmit() -> Callable[..., Dataset]:
    """Encode an Identifier as the network edge does, and read it as a peer does: decoded no further than at once."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset
    from pydicom.filewriter import write_dataset

    from index.charset import encoded

    def transmit(dataset: Dataset, *, implicit: bool = False) -> Dataset:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
        write_dataset(buffer, encoded(dataset))
        buffer.seek(0)
        return read_dataset(buffer, is_implicit_VR=implicit, is_little_endian=True)

    return transmit


@pytest.fixture(scope="session")
def ask(transmit: Callable[..., Dataset], same_answers: Callable[..., int]) -> Callable[..., list[Dataset]]:
    """Ask an archive with an Identifier of these keys; return the answers. Both go through their encoding."""
    from index.query import BASELINE, Model, count, find, parse_identifier

    def ask(
        archive: Archive, level: str | None = "STUDY", *, model: Any = Model.STUDY_ROOT, options: Any = BASELINE,
        supported: bool | None = None, **values: Any,
    ) -> list[Dataset]:
        identifier = Dataset()
        if level is not None:
            identifier.QueryRetrieveLevel = level
        for keyword, value in values.items():
            setattr(identifier, keyword, value)
        query = parse_identifier(transmit(identifier), model, options=options)
        assert supported in (None, query.all_supported)
        answers = [transmit(answer) for answer in find(archive, query)]
        assert len(answers) == count(archive, query)
        same_answers(archive, query)
        return answers

    return ask


@pytest.fixture(scope="session")
def same_answers() -> Callable[..., int]:
    """Require that answers encoded from rows are, byte for byte, the encoded data sets; how many came from rows."""
    from pynetdicom.dsutils import encode

    from index.answers import IS_IMPLICIT, answers, with_edge
    from index.charset import encoded
    from index.query import find

    edge = {"RetrieveAETitle": "THARSIS", "InstanceAvailability": "ONLINE"}

    def same(archive: Archive, query: Any) -> int:
        from_rows = 0
        for syntax, is_implicit in IS_IMPLICIT.items():
            by_row, by_data_set = answers(archive, query, edge, syntax), find(archive, query)
            for quick, dataset in zip(by_row, by_data_set, strict=True):
                if isinstance(quick, bytes):
                    from_rows += 1
                    assert quick == encode(encoded(with_edge(dataset, edge)), is_implicit, is_little_endian=True)
                else:
                    assert encoded(quick) == encoded(with_edge(dataset, edge))
        return from_rows

    return same
