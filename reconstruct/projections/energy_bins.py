"""Which energy bins a scan has, and which frame belongs to which."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from reconstruct.projections.frames import ScanError
from reconstruct.projections.functional_groups import MULTI_ENERGY, Attributes
from reconstruct.projections.quantities import quantity
from reconstruct.projections.scan import CounterKind, EnergyBin

T = TypeVar("T")

_PATHS = "MultienergyCTPathSequence"


def counter_kind(frames: Sequence[Attributes]) -> CounterKind:
    """Return what the counters count; a single counter is its own bin.

    Raises
    ------
    ScanError
        Several counters that do not say it, or that say different things.
    """
    stated = {str(frame.get("CounterKind") or "") for frame in frames}
    if stated == {""}:
        if len({_key(frame) for frame in frames}) > 1:
            raise ScanError("the scan has several energy bins and no Counter Kind (0071,xx25)")
        return CounterKind.DIFFERENTIAL
    if len(stated) > 1 or not stated <= set(CounterKind):
        raise ScanError(
            f"Counter Kind (0071,xx25) is {' and '.join(sorted(stated)) or 'empty'}, expected one of "
            f"{', '.join(CounterKind)}"
        )
    return CounterKind(stated.pop())


def energy_bins(
    frames: Sequence[Attributes], kind: CounterKind, *, relative: bool = False
) -> tuple[EnergyBin, ...]:
    """Return the energy bins of projection frames, ascending.

    A cumulative counter's bin ends where the next counter begins, whatever its own upper threshold says. Transmissions
    and line integrals of such counters (`relative`) are no counts that could be subtracted from each other: each holds
    all above its threshold, up to where the last one ends.

    Raises
    ------
    ScanError
        A bin of Energy Bin Count (0071,xx21) is missing, thresholds do not ascend, or water does not attenuate.
    """
    first_of: dict[tuple[float, ...], Attributes] = {}
    for frame in frames:
        first_of.setdefault(_key(frame), frame)
    keys = sorted(first_of)
    expected = max(int(frame.get("EnergyBinCount") or 0) for frame in first_of.values())
    if expected > len(keys):
        raise ScanError(f"the scan has {len(keys)} of {expected} energy bins (0071,xx21)")
    described = [first_of[key] for key in keys]
    lows = [_number(frame, "EnergyThresholdLow", "NominalMinEnergy") for frame in described]
    highs = [_number(frame, "EnergyThresholdHigh", "NominalMaxEnergy") for frame in described]
    if kind is CounterKind.CUMULATIVE:
        highs = [highs[-1]] * len(highs) if relative else [*lows[1:], highs[-1]]
        known = [low for low in lows if low is not None]
        if known != sorted(set(known)):
            raise ScanError(f"the thresholds of the counters do not ascend: {known} keV (0071,xx22)")
    return tuple(
        EnergyBin(
            index=number,
            low_kev=low,
            high_kev=high,
            effective_kev=_number(frame, "EffectiveEnergy", "EffectiveBinEnergy", above=0),
            water_per_cm=quantity(frame, "WaterAttenuation", above=0),
        )
        for number, (frame, low, high) in enumerate(zip(described, lows, highs, strict=True), start=1)
    )


def group_by_bin(
    frames: Sequence[T], attributes_of: Callable[[T], Attributes], bins: Sequence[EnergyBin]
) -> list[list[T]]:
    """Return the frames of each bin, parallel to `bins`; frames that name no bin serve every one of them."""
    groups: dict[tuple[float, ...], list[T]] = {}
    for frame in frames:
        groups.setdefault(_key(attributes_of(frame)), []).append(frame)
    unnamed = groups.pop((), [])
    named = [groups[key] for key in sorted(groups)]
    if not named:
        return [list(unnamed) for _ in bins]
    if len(named) != len(bins):
        raise ScanError(f"expected flat or dark frames of {len(bins)} energy bins, got {len(named)}")
    return [[*group, *unnamed] for group in named]


def _key(frame: Attributes) -> tuple[float, ...]:
    """What tells bins apart and orders them: index, else thresholds; empty when neither is given."""
    index = quantity(frame, "EnergyBinIndex")
    if index is not None:
        return (index,)
    energies = (
        _number(frame, "EnergyThresholdLow", "NominalMinEnergy"),
        _number(frame, "EnergyThresholdHigh", "NominalMaxEnergy"),
    )
    return tuple(energy for energy in energies if energy is not None)


def _number(frame: Attributes, private: str, standard: str, *, above: float = -math.inf) -> float | None:
    """Return an energy: the private one, else the standard one of the frame, else that of its detector."""
    for place, keyword in ((frame, private), (frame, standard), (_detector_of(frame), standard)):
        if place.get(keyword) is not None:
            return quantity(place, keyword, above=above)
    return None


def _detector_of(frame: Attributes) -> Attributes:
    """Return what the Multi-energy CT Image Module (PS3.3 C.8.2.2) says of the detector of a frame, or nothing.

    Of several detectors it is the one with the number of the energy bin, or of the path of the frame.
    """
    acquisition = frame.get(MULTI_ENERGY, {})
    detectors = acquisition.get("MultienergyCTXRayDetectorSequence") or []
    wanted = frame.get("EnergyBinIndex")
    if wanted is None:
        of_path = {path.get("MultienergyCTPathIndex"): path for path in acquisition.get(_PATHS) or []}
        path = frame.get("ReferencedPathIndex")
        known = isinstance(path, int) and path in of_path
        wanted = of_path[path].get("ReferencedXRayDetectorIndex") if known else None
    if len(detectors) > 1:
        detectors = [item for item in detectors if item.get("XRayDetectorIndex") == wanted is not None]
    return {each.keyword: each.value for each in detectors[0]} if len(detectors) == 1 else {}
