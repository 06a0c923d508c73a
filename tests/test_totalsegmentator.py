"""The segmenter `totalsegmentator` without its networks: how it calls the package, and what it makes of the answer."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pluggy
import pydicom
import pytest
import totalsegmentator_stand_in as stand_in
from pydicom.sr.codedict import codes
from stacks import AXIAL, CORONAL, OBLIQUE, SAGITTAL, images

from config.settings import SettingsError, load_settings
from plugins import hookspecs
from plugins.node import Cancelled, CannotProceed
from plugins.segmentation import plugin
from plugins.segmentation.offered import UnknownSegmenter, chosen
from plugins.segmentation.reading import name_of, read_segmentation
from plugins.segmentation.segmenter import Placement, Volume
from plugins.segmentation.source_grid import source_grid
from plugins.segmentation.totalsegmentator import TotalSegmentator, on_grid
from plugins.segmentation.totalsegmentator_codes import segments
from plugins.segmentation.totalsegmentator_process import Labelled
from plugins.segmentation.volume_reader import read_volume
from plugins.worker import Worker

SHAPE = (5, 7, 9)
TOTAL = {number: name for number, name in enumerate(segments(), 1) if number <= 117}
PACKAGE = {
    "__init__": "",
    "config": "from totalsegmentator.python_api import get_weights_dir",
    "map_tasks_config": "from totalsegmentator.python_api import NETWORKS\n"
    "TASK_ID_WEIGHTS_CONFIGS = {number: {'foldername': name} for number, name in NETWORKS.items()}",
    "map_to_binary": f"class_map = {{'total': {TOTAL!r}, 'total_mr': {{5: 'liver', 50: 'brain'}}}}",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package without networks; call it with what the stand-in is to do, and get the call that was made."""
    site = tmp_path / "site"
    (site / "totalsegmentator").mkdir(parents=True)
    for name, content in PACKAGE.items():
        (site / "totalsegmentator" / f"{name}.py").write_text(content)
    shutil.copy(stand_in.__file__, site / "totalsegmentator" / "python_api.py")
    information = site / "totalsegmentator-2.18.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: TotalSegmentator\nVersion: 2.18.0\n")
    told = tmp_path / "told" / "told.json"
    told.parent.mkdir()
    monkeypatch.syspath_prepend(site)
    root = str(Path(plugin.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    monkeypatch.delenv("TOTALSEG_HOME_DIR", raising=False)
    monkeypatch.setenv("STAND_IN", str(told))

    def does(what="labels", point=(0, 0, 0), file=None):
        told.write_text(json.dumps({"does": what, "point": list(point), "file": str(file)}))
        return told.with_name("called.json")

    return does


@pytest.fixture
def networks(package, tmp_path):
    """The package with its networks."""
    for name in stand_in.NETWORKS.values():
        fold = tmp_path / "weights" / name / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_final.pth").touch()
    return package


def settings(**segmentation):
    told = {"use": ["totalsegmentator"], "images": "ct", **segmentation}
    return load_settings(environment={}, overrides={"segmentation": told, "jobs": {"max_attempts": 1}})


def managed():
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    plugins.register(plugin, "segmentation")
    return plugins


def segmenter(**told) -> TotalSegmentator:
    (offered,) = TotalSegmentator.offered(settings(**told).segmentation)
    return offered


def volume(shape=SHAPE, **told) -> Volume:
    place = Placement((1.0, 2.0, 3.0), (0.0, 0.0, 2.0), (0.0, 0.8, 0.0), (0.7, 0.0, 0.0))
    values = np.full(shape, 40, np.float32)
    return Volume(values, (2.0, 0.8, 0.7), **{"is_hu": True, "placement": place, **told})


def segment(asked=None, of=None, progress=lambda fraction: None):
    return (asked or segmenter()).segment(of or volume(), progress)


def stored(directions, tmp_path):
    """A stack of images of which one corner is bone; where each voxel is as PS3.3 C.7.6.2.1.1 has it, mm (LPS)."""
    values = np.zeros(SHAPE, np.int16)
    values[0, :2, :3] = 1000
    slices = images(SHAPE, directions=directions, values=values, RescaleSlope=1, RescaleIntercept=0)
    places = np.empty((*SHAPE, 3))
    paths = []
    for number, one in enumerate(slices):
        row, column = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
        i, j = np.meshgrid(np.arange(SHAPE[2]), np.arange(SHAPE[1]))
        across, down = one.PixelSpacing[1] * row, one.PixelSpacing[0] * column
        places[number] = np.asarray(one.ImagePositionPatient, float) + i[..., None] * across + j[..., None] * down
        paths.append(tmp_path / f"{number}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return slices, paths, places, values > 500


def names_at(result) -> np.ndarray:
    """What each voxel is."""
    return np.array(["", *(one.label for one in result.segments)])[result.labels]


def expected_names(places, point_lps, bone):
    left, back, head = np.moveaxis(places - point_lps, -1, 0)
    side = np.where(left > 0, "kidney_left", "kidney_right")
    return np.where(bone, "vertebrae_L1", np.where(head > 0, "brain", np.where(back > 0, side, "liver")))


def middle(places):
    """A point in the middle that is no voxel's border."""
    return np.add(places.reshape(-1, 3).mean(axis=0), [0.03, 0.05, 0.07])


def ordered(slices, uids):
    """Where the images of those UIDs are among `slices`."""
    known = [str(one.SOPInstanceUID) for one in slices]
    return [known.index(str(uid)) for uid in uids]


PLACEMENTS = pytest.mark.parametrize(
    "directions", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"]
)


@PLACEMENTS
@pytest.mark.parametrize("does", ["labels", "canonical"])
def test_every_voxel_is_where_the_patient_has_it(networks, tmp_path, directions, does):
    slices, paths, places, bone = stored(directions, tmp_path)
    read, of_images = read_volume(paths)
    point = middle(places)
    networks(does, point * [-1, -1, 1])
    result = segment(of=of_images)
    order = ordered(slices, [one.SOPInstanceUID for one in read])
    found, expected = names_at(result), expected_names(places, point, bone)[order]
    assert {"kidney_left", "kidney_right", "liver", "brain", "vertebrae_L1"} == set(np.unique(expected))
    np.testing.assert_array_equal(found, expected)
    assert result.labels.dtype == np.uint8


def test_the_package_s_own_answer_to_a_real_ct_fits_it(networks, shared_data, tmp_path):
    """Its reference labels of these very slices, on the grid that its conversion of them to NIfTI made."""
    folder = shared_data / "TotalSegmentator/tests/reference_files"
    paths = []
    for number, path in enumerate(sorted((folder / "example_ct_dicom").iterdir())):
        image = pydicom.dcmread(path)  # without UIDs, as it comes
        image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID = f"1.2.{number + 1}", "1.3", "1.4"
        paths.append(tmp_path / path.name)
        image.save_as(paths[-1])
    _, read = read_volume(paths)
    networks("file", file=folder / "example_seg_dicom.nii.gz")
    result = segment(of=read)
    indices = [np.argwhere(result.labels == number) for number in range(1, len(result.segments) + 1)]
    found = {one.label: where for one, where in zip(result.segments, indices, strict=True)}
    assert {"liver", "spleen", "aorta", "vertebrae_T12", "rib_left_9", "rib_right_9"} <= set(found)
    centres = {name: read.placement.affine @ [*where.mean(axis=0), 1] for name, where in found.items()}
    for name, (across, *_) in centres.items():
        if "left" in name or name in {"spleen", "stomach"}:
            assert across > centres["vertebrae_T12"][0], name
        if "right" in name or name == "liver":
            assert across < centres["vertebrae_T12"][0], name
    density = {name: read.values[tuple(where.T)].mean() for name, where in found.items()}
    assert 50 < density["spleen"] < 250
    assert 50 < density["liver"] < 250
    assert density["vertebrae_T12"] > density["autochthon_left"] > -100


def test_only_what_is_there_becomes_a_segment_with_its_codes(networks, tmp_path):
    _, paths, places, _ = stored(AXIAL, tmp_path)
    networks(point=middle(places) * [-1, -1, 1])
    result = segment(of=read_volume(paths)[1])
    assert set(np.unique(result.labels)) == {1, 2, 3, 4, 5}
    told = [(one.label, name_of(one)) for one in result.segments]
    assert told == [
        ("kidney_right", "Kidney, Right"),
        ("kidney_left", "Kidney, Left"),
        ("liver", "Liver"),
        ("vertebrae_L1", "L1 vertebra"),
        ("brain", "Brain"),
    ]
    networks("nothing")
    assert segment().segments == ()


def test_the_algorithm_is_told(networks):
    networks("nothing")
    told = segment(segmenter(totalsegmentator_fast=True, totalsegmentator_structures=["liver", "brain"])).algorithm
    assert (told.name, told.version, told.family) == ("TotalSegmentator", "2.18.0", codes.DCM.ArtificialIntelligence)
    assert told.parameters == {"task": "total", "voxels": "3 mm", "structures": "brain liver"}


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_its_seg_has_the_codes_and_is_valid(networks, archive, tmp_path, validator_errors, kind):
    slices, paths, places, bone = stored(OBLIQUE, tmp_path)
    point = middle(places)
    networks(point=point * [-1, -1, 1])
    for path in paths:
        archive.ingest(path.read_bytes())
    told = settings(object=kind)
    Worker(archive, told, "w", managed()).run_until_idle()
    assert archive.jobs.recent(states=("failed",)) == []
    rows = archive.database.execute("SELECT sop_instance_uid FROM instance").fetchall()
    (uid,) = {uid for (uid,) in rows} - {str(one.SOPInstanceUID) for one in slices}
    path = archive.open_instance(uid).path
    assert validator_errors(path) == []
    seg = pydicom.dcmread(path)
    coded = {
        item.SegmentLabel: (
            item.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue,
            [one.CodeValue for one in item.SegmentedPropertyTypeCodeSequence[0].get(
                "SegmentedPropertyTypeModifierCodeSequence", []
            )],
        )
        for item in seg.SegmentSequence
        if item.SegmentNumber
    }  # fmt: skip
    assert coded == {
        "kidney_right": ("91723000", "64033007", ["24028007"]),
        "kidney_left": ("91723000", "64033007", ["7771000"]),
        "liver": ("91723000", "10200004", []),
        "vertebrae_L1": ("91723000", "66794005", []),
        "brain": ("91723000", "12738006", []),
    }
    grid = source_grid(slices)
    order = ordered(slices, [of for of, _ in grid.frames])
    (read,) = read_segmentation(seg, grid).segmentations
    np.testing.assert_array_equal(names_at(read), expected_names(places, point, bone)[order])
    told_by = seg.SegmentSequence[-1].SegmentationAlgorithmIdentificationSequence[0]
    assert (told_by.AlgorithmName, told_by.AlgorithmVersion) == ("TotalSegmentator", "2.18.0")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, {"task": "total", "fast": False, "roi_subset": None}),
        (
            {"totalsegmentator_fast": True, "totalsegmentator_structures": ["liver", "brain", "liver"]},
            {"task": "total", "fast": True, "roi_subset": ["brain", "liver"]},
        ),
        ({"totalsegmentator_task": "total_mr"}, {"task": "total_mr", "fast": False, "roi_subset": None}),
    ],
)
def test_it_is_called_as_the_settings_say(networks, told, expected):
    called = networks("nothing")
    segment(segmenter(**told))
    call = json.loads(called.read_text())
    assert call | expected == call
    assert (call["ml"], call["output"], call["quiet"], call["device"]) == (True, None, True, "gpu")
    assert (call["shape"], call["dtype"]) == ([9, 7, 5], "float32")


