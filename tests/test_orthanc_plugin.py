"""An Orthanc that our script turns into a Tharsis: a real Orthanc, a real node, real peers, and deaths of both.

The moments of death and what is sent follow from one seed, which a failure shows; ``ORTHANC_KILL_SEED`` and
``ORTHANC_KILL_ROUNDS`` set it and the number of rounds for a longer run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthanc_site import Site, wait_for
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context

from index import elsewhere, jobs
from index.keys import Level
from plugins.orthanc.comparing import ONCE
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_MOVE
from scp.requestor import Peer

ROUNDS = int(os.environ.get("ORTHANC_KILL_ROUNDS", "3"))
SEED = int(os.environ.get("ORTHANC_KILL_SEED", "20261128"))
ROOT = "1.2.826.0.1.3680043.9.7133.60"
SLICES, SIDE = 12, 48

pytestmark = pytest.mark.slow


def ct_study(folder: Path, number: int, *, wide: bool = False) -> str:
    """Write a small CT study: bone in water in air. Returns its Series Instance UID."""
    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = np.mgrid[:SLICES, :SIDE, :SIDE].astype(float)
    radius = np.hypot(y - SIDE / 2, (x - SIDE / 2) * (0.7 if wide else 1.0))
    volume = np.full(z.shape, -1000.0)
    volume[radius < 18] = 0.0
    volume[np.hypot(y - SIDE / 2, x - SIDE / 2 - number % 5) < 6] = 900.0
    volume += np.random.default_rng(number).normal(0, 8, volume.shape)
    series = f"{ROOT}.{number}.1"
    for k in range(SLICES):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{series}.{k + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.{number}", series
        dataset.FrameOfReferenceUID = f"{ROOT}.{number}.9"
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = f"O{number}", f"Case^{number}", ""
        dataset.PatientSex, dataset.StudyID, dataset.AccessionNumber = "", "1", f"AO{number}"
        dataset.ReferringPhysicianName, dataset.StudyDate, dataset.StudyTime = "", "20260102", "101500"
        dataset.StudyDescription, dataset.SeriesDescription, dataset.Modality = "Leg", f"Case {number}", "CT"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, k + 1
        dataset.ImageType, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 120
        dataset.Manufacturer, dataset.PositionReferenceIndicator = "", ""
        dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -1024, 1, "HU"
        dataset.Rows = dataset.Columns = SIDE
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = np.clip(volume[k] + 1024, 0, 4095).astype(np.uint16).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{k + 1}.dcm", enforce_file_format=True)
    return series


class Receiver:
    """A Storage SCP that notes who sends what, and refuses what it is told to."""

    def __init__(self, contexts=AllStoragePresentationContexts):
        self.stored: dict[str, str] = {}
        self.originators: set[str] = set()
        self.refused: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        entity = AE("RECEIVER")
        entity.supported_contexts = [build_context(each.abstract_syntax) for each in contexts][:128]
        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._on_store)]
        )
        self.port = self._server.socket.getsockname()[1]

    def _on_store(self, event):
        self.gate.wait(60)
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in self.refused:
            return 0xA700
        self.stored[uid] = event.assoc.requestor.ae_title
        self.originators.add(str(event.request.MoveOriginatorApplicationEntityTitle))
        return 0x0000

    def close(self):
        self.gate.set()
        self._server.shutdown()


@pytest.fixture(scope="module")
def receiver():
    receiver = Receiver([build_context(CTImageStorage)])
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> dict[str, Path]:
    """Folders of what is sent to Orthanc: a spectral scan, and three CT studies."""
    folder = tmp_path_factory.mktemp("sent")
    scan = folder / "scan"
    size = ["--views", "48", "--rows", "24", "--columns", "32"]
    command = [sys.executable, "-P", "-m", "tharsis", "simulate-scan", "--phantom", "plaque", *size, "--out", str(scan)]
    subprocess.run(command, check=True, capture_output=True)
    for number in (1, 2, 3):
        ct_study(folder / f"ct{number}", number, wide=number == 3)
    return {path.name: path for path in folder.iterdir()}


def storescu(dicom_port: int, *folders: Path, check: bool = True) -> bool:
    files = [str(file) for folder in folders for file in sorted(folder.iterdir())]
    told = subprocess.run(
        ["storescu", "-aec", "ORTHANC", "127.0.0.1", str(dicom_port), *files],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if check:
        assert told.returncode == 0, told.stderr
    return told.returncode == 0


def is_idle(site: Site) -> bool:
    """Whether nothing is left to do, but for the comparison that comes again by itself."""
    archive = site.archive
    asked = [job for job in archive.jobs.recent(states=("queued", "running")) if job.parameters == ONCE]
    return not asked and not {"queued", "running"} & set(archive.jobs.counts())


@pytest.fixture(scope="module")
def site(tmp_path_factory, sent, receiver):
    """Orthanc and node, when all that was sent has been worked on."""
    site = Site(
        tmp_path_factory.mktemp("site"),
        more='[segmentation]\nimages = "ct"\n[report]\nenabled = false\npicture = false\n',
        entities='[[application_entities]]\ntitle = "DOCTOR"\nrights = ["find", "move", "similar"]\n',
        DicomModalities={
            "receiver": ["RECEIVER", "127.0.0.1", receiver.port],
            "nobody": ["NOBODY", "127.0.0.1", 9],
        },
    )
    try:
        storescu_before_the_node(site, sent)
        for modality, count in (("SEG", 4), ("OT", 1)):
            wait_for(
                lambda modality=modality, count=count: len(site.orthanc.by_modality().get(modality, ())) == count,
                told=lambda: describe(site),
            )
        wait_for(lambda: is_in_line(site) and is_idle(site), told=lambda: describe(site))
        yield site
    finally:
        site.end()


def storescu_before_the_node(site: Site, sent: dict[str, Path]) -> None:
    """The node is off while Orthanc takes in the first study: what waits in the spool is not lost."""
    site.orthanc.start()
    storescu(site.orthanc.dicom, sent["ct1"])
    wait_for(lambda: "does not answer" in site.orthanc.log())
    site.node.start()
    storescu(site.orthanc.dicom, sent["scan"], sent["ct2"], sent["ct3"])


def is_in_line(site: Site) -> bool:
    """Whether every series of Orthanc's has been looked at since it became stable."""
    database = site.archive.database
    found = [elsewhere.find_series(database, each["ID"]) for each in site.orthanc.series()]
    return all(noted is not None and noted.content for noted in found)


