"""The node as its users run it: `tharsis serve`, signals, deaths and restarts. Real processes, real DCMTK."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from commands import tidying
from commands.supervisor import Supervisor
from config.settings import load_settings
from index.archive import Archive


@pytest.fixture(scope="module")
def standing(serve_all):
    """A node that the tests leave standing, however many of its processes they kill."""
    return serve_all()


def test_it_answers_stores_and_finds(standing, dcmtk, make_file):
    node = standing
    dcmtk("echoscu", "-aec", "THARSIS", "127.0.0.1", node.port)
    dcmtk("storescu", "-aec", "THARSIS", "127.0.0.1", node.port, make_file(1), make_file(2))
    found = dcmtk(
        "findscu", "-S", "-aec", "THARSIS", "127.0.0.1", node.port,
        "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=doe*", "-k", "NumberOfStudyRelatedInstances",
    ).stdout
    assert "Doe^Jane" in found
    assert "[2 ]" in found or "[2]" in found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_it_stops_cleanly_and_leaves_no_process(serve, number):
    node = serve()
    processes = node.processes()
    assert set(processes) == {"supervisor", "network", "worker-1", "encoder"}
    os.kill(processes["supervisor"], number)
    assert node.wait() == 0
    assert not node.alive(processes.values())
    assert not (node.data / "node.json").exists()


@pytest.fixture
def opened():
    """Open an association with a node."""
    entity = AE("PEER")
    entity.add_requested_context(Verification)
    return lambda node: entity.associate("127.0.0.1", node.port, ae_title="THARSIS")


def test_at_sigterm_an_open_association_may_finish(serve, opened, wait_until):
    node = serve(stop_grace_s=600.0)
    busy = opened(node)
    assert busy.is_established
    os.kill(node.processes()["supervisor"], signal.SIGTERM)
    wait_until(lambda: not opened(node).is_established)
    assert busy.send_c_echo().Status == 0x0000, "it was still open, and nobody new gets in"
    busy.release()
    assert busy.is_released
    assert node.wait() == 0


def test_at_sigterm_an_idle_association_is_aborted_after_the_grace(serve, opened, wait_until):
    node = serve(stop_grace_s=0.5)
    idle = opened(node)
    assert idle.is_established
    os.kill(node.processes()["supervisor"], signal.SIGTERM)
    assert node.wait() == 0
    wait_until(lambda: idle.is_aborted)


@pytest.mark.slow
def test_a_job_that_is_running_at_sigterm_goes_back_to_the_queue(serve, tharsis, wait_until, tmp_path):
    node = serve(settle_time_s=0.1)
    size = ["--views", 120, "--rows", 72, "--columns", 96]
    sent = tharsis("simulate-scan", "--phantom", "plaque", *size, "--peer", f"THARSIS@127.0.0.1:{node.port}")
    assert sent.returncode == 0, sent.stderr
    archive = Archive(node.data)
    wait_until(lambda: any(job.kind == "reconstruct" for job in archive.jobs.recent(states=("running",))))
    os.kill(node.processes()["supervisor"], signal.SIGTERM)
    assert node.wait() == 0
    assert not archive.jobs.recent(states=("running",))
    (job,) = [job for job in archive.jobs.recent(states=("queued",)) if job.kind == "reconstruct"]
    assert job.attempts == 0, "being stopped is no failed attempt"


@pytest.mark.parametrize("name", ["network", "worker-1", "encoder"])
def test_a_process_that_dies_is_restarted_and_said_so(standing, wait_until, dcmtk, name):
    node = standing
    dead = node.processes()[name]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: node.processes()[name] != dead)
    assert f"{name} (process {dead}) died of SIGKILL" in node.log()
    assert f"{name} restarted as process {node.processes()[name]}" in node.log()
    if name == "network":
        wait_until(lambda: dcmtk("echoscu", "-aec", "THARSIS", "127.0.0.1", node.port, check=False).returncode == 0)


def test_a_deletion_that_a_dead_process_left_half_done_is_finished(standing, wait_until):
    node = standing
    archive = Archive(node.data)
    left = node.data / "files" / "1" / "2" / "3-0.dcm"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"deleted")
    archive.database.execute("INSERT INTO removal (path) VALUES ('files/1/2/3-0.dcm')")
    os.kill(node.processes()["worker-1"], signal.SIGKILL)
    wait_until(lambda: not left.exists())
    wait_until(lambda: archive.database.execute("SELECT count(*) FROM removal").fetchone() == (0,))


class _Tidier:
    """Stands for the process that tidies up; ends when told."""

    def __init__(self):
        self.status = None

    def poll(self):
        return self.status


def test_those_who_die_while_somebody_is_tidied_up_after_share_the_next_time(tmp_path, monkeypatch):
    supervisor = Supervisor(load_settings(environment={}, overrides={"archive": {"data": tmp_path}}))
    tidied, tidiers = [], []

    def fork(run, name):
        monkeypatch.setattr(tidying, "run", lambda settings, dead, ties: tidied.append(dead))
        run(None)
        tidiers.append(_Tidier())
        return tidiers[-1]

    monkeypatch.setattr(supervisor, "_fork", fork)
    supervisor._tidy_after_deaths()
    assert tidied == []
    supervisor._dead.add(11)
    supervisor._tidy_after_deaths()
    supervisor._dead |= {12, 13}
    supervisor._tidy_after_deaths()
    assert tidied == [{11}]
    tidiers[0].status = 0
    supervisor._tidy_after_deaths()
    assert tidied == [{11}, {12, 13}]


def test_when_the_system_lets_it_have_no_process_the_others_go_on_and_it_tries_again(tmp_path, monkeypatch, caplog):
    supervisor = Supervisor(load_settings(environment={}, overrides={"archive": {"data": tmp_path}}))
    process = supervisor._processes[0]

    def fork(*_arguments, **_options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "_fork", fork)
    process.restart_at = 0.0
    supervisor._dead.add(11)
    supervisor._look_after(process)
    supervisor._tidy_after_deaths()
    assert process.restart_at > 0.0
    assert supervisor._dead == {11}
    assert "network cannot be restarted: Resource temporarily unavailable" in caplog.text


def test_a_start_clears_what_the_dead_left_and_nothing_that_an_import_is_bringing(serve):
    node = serve()
    node.kill()
    archive = Archive(node.data)
    left, bringing = archive.incoming / "1-left.part", archive.files.receive(b"half")
    left.write_bytes(b"half")
    odd = node.data / "files" / "1" / "2" / "odd.dcm"
    odd.mkdir(parents=True)
    node.start()
    assert (left.exists(), bringing.exists()) == (False, True)
    assert odd.exists(), "an oddity is for fsck: it keeps no node down"
    archive.files.release(bringing)


def test_a_start_that_cannot_settle_the_orphans_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    def fail(_archive):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tidying, "settle_orphans", fail)
    (tmp_path / "node.json").write_text("{}")
    tidying.before_the_start(load_settings(environment={}, overrides={"archive": {"data": tmp_path}}))
    assert "was not tidied up" in caplog.text


def test_its_processes_end_when_the_supervisor_is_killed(serve, wait_until):
    node = serve()
    processes = node.processes()
    os.kill(processes["supervisor"], signal.SIGKILL)
    wait_until(lambda: not node.alive(processes.values()))


def test_a_worker_that_prints_a_lot_goes_on(serve, wait_until, tmp_path, monkeypatch):
    """Nobody reads a process's standard output after its first line; 64 KiB would fill the pipe."""
    chatty = tmp_path / "chatty"
    chatty.mkdir()
    (chatty / "chatty.py").write_text(
        "from plugins.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def worker_started(archive, settings):\n"
        "    print('x' * 1_000_000, flush=True)\n"
        "    archive.jobs.push('chat', '1.2.3')\n"
        "@hookimpl\n"
        "def job_functions():\n"
        "    return {'chat': lambda task: print('y' * 1_000_000, flush=True)}\n"
    )
    facts = chatty / "chatty-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: chatty\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[tharsis.plugins]\nchatty = chatty\n")
    monkeypatch.setenv("PYTHONPATH", str(chatty), prepend=os.pathsep)
    node = serve()
    wait_until(lambda: node.jobs() == {"done": 1})


