"""What is embedded while its asker waits: regions, slices without a vector, and images that are sent to ask."""

from __future__ import annotations

import logging
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from config.settings import load_settings
from index import asked, embeddings
from index.archive import Archive
from index.asked import Part
from index.doorbell import ENCODER_BELL, Doorbell, ring
from index.embeddings import active_model
from index.encoders.pixels import Region, canonical_frames
from index.encoders.texture import TextureEncoder
from index.errors import InvalidIdentifier, NotEmbedded, OutOfSpace, QueryCancelled, UnknownModel, UnknownQuery
from index.header import read_header
from index.jobs import EMBED_ASKED, NOT_FOR_WORKERS
from index.keys import Level
from index.on_demand import OnDemand
from index.questions import Questions
from index.similarity import Exclude, Similarity, SimilarityRequest
from plugins.asked import Attention
from plugins.manager import load_plugins
from plugins.worker import Worker
from scp.contexts import STUDY_ROOT_FIND
from scp.private_elements import CREATOR, ELEMENTS, put_block

ROOT = "1.2.826.0.1.3680043.9.7133"
SIDE = 48
ENTITIES = [
    {"title": "DOCTOR", "rights": ["find", "similar"]},
    {"title": "COLLEAGUE", "rights": ["find", "similar"]},
    {"title": "STUDENT", "rights": ["store", "find", "move"]},
]


def _pixels(kind, shift=0):
    """A picture of its kind: rings, stripes or a gradient; `shift` moves it a little."""
    row, column = np.mgrid[:SIDE, :SIDE].astype(float)
    if kind == 0:
        image = np.cos(np.hypot(row - 24 - shift, column - 24) / 2)
    elif kind == 1:
        image = np.sign(np.sin((column + shift) / 2))
    else:
        image = (row + shift) / SIDE
    return np.uint16(1000 + 900 * image)


@pytest.fixture
def make_image(make_dataset, tmp_path):
    """Write a slice of case `case`, whose picture is of kind `case` % 3."""

    def make(case, number=1, **values):
        told = {
            "SOPInstanceUID": f"{ROOT}.9.{case}.{number}", "StudyInstanceUID": f"{ROOT}.1.{case}",
            "SeriesInstanceUID": f"{ROOT}.2.{case}", "PatientID": f"P{case}", "Rows": SIDE, "Columns": SIDE,
            "StudyDescription": f"Case {case}", "AccessionNumber": f"A{case}",
            "PixelData": _pixels(case % 3, case + number).tobytes(),
        }  # fmt: skip
        path = tmp_path / f"image-{case}-{number}-{len(list(tmp_path.glob('image*')))}.dcm"
        make_dataset(number, **{**told, **values}).save_as(path, enforce_file_format=True)
        return path

    return make


def _fill(archive, make_image):
    """Six cases of three slices; only the middle slice of each has a vector."""
    encoder = TextureEncoder.load()
    embeddings.register(archive, encoder.model_id, encoder.dimension)
    for case in range(6):
        for number in (1, 2, 3):
            archive.ingest(make_image(case, number))
        image = canonical_frames(dcmread(make_image(case, 2))).images
        embeddings.store(
            archive, encoder.model_id, f"{ROOT}.2.{case}", [(f"{ROOT}.9.{case}.2", 0, encoder.encode(image)[0])]
        )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A data folder that `_fill` has filled, to be copied: what takes time is done once."""
    return tmp_path_factory.mktemp("template") / "data"


@pytest.fixture
def filled_folder(template, make_image, tmp_path):
    if not template.exists():
        archive = Archive(template, settle_time_s=0.0)
        _fill(archive, make_image)
        archive.close()
    return shutil.copytree(template, tmp_path / "filled")


@pytest.fixture
def filled(filled_folder):
    return Archive(filled_folder, settle_time_s=0.0)


@pytest.fixture
def encoder():
    """Run the encoder process's work in a thread, on as many archives as a test needs."""
    running = []

    def start(archive):
        settings = load_settings(environment={}, overrides={"archive": {"data": archive.data}})
        attention = Attention(archive, settings)
        worker = Worker(
            archive, settings, "encoder", load_plugins(only=["asked"]), kinds=(EMBED_ASKED,), wait=attention.wait
        )
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        running.append((worker, attention, thread))

    yield start
    for worker, attention, thread in running:
        worker.stop()
        attention.ring()
        thread.join(10)