def test_it_tells_nobody_and_leaves_nothing_behind(networks):
    called = networks("nothing")
    segment()
    call = json.loads(called.read_text())
    assert call["config"]["send_usage_stats"] is False
    assert not Path(call["home"]).exists()


def test_the_recipe_changes_with_whatever_changes_the_labels(package):
    told = [
        {},
        {"totalsegmentator_task": "total_mr"},
        {"totalsegmentator_fast": True},
        {"totalsegmentator_structures": ["liver"]},
    ]
    made = [segmenter(**one) for one in told]
    made += [replace(one, version="2.18.1") for one in made]
    assert len({json.dumps(one.recipe(), sort_keys=True) for one in made}) == len(made)


def test_the_order_of_structures_changes_no_recipe(package):
    told = (["liver", "brain"], ["brain", "liver", "liver"])
    one, other = (segmenter(totalsegmentator_structures=names).recipe() for names in told)
    assert one == other


def test_it_is_offered_by_name(package):
    assert list(chosen(managed(), settings())) == ["totalsegmentator"]


def test_a_missing_package_is_told_before_the_node_starts(monkeypatch):
    monkeypatch.setattr("plugins.segmentation.totalsegmentator.installed_version", lambda: None)
    sentence = r"no segmenter 'totalsegmentator' is offered: .* pip install '\.\[totalsegmentator\]'$"
    with pytest.raises(UnknownSegmenter, match=sentence):
        chosen(managed(), settings())
    assert list(chosen(managed(), settings(use=["classical"]))) == ["classical"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({}, r"Dataset291_\w+ is not in .*weights, .*: run totalseg_download_weights -t total as the user"),
        ({"totalsegmentator_fast": True}, r"Dataset297_\w+ is not .* -t total_fast as"),
        (
            {"totalsegmentator_task": "total_mr", "totalsegmentator_structures": ["liver"]},
            r"Dataset850_\w+ is not .* -t total_fast_mr and totalseg_download_weights -t total_mr as",
        ),
    ],
)
def test_missing_networks_are_told_and_not_fetched(package, told, sentence):
    package()
    with pytest.raises(CannotProceed, match=sentence):
        segment(segmenter(**told))