def test_a_second_node_on_the_same_data_is_refused_in_one_sentence(standing, tharsis):
    second = tharsis("serve", "--config", standing.config, "--port", "0")
    assert second.returncode == 1
    assert "another node is using the data folder" in second.stderr


def test_a_port_in_use_is_said_and_nothing_stays_behind(standing, tharsis, tmp_path):
    second = tharsis("serve", "--data", tmp_path / "other", "--port", str(standing.port))
    assert second.returncode == 1
    assert str(standing.port) in second.stderr
    assert "Traceback" not in second.stderr
    assert not (tmp_path / "other" / "node.json").exists()


def test_the_network_process_loads_no_kernel_no_plug_in_and_no_index(standing):
    mapped = Path(f"/proc/{standing.processes()['network']}/maps").read_text(encoding="utf-8")
    assert "/numpy/" in mapped, "the maps tell which libraries are loaded"
    for library in ("llvmlite", "numba", "torch", "skimage", "faiss"):  # faiss: not before somebody searches
        assert f"/{library}/" not in mapped, library


def test_no_process_waits_by_computing():
    """OpenBLAS reads the environment when it is loaded: by then it has to be set, in the process that is forked."""
    code = (
        "import os, sys, types\n"
        "from commands import serve\n"
        "from config.settings import load_settings\n"
        "def look(_settings):\n"
        "    print(os.environ['OPENBLAS_THREAD_TIMEOUT'], 'numpy' in sys.modules)\n"
        "    raise SystemExit\n"
        "sys.modules['commands.supervisor'] = types.SimpleNamespace(Supervisor=look)\n"
        "serve.run_node(load_settings(environment={}), print)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.split() == ["4", "False"]


def test_status_and_jobs_tell_what_the_node_does(serve, tharsis, wait_until, make_file, dcmtk):
    node = serve(settle_time_s=0.2)
    dcmtk("storescu", "-aec", "THARSIS", "127.0.0.1", node.port, make_file(1))
    wait_until(lambda: node.jobs().get("done", 0) >= 2)
    told = json.loads(tharsis("status", "--data", node.data, "--json").stdout)
    assert told["instances"] == 1
    assert told["node"]["port"] == node.port
    assert told["encoders"][0]["embeddings"] == 2
    kinds = {job["kind"] for job in json.loads(tharsis("jobs", "list", "--data", node.data, "--json").stdout)}
    assert kinds == {"series_stable", "embed", "scrub", "retention", "look_after_vectors"}


def test_an_unknown_caller_is_refused_when_the_settings_say_so(serve, dcmtk):
    node = serve(accept_unknown=False)
    refused = dcmtk("echoscu", "-aet", "NOBODY", "-aec", "THARSIS", "127.0.0.1", node.port, check=False)
    assert refused.returncode != 0
    assert "Calling AE Title Not Recognized" in refused.stdout
