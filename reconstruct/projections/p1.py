"""P1: Enhanced XA Image Storage with the isocentre macro per frame, and the private block for the rest.

One instance may hold every counter and role, or one counter, role or part of the views each. What is private is
optional as long as standard attributes say the same (PS3.3 A.47, C.8.19).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedXAImageStorage

from reconstruct.projections.assembly import assemble
from reconstruct.projections.encoding import WITHOUT_OBJECT, Encoding
from reconstruct.projections.functional_groups import has_macro, private_values
from reconstruct.projections.scan import Scan


def is_p1(dataset: Dataset) -> bool:
    """Whether an instance is of this encoding: Enhanced XA with an Isocenter Reference System Sequence (0018,9462).

    Flat and dark frames, which need no geometry, may say by their Frame Role (0071,xx10) alone what they are.
    """
    if dataset.get("SOPClassUID") != EnhancedXAImageStorage:
        return False
    return has_macro(dataset, "IsocenterReferenceSystemSequence") or any(
        str(role) in WITHOUT_OBJECT for role in private_values(dataset, "FrameRole")
    )


P1 = Encoding(
    "P1",
    "Enhanced XA Image with an Isocenter Reference System Sequence (0018,9462) or a Frame Role (0071,xx10) FLAT or "
    "DARK",
    is_p1,
    frozenset({EnhancedXAImageStorage}),
)


def read_p1(instances: Iterable[Path | Dataset]) -> Scan:
    """Return the scan that instances of this encoding hold together, see `assembly.assemble`."""
    return assemble(P1, instances)