@pytest.fixture
def search(filled, encoder):
    encoder(filled)
    return Similarity(filled, OnDemand(filled, timeout_s=60.0))


def _ask(search, **request):
    return search.search(SimilarityRequest(**{"level": Level.SERIES, "k": 10, **request}))


def _cases(answer):
    return [int(neighbour.series_instance_uid.rsplit(".", 1)[1]) for neighbour in answer.neighbours]


# On demand: parts of stored instances


def test_a_slice_without_a_vector_is_embedded_when_it_is_asked_about(search):
    answer = _ask(search, sop_instance_uid=f"{ROOT}.9.0.1")
    assert len(answer.neighbours) == 5
    assert _cases(answer)[0] == 3, "the other picture of rings"
    assert answer.neighbours[0].score > answer.neighbours[1].score


def test_a_slice_asked_by_its_frame_number_is_the_same(search):
    whole, first = _ask(search, sop_instance_uid=f"{ROOT}.9.0.1"), _ask(
        search, sop_instance_uid=f"{ROOT}.9.0.1", frame_number=1
    )
    assert whole.neighbours == first.neighbours


def test_a_region_finds_what_looks_like_it(filled, search, make_dataset, make_image):
    """The right half of this image is stripes, whatever the rest of it is."""
    mixed = _pixels(0)
    mixed[:, 24:] = _pixels(1)[:, 24:]
    filled.ingest(make_image(7, 1, PixelData=mixed.tobytes()))
    answer = _ask(search, sop_instance_uid=f"{ROOT}.9.7.1", region=(24, 0, 24, 48))
    expected = canonical_region(filled, f"{ROOT}.9.7.1")
    (made,) = asked.find(
        filled.database, active_model(filled).model_id, Part(f"{ROOT}.9.7.1", 0, (24, 0, 24, 48))
    )
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert set(_cases(answer)[:2]) == {1, 4}


def canonical_region(archive, uid):
    dataset = dcmread(archive.open_instance(uid).path)
    frames = canonical_frames(dataset, region=Region(24, 0, 24, 48))
    return TextureEncoder.load().encode(frames.images)[0]


def test_a_frame_of_a_multi_frame_object_with_a_region(filled, search, make_image):
    both = np.concatenate([_pixels(0), _pixels(1)])
    filled.ingest(make_image(8, 1, NumberOfFrames="2", PixelData=both.tobytes()))
    uid = f"{ROOT}.9.8.1"
    assert set(_cases(_ask(search, sop_instance_uid=uid, frame_number=1))[:2]) == {0, 3}
    assert set(_cases(_ask(search, sop_instance_uid=uid, frame_number=2))[:2]) == {1, 4}
    assert set(_cases(_ask(search, sop_instance_uid=uid, frame_number=2, region=(4, 4, 40, 40)))[:2]) == {1, 4}
    whole = Part(uid)
    _ask(search, sop_instance_uid=uid)
    assert len(asked.find(filled.database, active_model(filled).model_id, whole)) == 2


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"region": (40, 0, 9, 8)}, InvalidIdentifier, "not inside the image"),
        ({"region": (0, 0, 65535, 8)}, InvalidIdentifier, "not inside"),
        ({"frame_number": 2}, InvalidIdentifier, "frame 2 asked of an instance of 1"),
        ({"model_id": "given-1-000000000000"}, UnknownModel, "no weights"),
        ({"sop_instance_uid": f"{ROOT}.9.9.1"}, NotEmbedded, "no pixel data"),
        ({"sop_instance_uid": f"{ROOT}.9.10.1"}, NotEmbedded, "cannot be decoded"),
        ({"sop_instance_uid": f"{ROOT}.9.99.1"}, UnknownQuery, "no such instance"),
    ],
)
def test_what_cannot_be_embedded_says_why(filled, search, make_image, request_, error, message):
    filled.ingest(make_image(9, 1, PixelData=None, Rows=None))
    filled.ingest(make_image(10, 1, PixelData=b"\0\0"))
    embeddings.register(filled, "given-1-000000000000", 2)
    with pytest.raises(error, match=message):
        _ask(search, **{"sop_instance_uid": f"{ROOT}.9.0.1", **request_})


