"""Both doors of the similarity query on a served node, asked by DCMTK without any private dictionary."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from cases import ROOT, picture
from matplotlib.image import imread
from pydicom import dcmread
from typer.testing import CliRunner

from commands.supervisor import Supervisor
from config.settings import load_settings
from index.archive import Archive
from index.embeddings import active_model
from index.encoders.pixels import canonical_frames
from index.encoders.texture import TextureEncoder
from index.jobs import EMBED_ASKED
from index.keys import Level
from index.similarity import Similarity, SimilarityRequest
from scp.private_elements import CREATOR
from tharsis import app

CASES = 6

SETTINGS = """
[jobs]
nice = 0
[similarity]
max_frames_per_series = 1
embed_timeout_s = 300
[[application_entities]]
title = "DOCTOR"
rights = ["store", "find", "move", "similar"]
[[application_entities]]
title = "STUDENT"
rights = ["store", "find", "move"]
[[application_entities]]
title = "TARGET"
host = "127.0.0.1"
port = PORT
"""


@pytest.fixture
def target(start_node):
    return start_node(aet="TARGET")


@pytest.fixture
def node(serve, target, make_image, dcmtk, wait_until):
    """Six cases of three slices, of which the node has embedded the middle one."""
    node = serve(settle_time_s=0.2, more=SETTINGS.replace("PORT", str(target.port)))
    files = [make_image(case, number) for case in range(CASES) for number in (1, 2, 3)]
    dcmtk("storescu", "-aet", "DOCTOR", "-aec", "THARSIS", "127.0.0.1", node.port, *files)
    archive = Archive(node.data)
    embedded = (
        "SELECT sop_instance_uid FROM embedding JOIN instance ON instance.id = embedding.instance "
        "ORDER BY sop_instance_uid"
    )
    # Where slices come slowly, a series may be taken for whole before it is.
    middle = [(f"{ROOT}.9.{case}.2",) for case in range(CASES)]
    wait_until(lambda: archive.database.execute(embedded).fetchall() == middle)
    wait_until(lambda: not archive.jobs.pending())
    return node


def _hex(value):
    data = value.encode() if isinstance(value, str) else value
    return "\\".join(f"{byte:02x}" for byte in data)


def _block(**elements):
    """The private block as DCMTK without its dictionary takes it: every value as bytes."""
    keys = ["-k", f"(0073,0010)={CREATOR}"]
    for element, value in elements.items():
        keys += ["-k", f"(0073,10{element.removeprefix('x')})={_hex(value)}"]
    return keys


def _find(dcmtk, node, *keys, called="THARSIS", calling="DOCTOR", level="STUDY"):
    wanted = ["-k", f"QueryRetrieveLevel={level}", "-k", "StudyInstanceUID"]
    return dcmtk(
        "findscu", "-v", "-S", "-aet", calling, "-aec", called, *wanted, *keys, "127.0.0.1", node.port
    ).stdout  # fmt: skip


def _cases(output):
    answers = output.split("Find Response: ")[1:]
    return [int(re.search(rf"\(0020,000d\) UI \[{re.escape(ROOT)}\.1\.(\d+)", answer)[1]) for answer in answers]


@pytest.mark.slow
def test_both_doors_with_dcmtk(node, target, dcmtk, make_image, tmp_path, wait_until):
    door_1_takes_every_request_element(node, dcmtk)
    door_1_sends_the_top_k_in_rank_order(node, target, dcmtk, tmp_path)
    door_2_answers_an_image_that_was_sent(node, dcmtk, make_image, tmp_path)
    the_shell_asks_through_both(node, make_image, tmp_path)
    the_encoder_process_loads_what_it_needs_and_no_more(node)
    a_question_outlives_the_encoder_process(node, dcmtk, wait_until)
    a_question_outlives_a_restart(node, dcmtk)
    everything_is_in_the_audit_log(node)


def door_1_takes_every_request_element(node, dcmtk):
    series, image, study = f"{ROOT}.2.0", f"{ROOT}.9.0.2", f"{ROOT}.1.0"
    first = _cases(_find(dcmtk, node, *_block(x02=series)))
    assert len(first) == CASES - 1
    assert first[0] == 3, "the other picture of rings"
    two, one = struct.pack("<H", 2), struct.pack("<H", 1)
    assert _cases(_find(dcmtk, node, *_block(x01=image, x06=two))) == first[:2]
    assert _cases(_find(dcmtk, node, *_block(x03=study, x04=one))) == [], "a frame needs its image: A900"
    assert _cases(_find(dcmtk, node, *_block(x01=image, x04=one, x06=two))) == first[:2]
    archive = Archive(node.data)
    model = active_model(archive).model_id
    wanted = SimilarityRequest(level=Level.STUDY, study_instance_uid=study)
    scores = [neighbour.score for neighbour in Similarity(archive).search(wanted).neighbours]
    between = struct.pack("<d", (scores[1] + scores[2]) / 2)
    everything = _block(x03=study, x07=between, x08=model, x0a="LATE_INTERACTION", x0b="SAME_SERIES\\SAME_PATIENT",
                        x0d="EXACT")  # fmt: skip
    output = _find(dcmtk, node, *everything, level="SERIES")
    assert _cases(output) == first[:2]
    assert "(0073,1025) UN" in output or model in output
    vector = archive.database.execute(
        "SELECT vector FROM embedding JOIN series ON series.id = embedding.series "
        "WHERE instance IS NOT NULL AND series_instance_uid = ?", (series,),
    ).fetchone()[0]  # fmt: skip
    assert _cases(_find(dcmtk, node, *_block(x0c=vector)))[0] == 0, "its own series is not known to a vector"
    assert _cases(_find(dcmtk, node, *_block(x02=series), "-k", "PatientID=P2")) == [2]
    region = struct.pack("<4H", 8, 8, 32, 32)
    assert _cases(_find(dcmtk, node, *_block(x01=f"{ROOT}.9.1.1", x05=region), level="IMAGE"))[0] == 4
    outside = struct.pack("<4H", 40, 0, 16, 16)
    assert "0xa900" in _find(dcmtk, node, *_block(x01=image, x05=outside), "-d")
    assert "0x0124" in _find(dcmtk, node, *_block(x02=series), "-d", calling="STUDENT")


def door_1_sends_the_top_k_in_rank_order(node, target, dcmtk, tmp_path):
    """movescu knows no tag on its command line that is in no dictionary, but takes a file with the Identifier."""
    image, k = f"{ROOT}.9.0.2", 3
    ranked = _cases(_find(dcmtk, node, *_block(x01=image, x06=struct.pack("<H", k)), level="IMAGE"))
    dump, query = tmp_path / "query.txt", tmp_path / "query.dcm"
    dump.write_text(
        f"(0008,0052) CS [IMAGE]\n(0073,0010) LO [{CREATOR}]\n(0073,1001) UI [{image}]\n(0073,1006) US {k}\n"
    )
    dcmtk("dump2dcm", dump, query)
    who = ["-S", "-aet", "DOCTOR", "-aec", "THARSIS"]
    dcmtk("movescu", *who, "-aem", "TARGET", "127.0.0.1", node.port, query)
    moved = target.archive.database.execute("SELECT sop_instance_uid FROM instance ORDER BY id").fetchall()
    assert [uid for (uid,) in moved] == [f"{ROOT}.9.{case}.2" for case in ranked]
    for number, arguments in enumerate(
        ([query], ["-k", "QueryRetrieveLevel=IMAGE", *_block(x01=image, x06=struct.pack("<H", k))])
    ):
        folder = tmp_path / f"got{number}"
        folder.mkdir()
        if number:
            dcmtk("getscu", *who, *arguments, "-od", folder, "127.0.0.1", node.port)
        else:
            dcmtk("getscu", *who, "-od", folder, "127.0.0.1", node.port, *arguments)
        assert {dcmread(file).SOPInstanceUID for file in folder.iterdir()} == {uid for (uid,) in moved}


def door_2_answers_an_image_that_was_sent(node, dcmtk, make_image, tmp_path):
    sent = make_image(20, 1, PixelData=picture(1, 2.2).tobytes())
    columns = ["-k", "StudyDescription", "-k", "StudyID", "-k", "PatientID", "-k", "AccessionNumber"]
    assert len(_cases(_find(dcmtk, node, *columns, called="THARSIS_SIM"))) == CASES
    dcmtk("storescu", "-aet", "DOCTOR", "-aec", "THARSIS_SIM", "127.0.0.1", node.port, sent)
    refused = dcmtk(
        "storescu", "-aet", "STUDENT", "-aec", "THARSIS_SIM", "127.0.0.1", node.port, sent, check=False
    )  # fmt: skip
    assert "0124" in refused.stdout.lower() or refused.returncode != 0
    output = _find(dcmtk, node, *columns, called="THARSIS_SIM")
    assert set(_cases(output)[:2]) == {1, 4}
    assert re.search(r"StudyDescription", output)
    assert re.search(r"\[#01 0\.\d{3} \| Case [14]\]", output)
    assert "[SIM-01]" in output
    best = _cases(output)[0]
    assert f"[P{best} ]" in output or f"[P{best}]" in output
    assert len(_cases(_find(dcmtk, node, "-k", "PatientID=~:k=2", called="THARSIS_SIM"))) == 2
    assert _cases(_find(dcmtk, node, "-k", "PatientID=*~a0:k=1*", called="THARSIS_SIM")) == [3]
    folder = tmp_path / "drilled"
    folder.mkdir()
    study = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={ROOT}.1.{best}"]
    dcmtk("getscu", "-S", "-aet", "DOCTOR", "-aec", "THARSIS_SIM", *study, "-od", folder, "127.0.0.1", node.port)
    assert {dcmread(file).StudyDescription for file in folder.iterdir()} == {f"Case {best}"}
    assert len(list(folder.iterdir())) == 3
    archive = Archive(node.data)
    held = "SELECT count(*) FROM instance WHERE sop_instance_uid = ?"
    assert archive.database.execute(held, (f"{ROOT}.9.20.1",)).fetchone() == (0,)
    assert not list(archive.incoming.glob("*.part"))


def _tharsis(*arguments):
    """Run a command in this process: to start Python anew for each takes longer than what it does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def the_shell_asks_through_both(node, make_image, tmp_path):
    peer = ["--peer", f"THARSIS@127.0.0.1:{node.port}", "--aet", "DOCTOR"]

    def ask(*arguments):
        told = _tharsis("similar", *arguments, *peer, "--json", "--level", "STUDY")
        assert told.exit_code == 0, told.stderr
        answers = json.loads(told.stdout)
        return [int(answer["StudyInstanceUID"].rsplit(".", 1)[1]) for answer in answers], answers

    sheet = tmp_path / "sheet.png"
    cases, answers = ask("--image", f"{ROOT}.9.1.1", "--region", "4,4,40,40", "-k", 3, "--picture", sheet)
    assert cases[0] == 4
    assert [answer["Rank"] for answer in answers] == ["1", "2", "3"]
    assert answers[0]["MatchedSOPInstanceUID"] == f"{ROOT}.9.4.2"
    image = imread(sheet)
    assert image.shape[1] > 3 * image.shape[0] / 2, "four pictures in a row"
    assert image[..., :3].std() > 0.1
    vector = tmp_path / "query.npy"
    np.save(vector, TextureEncoder.load().encode(canonical_frames(dcmread(make_image(0, 2))).images))
    assert ask("--vector", vector, "-k", 1)[0] == [0]
    assert ask("--reference", "a0", "-k", 1)[0] == [3]
    sent = make_image(22, 1, PixelData=picture(1, 2.4).tobytes())
    cases, answers = ask("--file", sent, "--min-score", 0.3, "--exclude", "SAME_PATIENT", "--picture", sheet)
    assert set(cases[:2]) == {1, 4}
    assert ask("--study", f"{ROOT}.1.0", "--aggregation", "SERIES_MEAN", "--mode", "EXACT", "--key", "PatientID=P2")[
        0
    ] == [2]
    refused = _tharsis("similar", "--image", f"{ROOT}.9.1.1", "--region", "40,40,40,40", *peer)
    assert refused.exit_code == 1
    assert "A900" in refused.stderr
    assert "not inside the image" in refused.stderr


