"""The node's side without an Orthanc: the door, jobs that wait, what is noted of Orthanc, and its settings."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from config.settings import SettingsError, load_settings
from index import catalogue, derivations, elsewhere, jobs
from index.archive import Archive
from index.derivations import Output
from index.elsewhere import Held, OrthancSeries
from index.errors import NotEmbedded, OutOfSpace
from index.similarity import Similarity
from plugins.manager import load_plugins
from plugins.orthanc.answers import Answers
from plugins.orthanc.client import OrthancAway, OrthancClient
from plugins.orthanc.comparing import DELETIONS, ONCE, SUBJECT
from plugins.orthanc.door import Door
from plugins.worker import Worker

KEY = "0123456789abcdef"
SERIES, OTHER = "11111111-22222222-33333333-44444444-55555555", "aaaaaaaa-bbbbbbbb-cccccccc-dddddddd-eeeeeeee"
UID = "1.2.826.0.1.3680043.9.7133.2"


def settings_for(archive, **orthanc):
    return load_settings(environment={}, overrides={
        "archive": {"data": str(archive.data)},
        "jobs": {"max_attempts": 2, "retry_delay_s": 0.05},
        "orthanc": {"enabled": True, "key": KEY, "timeout_s": 60, **orthanc},
        "application_entities": [{"title": "ORTHANC", "host": "127.0.0.1", "port": 4242}],
    })  # fmt: skip


@pytest.fixture
def door(archive):
    door = Door(
        archive, Answers(archive, settings_for(archive), Similarity(archive)), host="127.0.0.1", port=0, key=KEY
    )
    yield door
    door.close()


def ask(door, path, content=None, key=KEY, method=None):
    data = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{door.port}{path}", data, method=method)
    request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


def test_notes_are_jobs_when_they_are_answered(door, archive, make_instance):
    archive.ingest(make_instance(1))
    with archive.transaction() as database:
        elsewhere.note_instance(database, Held("1.2.826.0.1.3680043.9.7133.9.1", OTHER, "v"), OTHER[::-1])
    told = ask(door, "/notes", {"stable": [SERIES], "deleted": [OTHER, SERIES[::-1]]})
    assert told == (200, {"taken": 3})
    queued = {job.subject: job for job in archive.jobs.recent() if job.kind == jobs.ORTHANC_PULL}
    assert set(queued) == {SERIES, OTHER[::-1]}, "of a deleted instance its series; what is not known here is nothing"
    assert queued[SERIES].not_before < time.time() - 1e6, "before all that a comparison has queued"


def test_a_greeting_makes_due_what_waits_and_has_the_lists_compared(door, archive):
    archive.jobs.push(jobs.ORTHANC_PULL, SERIES, not_before=time.time() + 1000)
    assert ask(door, "/hello", {})[0] == 200
    waiting = {job.kind: job for job in archive.jobs.recent()}
    assert waiting[jobs.ORTHANC_PULL].not_before <= time.time()
    assert (waiting[jobs.ORTHANC_COMPARE].subject, waiting[jobs.ORTHANC_COMPARE].parameters) == (SUBJECT, ONCE)


@pytest.mark.parametrize(
    ("path", "content", "key", "status", "sentence"),
    [
        ("/status", None, "another key", 401, "the key is not that of this node"),
        ("/status", None, "", 401, "the key"),
        ("/nothing", None, KEY, 404, "no GET /nothing"),
        ("/similar", None, KEY, 404, "no GET /similar"),
        ("/notes", b"{", KEY, 400, "no JSON"),
        ("/notes", b"[]", KEY, 400, "a JSON object"),
        ("/notes", {"stable": SERIES}, KEY, 400, "expected a list"),
        ("/notes", {"stable": ["../../etc"]}, KEY, 400, "no identifier"),
        (f"/similar/{SERIES}", None, KEY, 404, "has not taken in"),
        (f"/similar/{UID}", None, KEY, 404, "no series"),
        (f"/similar/{UID}?k=0", None, KEY, 404, "no series"),
        (f"/again/{UID}", {}, KEY, 404, "no series"),
    ],
)
def test_the_door_refuses_in_one_sentence(door, archive, path, content, key, status, sentence):
    code, told = ask(door, path, content, key)
    assert code == status
    assert sentence in told["error"]
    assert not archive.jobs.recent()


def test_a_body_that_is_too_long_is_not_read(door):
    connection = HTTPConnection("127.0.0.1", door.port, timeout=60)
    connection.putrequest("POST", "/notes")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"at most" in answer.read()
    connection.close()


def test_what_is_not_embedded_yet_is_409(door, archive, make_instance):
    archive.ingest(make_instance(1))
    assert ask(door, f"/similar/{UID}")[0] == 409


def test_a_series_can_be_looked_at_again(door, archive, make_instance):
    archive.ingest(make_instance(1), announce=False)
    with archive.transaction() as database:
        elsewhere.note_series(database, OrthancSeries(SERIES, OTHER, UID))
    assert ask(door, f"/again/{SERIES}", {}) == (200, {"queued": UID})
    assert {(job.kind, job.subject) for job in archive.jobs.recent()} == {
        (jobs.ORTHANC_PULL, SERIES), (jobs.SERIES_STABLE, UID)
    }  # fmt: skip
    assert ask(door, f"/status?series={SERIES}")[1]["series"]["isTakenIn"]


class StubOrthanc(BaseHTTPRequestHandler):
    """Answers every request as `status` and `body` of its server say."""

    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubOrthanc)
    server.status, server.body = 200, b"{}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def worker_for(archive, port, **orthanc):
    settings = settings_for(archive, url=f"http://127.0.0.1:{port}", **orthanc)
    return Worker(archive, settings, "orthanc", load_plugins(only=["orthanc"]), kinds=jobs.ORTHANC_KINDS)


@pytest.mark.parametrize("status", [401, 500, 503, 507])
def test_a_job_waits_for_orthanc_without_limit(archive, stub, wait_until, status):
    worker = worker_for(archive, stub.server_port)
    archive.jobs.push(jobs.ORTHANC_PULL, SERIES)
    stub.status = status
    for _ in range(5):  # more than max_attempts
        wait_until(worker.run_one)
    (job,) = archive.jobs.recent()
    assert (job.state, job.attempts) == ("queued", 0)
    assert str(status) in job.error
    stub.status = 404  # it is there again, and has no such series any more
    wait_until(worker.run_one)
    assert archive.jobs.recent()[0].state == "done"


def test_a_job_waits_when_nobody_listens(archive, reserved_port, wait_until):
    worker = worker_for(archive, reserved_port)
    archive.jobs.push(jobs.ORTHANC_PULL, SERIES)
    wait_until(worker.run_one)
    (job,) = archive.jobs.recent()
    assert (job.state, job.attempts) == ("queued", 0)
    assert "does not answer" in job.error


def test_what_orthanc_refuses_for_good_fails_with_its_reason(archive, stub, wait_until):
    stub.status, stub.body = 400, json.dumps({"Details": "no such thing"}).encode()
    archive.jobs.push(jobs.ORTHANC_PULL, SERIES)
    worker = worker_for(archive, stub.server_port)
    wait_until(worker.run_one)
    (job,) = archive.jobs.recent()
    assert job.state == "failed"
    assert "no such thing" in job.error


def test_no_room_is_waited_for_as_well(archive, stub, wait_until, monkeypatch):
    def full(*_arguments):
        raise OutOfSpace("0 MiB free")

    monkeypatch.setattr("plugins.orthanc.pulling._list", full)
    archive.jobs.push(jobs.ORTHANC_PULL, SERIES)
    wait_until(worker_for(archive, stub.server_port).run_one)
    (job,) = archive.jobs.recent()
    assert (job.state, job.error) == ("queued", "0 MiB free")


@pytest.fixture
def deletes(archive, stub, wait_until):
    """Have Orthanc delete the series of an instance that the node has pulled; return whether the node has it still."""

    def delete(uid):
        with archive.transaction() as database:
            elsewhere.note_instance(database, Held(uid, OTHER, "v"), SERIES)
        stub.status = 404
        archive.jobs.push(jobs.ORTHANC_PULL, SERIES)
        wait_until(worker_for(archive, stub.server_port).run_one)
        assert archive.jobs.recent()[0].state == "done"
        assert not elsewhere.held(archive.database, [uid])
        return catalogue.has_instance(archive.database, uid)

    return delete


@pytest.mark.parametrize(
    ("senders", "stays"),
    [
        (["ORTHANC"], False),
        (["ORTHANC", "ORTHANC"], False),
        (["CT1"], True),
        (["ORTHANC", "CT1"], True),
        (["CT1", "ORTHANC"], True),
        (["ORTHANC", ""], True),
        (["ORTHANC", "CT1", "ORTHANC", "CT1"], True),
        (["CT1", "CT2", "ORTHANC"], True),
    ],
)
def test_what_orthanc_deletes_goes_unless_others_have_sent_it_as_well(senders, stays, archive, make_instance, deletes):
    uids = {archive.ingest(make_instance(1), source_aet=sender).sop_instance_uid for sender in senders}
    assert deletes(uids.pop()) is stays


def test_who_sent_what_was_damaged_here_is_remembered(archive, make_instance, deletes):
    uid = archive.ingest(make_instance(1), source_aet="CT1").sop_instance_uid
    archive.open_instance(uid).path.write_bytes(b"damaged")
    archive.ingest(make_instance(1), source_aet="ORTHANC")
    assert deletes(uid)


def test_what_another_one_sends_while_orthancs_deletion_is_followed_stays(
    archive, make_instance, deletes, monkeypatch
):
    uid = archive.ingest(make_instance(1), source_aet="ORTHANC").sop_instance_uid
    delete = Archive.delete

    def late(self, *arguments, **more):
        archive.ingest(make_instance(1), source_aet="CT1")
        return delete(self, *arguments, **more)

    monkeypatch.setattr(Archive, "delete", late)
    assert deletes(uid)


def test_what_was_made_of_orthancs_series_is_unsent_until_that_version_is_noted(archive, make_instance):
    made, deeper = f"{UID}.7", f"{UID}.8"
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2, SeriesInstanceUID=made))
    archive.ingest(make_instance(3, SeriesInstanceUID=deeper))
    with archive.transaction() as database:
        derivations.record(database, UID, {"kind": "reconstruct"}, "", [Output(made, 1)])
        derivations.record(database, made, {"kind": "segment"}, "", [Output(deeper, 1)])
    database = archive.database
    assert not elsewhere.comes_from_orthanc(database, deeper)
    assert elsewhere.unsent(database) == []
    with archive.transaction() as writing:
        elsewhere.note_series(writing, OrthancSeries(SERIES, OTHER, UID))
    assert elsewhere.comes_from_orthanc(database, deeper)
    assert elsewhere.unsent(database) == elsewhere.unsent(database, UID) == [made, deeper]
    assert elsewhere.unsent(database, "1.2.3") == []
    stored = archive.open_instance("1.2.826.0.1.3680043.9.7133.9.2")
    for version, left in (("older", [made, deeper]), (stored.sha256, [deeper])):
        with archive.transaction() as writing:
            elsewhere.note_instance(writing, Held(stored.sop_instance_uid, OTHER, version), SERIES)
        assert elsewhere.unsent(database) == left


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"enabled": True}, "needs a key"),
        ({"enabled": True, "key": "short"}, "at least 16 characters"),
        ({"enabled": True, "key": KEY, "aet": "PACS"}, "has to name 'PACS'"),
        ({"url": "ftp://x"}, "http:// or https://"),
        ({"password": "x", "password_file": "y"}, "two ways"),
    ],
)
def test_settings_that_cannot_work_are_refused(told, sentence):
    with pytest.raises(SettingsError, match=sentence):
        load_settings(environment={}, overrides={"orthanc": told})


def test_secrets_come_from_files(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    settings = load_settings(environment={}, overrides={"orthanc": {"key_file": str(tmp_path / "key")}})
    assert settings.orthanc.secret("key") == KEY


@pytest.mark.parametrize("told", ["", " \n", "short"])
def test_a_key_file_without_a_key_opens_no_door(told, archive, tmp_path):
    (tmp_path / "key").write_text(told)
    settings = load_settings(environment={}, overrides={"orthanc": {"key_file": str(tmp_path / "key")}})
    with pytest.raises(ValueError, match="at least 16 are expected"):
        settings.orthanc.secret("key")
    door = Door(archive, Answers(archive, settings, Similarity(archive)), host="127.0.0.1", port=0, key="")
    try:
        assert ask(door, "/status", key="")[0] == 401
    finally:
        door.close()


@pytest.mark.parametrize(("meant", "pulls"), [(False, 0), (True, 30)])
def test_an_orthanc_that_lost_its_index_empties_nothing(archive, stub, wait_until, meant, pulls):
    with archive.transaction() as database:
        for number in range(30):
            elsewhere.note_series(database, OrthancSeries(f"series-{number}", "study", f"{UID}.{number}"))
    archive.jobs.push(jobs.ORTHANC_COMPARE, SUBJECT, {**ONCE, DELETIONS: True} if meant else ONCE)
    wait_until(worker_for(archive, stub.server_port).run_one)
    assert sum(job.kind == jobs.ORTHANC_PULL for job in archive.jobs.recent(limit=100)) == pulls


def test_similarity_that_is_off_is_off_in_orthanc_too(archive):
    settings = settings_for(archive)
    off = settings.model_copy(update={"similarity": settings.similarity.model_copy(update={"enabled": False})})
    with pytest.raises(NotEmbedded, match="switched off"):
        Answers(archive, off, Similarity(archive)).similar(SERIES)


def test_orthanc_is_reached_over_https_with_the_authority_that_is_named(stub, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    stub.socket = context.wrap_socket(stub.socket, server_side=True)
    told = {"url": f"https://127.0.0.1:{stub.server_port}", "timeout_s": 60}

    def reach(**more):
        own = load_settings(environment={}, overrides={"orthanc": {**told, **more}}).orthanc
        with OrthancClient(own) as orthanc:
            return orthanc.get("/system")

    assert reach(ca=str(certificate)) == {}
    with pytest.raises(OrthancAway, match="CERTIFICATE_VERIFY_FAILED"):
        reach()
    with pytest.raises(OrthancAway, match=r"settings of \[orthanc\] cannot be used"):
        reach(ca=str(tmp_path / "none.pem"))


def test_what_setup_prints_fits_together(tharsis, tmp_path):
    told = tharsis("orthanc", "setup", "--user", "node", "--title", "ARCHIVE").stdout
    before, _, toml = told.partition("# For the node")
    file = tmp_path / "node.toml"
    file.write_text("# For the node" + toml)
    settings = load_settings(file, environment={})
    assert (settings.orthanc.enabled, settings.orthanc.aet, settings.orthanc.user) == (True, "ARCHIVE", "node")
    first, rest = json.JSONDecoder().raw_decode(before[before.index("{"):])
    assert first["Tharsis"]["Key"] == settings.orthanc.key
    assert first["Tharsis"]["Node"].endswith(f":{settings.orthanc.door_port}")
    second, _ = json.JSONDecoder().raw_decode(before[before.index("{", before.index("{") + rest):])
    script = tharsis("orthanc", "script").stdout.strip()
    assert second["PythonScript"] == script
    assert Path(script).read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: AGPL")