def test_what_was_made_serves_the_next_query_and_is_forgotten_in_time(filled, search):
    uid = f"{ROOT}.9.0.1"
    _ask(search, sop_instance_uid=uid)
    done = filled.jobs.counts()["done"]
    _ask(search, sop_instance_uid=uid)
    assert filled.jobs.counts()["done"] == done
    model, at = active_model(filled).model_id, _newest(filled)
    assert asked.forget(filled, at=at + asked.KEPT_S, questions_kept_s=900.0) == 0
    assert asked.find(filled.database, model, Part(uid)) is not None
    assert asked.forget(filled, at=at + asked.KEPT_S + 1, questions_kept_s=900.0) == 1
    assert asked.find(filled.database, model, Part(uid)) is None
    assert filled.jobs.counts() == {"queued": 6}, "the records of its jobs go too"


def _newest(archive):
    return archive.database.execute("SELECT max(at) FROM asked").fetchone()[0]


def test_only_so_many_are_kept(filled, search, monkeypatch):
    for number in (1, 3):
        _ask(search, sop_instance_uid=f"{ROOT}.9.0.{number}")
    monkeypatch.setattr(asked, "MOST_KEPT", 1)
    assert asked.forget(filled, at=_newest(filled), questions_kept_s=900.0) == 1
    assert asked.find(filled.database, active_model(filled).model_id, Part(f"{ROOT}.9.0.3")) is not None


def test_a_deleted_instance_takes_its_vectors_along(filled, search):
    _ask(search, sop_instance_uid=f"{ROOT}.9.0.1")
    filled.delete(Level.IMAGE, f"{ROOT}.9.0.1")
    assert filled.database.execute("SELECT count(*) FROM asked").fetchone() == (0,)


def _clock(*steps):
    times = iter(steps)
    last = [0.0]

    def clock():
        last[0] = next(times, last[0])
        return last[0]

    return clock


def test_waiting_has_an_end_and_the_answer_is_ready_the_next_time(filled, encoder):
    impatient = OnDemand(filled, timeout_s=15.0, clock=_clock(0.0, 16.0))
    request = {"sop_instance_uid": f"{ROOT}.9.0.1"}
    with pytest.raises(NotEmbedded, match="not embedded within 15 s"):
        _ask(Similarity(filled, impatient), **request)
    encoder(filled)
    assert len(_ask(Similarity(filled, OnDemand(filled, timeout_s=60.0)), **request).neighbours) == 5


def test_waiting_ends_when_the_asker_cancels(filled):
    request = SimilarityRequest(level=Level.SERIES, sop_instance_uid=f"{ROOT}.9.0.1")
    with pytest.raises(QueryCancelled):
        Similarity(filled, OnDemand(filled, timeout_s=60.0)).search(request, lambda: True)


def test_waiting_ends_when_the_job_has_failed_for_good(filled):
    """An image that kills its process again and again."""
    on_demand = OnDemand(filled, timeout_s=60.0)
    number = asked.ask_part(filled, active_model(filled).model_id, Part(f"{ROOT}.9.0.1"), at=0.0)
    job = filled.jobs.claim("encoder", claim_s=60.0, max_attempts=5, kinds=(EMBED_ASKED,))
    filled.jobs.fail(job, "its worker died 5 times while running it", max_attempts=1, retry_delay_s=0.0)
    with pytest.raises(NotEmbedded, match="died 5 times"):
        on_demand.wait(number)


def test_an_ordinary_worker_leaves_it_alone_and_the_encoder_process_everything_else(filled, tmp_path):
    asked.ask_part(filled, active_model(filled).model_id, Part(f"{ROOT}.9.0.1"), at=0.0)
    assert EMBED_ASKED in NOT_FOR_WORKERS
    settings = load_settings(environment={}, overrides={"archive": {"data": filled.data}})
    own = Worker(filled, settings, "e", load_plugins(only=["asked"]), kinds=(EMBED_ASKED,))
    assert own.run_one()
    assert not own.run_one()
    Worker(filled, settings, "w").run_until_idle()
    ended = {job.kind: job.worker for job in filled.jobs.recent(states=("done",))}
    assert ended[EMBED_ASKED] == "e"
    assert ended["series_stable"] == ended["embed"] == "w"


def test_too_many_that_wait_are_refused(filled, monkeypatch):
    monkeypatch.setattr(asked, "MOST_WAITING", 1)
    model = active_model(filled).model_id
    asked.ask_part(filled, model, Part(f"{ROOT}.9.0.1"), at=0.0)
    with pytest.raises(NotEmbedded, match="wait to be embedded"):
        asked.ask_part(filled, model, Part(f"{ROOT}.9.0.3"), at=0.0)


