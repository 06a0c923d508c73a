"""Annotations of every kind take part in the training: SEG over multi-frame images, fractions, structure sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, UltrasoundImageStorage
from stacks import OBLIQUE, images, multi_frame, segmentation, structure_set

from commands.training_data import collect
from config.settings import load_settings
from index.archive import Archive
from index.encoders.learned.corpus import NO_TRUTH, Corpus
from plugins.segmentation.seg_object import seg_object

SHAPE = (5, 64, 48)


def bright(organs: int = 1) -> np.ndarray:
    """Squares that move from slice to slice, one for each organ."""
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(SHAPE[0]):
        labels[number, 4 * number : 4 * number + 16, 5:15] = 1
        if organs > 1:
            labels[number, 40:50, 4 * number : 4 * number + 16] = 2
    return labels


def trained_on(folder: Path, datasets: Sequence[Dataset]) -> Corpus:
    archive = Archive(folder / "data", settle_time_s=0.0)
    for dataset in datasets:
        dataset.save_as(folder / "one.dcm", enforce_file_format=True)
        archive.ingest(folder / "one.dcm")
    settings = load_settings(environment={}, overrides={"archive": {"data": folder / "data"}})
    corpus = collect(archive, settings, {})
    archive.close()
    return corpus


def overlap(corpus: Corpus) -> np.ndarray:
    """For each slice the Dice overlap of what is labelled and what is bright in the image."""
    seen, told = corpus.images > 0.5, corpus.truth == 1
    return 2 * (seen & told).sum(axis=(1, 2)) / (seen.sum(axis=(1, 2)) + told.sum(axis=(1, 2)))


@pytest.mark.parametrize("kind", ["single frames", "multi-frame"])
def test_a_seg_lies_over_the_frames_of_its_images(tmp_path: Path, kind: str) -> None:
    slices = images(SHAPE, directions=OBLIQUE, spacing=(3, 1, 1), values=bright() * np.int16(1000))
    order = [3, 0, 4, 1, 2]
    sources = slices if kind == "single frames" else [multi_frame(slices, order)]
    labels = bright() if kind == "single frames" else bright()[order]
    corpus = trained_on(tmp_path, [*sources, seg_object(segmentation(labels), sources, recipe="{}")])
    assert corpus.segments == ("Liver",)
    assert len(corpus) == 5
    assert (overlap(corpus) > 0.95).all()


@pytest.mark.parametrize(
    ("sop_class", "modality"), [(SecondaryCaptureImageStorage, "OT"), (UltrasoundImageStorage, "US")]
)
def test_a_seg_of_images_that_are_rendered_already_is_not_empty(
    tmp_path: Path, sop_class: str, modality: str
) -> None:
    slices = images(SHAPE, directions=OBLIQUE, spacing=(3, 1, 1), values=bright() * np.int16(1000))
    for image in slices:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
        image.Modality = modality
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            if keyword in image:
                delattr(image, keyword)
    corpus = trained_on(tmp_path, [*slices, seg_object(segmentation(bright()), slices, recipe="{}")])
    assert corpus.segments == ("Liver",)
    assert (overlap(corpus) > 0.95).all()


def test_a_structure_set_lies_over_its_images(tmp_path: Path) -> None:
    slices = images(SHAPE, directions=OBLIQUE, spacing=(3, 1, 1), values=bright() * np.int16(1000))
    contours = []
    for number in range(5):
        top, left, bottom, right = 4 * number - 0.5, 4.5, 4 * number + 15.5, 14.5
        contours.append((number, np.array([(top, left), (top, right), (bottom, right), (bottom, left)])))
    corpus = trained_on(tmp_path, [*slices, structure_set(slices, [("Tumour", contours)])])
    assert corpus.segments == ("Tumour",)
    assert (overlap(corpus) > 0.95).all()


def test_a_label_map_that_covers_a_whole_slice_is_not_lost(tmp_path: Path) -> None:
    slices = images(SHAPE, values=bright() * np.int16(1000))
    labels = np.ones(SHAPE, np.uint8)
    corpus = trained_on(tmp_path, [*slices, seg_object(segmentation(labels), slices, recipe="{}")])
    assert (corpus.truth == 1).mean() > 0.5


def test_what_no_annotation_names_is_unknown_and_not_background(tmp_path: Path) -> None:
    slices = images(SHAPE, values=bright() * np.int16(1000))
    seg = seg_object(segmentation(bright()[1:4]), slices[1:4], recipe="{}")
    corpus = trained_on(tmp_path, [*slices, seg])
    known = [bool((truth != NO_TRUTH).all()) for truth in corpus.truth]
    assert sorted(known) == [False, False, True, True, True]


def test_an_annotation_that_cannot_be_read_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slices = images(SHAPE, values=bright() * np.int16(1000))
    seg = seg_object(segmentation(bright(organs=2)), slices, recipe="{}")
    good = structure_set(slices, [("A", [(0, np.array([(4.0, 4.0), (4, 9), (9, 9)]))])])
    del seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    with caplog.at_level(logging.WARNING):
        corpus = trained_on(tmp_path, [*slices, seg, good])
    assert corpus.segments == ("A",)
    assert "has no code of a category or of a type" in caplog.text
