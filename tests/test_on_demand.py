"""What is embedded while its asker waits: regions, and slices without a vector."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cases import ROOT, ask_for, cases_of, picture
from pydicom import dcmread

from config.settings import load_settings
from index import asked, embeddings
from index.asked import Part
from index.doorbell import ENCODER_BELL, Doorbell, ring
from index.embeddings import active_model
from index.encoders.pixels import Region, canonical_frames
from index.encoders.texture import TextureEncoder
from index.errors import InvalidIdentifier, NotEmbedded, QueryCancelled, UnknownModel, UnknownQuery
from index.jobs import EMBED_ASKED, NOT_FOR_WORKERS
from index.keys import Level
from index.on_demand import OnDemand
from index.similarity import Similarity, SimilarityRequest
from plugins.manager import load_plugins
from plugins.worker import Worker


def test_a_slice_without_a_vector_is_embedded_when_it_is_asked_about(search):
    answer = ask_for(search, sop_instance_uid=f"{ROOT}.9.0.1")
    assert len(answer.neighbours) == 5
    assert cases_of(answer)[0] == 3, "the other picture of rings"
    assert answer.neighbours[0].score > answer.neighbours[1].score


def test_a_slice_asked_by_its_frame_number_is_the_same(search):
    whole, first = ask_for(search, sop_instance_uid=f"{ROOT}.9.0.1"), ask_for(
        search, sop_instance_uid=f"{ROOT}.9.0.1", frame_number=1
    )
    assert whole.neighbours == first.neighbours


def test_a_region_finds_what_looks_like_it(filled, search, make_dataset, make_image):
    """The right half of this image is stripes, whatever the rest of it is."""
    mixed = picture(0)
    mixed[:, 24:] = picture(1)[:, 24:]
    filled.ingest(make_image(7, 1, PixelData=mixed.tobytes()))
    answer = ask_for(search, sop_instance_uid=f"{ROOT}.9.7.1", region=(24, 0, 24, 48))
    expected = canonical_region(filled, f"{ROOT}.9.7.1")
    (made,) = asked.find(
        filled.database, active_model(filled).model_id, Part(f"{ROOT}.9.7.1", 0, (24, 0, 24, 48))
    )
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert set(cases_of(answer)[:2]) == {1, 4}


def canonical_region(archive, uid):
    dataset = dcmread(archive.open_instance(uid).path)
    frames = canonical_frames(dataset, region=Region(24, 0, 24, 48))
    return TextureEncoder.load().encode(frames.images)[0]


def test_a_frame_of_a_multi_frame_object_with_a_region(filled, search, make_image):
    both = np.concatenate([picture(0), picture(1)])
    filled.ingest(make_image(8, 1, NumberOfFrames="2", PixelData=both.tobytes()))
    uid = f"{ROOT}.9.8.1"
    assert set(cases_of(ask_for(search, sop_instance_uid=uid, frame_number=1))[:2]) == {0, 3}
    assert set(cases_of(ask_for(search, sop_instance_uid=uid, frame_number=2))[:2]) == {1, 4}
    assert set(cases_of(ask_for(search, sop_instance_uid=uid, frame_number=2, region=(4, 4, 40, 40)))[:2]) == {1, 4}
    whole = Part(uid)
    ask_for(search, sop_instance_uid=uid)
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
        ask_for(search, **{"sop_instance_uid": f"{ROOT}.9.0.1", **request_})


def test_what_was_made_serves_the_next_query_and_is_forgotten_in_time(filled, search, wait_until):
    uid = f"{ROOT}.9.0.1"
    ask_for(search, sop_instance_uid=uid)
    wait_until(lambda: "done" in filled.jobs.counts())  # which the worker notes behind the answer
    done = filled.jobs.counts()["done"]
    ask_for(search, sop_instance_uid=uid)
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
        ask_for(search, sop_instance_uid=f"{ROOT}.9.0.{number}")
    monkeypatch.setattr(asked, "MOST_KEPT", 1)
    assert asked.forget(filled, at=_newest(filled), questions_kept_s=900.0) == 1
    assert asked.find(filled.database, active_model(filled).model_id, Part(f"{ROOT}.9.0.3")) is not None


def test_a_deleted_instance_takes_its_vectors_along(filled, search):
    ask_for(search, sop_instance_uid=f"{ROOT}.9.0.1")
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
        ask_for(Similarity(filled, impatient), **request)
    encoder(filled)
    assert len(ask_for(Similarity(filled, OnDemand(filled, timeout_s=300.0)), **request).neighbours) == 5


def test_waiting_ends_when_the_asker_cancels(filled):
    request = SimilarityRequest(level=Level.SERIES, sop_instance_uid=f"{ROOT}.9.0.1")
    with pytest.raises(QueryCancelled):
        Similarity(filled, OnDemand(filled, timeout_s=300.0)).search(request, lambda: True)


def test_waiting_ends_when_the_job_has_failed_for_good(filled):
    """An image that kills its process again and again."""
    on_demand = OnDemand(filled, timeout_s=300.0)
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