def test_a_network_whose_download_broke_off_is_missing(networks, tmp_path):
    networks()
    fold = next((tmp_path / "weights" / stand_in.NETWORKS[298]).glob("*/fold_0"))
    (fold / "checkpoint_final.pth").unlink()
    assert segment().segments
    with pytest.raises(CannotProceed, match="Dataset298"):
        segment(segmenter(totalsegmentator_structures=["liver"]))


@pytest.mark.parametrize(
    ("does", "error", "sentence"),
    [
        ("exit", CannotProceed, "^TotalSegmentator gave up; the last that it said: ERROR: this task needs a license$"),
        ("exit with a sentence", CannotProceed, "^TotalSegmentator gave up; .*: ERROR: no such file$"),
        ("crash", RuntimeError, "^TotalSegmentator ended with status 1; .*: ValueError: CUDA out of memory$"),
        ("die", RuntimeError, f"^TotalSegmentator ended with status -{signal.SIGABRT.value}"),
        ("other grid", CannotProceed, r"another grid: expected one of \(9, 7, 5\), got one of \(5, 7, 5\) voxels"),
        ("shifted grid", CannotProceed, "another grid"),
        ("unknown label", CannotProceed, "a label 250, which is no structure"),
        ("fractions", CannotProceed, "no whole numbers"),
    ],
)
def test_however_it_ends_the_worker_gets_a_sentence(networks, does, error, sentence):
    networks(does)
    with pytest.raises(error, match=sentence):
        segment()


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ({"is_hu": False}, "needs Hounsfield units"),
        ({"placement": None}, "without a place in the patient"),
    ],
)
def test_volumes_that_it_is_not_made_for_are_refused(networks, of, sentence):
    networks()
    with pytest.raises(CannotProceed, match=sentence):
        segment(of=volume(**of))


