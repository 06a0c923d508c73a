"""What TotalSegmentator's structures are in SNOMED CT: all of its tasks ``total`` (CT) and ``total_mr``.

Codes: the mapping that TotalSegmentator 2.18 carries, with the meanings of CID 7150 and 7151 (PS3.16) where these have
the code. Other than there: the category, as CID 7150 has it; the subclavian arteries, which had the code of the right
one; gluteus maximus, which had that of the entire muscle; the left atrial appendage, as CID 7151 has it; and what that
mapping lacks (lungs, vertebrae and intervertebral discs as a whole). Sides are modifiers of the type wherever the type
is of either side.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from plugins.segmentation.segmenter import Segment

_SIDES = {"Left": (codes.SCT.Left,), "Right": (codes.SCT.Right,), "": ()}


class UnknownStructure(Exception):
    """No structure of TotalSegmentator has that name; one sentence for the user."""


def segment_for(structure: str) -> Segment:
    """Return the segment for a structure, with TotalSegmentator's name of it as its label.

    Parameters
    ----------
    structure
        As in TotalSegmentator's class map, for example ``kidney_left``.

    Raises
    ------
    UnknownStructure
        It is none of the tasks `total` and `total_mr`.
    """
    try:
        return segments()[structure]
    except KeyError as error:
        raise UnknownStructure(f"TotalSegmentator's structure {structure!r} has no code in SNOMED CT here") from error


@cache
def segments() -> Mapping[str, Segment]:
    """Return structure → segment for all that are known, in the order of their labels."""
    table = resources.files("plugins.segmentation").joinpath("totalsegmentator_codes.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {
        row["structure"]: Segment(
            row["structure"],
            Code(row["category"], "SCT", row["category meaning"]),
            Code(row["type"], "SCT", row["type meaning"]),
            modifiers=_SIDES[row["side"]],
        )
        for row in rows
    }
