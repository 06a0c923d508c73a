"""What tells one encoding of projections from another: which instances are of it, and where they keep what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from pydicom.dataset import Dataset
from pydicom.uid import (
    BreastProjectionXRayImageStorageForProcessing,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    EnhancedXAImageStorage,
    EnhancedXRFImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RTImageStorage,
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)

from reconstruct.projections import elements
from reconstruct.projections.frames import Frame, ScanError
from reconstruct.projections.functional_groups import Attributes, frame_attributes, private_values
from reconstruct.projections.intensities import meaning_of_counts
from reconstruct.projections.places import ISOCENTRE_PLACES, Places
from reconstruct.projections.quantities import quantity
from reconstruct.projections.scan import PixelMeaning

WITHOUT_OBJECT = ("FLAT", "DARK")
ROLES = ("PROJECTION", *WITHOUT_OBJECT)

GRAYSCALE_IMAGES = frozenset(
    {
        BreastProjectionXRayImageStorageForProcessing, ComputedRadiographyImageStorage, CTImageStorage,
        DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing, EnhancedCTImageStorage,
        EnhancedXAImageStorage, EnhancedXRFImageStorage, MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage, RTImageStorage, SecondaryCaptureImageStorage,
        XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage,
    }
)  # fmt: skip
"""SOP Classes of images that an X-Ray detector's pixels may have been stored as."""

LEAST_ANGLES = 10
"""Fewer images from different angles are portal images or stills, and no scan."""


@dataclass(frozen=True)
class Encoding:
    """One encoding of projections.

    Attributes
    ----------
    name
        Its short name.
    described
        What an instance of it is, for the sentence that refuses another.
    recognise
        Whether an instance (pixels not needed) is of it.
    sop_classes
        What its instances can be: no other needs to be looked into.
    alone
        Whether one such instance already is a scan; images that any examination may hold are one only when
        `LEAST_ANGLES` of a series differ in their angle.
    attributes
        Of every frame of an instance, by keyword.
    places
        Where the attributes have what the geometry needs.
    transposed
        Whether pixels are stored column by column.
    curved
        Whether the detector is a cylinder about the focal spot; told by the attributes of a frame.
    meaning
        What pixels hold where no private element says it; raises `ScanError` where nothing can be made of them.
    """

    name: str
    described: str
    recognise: Callable[[Dataset], bool]
    sop_classes: frozenset[str] = GRAYSCALE_IMAGES
    alone: Callable[[Dataset], bool] = lambda _dataset: True
    attributes: Callable[[Dataset], Sequence[Attributes]] = frame_attributes
    places: Places = ISOCENTRE_PLACES
    transposed: bool = False
    curved: Callable[[Attributes], bool] = lambda _attributes: False
    meaning: Callable[[Attributes], PixelMeaning] = meaning_of_counts

    def angle_of(self, dataset: Dataset) -> float | None:
        """Return the angle that the first frame of an instance states, in whatever sense, None when it states none."""
        attributes = frame_attributes(dataset)[0]
        place = next((place for place in self.places.angle if place.keyword in attributes), None)
        try:
            return None if place is None else quantity(attributes, place.keyword)
        except ScanError:
            return None

    def stored(self, frame: Frame) -> Frame:
        """Return a frame with what the encoding says of its pixels."""
        return replace(frame, transposed=True) if self.transposed else frame


def scan_set_of(dataset: Dataset) -> str:
    """Return the Scan Set UID (0071,xx01) of an instance, empty when it has none."""
    return str(next(private_values(dataset, "ScanSetUID"), ""))


def is_without_object(dataset: Dataset) -> bool:
    """Whether an instance says that it holds flat or dark frames: by its Frame Role (0071,xx10) or its Image Type."""
    told = [str(role) for role in private_values(dataset, "FrameRole")]
    return any(word in WITHOUT_OBJECT for word in told or _words(dataset.get("ImageType")))


def carries_block(dataset: Dataset) -> bool:
    """Whether the private block says something that only projections have."""
    items = (item for group in _GROUPS for item in (dataset.get(group) or [])[:1])
    return any(not _OF_PROJECTIONS.isdisjoint(elements.read(item)) for item in chain([dataset], items))


_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

_OF_PROJECTIONS = frozenset({"FrameRole", "PixelMeaning", "ViewAngle", "SourcePosition", "ProjectionMatrix"})
"""Energies and the like stand in what is reconstructed, too; these do not."""


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        yield from (str(part) for part in value)