def test_the_bell_wakes_who_waits_and_may_be_rung_before(tmp_path):
    ring(tmp_path / ENCODER_BELL)  # nobody there
    bell = Doorbell(tmp_path / ENCODER_BELL)
    bell.ring()
    bell.ring()
    bell.wait(600.0)
    waiting = threading.Thread(target=bell.wait, args=(600.0,))
    waiting.start()
    ring(tmp_path / ENCODER_BELL)
    waiting.join(30.0)
    assert not waiting.is_alive()
    bell.close()


# Asking by sending


@pytest.fixture
def questions(filled, encoder):
    """Questions with a clock that the test sets."""
    encoder(filled)
    now = SimpleNamespace(seconds=1e6)
    kept = Questions(
        filled, OnDemand(filled, timeout_s=60.0), kept_s=900.0, most_images=2, clock=lambda: now.seconds
    )
    return SimpleNamespace(kept=kept, now=now, archive=filled)


def _send(questions, path, asker="DOCTOR"):
    incoming = questions.archive.files.receive(path)
    try:
        questions.kept.keep(asker, read_header(incoming), incoming)
    finally:
        questions.archive.files.release(incoming)


def test_images_of_one_series_are_one_question(questions, make_image):
    _send(questions, make_image(20, 1))
    _send(questions, make_image(20, 2))
    _send(questions, make_image(20, 2))  # the same again
    sent = questions.kept.current("DOCTOR")
    assert sent.sop_instance_uids == (f"{ROOT}.9.20.1", f"{ROOT}.9.20.2")
    assert sent.vectors.shape == (2, active_model(questions.archive).dimension)
    assert questions.kept.current("COLLEAGUE") is None


def test_another_series_replaces_it_and_so_does_the_next_image_after_an_answer(questions, make_image):
    _send(questions, make_image(20, 1))
    _send(questions, make_image(21, 1))
    assert questions.kept.current("DOCTOR").sop_instance_uids == (f"{ROOT}.9.21.1",)
    questions.kept.close("DOCTOR")
    assert questions.kept.current("DOCTOR").sop_instance_uids == (f"{ROOT}.9.21.1",), "it can be asked again"
    _send(questions, make_image(21, 2))
    assert questions.kept.current("DOCTOR").sop_instance_uids == (f"{ROOT}.9.21.2",)
    assert questions.archive.database.execute("SELECT count(*) FROM question").fetchone() == (1,)


def test_it_is_forgotten_when_its_time_is_over(questions, make_image):
    _send(questions, make_image(20, 1))
    sent_at = questions.now.seconds
    questions.now.seconds = sent_at + 900.0
    assert questions.kept.current("DOCTOR") is not None
    questions.now.seconds = sent_at + 900.1
    assert questions.kept.current("DOCTOR") is None
    assert asked.forget(questions.archive, at=questions.now.seconds, questions_kept_s=900.0) == 1
    for table in ("asked", "question"):
        assert questions.archive.database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_the_process_that_embeds_forgets_it_also_when_nobody_asks(questions, make_image):
    _send(questions, make_image(20, 1))
    settings = load_settings(environment={}, overrides={"archive": {"data": questions.archive.data}})
    attention = Attention(questions.archive, settings, clock=lambda: questions.now.seconds + 901.0)
    attention.ring()
    attention.wait(0.0)
    assert questions.archive.database.execute("SELECT count(*) FROM question").fetchone() == (0,)


def test_an_expired_image_does_not_come_back_with_the_next_one_of_its_series(questions, make_image):
    _send(questions, make_image(20, 1))
    questions.now.seconds += 901.0
    _send(questions, make_image(20, 2))
    assert questions.kept.current("DOCTOR").sop_instance_uids == (f"{ROOT}.9.20.2",)


def test_a_question_has_so_many_images_at_most(questions, make_image):
    for number in (1, 2):
        _send(questions, make_image(20, number))
    with pytest.raises(OutOfSpace, match="at most 2 images"):
        _send(questions, make_image(20, 3))
    _send(questions, make_image(21, 1))


