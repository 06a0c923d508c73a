"""What pixels hold where only standard attributes say it: (0028,1040), (0028,1041) and the rescale."""

from __future__ import annotations

from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.scan import PixelMeaning


def meaning_of_counts(attributes: Attributes) -> PixelMeaning:
    """Return counts where pixels are proportional to the beam, or nothing is said; see `meaning_of_intensities`."""
    return meaning_of_intensities(attributes, linear=PixelMeaning.COUNTS)


def meaning_of_intensities(attributes: Attributes, *, linear: PixelMeaning = PixelMeaning.INTENSITY) -> PixelMeaning:
    """Return what the pixels of a projection X-Ray image hold (PS3.3 C.8.7.1.1.2, C.8.11.3.1.2, C.8.19.6.4.1.1).

    `linear` unless it is said otherwise; a logarithm counts as line integrals only where a rescale gives its scale.

    Raises
    ------
    ScanError
        A relationship to the beam from which no attenuation can be computed.
    """
    relationship = str(attributes.get("PixelIntensityRelationship") or "LIN")
    sign = int(attributes.get("PixelIntensityRelationshipSign") or 0)
    if relationship == "LIN" and sign >= 0:
        return linear
    if relationship == "LOG" and sign <= 0 and attributes.get("RescaleSlope") is not None:
        return PixelMeaning.LINE_INTEGRAL
    raise ScanError(
        f"Pixel Intensity Relationship (0028,1040) is {relationship} and its sign (0028,1041) {sign or 'not given'}: "
        "expected LIN and 1, or LOG, -1 and a Rescale Slope (0028,1053), or a Pixel Meaning (0071,xx07)"
    )
