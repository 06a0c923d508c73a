"""Encoders come and go: one answers, the next one embeds in the background, and going back is one command."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_worker import managed
from typer.testing import CliRunner

from config.settings import load_settings
from index import embeddings
from index.archive import Archive
from index.encoders import registry
from index.errors import UnknownModel, WrongState
from plugins import embedding
from plugins.worker import Worker

OTHER = "learned-1-0123456789ab"
OTHER_SERIES = "1.2.826.0.1.3680043.9.7133.77"


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "data", settle_time_s=0.0)


@pytest.fixture
def settings(tmp_path):
    return load_settings(environment={}, overrides={"archive": {"data": tmp_path / "data"}})


@pytest.fixture
def other(monkeypatch):
    """A second encoder, as training would leave it: the first one's vectors turned round, under its own name."""
    real = registry.built_in()
    encoder = SimpleNamespace(
        name="learned", model_id=OTHER, dimension=real.dimension, encode=lambda images: -real.encode(images)
    )
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda archive, wanted: encoder if wanted == OTHER else load(archive, wanted))
    return encoder


@pytest.fixture
def work(archive, settings, make_file):
    """Store what is asked for and let a worker do everything that is queued."""

    def work(*numbers: int, **values) -> None:
        for number in numbers:
            archive.ingest(make_file(number, **values))
        Worker(archive, settings, "w", managed(embedding)).run_until_idle()

    return work


def vectors_by_model(archive: Archive) -> dict[str, int]:
    return dict(archive.database.execute("SELECT model_id, count(*) FROM embedding GROUP BY 1").fetchall())


def active(archive: Archive) -> str:
    model = embeddings.active_model(archive)
    assert model is not None
    return model.model_id


def test_the_old_encoder_answers_until_the_new_one_has_embedded_everything(archive, work, other):
    work(1, 2)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embedding.replace_encoder(archive, OTHER)
    assert active(archive) == texture
    assert embeddings.wanted_model(archive) == embeddings.EmbeddingModel(OTHER, other.dimension, False, True)
    work()
    assert active(archive) == OTHER
    assert embeddings.wanted_model(archive) is None
    assert vectors_by_model(archive) == {texture: 3, OTHER: 3}


def test_what_comes_in_meanwhile_is_embedded_with_both(archive, work, other, monkeypatch):
    work(1)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embeddings.want(archive, OTHER)
    work(3, SeriesInstanceUID=OTHER_SERIES)
    assert embeddings.series_embedded(archive) == {texture: 2, OTHER: 1}
    assert active(archive) == texture, "only the job that has embedded everything changes that"


def test_going_back_answers_at_once_and_then_embeds_what_came_since(archive, work, other):
    work(1)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embeddings.activate(archive, OTHER)
    work(3, SeriesInstanceUID=OTHER_SERIES)
    assert embeddings.series_embedded(archive) == {texture: 1, OTHER: 1}
    previous = embeddings.previous_model(archive)
    assert previous is not None
    embedding.restore_encoder(archive, previous.model_id)
    assert active(archive) == texture
    work()
    assert embeddings.series_embedded(archive)[texture] == 2
    assert embeddings.previous_model(archive) == embeddings.model(archive, OTHER), "and forth again"


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(archive, work, other, settings, monkeypatch):
    work(1)
    work(3, SeriesInstanceUID=OTHER_SERIES)
    embeddings.register(archive, OTHER, other.dimension)
    worker = Worker(archive, settings, "w", managed(embedding))
    encode, asked = other.encode, []

    def stopping(images):
        asked.append(len(images))
        worker.stop()
        return encode(images)

    other.encode = stopping
    embedding.replace_encoder(archive, OTHER)
    assert worker.run_one()
    assert len(asked) == 1
    assert embeddings.wanted_model(archive) is not None
    other.encode = lambda images: asked.append(len(images)) or encode(images)
    work()
    assert active(archive) == OTHER
    assert len(asked) <= 3, "what was embedded was not embedded again, but for the series that was under way"


@pytest.mark.parametrize("content", [None, bytes(4096)], ids=["missing", "corrupt"])
def test_a_damaged_file_does_not_keep_the_new_encoder_from_answering(archive, work, other, content, caplog):
    work(1)
    work(3, SeriesInstanceUID=OTHER_SERIES)
    path = archive.open_instance("1.2.826.0.1.3680043.9.7133.9.3").path
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    embeddings.register(archive, OTHER, other.dimension)
    embedding.replace_encoder(archive, OTHER)
    work()
    assert active(archive) == OTHER
    assert embeddings.series_lacking(archive, OTHER) == [OTHER_SERIES]
    assert f"series {OTHER_SERIES} has no vectors of {OTHER}" in caplog.text


def test_a_series_under_way_while_the_encoder_changes_is_not_lost(
    archive, settings, work, other, make_file, monkeypatch
):
    """Its job began before the new encoder was wanted, and ends when another worker has brought the change about."""
    work(1)
    archive.ingest(make_file(3, SeriesInstanceUID=OTHER_SERIES))
    choose, changed = embedding.choose_slices, []

    def slow(*arguments):
        slices = choose(*arguments)
        if not changed:
            changed.append(OTHER)
            embeddings.register(archive, OTHER, other.dimension)
            embedding.replace_encoder(archive, OTHER)
            assert Worker(archive, settings, "another", managed(embedding)).run_one()
            assert active(archive) == OTHER
        return slices

    monkeypatch.setattr(embedding, "choose_slices", slow)
    work()
    assert changed
    assert embeddings.series_embedded(archive)[OTHER] == 2
    assert embeddings.series_lacking(archive, OTHER) == []