def a_question_outlives_the_encoder_process(node, dcmtk, wait_until):
    """It is stopped, so that the question waits; then it is killed, and started again by the supervisor."""
    archive = Archive(node.data)
    killed = node.processes()["encoder"]
    os.kill(killed, signal.SIGSTOP)
    output = []
    keys = _block(x01=f"{ROOT}.9.1.3", x05=struct.pack("<4H", 0, 0, 40, 40))
    asking = threading.Thread(target=lambda: output.append(_find(dcmtk, node, *keys)))
    asking.start()
    wait_until(lambda: archive.jobs.is_due((EMBED_ASKED,)))
    os.kill(killed, signal.SIGKILL)
    asking.join(400)
    assert _cases(output[0])[0] == 4
    wait_until(lambda: node.processes()["encoder"] != killed)


def a_question_outlives_a_restart(node, dcmtk):
    node.kill()
    node.start()
    assert set(_cases(_find(dcmtk, node, "-k", "PatientID=~", called="THARSIS_SIM"))[:2]) == {1, 4}


def everything_is_in_the_audit_log(node):
    log = node.log()
    for sentence in (
        r"similar cases asked by DOCTOR@127\.0\.0\.1, called THARSIS: STUDY like QuerySeriesInstanceUID=\S+, k=20, "
        r"model texture-\S+: 5 neighbours",
        r"similar cases retrieved to TARGET by DOCTOR@127\.0\.0\.1, called THARSIS: IMAGE like .* 3 neighbours",
        r"similar cases retrieved to DOCTOR by DOCTOR@",
        r"similar cases refused to STUDENT@127\.0\.0\.1, called THARSIS: asked: Query\S+: AE STUDENT lacks",
        r"image to ask about kept for DOCTOR@127\.0\.0\.1, called THARSIS_SIM: \S+\.9\.20\.1 of series",
        r"image to ask about refused from STUDENT@127\.0\.0\.1, called THARSIS_SIM: \S+: AE STUDENT lacks",
    ):
        assert re.search(sentence, log), sentence


def the_encoder_process_loads_what_it_needs_and_no_more(node):
    """Nor does it load torch before a model needs it, which would be most of its memory."""
    mapped = Path(f"/proc/{node.processes()['encoder']}/maps").read_text(encoding="utf-8")
    for library in ("llvmlite", "numba", "torch", "matplotlib", "faiss"):
        assert f"/{library}/" not in mapped, library


@pytest.mark.parametrize("enabled", [True, False])
def test_only_a_node_with_similarity_has_an_encoder_process(tmp_path, enabled):
    overrides = {"archive": {"data": tmp_path}, "similarity": {"enabled": enabled}}
    supervisor = Supervisor(load_settings(environment={}, overrides=overrides))
    assert ("encoder" in {process.role for process in supervisor._processes}) is enabled