def test_a_structure_that_the_task_does_not_have_is_told(networks):
    networks()
    with pytest.raises(CannotProceed, match="task total knows no structure 'livre'"):
        segment(segmenter(totalsegmentator_structures=["livre"]))


def test_a_task_that_has_no_codes_is_refused():
    with pytest.raises(SettingsError, match="totalsegmentator_task"):
        settings(totalsegmentator_task="teeth")


def test_a_cancelled_job_ends_it(networks, wait_until):
    called = networks("wait")

    def stop(fraction):
        if called.exists():
            raise Cancelled

    with pytest.raises(Cancelled):
        segment(progress=stop)
    wait_until(lambda: not is_alive(json.loads(called.read_text())["pid"]))


def test_what_it_started_ends_with_it_when_it_dies(networks, wait_until):
    called = networks("die with a helper")
    with pytest.raises(RuntimeError, match="ended with status"):
        segment()
    helper = int((called.parent / "helper").read_text())
    try:
        wait_until(lambda: not is_alive(helper))
    finally:
        if is_alive(helper):
            os.kill(helper, signal.SIGKILL)


def test_it_ends_when_its_worker_is_killed(networks, wait_until):
    called = networks("wait")
    program = (
        "import numpy as np\n"
        "from plugins.segmentation.totalsegmentator_process import Wanted, run\n"
        "run(np.zeros((2, 3, 4), np.float32), np.eye(4), Wanted('total', False, (), ''), lambda: None)"
    )
    worker = subprocess.Popen([sys.executable, "-P", "-c", program])
    try:
        wait_until(called.exists)
    finally:
        worker.kill()
        worker.wait()
    call = json.loads(called.read_text())
    wait_until(lambda: not is_alive(call["pid"]))
    shutil.rmtree(Path(call["home"]).parent)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_axes_of_any_order_and_direction_are_brought_back(order, flips):
    """Also where directions lie half-way between the patient's, which a look at the nearest axis would mix up."""
    truth = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    half = np.sqrt(0.5)
    affine = np.array([[half, -half, 0, 3], [half, half, 0, -7], [0, 0, 2, 11], [0, 0, 0, 1]])
    axes = np.zeros((4, 4))
    axes[3, 3] = 1
    for new, old in enumerate(order):
        axes[old, new] = -1 if old in flips else 1
        axes[old, 3] = truth.shape[old] - 1 if old in flips else 0
    answer = Labelled(np.flip(truth, flips).transpose(order), affine @ axes, {})
    np.testing.assert_array_equal(on_grid(answer, affine, truth.shape), truth)


def test_the_stand_in_is_called_as_the_package_is():
    """Where the package is installed (it is not in CI): same arguments, same networks, same structures."""
    try:
        metadata.version("TotalSegmentator")
    except metadata.PackageNotFoundError:
        pytest.skip("TotalSegmentator is not installed")
    from totalsegmentator import map_tasks_config, map_to_binary, python_api

    def arguments(call):
        return [(name, one.default) for name, one in inspect.signature(call).parameters.items()]

    assert arguments(stand_in.totalsegmentator) == arguments(python_api.totalsegmentator)
    known = map_tasks_config.TASK_ID_WEIGHTS_CONFIGS
    assert {number: known[number]["foldername"] for number in stand_in.NETWORKS} == stand_in.NETWORKS
    assert map_to_binary.class_map["total"] == TOTAL
    assert set(map_to_binary.class_map["total_mr"].values()) <= set(segments())