def test_activating_the_active_encoder_calls_the_other_one_off(archive, work, other):
    from tharsis import app

    work(1)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embedding.replace_encoder(archive, OTHER)
    told = CliRunner().invoke(app, ["models", "activate", texture, "--data", str(archive.data)])
    assert told.output.strip() == f"{texture} is the active encoder; {OTHER} does not follow it any more"
    assert embeddings.wanted_model(archive) is None
    work()
    assert active(archive) == texture
    assert vectors_by_model(archive).keys() == {texture}


@pytest.mark.parametrize("is_deleted", [True, False])
def test_an_encoder_that_is_no_longer_wanted_embeds_nothing_more(archive, work, other, is_deleted):
    """Somebody goes back, and may delete it, while it embeds the first of two series."""
    work(1)
    work(3, SeriesInstanceUID=OTHER_SERIES)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embedding.replace_encoder(archive, OTHER)
    encode, asked = other.encode, []

    def going_back(images):
        asked.append(len(images))
        embedding.restore_encoder(archive, texture)
        if is_deleted:
            embeddings.forget(archive, OTHER)
        return encode(images)

    other.encode = going_back
    work()
    assert len(asked) == 1
    assert active(archive) == texture
    assert {model.model_id for model in embeddings.models(archive)} == ({texture} if is_deleted else {texture, OTHER})
    assert embeddings.series_embedded(archive).get(OTHER, 0) == (0 if is_deleted else 1)
    assert archive.jobs.counts().keys() == {"done"}


def test_an_encoder_that_cannot_embed_any_more_is_followed_by_the_built_in_one(archive, work, settings):
    work(1)
    embeddings.register(archive, "texture-0-000000000000", 4)
    embeddings.store(archive, "texture-0-000000000000", "1.2.826.0.1.3680043.9.7133.2",
                     [("1.2.826.0.1.3680043.9.7133.9.1", 0, np.ones(4, np.float32))])  # fmt: skip
    embeddings.activate(archive, "texture-0-000000000000")
    embedding.worker_started(archive, settings)
    assert active(archive) == "texture-0-000000000000"
    work()
    assert active(archive) == registry.built_in().model_id


def test_nothing_is_queued_at_the_start_when_the_active_encoder_works(archive, work, settings):
    work(1)
    embedding.worker_started(archive, settings)
    assert not archive.jobs.pending()


@pytest.mark.parametrize(
    ("model_id", "sentence"),
    [
        ("texture-9-000000000000", "no weights here of the encoder"),
        ("../../etc/passwd", "no weights here of the encoder"),
        ("learned-99-0123456789ab", "trained on preprocessing 99, this version does .*: train again"),
        (f"learned-{registry.VERSION}-0123456789ab", "no weights here of the encoder"),
    ],
)
def test_an_encoder_without_usable_weights_is_told_in_a_sentence(archive, model_id, sentence):
    with pytest.raises(UnknownModel, match=sentence):
        registry.load(archive, model_id)


def test_weights_that_were_altered_are_refused(archive):
    folder = registry.models_folder(archive)
    folder.mkdir()
    name = f"learned-{registry.VERSION}-0123456789ab"
    (folder / f"{name}.pt").write_bytes(b"other weights")
    with pytest.raises(UnknownModel, match=r"was altered: its digest is [0-9a-f]{12}"):
        registry.load(archive, name)


def test_the_active_encoder_and_the_one_to_follow_cannot_be_deleted(archive, work, other):
    work(1)
    embeddings.register(archive, OTHER, other.dimension)
    embeddings.want(archive, OTHER)
    for model_id, what in ((active(archive), "is the active encoder"), (OTHER, "is about to be activated")):
        with pytest.raises(WrongState, match=what):
            embeddings.forget(archive, model_id)


def test_the_command_lists_activates_goes_back_and_deletes(archive, work, other, tharsis):
    """The other encoder has vectors here and no weights, as after a restore without its file."""
    work(1)
    texture = active(archive)
    embeddings.register(archive, OTHER, other.dimension)
    embeddings.activate(archive, OTHER)
    run = lambda *arguments: tharsis("models", *arguments, "--data", archive.data)  # noqa: E731
    listed = json.loads(run("list", "--json").stdout)
    assert [(model["model_id"], model["state"], model["series"]) for model in listed] == [
        (texture, "ready", 1), (OTHER, "active", 0),
    ]  # fmt: skip
    refused = run("activate", "learned-1-ffffffffffff")
    assert refused.returncode == 1
    assert re.search(r"no weights here|train again", refused.stderr)
    assert "cannot be" not in run("rollback").stdout
    assert active(archive) == texture
    assert "is the active encoder" in run("activate", texture).stdout
    assert "is the active encoder" in run("delete", texture).stderr
    assert "0 vectors are deleted" in run("delete", OTHER).stdout
    assert [model.model_id for model in embeddings.models(archive)] == [texture]
    assert run("rollback").stderr.strip() == "tharsis: no other encoder was active before"


def test_going_back_to_an_encoder_that_cannot_embed_is_refused(archive, work, tharsis):
    work(1)
    texture = active(archive)
    embeddings.register(archive, "texture-0-000000000000", 4)
    embeddings.activate(archive, "texture-0-000000000000")
    embeddings.activate(archive, texture)
    told = tharsis("models", "rollback", "--data", archive.data)
    assert told.returncode == 1
    assert "cannot be used any more: no weights here of the encoder" in told.stderr
    assert active(archive) == texture
