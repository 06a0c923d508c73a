"""What runs in the process of its own that `totalsegmentator_process` starts: the one call of TotalSegmentator.

It is asked by files in a folder, and answers there. TotalSegmentator fetches networks that it does not find, and tells
a server of its maker about each run. Here it does neither: what it would fetch is refused by name, and its home is a
folder in which the telling is switched off. (Its home is else the environment variable TOTALSEG_HOME_DIR, or
~/.totalsegmentator; its networks are in TOTALSEG_WEIGHTS_PATH, or in nnunet/results of its home.)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VALUES, REQUEST = "values.npy", "request.json"
LABELS, ANSWER = "labels.npy", "answer.json"
"""Names of the files; arrays have axes (x, y, z)."""

_HOME = {"totalseg_id": "", "send_usage_stats": False, "prediction_counter": 0, "statistics_disclaimer_shown": True}
"""TotalSegmentator's settings, as `totalsegmentator.config.setup_totalseg` writes them, but that nothing is sent."""


class Refused(Exception):
    """It cannot be done; one sentence for the user."""


def main() -> None:
    """Answer the request in the folder that the command line names."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    try:
        answer = _answer(folder, json.loads((folder / REQUEST).read_text(encoding="utf-8")))
    except Refused as refusal:
        answer = {"refusal": str(refusal)}
    except SystemExit as end:  # where it lacks something, it says so and ends the process
        if isinstance(end.code, str):
            print(end.code)  # noqa: T201  (as the interpreter would)
        answer = {"gave_up": True}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def _end_with_parent() -> None:
    """End this process and those that it started when whoever asked is gone."""
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os.killpg(0, signal.SIGKILL)


def _answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import nibabel
    from totalsegmentator.config import get_weights_dir

    weights = Path(get_weights_dir()).absolute()
    home = folder / "home"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(_HOME), encoding="utf-8")
    os.environ |= {"TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(weights)}

    from totalsegmentator import python_api
    from totalsegmentator.map_to_binary import class_map

    names = class_map[request["task"]]
    for structure in request["structures"]:
        if structure not in names.values():
            raise Refused(f"TotalSegmentator's task {request['task']} knows no structure {structure!r}")
    if not hasattr(python_api, "download_pretrained_weights"):
        raise Refused("this version of TotalSegmentator fetches its networks in a way that is not known here")
    python_api.download_pretrained_weights = _instead_of_fetching(weights, request["download"])
    result = python_api.totalsegmentator(
        input=nibabel.Nifti1Image(np.load(folder / VALUES, mmap_mode="r"), np.asarray(request["affine"])),
        output=None,
        ml=True,
        nr_thr_resamp=1,
        nr_thr_saving=1,
        fast=request["fast"],
        task=request["task"],
        roi_subset=request["structures"] or None,
        quiet=True,
        device="gpu",  # the processor where there is none
    )
    answered = np.asarray(result.dataobj)
    labels = answered.astype(np.uint8)
    if not np.array_equal(labels, answered):
        raise Refused("TotalSegmentator answered with labels that are no whole numbers from 0 to 255")
    np.save(folder / LABELS, labels)
    return {"affine": np.asarray(result.affine).tolist(), "names": {int(n): name for n, name in names.items()}}


def _instead_of_fetching(weights: Path, download: str) -> Callable[[Any], None]:
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS

    def look(number: Any) -> None:
        """Be called where TotalSegmentator would fetch the network of that number unless it has it."""
        told = TASK_ID_WEIGHTS_CONFIGS[number]
        folder = weights / told.get("rel_path", "") / told["foldername"]
        if next(folder.glob("*/fold_*/checkpoint_*.pth"), None) is None:
            raise Refused(
                f"TotalSegmentator's network {folder.name} is not in {weights}, and is not fetched without being asked "
                f"for: run {download} as the user that the node runs as"
            )

    return look
