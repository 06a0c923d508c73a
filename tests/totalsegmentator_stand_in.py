"""Stands in for TotalSegmentator 2.18 in tests: its call as it is, and labels that tell where the voxels were.

A test copies this file to ``totalsegmentator/python_api.py`` of a package that it puts on the path. What it does is
told by a JSON file that the environment variable STAND_IN names; beside it, it writes down how it was called.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np

NETWORKS = {
    291: "Dataset291_TotalSegmentator_part1_organs_1559subj",
    292: "Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
    293: "Dataset293_TotalSegmentator_part3_cardiac_1559subj",
    294: "Dataset294_TotalSegmentator_part4_muscles_1559subj",
    295: "Dataset295_TotalSegmentator_part5_ribs_1559subj",
    297: "Dataset297_TotalSegmentator_total_3mm_1559subj",
    298: "Dataset298_TotalSegmentator_total_6mm_1559subj",
    850: "Dataset850_TotalSegMRI_part1_organs_1088subj",
    851: "Dataset851_TotalSegMRI_part2_muscles_1088subj",
    852: "Dataset852_TotalSegMRI_total_3mm_1088subj",
}
BONE, BRAIN, LIVER, KIDNEY_RIGHT, KIDNEY_LEFT = 31, 90, 5, 2, 3


def download_pretrained_weights(task_id):
    raise AssertionError(f"network {task_id} was fetched")


def get_weights_dir():
    home = Path(os.environ.get("TOTALSEG_HOME_DIR", Path.home() / ".totalsegmentator"))
    return Path(os.environ.get("TOTALSEG_WEIGHTS_PATH", home / "nnunet/results"))


def totalsegmentator(
    input, output=None, ml=False, nr_thr_resamp=1, nr_thr_saving=6, fast=False, nora_tag="None", preview=False,
    task="total", roi_subset=None, statistics=False, radiomics=False, crop_path=None, body_seg=False, force_split=False,
    output_type="nifti", quiet=False, verbose=False, test=0, skip_saving=False, device="gpu", license_number=None,
    statistics_exclude_masks_at_border=True, no_derived_masks=False, v1_order=False, fastest=False,
    roi_subset_robust=None, stats_aggregation="mean", remove_small_blobs=False, statistics_normalized_intensities=False,
    robust_crop=False, higher_order_resampling_LEGACY=False, higher_order_resampling=False,  # noqa: N803
    save_probabilities=None, debug=False, report=None, statistics_extra=False, save_lowres=False, resampling_order=1,
    plans="nnUNetPlans", model_size="big",
):  # fmt: skip
    called = {name: value for name, value in locals().items() if name != "input"}
    path = Path(os.environ["STAND_IN"])
    told = json.loads(path.read_text())
    home = Path(os.environ["TOTALSEG_HOME_DIR"])
    called |= {"pid": os.getpid(), "home": str(home), "config": json.loads((home / "config.json").read_text())}
    called |= {"dtype": str(input.get_data_dtype()), "shape": input.shape}
    (path.parent / "part").write_text(json.dumps(called))
    (path.parent / "part").rename(path.parent / "called.json")
    print("If you use this tool please cite it")
    wanted = {"total": [297] if fast else [291, 292, 293, 294, 295], "total_mr": [852] if fast else [850, 851]}[task]
    if roi_subset is not None:
        wanted = [*wanted, 852 if task == "total_mr" else 298]
    for number in wanted:
        download_pretrained_weights(number)
    return _does(told, input)


def _does(told, image):
    match told["does"]:
        case "exit":
            print("ERROR: this task needs a license")
            sys.exit(1)
        case "exit with a sentence":
            sys.exit("ERROR: no such file")
        case "crash":
            raise ValueError("CUDA out of memory")
        case "die":
            os.abort()
        case "die with a helper":
            helper = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
            (Path(os.environ["STAND_IN"]).parent / "helper").write_text(str(helper.pid))
            os.abort()
        case "wait":
            threading.Event().wait()  # until it is ended
        case "file":
            return nibabel.load(told["file"])
        case "canonical":
            return nibabel.as_closest_canonical(_labelled(told, image))
        case "labels":
            return _labelled(told, image)
    zeros, shift = np.zeros(image.shape, np.uint8), np.outer([1, 0, 0, 0], [0, 0, 0, 1])
    return {
        "nothing": nibabel.Nifti1Image(zeros, image.affine),
        "other grid": nibabel.Nifti1Image(zeros[::2], image.affine @ np.diag([2, 1, 1, 1])),
        "shifted grid": nibabel.Nifti1Image(zeros, image.affine + shift),
        "unknown label": nibabel.Nifti1Image(zeros + np.uint8(250), image.affine),
        "fractions": nibabel.Nifti1Image(zeros + np.float32(0.5), image.affine),
    }[told["does"]]


def _labelled(told, image):
    """Head, front, right and left of a point (mm, RAS), and whatever is denser than 500 HU."""
    indices = np.moveaxis(np.indices(image.shape), 0, -1)
    right, front, head = np.moveaxis(nibabel.affines.apply_affine(image.affine, indices) - told["point"], -1, 0) > 0
    labels = np.where(head, BRAIN, np.where(front, LIVER, np.where(right, KIDNEY_RIGHT, KIDNEY_LEFT)))
    labels[image.get_fdata() > 500] = BONE
    return nibabel.Nifti1Image(labels.astype(np.uint8), image.affine, image.header)
