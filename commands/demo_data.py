"""What the demo sends: simulated scans, and the real CT and MR images that this machine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pydicom
import pydicom.data
from pydicom.errors import InvalidDicomError

from commands.scans import write_objects
from config.identity import new_uid
from index.files import is_part10

MODALITIES = ("CT", "MR")
"""Of the real images."""

_SHARED = ("dcm_qa_ct", "dcm_qa_frag", "dcm_qa_nih", "TotalSegmentator")
"""Folders of real series, used where they exist."""


@dataclass(frozen=True)
class DemoScan:
    """A simulated scan: the name it is shown under, the phantom, the seed of its noise and when it was made."""

    name: str
    phantom: str
    seed: int
    started: datetime

    @property
    def patient_name(self) -> str:
        """Patient's Name, obviously no person's."""
        return f"Phantom^{self.name.title().replace(' ', '').replace('-', '')}"


SCANS = (
    DemoScan("mouse-thigh", "mouse-thigh", 1, datetime(2026, 3, 2, 9, 30)),
    DemoScan("mouse-thorax", "mouse-thorax", 2, datetime(2026, 3, 2, 10, 15)),
    DemoScan("mouse-head", "mouse-head", 3, datetime(2026, 3, 2, 11, 0)),
    DemoScan("plaque", "plaque", 4, datetime(2026, 3, 3, 9, 0)),
    DemoScan("kidney-stone", "kidney-stone", 5, datetime(2026, 3, 3, 9, 40)),
    DemoScan("calibration", "calibration", 6, datetime(2026, 3, 3, 10, 20)),
    DemoScan("mouse-thigh again", "mouse-thigh", 7, datetime(2026, 3, 9, 9, 30)),
)
"""Several phantoms, and the first of them again a week later: other noise, other dead pixels."""


@dataclass(frozen=True)
class Sample:
    """A simulated scan as files, with the UID of its study."""

    scan: DemoScan
    study: str
    files: list[Path]


def simulate_sample(
    scan: DemoScan, folder: Path, views: int, columns: int, progress: Callable[[float], None]
) -> Sample:
    """Simulate `scan` and write its P1 objects below `folder`."""
    from reconstruct.simulate import Identification, simulate_scan

    who = Identification(
        patient_name=scan.patient_name,
        patient_id=f"SIM-{scan.seed:03d}",
        study_instance_uid=new_uid(),
        accession_number=f"DEMO{scan.seed:03d}",
        started=scan.started,
    )
    rows = columns * 3 // 4
    objects = simulate_scan(
        scan.phantom, views=views, rows=rows, columns=columns, seed=scan.seed, identification=who, progress=progress
    )
    return Sample(scan, who.study_instance_uid, write_objects(objects, folder / scan.name.replace(" ", "-")))


def real_images() -> list[Path]:
    """Return CT and MR files: those that come with pydicom, and the shared test data where it is there."""
    candidates = sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))
    shared = Path(os.environ.get("THARSIS_TEST_DATA", "../shared/data"))
    for name in _SHARED:
        candidates += sorted(file for file in (shared / name).rglob("*") if file.is_file())
    return [file for file in candidates if _is_picture(file)]


def _is_picture(file: Path) -> bool:
    if not is_part10(file):
        return False
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, EOFError):
        return False  # some of those files are there to be unreadable
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return header.get("Modality") in MODALITIES and "Rows" in header and all(header.get(uid) for uid in uids)
