"""What counts are compared with, flat fields or I0, and whether what a scan has of them can serve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from reconstruct.projections.frames import Counter, ScanError
from reconstruct.projections.scan import CounterKind, PixelMeaning, Scan

_APPLIED = "Corrections Applied (0071,xx08)"


def check_reference(scan: Scan, counters: Sequence[Counter]) -> None:
    """Refuse counts without anything to compare them with.

    Parameters
    ----------
    scan
        What its pixels hold, and what was corrected.
    counters
        Of its detector, or of one tile, one for each energy bin.

    Raises
    ------
    ScanError
        Neither flat fields nor I0, or ones that were not corrected as the projections were.
    """
    if scan.pixel_meaning in (PixelMeaning.TRANSMISSION, PixelMeaning.LINE_INTEGRAL):
        return
    by_flats = any(counter.flats for counter in counters)
    if "FLAT" in scan.corrections:
        by_flats = not all(counter.unattenuated for counter in counters)
        if by_flats and not all(_all_say(counter, "FLAT") for counter in counters):
            raise ScanError(
                f"the flat fields are divided out already, says {_APPLIED}: that takes an unattenuated value I0 "
                "(0071,xx09), or flat frames of which it says FLAT, too"
            )
    for number, counter in enumerate(counters, start=1):
        if not (counter.flats if by_flats else counter.unattenuated):
            raise ScanError(
                f"energy bin {number} has neither flat fields (Frame Role (0071,xx10) FLAT) nor an unattenuated value "
                "I0 (0071,xx09)"
            )
    if by_flats:
        _check_alike(counters)
    elif scan.counter_kind is CounterKind.CUMULATIVE:
        _check_descending(counters)


def _all_say(counter: Counter, word: str) -> bool:
    return bool(counter.flats) and all(word in flat.corrections for flat in counter.flats)


def _check_alike(counters: Sequence[Counter]) -> None:
    """Refuse flat fields and projections of which only one had a gain corrected: their quotient would have it again."""
    for number, counter in enumerate(counters, start=1):
        views, flats = ([frame.corrections for frame in frames] for frames in (counter.views, counter.flats))
        for word in ("GAIN", "FLAT"):
            of_views = all(word in corrections for corrections in views)
            if any((word in corrections) is not of_views for corrections in flats):
                one, other = ("projections", "flat fields") if of_views else ("flat fields", "projections")
                raise ScanError(
                    f"{_APPLIED} of energy bin {number} says {word} of the {one} and not of all {other}: divided by "
                    "each other they would have it corrected twice"
                )


def _check_descending(counters: Sequence[Counter]) -> None:
    """Refuse I0 of cumulative counters that leave a bin nothing: a lower threshold counts more."""
    for number, (lower, upper) in enumerate(pairwise(counters), start=1):
        for one, other in zip(lower.unattenuated, upper.unattenuated, strict=True):
            if one <= other:
                raise ScanError(
                    f"the unattenuated value I0 (0071,xx09) of energy bin {number} is {one:g} and that of bin "
                    f"{number + 1} is {other:g}, expected less"
                )
