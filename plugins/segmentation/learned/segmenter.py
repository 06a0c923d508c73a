"""The segmenter ``learned``: what `tharsis train-segmenter` has learned from the annotations of the archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.sr.coding import Code

from config.settings import SegmentationSettings
from plugins.node import CannotProceed
from plugins.segmentation.learned.models import digest_of, weights_file
from plugins.segmentation.segmenter import Algorithm, Progress, Segment, Segmentation, Volume, large_enough

if TYPE_CHECKING:
    from plugins.segmentation.learned.weights import Trained

NAME = "learned"
"""In the settings."""

VERSION = "1"
"""Counts up whenever the same weights give the same volume other labels."""

_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


@dataclass(frozen=True)
class Learned:
    """Finds the classes that a trained network knows; torch is loaded when it segments.

    Attributes
    ----------
    data
        Folder of the archive, which keeps the weights.
    model
        Their name.
    flips
        Whether each slice is also looked at mirrored and with its neighbours reversed: four times the work.
    min_volume_mm3
        A segment with less volume is left out.
    """

    data: Path
    model: str
    flips: bool
    min_volume_mm3: float

    @classmethod
    def offered(cls, data: Path, settings: SegmentationSettings) -> list[Learned]:
        """Return the segmenter, when the weights that the settings name are in the archive's folder `data`."""
        model = settings.learned_model
        if not model or not weights_file(data, model).exists():
            return []
        return [cls(data, model, settings.learned_flips, settings.min_volume_mm3)]

    @property
    def name(self) -> str:
        """Name in the settings."""
        return NAME

    def recipe(self) -> Mapping[str, Any]:
        """Return the version, the model and the parameters."""
        return {
            "version": VERSION,
            "model": self.model,
            "flips": self.flips,
            "min_volume_mm3": self.min_volume_mm3,
        }

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Label the volume.

        Raises
        ------
        CannotProceed
            The weights cannot be used; the volume is neither in HU nor in 1/cm of a known energy, or lies nowhere.
        """
        from plugins.segmentation.learned.inference import probabilities
        from plugins.segmentation.learned.preparation import prepared

        trained = _trained(weights_file(self.data, self.model), digest_of(self.model))
        seen = prepared(volume, trained.spacing_mm, trained.reach_mm)
        found = probabilities(
            trained.network, seen.values, seen.step, trained.tile, trained.mirrored, progress, flips=self.flips
        )
        segments = tuple(
            Segment(each.name, each.category, each.type, modifiers=each.modifiers) for each in trained.classes
        )
        least = self.min_volume_mm3 / volume.voxel_mm3
        labels, segments = large_enough(seen.labels(found), segments, least)
        parameters = {
            "model": self.model,
            "flips": str(self.flips).lower(),
            "spacing_mm": f"{trained.spacing_mm:g}",
            "min_volume_mm3": f"{self.min_volume_mm3:g}",
        }
        return Segmentation(labels, segments, Algorithm("CE-Net 2.5-D", VERSION, _FAMILY, parameters))


@lru_cache(maxsize=1)
def _trained(file: Path, digest: str) -> Trained:
    from index.encoders.learned.checkpoint import UnusableFile
    from plugins.segmentation.learned import weights

    try:
        return weights.load(file, digest)
    except UnusableFile as error:
        raise CannotProceed(str(error)) from error
