"""From a stored CT series to stored SEGs: which series, which segmenters, which objects, and what a re-run does."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import ModuleType

import highdicom
import numpy as np
import pluggy
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from config.settings import SettingsError, load_settings
from index import jobs
from index.archive import Archive
from plugins import hookspecs
from plugins.hookspecs import hookimpl
from plugins.node import Series
from plugins.segmentation import plugin
from plugins.segmentation.offered import UnknownSegmenter, chosen
from plugins.segmentation.seg_object import read_labels, seg_object
from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation
from plugins.segmentation.volume_reader import read_volume
from plugins.worker import Worker
from scp.contexts import Operation, operation_of, storage_proposals

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
SHAPE = (10, 32, 32)


def values() -> np.ndarray:
    """A ball of soft tissue with bone in it, HU."""
    z, y, x = np.indices(SHAPE) - np.array([4.5, 16, 16])[:, None, None, None]
    radius = np.sqrt((1.6 * z) ** 2 + y**2 + x**2)
    return np.where(radius < 5, 1000, np.where(radius < 12, 40, -1000)).astype(np.int16)


@pytest.fixture
def ct(make_dataset):
    """A CT series as a scanner sends it."""
    series = "1.2.826.0.1.3680043.9.7133.20"
    images = []
    for number, plane in enumerate(values(), 1):
        image = make_dataset(
            number, SeriesInstanceUID=series, SOPInstanceUID=f"{series}.{number}", Modality="CT", SeriesNumber=3,
            InstanceNumber=number, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], FrameOfReferenceUID=f"{series}.0",
            PositionReferenceIndicator="", ImagePositionPatient=[-8, -8, 2.0 * number], SliceThickness=2,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.5, 0.5], RescaleSlope=1, RescaleType="HU",
            RescaleIntercept=-1024, Manufacturer="ACME", ManufacturerModelName="Scanner", StudyDate="20260101",
            StudyTime="120000", StudyID="1", AccessionNumber="", ReferringPhysicianName="", PatientBirthDate="",
            PatientSex="O", Rows=SHAPE[1], Columns=SHAPE[2],
            PixelData=(plane + 1024).astype(np.uint16).tobytes(),
        )  # fmt: skip
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        images.append(image)
    return images


def settings(**segmentation):
    told = {"images": "ct", **segmentation}
    return load_settings(environment={}, overrides={"segmentation": told, "jobs": {"max_attempts": 1}})


class Halves:
    """Labels the upper half, or fails."""

    name = "halves"

    def __init__(self, failure: Exception | None = None, depth: int = SHAPE[0]) -> None:
        self.failure, self.depth = failure, depth

    def recipe(self):
        return {"version": "1"}

    def segment(self, volume, progress):
        if self.failure:
            raise self.failure
        labels = np.zeros((self.depth, *SHAPE[1:]), np.uint8)
        labels[: self.depth // 2] = 1
        family = codes.DCM.MorphologicalOperations
        half = Segment("Half", codes.SCT.Tissue, codes.SCT.Tissue)
        return Segmentation(labels, (half,), Algorithm("Halves", "1", family, {}))


def offering(*segmenters) -> ModuleType:
    module = ModuleType("offering")

    @hookimpl
    def offered(settings):
        if isinstance(segmenters[0], Exception):
            raise segmenters[0]
        return segmenters

    module.segmenters = offered
    return module


def managed(*more: ModuleType) -> pluggy.PluginManager:
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    plugins.register(plugin, "segmentation")
    for number, module in enumerate(more):
        plugins.register(module, f"more {number}")
    return plugins


def work(archive: Archive, told, *more: ModuleType):
    Worker(archive, told, "w", managed(*more)).run_until_idle()
    return archive.jobs.recent(states=("failed",))


def store(archive: Archive, images, make) -> str:
    for image in images:
        archive.ingest(make(image))
    return str(images[0].SeriesInstanceUID)


@pytest.fixture
def as_bytes():
    from io import BytesIO

    def make(image):
        buffer = BytesIO()
        image.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    return make


def segmentations(archive: Archive):
    rows = archive.database.execute(
        "SELECT sop_instance_uid FROM instance JOIN series ON series.id = instance.series WHERE modality = 'SEG' "
        "ORDER BY instance.id"
    ).fetchall()
    return [pydicom.dcmread(archive.open_instance(uid).path) for (uid,) in rows]


@pytest.mark.parametrize(
    ("kind", "sop_class"), [("binary", "1.2.840.10008.5.1.4.1.1.66.4"), ("labelmap", LABEL_MAP_SEGMENTATION)]
)
def test_a_series_from_outside_becomes_a_seg(archive, ct, as_bytes, validator_errors, kind, sop_class):
    uid = store(archive, ct, as_bytes)
    assert not work(archive, settings(object=kind))
    (seg,) = segmentations(archive)
    assert seg.SOPClassUID == sop_class
    assert seg.FrameOfReferenceUID == ct[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == ct[0].StudyInstanceUID
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == uid
    sources = {str(image.SOPInstanceUID) for image in ct}
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} <= sources
    labels = highdicom.seg.Segmentation.from_dataset(seg)
    assert validator_errors(archive.open_instance(seg.SOPInstanceUID).path) == []
    found = {str(item.SegmentLabel).split()[0] for item in seg.SegmentSequence if item.SegmentNumber}
    assert found == {"Soft", "Bone"}
    assert all(plane.any() for plane in labels.pixel_array), "an empty frame"


def stored_seg(ct, kind="binary", recipe="{}"):
    labels = np.digitize(values(), [0, 500]).astype(np.uint8)
    segments = (
        Segment("Soft tissue", codes.SCT.Tissue, codes.SCT.SoftTissue),
        Segment("Bone", codes.SCT.Tissue, codes.SCT.BoneTissue),
    )
    algorithm = Algorithm("Test", "1", codes.DCM.MorphologicalOperations, {"a": "b"})
    return labels, seg_object(Segmentation(labels, segments, algorithm), ct, recipe=recipe, kind=kind)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_network_edge_takes_and_finds_both_kinds(archive, ct, as_bytes, ask, kind):
    _, seg = stored_seg(ct, kind)
    archive.ingest(as_bytes(seg))
    assert operation_of(str(seg.SOPClassUID)) is Operation.STORE
    (answer,) = ask(archive, "SERIES", StudyInstanceUID=ct[0].StudyInstanceUID, Modality="SEG", SeriesInstanceUID="")
    assert answer.SeriesInstanceUID == seg.SeriesInstanceUID
    ((proposal, *_),) = storage_proposals([(str(seg.SOPClassUID), ExplicitVRLittleEndian)], convertible=True)
    assert proposal.sop_class_uid == seg.SOPClassUID


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_labels_come_back_voxel_by_voxel(ct, kind):
    labels, seg = stored_seg(ct, kind)
    np.testing.assert_array_equal(read_labels(seg, SHAPE), labels)


def test_frames_go_by_segment_and_then_by_slice(ct):
    labels, seg = stored_seg(ct)
    frames = [
        (int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
         float(item.PlanePositionSequence[0].ImagePositionPatient[2]))
        for item in seg.PerFrameFunctionalGroupsSequence
    ]  # fmt: skip
    indices = [
        list(item.FrameContentSequence[0].DimensionIndexValues) for item in seg.PerFrameFunctionalGroupsSequence
    ]
    assert indices == sorted(indices)
    expected = [(n, 2.0 * (z + 1)) for n in (1, 2) for z in range(SHAPE[0]) if (labels[z] == n).any()]
    assert sorted(frames) == expected


def test_colours_and_tracking_are_the_same_in_each_run(ct):
    (_, first), (_, second) = stored_seg(ct), stored_seg(ct)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SegmentSequence", "DimensionOrganizationSequence"):
        assert first[keyword].value == second[keyword].value, keyword
    soft, bone = first.SegmentSequence
    assert (soft.TrackingID, bone.TrackingID) == ("Soft tissue", "Bone")
    assert soft.TrackingUID != bone.TrackingUID
    assert bone.RecommendedDisplayCIELabValue[0] > soft.RecommendedDisplayCIELabValue[0], "bone is brighter"


def test_provenance_names_the_scanner_the_node_and_the_recipe(ct):
    _, seg = stored_seg(ct, recipe='{"a":1}')
    scanner, node = seg.ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("ACME", "Scanner")
    assert (node.Manufacturer, node.ContributionDescription) == ("Tharsis", 'Segmentation {"a":1}')
    identification = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmParameters) == ("Test", "a=b")


def test_each_segmenter_makes_a_series_of_its_own(archive, ct, as_bytes):
    store(archive, ct, as_bytes)
    assert not work(archive, settings(use=["halves", "classical"]), offering(Halves()))
    assert len({seg.SeriesInstanceUID for seg in segmentations(archive)}) == 2


@pytest.mark.parametrize(
    ("segmenter", "sentence"),
    [
        (Halves(RuntimeError("no weights")), "segmenter halves of plug-in more 0: RuntimeError: no weights"),
        (Halves(depth=4), "segmenter halves: expected labels of shape (10, 32, 32), got (4, 32, 32)"),
    ],
)
def test_one_that_fails_harms_no_other(archive, ct, as_bytes, segmenter, sentence):
    store(archive, ct, as_bytes)
    (failed,) = work(archive, settings(use=["halves", "classical"]), offering(segmenter))
    assert failed.error.removeprefix("plug-in segmentation: segment: RuntimeError: ") == sentence
    assert failed.parameters == {"segmenter": "halves"}
    assert len(segmentations(archive)) == 1


def test_a_segmenter_that_is_no_longer_in_use_is_told(archive, ct, as_bytes):
    uid = store(archive, ct, as_bytes)
    assert not work(archive, settings(use=[]))
    archive.jobs.push("segment", uid, {"segmenter": "classical"})
    (failed,) = work(archive, settings(use=[]))
    assert failed.error == "expected a segmenter that [segmentation] use names, got 'classical'"


@pytest.mark.parametrize("value", [None, ""], ids=["without", "empty"])
def test_images_without_a_frame_of_reference_are_refused_once_in_a_sentence(archive, ct, as_bytes, value):
    for image in ct:
        del image.FrameOfReferenceUID
        if value is not None:
            image.FrameOfReferenceUID = value
    uid = store(archive, ct, as_bytes)
    told = load_settings(environment={}, overrides={"segmentation": {"images": "ct"}, "jobs": {"max_attempts": 3}})
    (failed,) = work(archive, told)
    assert (failed.kind, failed.attempts) == (plugin.KIND, 1)
    assert failed.error == (
        f"the images of series {uid} have no Frame of Reference UID (0020,0052), in which a segmentation would have "
        "to lie"
    )


def test_a_re_run_replaces(archive, ct, as_bytes):
    uid = store(archive, ct, as_bytes)
    told = settings()
    assert not work(archive, told)
    (before,) = segmentations(archive)
    image = ct[4]
    image.PixelData = np.zeros(SHAPE[1:], np.uint16).tobytes()
    archive.ingest(as_bytes(image), overwrite="always")
    archive.jobs.push(jobs.SERIES_STABLE, uid)
    assert not work(archive, told)
    (after,) = segmentations(archive)
    assert after.SOPInstanceUID == before.SOPInstanceUID
    assert after.PixelData != before.PixelData


def test_another_setting_is_another_series_and_the_earlier_one_stays(archive, ct, as_bytes):
    """As with reconstructions of other parameters (decision 0004): each recipe has a derivation of its own."""
    uid = store(archive, ct, as_bytes)
    for smallest in (1.0, 2.0):
        archive.jobs.push(jobs.SERIES_STABLE, uid)
        assert not work(archive, settings(min_volume_mm3=smallest))
    assert len({seg.SeriesInstanceUID for seg in segmentations(archive)}) == 2


@pytest.mark.parametrize(
    ("told", "changes"),
    [
        ({"images": "reconstructed"}, {}),
        ({"enabled": False}, {}),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ({}, {"RescaleType": "US"}),
    ],
)
def test_what_is_not_to_be_segmented_is_left_alone(archive, ct, as_bytes, told, changes):
    for image in ct:
        for keyword, value in changes.items():
            setattr(image, keyword, value)
    uid = store(archive, ct, as_bytes)
    assert plugin.jobs_for_series(Series(archive, uid), settings(**told)) == []


def test_two_slices_are_no_volume(archive, ct, as_bytes):
    uid = store(archive, ct[:2], as_bytes)
    assert plugin.jobs_for_series(Series(archive, uid), settings()) == []


def test_the_volume_is_in_hounsfield_units(archive, ct, as_bytes):
    uid = store(archive, ct, as_bytes)
    _, volume = read_volume(Series(archive, uid).paths)
    np.testing.assert_array_equal(volume.values, values())
    assert replace(volume).spacing_mm_zyx == (2.0, 0.5, 0.5)


def test_segmenters_run_in_the_order_of_the_settings():
    told = settings(use=["halves", "classical"])
    assert list(chosen(managed(offering(Halves())), told)) == ["halves", "classical"]


@pytest.mark.parametrize(
    ("use", "more", "sentence"),
    [
        (["clasical"], (), r"segmentation.use: no segmenter 'clasical' is offered; the nearest .* is 'classical'"),
        (["halves"], (offering(RuntimeError("no torch")),), r"'halves'.*plug-in more 0: RuntimeError: no torch"),
        (["halves"], (offering([3]),), r"'halves'.*plug-in more 0: AttributeError: 'list'"),
    ],
)
def test_what_is_wrong_with_the_names_is_one_sentence(caplog, use, more, sentence):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(UnknownSegmenter, match=sentence):
        chosen(managed(*more), settings(use=use))


def test_of_two_segmenters_with_one_name_that_of_the_plug_in_asked_first_counts(caplog):
    first, second = Halves(), Halves()
    assert chosen(managed(offering(first), offering(second)), settings(use=["halves"]))["halves"] is first
    assert "segmenter halves of plug-in more 1 is not used: plug-in more 0 has one" in caplog.text


def test_a_name_that_is_given_twice_is_refused():
    with pytest.raises(SettingsError, match="names 'classical' more than once"):
        settings(use=["classical", "classical"])


def test_names_can_come_from_the_environment():
    told = load_settings(environment={"THARSIS_SEGMENTATION_USE": "one, two"})
    assert told.segmentation.use == ("one", "two")


@pytest.mark.slow
def test_the_node_does_not_start_with_an_unknown_segmenter(tharsis, tmp_path):
    file = tmp_path / "tharsis.toml"
    file.write_text(
        f'[scp]\nhost = "127.0.0.1"\nport = 0\n[archive]\ndata = "{tmp_path / "data"}"\nreserve_mb = 0\n'
        '[segmentation]\nuse = ["magic"]\n',
        encoding="utf-8",
    )
    ended = tharsis("serve", "--config", file)
    assert ended.returncode != 0
    assert "no segmenter 'magic' is offered" in ended.stderr
    assert "Traceback" not in ended.stderr