def test_a_refused_image_leaves_the_question_as_it_was(questions, make_image):
    _send(questions, make_image(20, 1))
    with pytest.raises(NotEmbedded, match="no pixel data"):
        _send(questions, make_image(21, 1, PixelData=None))
    assert questions.kept.current("DOCTOR").sop_instance_uids == (f"{ROOT}.9.20.1",)
    assert questions.archive.database.execute("SELECT count(*) FROM asked").fetchone() == (1,)


def test_it_outlives_a_restart_and_the_image_is_nowhere(questions, make_image):
    before = set(questions.archive.data.rglob("*.dcm"))
    _send(questions, make_image(20, 1))
    again = Archive(questions.archive.data)
    sent = Questions(
        again, OnDemand(again, timeout_s=1.0), kept_s=900.0, most_images=2, clock=lambda: questions.now.seconds
    ).current("DOCTOR")
    assert sent.sop_instance_uids == (f"{ROOT}.9.20.1",)
    assert set(questions.archive.data.rglob("*.dcm")) == before
    assert not list(questions.archive.incoming.iterdir())
    assert again.database.execute(
        "SELECT count(*) FROM instance WHERE sop_instance_uid LIKE ?", (f"{ROOT}.9.20.%",)
    ).fetchone() == (0,)
    assert not again.database.execute("SELECT * FROM change WHERE uid LIKE ?", (f"%{ROOT}.9.20.%",)).fetchall()


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        ({Exclude.SAME_SERIES}, {0}),
        ({Exclude.SAME_STUDY}, {0, 30}),
        ({Exclude.SAME_PATIENT}, {0, 30, 31}),
    ],
)
@pytest.mark.parametrize("is_stored", [True, False])
def test_its_own_surroundings_are_left_out_when_the_archive_holds_them(
    questions, make_image, exclude, gone, is_stored
):
    """Series 30 is of study 0, series 31 of patient P0."""
    archive, model = questions.archive, active_model(questions.archive)
    vector = np.eye(1, model.dimension, dtype=np.float32)[0]
    for case, values in ((30, {"StudyInstanceUID": f"{ROOT}.1.0", "PatientID": "P0"}), (31, {"PatientID": "P0"})):
        archive.ingest(make_image(case, 1, **values))
        embeddings.store(archive, model.model_id, f"{ROOT}.2.{case}", [(f"{ROOT}.9.{case}.1", 0, vector)])
    if not is_stored:
        archive.delete(Level.SERIES, f"{ROOT}.2.0")
    _send(questions, make_image(0, 9))
    sent = questions.kept.current("DOCTOR")
    answer = _ask(Similarity(archive), sent=sent, exclude=frozenset(exclude))
    assert set(_cases(answer)) == {0, 1, 2, 3, 4, 5, 30, 31} - gone - (set() if is_stored else {0})


# Over the network


@pytest.fixture
def node(start_node, filled_folder, encoder):
    node = start_node(
        entities=ENTITIES, data=filled_folder,
        similarity=lambda archive: Similarity(archive, OnDemand(archive, timeout_s=60.0)),
    )  # fmt: skip
    encoder(node.archive)
    return node


def _store(node, *paths, calling="DOCTOR"):
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS_SIM")
    statuses = [assoc.send_c_store(str(path)) for path in paths]
    assoc.release()
    return statuses


