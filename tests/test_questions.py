"""Images that are sent to ask about them: what belongs to one question, and how long it lasts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cases import ROOT, ask_for, cases_of

from config.settings import load_settings
from index import asked, embeddings
from index.archive import Archive
from index.embeddings import active_model
from index.errors import NotEmbedded, OutOfSpace
from index.header import read_header
from index.keys import Level
from index.on_demand import OnDemand
from index.questions import Questions
from index.similarity import Exclude, Similarity
from plugins.asked import Attention


@pytest.fixture
def questions(filled, encoder):
    """Questions with a clock that the test sets."""
    now = SimpleNamespace(seconds=1e6)
    encoder(filled, lambda: now.seconds)
    kept = Questions(
        filled, OnDemand(filled, timeout_s=300.0), kept_s=900.0, most_images=2, clock=lambda: now.seconds
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
    answer = ask_for(Similarity(archive), sent=sent, exclude=frozenset(exclude))
    assert set(cases_of(answer)) == {0, 1, 2, 3, 4, 5, 30, 31} - gone - (set() if is_stored else {0})


def test_of_a_sent_image_without_patient_id_the_study_is_left_out_as_its_patient(questions, make_image):
    """Series 30 is of the study of the sent image; series 31 has no Patient ID either."""
    archive, model = questions.archive, active_model(questions.archive)
    vector = np.eye(1, model.dimension, dtype=np.float32)[0]
    nobody = {"PatientID": "", "PatientName": ""}
    for case, values in ((30, {"StudyInstanceUID": f"{ROOT}.1.40"}), (31, {})):
        archive.ingest(make_image(case, 1, **nobody, **values))
        embeddings.store(archive, model.model_id, f"{ROOT}.2.{case}", [(f"{ROOT}.9.{case}.1", 0, vector)])
    _send(questions, make_image(40, 1, **nobody))
    sent = questions.kept.current("DOCTOR")
    answer = ask_for(Similarity(archive), sent=sent, exclude=frozenset({Exclude.SAME_PATIENT}))
    assert set(cases_of(answer)) == {0, 1, 2, 3, 4, 5, 31}


def test_a_question_keeps_its_model_when_another_becomes_active(questions, make_image):
    first = active_model(questions.archive)
    _send(questions, make_image(20, 1))
    embeddings.register(questions.archive, "other-1-000000000000", first.dimension)
    embeddings.activate(questions.archive, "other-1-000000000000")
    _send(questions, make_image(20, 2))
    sent = questions.kept.current("DOCTOR")
    assert (sent.model_id, len(sent.sop_instance_uids), len(sent.vectors)) == (first.model_id, 2, 2)
