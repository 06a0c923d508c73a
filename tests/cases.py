"""Cases that look alike or do not, an archive that holds some, and who embeds what is asked about."""

from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest
from pydicom import dcmread

from config.settings import load_settings
from index import embeddings
from index.archive import Archive
from index.encoders.pixels import canonical_frames
from index.encoders.texture import TextureEncoder
from index.jobs import EMBED_ASKED
from index.keys import Level
from index.on_demand import OnDemand
from index.similarity import Similarity, SimilarityRequest
from plugins.asked import Attention
from plugins.manager import load_plugins
from plugins.worker import Worker

ROOT = "1.2.826.0.1.3680043.9.7133"
SIDE = 48


def picture(kind, shift=0):
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
            "StudyDescription": f"Case {case}", "AccessionNumber": f"A{case}", "StudyID": f"S{case}",
            "PixelData": picture(case % 3, case + number).tobytes(),
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


@pytest.fixture(scope="session")
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
    """Run the encoder process's work in a thread, on as many archives as a test needs, by the clock of the test."""
    running = []

    def start(archive, clock=time.time):
        settings = load_settings(environment={}, overrides={"archive": {"data": archive.data}})
        attention = Attention(archive, settings, clock)
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
    return Similarity(filled, OnDemand(filled, timeout_s=300.0))


def ask_for(search, **request):
    return search.search(SimilarityRequest(**{"level": Level.SERIES, "k": 10, **request}))


def cases_of(answer):
    return [int(neighbour.series_instance_uid.rsplit(".", 1)[1]) for neighbour in answer.neighbours]
