"""What tests of C-GET and C-MOVE share: identifiers, counts of sub-operations, and the bytes that have to arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from scp.part10 import data_set_offset

STUDY = "1.2.826.0.1.3680043.9.7133.1"
"""The study of what the fixture ``make_dataset`` makes."""

UID_OF = "1.2.826.0.1.3680043.9.7133.9.{}".format
"""SOP Instance UID of its image with that number."""


def data_set(path: Path) -> bytes:
    """Return the encoded data set of a Part 10 file."""
    return path.read_bytes()[data_set_offset(path) :]


def request_for(level: str = "STUDY", **keys: Any) -> Dataset:
    """Return the identifier of a request, by default for all of the study."""
    wanted = Dataset()
    wanted.QueryRetrieveLevel = level
    for keyword, value in (keys or {"StudyInstanceUID": STUDY}).items():
        setattr(wanted, keyword, value)
    return wanted


def counts(status: Dataset) -> tuple[int | None, ...]:
    """Return what a response tells of sub-operations: remaining, completed, failed, with a warning."""
    return tuple(
        status.get(f"NumberOf{word}Suboperations") for word in ("Remaining", "Completed", "Failed", "Warning")
    )
