"""Whether a scan has arrived whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes

Stored = tuple[Dataset, Path | Dataset]
"""An instance's attributes, and where its pixels are."""


def distinct(instances: Iterable[Stored]) -> list[Stored]:
    """Return the instances, each once, in order of Instance Number (0020,0013).

    Raises
    ------
    ScanError
        There is none.
    """
    by_uid = {str(header.SOPInstanceUID): (header, instance) for header, instance in instances}
    if not by_uid:
        raise ScanError("the scan has no instances")
    return sorted(by_uid.values(), key=lambda stored: int(stored[0].get("InstanceNumber") or 0))


def check_complete(instances: Sequence[Attributes], frames: int) -> None:
    """Refuse instances of several studies or scans, and a scan of which instances or frames have not come.

    Parameters
    ----------
    instances
        Attributes of the first frame of each instance.
    frames
        Number of frames in all of them.

    Raises
    ------
    ScanError
        The sentence gives both counts.
    """
    studies = sorted({str(a.get("StudyInstanceUID")) for a in instances})
    if len(studies) > 1:
        raise ScanError(f"the instances belong to {len(studies)} studies, {studies[0]} and {studies[1]}; expected one")
    sets = sorted({str(a.get("ScanSetUID") or a.get("SeriesInstanceUID")) for a in instances})
    if len(sets) > 1:
        raise ScanError(f"the instances belong to {len(sets)} scans, {sets[0]} and {sets[1]}; expected one")
    expected = max(int(a.get("ExpectedInstances") or 0) for a in instances)
    if expected > len(instances):
        raise ScanError(f"the scan has {len(instances)} of {expected} instances (0071,xx06)")
    expected = max(int(a.get("ExpectedFrames") or 0) for a in instances)
    if expected > frames:
        raise ScanError(f"the scan has {frames} of {expected} frames (0071,xx05)")
