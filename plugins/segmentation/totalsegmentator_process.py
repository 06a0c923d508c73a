"""TotalSegmentator in a process of its own: what it prints, how it ends and what it keeps in memory harms no worker.

It may end its process where it lacks something, starts processes and threads, prints, and leaves a network's memory
behind; and a run takes minutes, in which a job has to be able to stop. The child ends with its parent, whose end it
sees on its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plugins.node import CannotProceed
from plugins.segmentation.totalsegmentator_child import ANSWER, LABELS, REQUEST, VALUES

_PROGRAM = "from plugins.segmentation.totalsegmentator_child import main; main()"
_LOOK_S = 0.5
"""How often a job looks whether it has to stop, seconds."""

_LONGEST_S = 6 * 3600.0
"""A run that takes longer hangs, seconds: without a graphics card, a large volume takes an hour or two."""

_LONGEST_LINE = 300


@dataclass(frozen=True)
class Wanted:
    """What TotalSegmentator is asked for.

    Attributes
    ----------
    task
        Its name of the task.
    fast
        The network of 3 mm voxels instead of 1.5 mm.
    structures
        Only these; all when empty.
    download
        Command that fetches the networks, for the user to be told.
    """

    task: str
    fast: bool
    structures: tuple[str, ...]
    download: str


@dataclass(frozen=True, eq=False)
class Labelled:
    """What it answers.

    Attributes
    ----------
    labels
        uint8, on the grid of `affine`, which may have other axes than the image that it got.
    affine
        (4, 4), voxel indices to mm in RAS.
    names
        Label → structure.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    names: dict[int, str]


def run(
    values: NDArray[np.float32], affine: NDArray[np.float64], wanted: Wanted, still_wanted: Callable[[], None]
) -> Labelled:
    """Segment an image.

    Parameters
    ----------
    values
        Axes (x, y, z), HU.
    affine
        (4, 4), voxel indices (x, y, z) to mm in RAS (NIfTI's patient coordinates).
    still_wanted
        Called every half second; may raise to stop.

    Raises
    ------
    CannotProceed
        TotalSegmentator refused, or its networks are missing.
    RuntimeError
        It crashed, or was killed, which may have to do with what else the machine was doing; or it hung.
    """
    with tempfile.TemporaryDirectory(prefix="tharsis-totalsegmentator-") as name:
        folder = Path(name)
        np.save(folder / VALUES, values)
        request = {
            "affine": affine.tolist(),
            "task": wanted.task,
            "fast": wanted.fast,
            "structures": list(wanted.structures),
            "download": wanted.download,
        }
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        status, told = _child(folder, still_wanted)
        if not (folder / ANSWER).exists():
            raise RuntimeError(f"TotalSegmentator ended with status {status}{told}")
        answer = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        if "refusal" in answer:
            raise CannotProceed(answer["refusal"])
        if "gave_up" in answer:
            raise CannotProceed(f"TotalSegmentator gave up{told}")
        names = {int(number): name for number, name in answer["names"].items()}
        return Labelled(np.load(folder / LABELS), np.asarray(answer["affine"]), names)


def _child(folder: Path, still_wanted: Callable[[], None]) -> tuple[int, str]:
    """Run the child to its end; return its exit status, and what it printed last as a clause."""
    log = folder / "log"
    with log.open("wb") as printed:
        popen = subprocess.Popen(  # noqa: S603  (our own program, no shell)
            [sys.executable, "-P", "-c", _PROGRAM, str(folder)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert popen.stdin is not None  # noqa: S101
    hangs_at = time.monotonic() + _LONGEST_S
    try:
        while popen.poll() is None:
            still_wanted()
            if time.monotonic() > hangs_at:
                raise RuntimeError(f"TotalSegmentator has not ended within {_LONGEST_S / 3600:g} hours")
            with suppress(subprocess.TimeoutExpired):
                popen.wait(_LOOK_S)
    finally:
        with suppress(ProcessLookupError):  # also when the child has ended: what it started may wait for it for ever
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        popen.stdin.close()
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return popen.returncode, f"; the last that it said: {last[:_LONGEST_LINE]}" if last else ""