def _find(node, *, level="STUDY", block=None, calling="DOCTOR", called="THARSIS_SIM", **keys):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in {"StudyInstanceUID": "", "StudyDescription": "", "PatientID": "", **keys}.items():
        setattr(identifier, keyword, value)
    if block is not None:
        put_block(identifier, block)
    entity = AE(calling)
    entity.add_requested_context(STUDY_ROOT_FIND, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", node.port, ae_title=called)
    answers = list(assoc.send_c_find(identifier, STUDY_ROOT_FIND))
    assoc.release()
    return answers


def _studies(answers):
    return [int(match.StudyInstanceUID.rsplit(".", 1)[1]) for _, match in answers[:-1]]


@pytest.mark.parametrize("keys", [{}, {"PatientID": "*"}, {"PatientID": "~"}, {"StudyDescription": "*SIM:*"}])
def test_what_was_sent_is_answered_by_the_next_blank_query(node, make_image, keys):
    plain = _find(node, PatientName="", **{**keys, "PatientID": ""})
    if "PatientID" not in keys:
        assert keys or len(plain) == 7, "before anything is sent, a blank query is an ordinary one"
    [status] = _store(node, make_image(20, 1, PixelData=_pixels(1, 9).tobytes()))
    assert status.Status == 0x0000
    answers = _find(node, PatientName="", **keys)
    assert set(_studies(answers)[:2]) == {1, 4}
    assert len(_studies(answers)) == 6
    assert answers[0][1].StudyDescription.startswith("#01 ")
    assert len(_studies(_find(node, PatientID="~:k=2"))) == 2
    assert len(_studies(_find(node, PatientID="~", AccessionNumber="A2"))) == 1
    drilled = _find(node, level="SERIES", StudyInstanceUID=f"{ROOT}.1.2", SeriesInstanceUID="", StudyDescription="")
    assert [match.StudyDescription for _, match in drilled[:-1]] == ["Case 2"], "a drill-down is an ordinary query"
    assert len(_find(node, calling="COLLEAGUE")) == 7, "another's question is not theirs"
    assert not node.archive.database.execute(
        "SELECT 1 FROM instance WHERE sop_instance_uid = ?", (f"{ROOT}.9.20.1",)
    ).fetchall()


def test_a_block_that_names_nothing_asks_about_what_was_sent(node, make_image):
    assert _find(node, block={"MaximumResults": 3})[-1][0].Status == 0xC001
    _store(node, make_image(20, 1, PixelData=_pixels(1, 9).tobytes()))
    answers = _find(node, level="SERIES", SeriesInstanceUID="", block={"MaximumResults": 3, "MinimumScore": 0.1})
    block = [match.private_block(0x0073, CREATOR) for _, match in answers[:-1]]
    assert [each[ELEMENTS["Rank"].number].value for each in block] == [1, 2, 3]
    assert answers[0][1].StudyDescription in ("Case 1", "Case 4"), "what asks with the block is not decorated"
    assert _find(node, called="THARSIS", block={"MaximumResults": 3})[-1][0].Status == 0xA900


@pytest.mark.parametrize(
    ("values", "code", "comment"),
    [
        ({"PixelData": None}, 0xC002, "has no pixel data"),
        ({"PixelData": b"\0\0"}, 0xC002, "cannot be decoded"),
        ({"SeriesInstanceUID": None}, 0xA900, "SeriesInstanceUID"),
    ],
)
def test_what_cannot_be_asked_about_is_refused(node, make_image, values, code, comment):
    [status] = _store(node, make_image(20, 1, **values))
    assert status.Status == code
    assert comment in status.ErrorComment
    assert len(_find(node)) == 7
    assert not list(node.archive.incoming.iterdir())


def test_without_the_right_nothing_is_kept_and_nothing_archived(node, make_image, caplog):
    with caplog.at_level(logging.INFO, "tharsis.audit"):
        [status] = _store(node, make_image(20, 1), calling="STUDENT")
    assert status.Status == 0x0124
    assert "similar" in status.ErrorComment
    assert node.archive.database.execute("SELECT count(*) FROM instance").fetchone() == (18,)
    assert any("refused from STUDENT@127.0.0.1" in record.getMessage() for record in caplog.records)


def test_every_question_is_in_the_audit_log(node, make_image, caplog):
    with caplog.at_level(logging.INFO, "tharsis.audit"):
        _store(node, make_image(20, 1))
        _find(node, PatientID="~:k=2")
        _find(node, level="IMAGE", block={"QuerySOPInstanceUID": f"{ROOT}.9.0.1", "QueryRegion": [40, 40, 20, 20]})
    model = active_model(node.archive).model_id
    lines = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert lines[0] == (
        f"image to ask about kept for DOCTOR@127.0.0.1, called THARSIS_SIM: {ROOT}.9.20.1 of series {ROOT}.2.20"
    )
    assert lines[1] == (
        "similar cases asked by DOCTOR@127.0.0.1, called THARSIS_SIM: STUDY like ~:k=2, "
        f"k=2, model {model}: 2 neighbours"
    )
    assert lines[2].startswith("similar cases refused to DOCTOR@127.0.0.1, called THARSIS_SIM: asked: QuerySOP")
    assert "QueryRegion=(40, 40, 20, 20)" in lines[2]
    assert "not inside the image" in lines[2]


def test_a_switched_off_similarity_refuses_images(start_node, make_image):
    node = start_node(entities=ENTITIES)
    [status] = _store(node, make_image(20, 1))
    assert status.Status == 0x0122
    assert "switched off" in status.ErrorComment