def describe(site: Site) -> str:
    archive = site.archive
    found = Counter((job.kind, job.state, job.error) for job in archive.jobs.recent())
    return f"{site.orthanc.by_modality()}, {found}, {site.node.log()[-1500:]}, {site.orthanc.log()[-1500:]}"


def sim(site: Site) -> Peer:
    return Peer("127.0.0.1", site.node.port, "THARSIS_SIM")


DOCTOR = Requestor("DOCTOR")


def identifier(level: str, **keys) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_scan_and_ct_studies_come_back_as_ct_and_seg(site, sent):
    found = site.orthanc.by_modality()
    # OT: the picture of the scan's quality.
    assert {modality: len(uids) for modality, uids in found.items()} == {"XA": 1, "CT": 4 + 3, "SEG": 4, "OT": 1}
    assert all(len(set(uids)) == len(uids) for uids in found.values()), "nothing twice"
    made = [uid for uid in found["CT"] if not uid.startswith(ROOT)]
    scan_study = pydicom.dcmread(next(sent["scan"].iterdir()), stop_before_pixels=True).StudyInstanceUID
    for each in site.orthanc.series():
        tags = each["MainDicomTags"]
        study = site.orthanc.get(f"/studies/{each['ParentStudy']}")["MainDicomTags"]["StudyInstanceUID"]
        if tags["SeriesInstanceUID"] in made:
            assert study == scan_study
    referenced = set()
    for uid in found["SEG"]:
        (instance,) = site.orthanc.get(f"/series/{site.orthanc.id_of(uid)}")["Instances"]
        dataset = pydicom.dcmread(BytesIO(site.orthanc.ask(f"/instances/{instance}/file")[1]))
        referenced.add(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
    assert referenced >= {f"{ROOT}.{number}.1" for number in (1, 2, 3)}
    assert len(referenced & set(made)) == 1, "of the scan, the first energy bin is segmented"


def test_node_and_orthanc_hold_the_same_bytes(site):
    archive = site.archive
    for each in site.orthanc.series():
        for orthanc_id in each["Instances"]:
            content = site.orthanc.ask(f"/instances/{orthanc_id}/file")[1]
            uid = site.orthanc.get(f"/instances/{orthanc_id}")["MainDicomTags"]["SOPInstanceUID"]
            assert archive.open_instance(uid).sha256 == hashlib.sha256(content).hexdigest()
    assert not archive.jobs.recent(states=("failed",))


def test_what_is_in_line_is_not_fetched_again(site, tharsis):
    archive = site.archive
    before = archive.database.execute("SELECT count(*), max(id) FROM instance").fetchone()
    pulls = [job.id for job in archive.jobs.recent() if job.kind == "orthanc_pull"]
    told = tharsis("orthanc", "compare", "--config", site.node.config)
    assert told.returncode == 0, told.stderr
    wait_for(lambda: is_idle(site))
    assert archive.database.execute("SELECT count(*), max(id) FROM instance").fetchone() == before
    assert [job.id for job in archive.jobs.recent() if job.kind == "orthanc_pull"] == pulls


def test_rest_answers_ranked_neighbours(site):
    series = site.orthanc.id_of(f"{ROOT}.1.1")
    told = site.orthanc.get(f"/tharsis/similar/{series}?k=3&exclude=SAME_STUDY")
    neighbours = told["neighbours"]
    assert [each["rank"] for each in neighbours] == [1, 2, 3]
    scores = [each["score"] for each in neighbours]
    assert scores == sorted(scores, reverse=True)
    assert neighbours[0]["seriesInstanceUid"] == f"{ROOT}.2.1", "the other round one is next"
    assert neighbours[0]["patientId"] == "O2"
    for each in neighbours:
        assert site.orthanc.id_of(each["seriesInstanceUid"]) == each["orthancSeries"]
        assert site.orthanc.ask(f"/instances/{each['orthancInstance']}/preview")[0] == 200
    assert site.orthanc.get(f"/tharsis/similar/{ROOT}.1.1?k=1")["neighbours"][0]["rank"] == 1, "by UID as well"
    study = site.orthanc.get(f"/series/{series}")["ParentStudy"]
    of_study = site.orthanc.get(f"/tharsis/similar/{study}?k=2")
    assert of_study["query"]["level"] == "STUDY"
    assert of_study["query"]["orthancStudy"] == told["query"]["orthancStudy"] == study
    assert len(of_study["neighbours"]) == 2
    assert "similar cases asked in Orthanc by doctor" in site.node.log()


@pytest.mark.parametrize(
    ("path", "method", "status", "sentence"),
    [
        ("/tharsis/similar/00000000-00000000-00000000-00000000-00000000", "GET", 404, "has not taken in"),
        ("/tharsis/similar/1.2.3", "GET", 404, "no series 1.2.3"),
        (f"/tharsis/similar/{ROOT}.1.1?k=many", "GET", 400, "a whole number"),
        (f"/tharsis/similar/{ROOT}.1.1?exclude=SOME", "GET", 400, "SOME"),
        (f"/tharsis/similar/{ROOT}.1.1", "POST", 405, ""),
        ("/tharsis/again/1.2.3", "POST", 404, "no series 1.2.3"),
    ],
)
def test_rest_refuses_in_one_sentence(site, path, method, status, sentence):
    code, body = site.orthanc.ask(path, method, {} if method == "POST" else None)
    assert code == status
    assert sentence in body.decode()


def test_the_explorer_has_buttons_and_there_is_a_page(site):
    script = site.orthanc.ask("/app/explorer.js")[1].decode() + site.orthanc.ask("/plugins/explorer.js")[1].decode()
    for text in ("Similar cases", "Process again", "Tharsis status"):
        assert text in script
    code, page = site.orthanc.ask(f"/tharsis/view/{site.orthanc.id_of(f'{ROOT}.1.1')}")
    assert code == 200
    assert b"<h1>Similar cases</h1>" in page
    told = site.orthanc.get(f"/tharsis/status?series={site.orthanc.id_of(f'{ROOT}.1.1')}")
    assert told["series"]["isTakenIn"]
    assert told["series"]["seriesMade"] == {"segment": 1}
    assert told["series"]["imagesEmbedded"] > 0


def test_the_shell_says_whether_all_is_in_place(site, tharsis):
    told = tharsis("orthanc", "check", "--config", site.node.config, "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    assert all(finding["good"] for finding in json.loads(told.stdout))


def test_the_similarity_ae_answers_over_orthancs_content_and_orthanc_moves(site, receiver):
    asked = identifier("SERIES", PatientID=f"~{ROOT}.1.1:k=2", StudyInstanceUID=None, SeriesInstanceUID=None,
                       Modality="CT", StudyDescription=None)  # fmt: skip
    found = list(client.find(sim(site), asked, STUDY_ROOT_FIND, DOCTOR, relational=True))
    assert len(found) == 2
    assert found[0].SeriesInstanceUID == f"{ROOT}.2.1"
    wanted = identifier("SERIES", StudyInstanceUID=found[0].StudyInstanceUID, SeriesInstanceUID=f"{ROOT}.2.1")
    answers = list(client.move(sim(site), wanted, "RECEIVER", STUDY_ROOT_MOVE, DOCTOR))
    assert answers[-1].status.is_success
    assert answers[-1].counts.completed == SLICES
    assert {uid: who for uid, who in receiver.stored.items() if uid.startswith(f"{ROOT}.2.1.")} == {
        f"{ROOT}.2.1.{k + 1}": "ORTHANC" for k in range(SLICES)
    }
    assert receiver.originators == {"THARSIS"}


def test_an_instance_that_the_destination_refuses_is_the_one_that_is_named(site, receiver):
    receiver.refused = {f"{ROOT}.3.1.5"}
    wanted = identifier("SERIES", StudyInstanceUID=f"{ROOT}.3", SeriesInstanceUID=f"{ROOT}.3.1")
    *_, final = client.move(sim(site), wanted, "RECEIVER", STUDY_ROOT_MOVE, DOCTOR)
    receiver.refused = set()
    assert final.status.code == 0xB000
    assert (final.counts.completed, final.counts.failed) == (SLICES - 1, 1)
    assert final.identifier.FailedSOPInstanceUIDList == f"{ROOT}.3.1.5"
    assert sum(uid.startswith(f"{ROOT}.3.1.") for uid in receiver.stored) == SLICES - 1


@pytest.mark.parametrize("destination", ["NOBODY", "UNHEARD_OF"])
def test_a_destination_that_orthanc_cannot_reach_fails_with_all_that_was_to_go(site, destination):
    wanted = identifier("SERIES", StudyInstanceUID=f"{ROOT}.3", SeriesInstanceUID=f"{ROOT}.3.1")
    *_, final = client.move(sim(site), wanted, destination, STUDY_ROOT_MOVE, DOCTOR)
    assert final.status.code == 0xA702
    assert final.counts.failed == SLICES
    assert len(final.identifier.FailedSOPInstanceUIDList) == SLICES


def test_a_cancel_is_passed_on(site, receiver):
    receiver.gate.clear()
    entity = AE("DOCTOR")
    entity.add_requested_context(STUDY_ROOT_MOVE)
    assoc = entity.associate("127.0.0.1", site.node.port, ae_title="THARSIS_SIM")
    wanted = identifier("STUDY", StudyInstanceUID=[f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"])
    statuses = []
    for status, _ in assoc.send_c_move(wanted, "RECEIVER", STUDY_ROOT_MOVE, msg_id=7):
        statuses.append(status)
        if len(statuses) == 1:
            assoc.send_c_cancel(7, query_model=STUDY_ROOT_MOVE)
    receiver.gate.set()
    assoc.release()
    assert statuses[-1].Status == 0xFE00
    assert statuses[-1].NumberOfRemainingSuboperations > 0


def test_the_plain_ae_sends_itself_and_knows_its_own_destinations_only(site):
    wanted = identifier("STUDY", StudyInstanceUID=f"{ROOT}.1")
    peer = Peer("127.0.0.1", site.node.port, "THARSIS")
    *_, final = client.move(peer, wanted, "RECEIVER", STUDY_ROOT_MOVE, DOCTOR)
    assert final.status.code == 0xA801


def test_a_node_that_hangs_costs_a_sentence_and_keeps_nobody_else_waiting(site):
    process = site.node.processes()["orthanc"]
    series = site.orthanc.id_of(f"{ROOT}.1.1")
    answers: list[tuple[int, bytes]] = []
    os.kill(process, signal.SIGSTOP)
    try:
        asking = [
            threading.Thread(target=lambda: answers.append(site.orthanc.ask(f"/tharsis/similar/{series}")))
            for _ in range(12)
        ]
        for thread in asking:
            thread.start()
        assert site.orthanc.get("/system")["Version"], "Orthanc answers meanwhile"
        assert any(thread.is_alive() for thread in asking)
        for thread in asking:
            thread.join(300)
    finally:
        os.kill(process, signal.SIGCONT)
    assert [status for status, _ in answers] == [503] * 12
    told = [json.loads(body)["error"] for _, body in answers]
    assert sum("8 requests are waiting for the Tharsis node already" in sentence for sentence in told) == 4
    assert sum("does not answer: timed out" in sentence for sentence in told) == 8
    wait_for(lambda: site.orthanc.ask(f"/tharsis/similar/{series}")[0] == 200)


def of_orthanc(site: Site, series_uid: str) -> dict[str, str]:
    """SHA-256 of each instance of a series in Orthanc, by SOP Instance UID."""
    return {
        each["MainDicomTags"]["SOPInstanceUID"]: hashlib.sha256(
            site.orthanc.ask(f"/instances/{each['ID']}/file")[1]
        ).hexdigest()
        for each in site.orthanc.get(f"/series/{site.orthanc.id_of(series_uid)}/instances")
    }


def of_node(site: Site, series_uid: str) -> dict[str, str]:
    """The same in the node."""
    return dict(site.archive.database.execute(
        "SELECT sop_instance_uid, sha256 FROM instance JOIN series ON series.id = instance.series "
        "WHERE series_instance_uid = ?", (series_uid,),
    ).fetchall())  # fmt: skip


def altered(path: Path) -> bytes:
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "made anew"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_what_is_made_anew_takes_the_place_of_the_older_version_in_orthanc(site):
    series = next(uid for uid in site.orthanc.by_modality()["CT"] if not uid.startswith(ROOT))
    archive = site.archive
    before = of_node(site, series)
    assert of_orthanc(site, series) == before
    changed, dropped = sorted(before)[:2]
    archive.ingest(altered(archive.open_instance(changed).path), overwrite="always", announce=False)
    archive.delete(Level.IMAGE, dropped)
    archive.jobs.push(jobs.ORTHANC_PUSH, series)
    wait_for(lambda: dropped not in of_orthanc(site, series), told=lambda: describe(site))
    wait_for(lambda: is_in_line(site) and is_idle(site), told=lambda: describe(site))
    assert of_orthanc(site, series) == of_node(site, series)
    assert of_node(site, series).keys() == before.keys() - {dropped}, "Orthanc's deletions were our own"
    assert of_node(site, series)[changed] != before[changed]


def test_what_is_replaced_in_orthanc_is_fetched_again(site):
    series, archive = f"{ROOT}.3.1", site.archive
    before = of_orthanc(site, series)
    changed = f"{series}.1"
    content = altered(archive.open_instance(changed).path)
    (found,) = [
        each["ID"] for each in site.orthanc.get(f"/series/{site.orthanc.id_of(series)}/instances")
        if each["MainDicomTags"]["SOPInstanceUID"] == changed
    ]  # fmt: skip
    site.orthanc.ask(f"/instances/{found}", "DELETE")
    assert site.orthanc.ask("/instances", "POST", content)[0] == 200
    wait_for(lambda: of_node(site, series) == of_orthanc(site, series), told=lambda: describe(site))
    assert of_node(site, series)[changed] == hashlib.sha256(content).hexdigest() != before[changed]
    wait_for(lambda: is_in_line(site) and is_idle(site), told=lambda: describe(site))


def test_a_series_that_orthanc_deletes_is_no_neighbour_any_more(site):
    """Last of those that share the site: it takes a study away."""
    series = site.orthanc.id_of(f"{ROOT}.1.1")
    gone = site.orthanc.id_of(f"{ROOT}.2.1")

    def neighbours():
        told = site.orthanc.get(f"/tharsis/similar/{series}?k=20&exclude=SAME_STUDY")
        return {each["seriesInstanceUid"] for each in told["neighbours"]}

    assert f"{ROOT}.2.1" in neighbours()
    assert site.orthanc.ask(f"/series/{gone}", "DELETE")[0] == 200
    assert f"{ROOT}.2.1" not in neighbours(), "at once, whatever the node knows by then"
    archive = site.archive

    def left() -> int:
        return archive.database.execute(
            "SELECT count(*) FROM series WHERE series_instance_uid = ?", (f"{ROOT}.2.1",)
        ).fetchone()[0]

    wait_for(lambda: left() == 0)
    asked = identifier("SERIES", PatientID=f"~{ROOT}.1.1:k=20", StudyInstanceUID=None, SeriesInstanceUID=None)
    found = client.find(sim(site), asked, STUDY_ROOT_FIND, DOCTOR, relational=True)
    assert f"{ROOT}.2.1" not in [each.SeriesInstanceUID for each in found]


def test_deaths_at_random_lose_no_work_and_double_nothing(tmp_path):
    dice = random.Random(SEED)
    site = Site(
        tmp_path, more='[segmentation]\nimages = "ct"\n[report]\nenabled = false\npicture = false\n'
    )
    expected: set[str] = set()
    try:
        site.start()
        for number in range(ROUNDS):
            kill_while_it_works(site, dice, tmp_path, 100 + 10 * number, expected)
        wait_for(lambda: seg_sources(site) >= expected, told=lambda: f"seed {SEED}: {describe(site)}")
        wait_for(lambda: is_idle(site), told=lambda: f"seed {SEED}: {describe(site)}")
        check_nothing_is_lost(site, expected)
    finally:
        site.end()


def kill_while_it_works(site: Site, dice: random.Random, folder: Path, number: int, expected: set[str]) -> None:
    """Send two studies, let Orthanc, the node or both die somewhere on the way, and start again who died."""
    victims = dice.choice([("orthanc",), ("node",), ("orthanc", "node")])
    death = threading.Timer(dice.uniform(0.1, 5.0), lambda: [getattr(site, victim).kill() for victim in victims])
    death.start()
    try:
        for study in (number, number + 1):
            source = folder / f"sent{study}"
            expected.add(ct_study(source, study))
            while not storescu(site.orthanc.dicom, source, check=False):
                death.join()  # it was not answered: who sends, sends again
                if "orthanc" in victims and site.orthanc.is_dead:
                    site.orthanc.start()
    finally:
        death.join()
    if site.orthanc.is_dead:
        site.orthanc.start()
    if "node" in victims:
        site.node.start()


def seg_sources(site: Site) -> set[str]:
    """Series Instance UIDs that have a segmentation in Orthanc."""
    found = set()
    for uid in site.orthanc.by_modality().get("SEG", ()):
        for instance in site.orthanc.get(f"/series/{site.orthanc.id_of(uid)}")["Instances"]:
            with contextlib.suppress(pydicom.errors.InvalidDicomError):
                dataset = pydicom.dcmread(BytesIO(site.orthanc.ask(f"/instances/{instance}/file")[1]))
                found.add(str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID))
    return found


def check_nothing_is_lost(site: Site, expected: set[str]) -> None:
    found = site.orthanc.by_modality()
    assert sorted(found["CT"]) == sorted(expected), SEED
    assert len(found["SEG"]) == len(set(found["SEG"])) == len(expected), SEED
    archive = site.archive
    rows = archive.database.execute(
        "SELECT series_instance_uid, count(DISTINCT instance.id), count(DISTINCT embedding.id) FROM series "
        "JOIN instance ON instance.series = series.id LEFT JOIN embedding ON embedding.series = series.id "
        "WHERE modality = 'CT' GROUP BY series.id"
    ).fetchall()
    assert {uid: instances for uid, instances, _ in rows} == dict.fromkeys(expected, SLICES), SEED
    assert all(vectors > 1 for _, _, vectors in rows), SEED
    assert not archive.jobs.recent(states=("failed",)), SEED
