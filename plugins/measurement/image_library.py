"""The image library of a report (PS3.16 TID 1600): one group for each measured series.

What all images of a series share stands in the group, as TID 1602 allows, so that an image is but a reference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from highdicom.sr import CodedConcept, ContainerContentItem, ImageContentItem, UIDRefContentItem
from highdicom.sr.enum import RelationshipTypeValues
from highdicom.sr.templates import ImageLibraryEntryDescriptors
from highdicom.sr.value_types import CodeContentItem, ContentItem, ContentSequence
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from plugins.measurement.subject import Source
from reconstruct.projections.scan import EnergyBin

PRIVATE_SCHEME = "99THARSIS"
"""Coding scheme of the energy windows: they are as many as there are thresholds, and no standard list has them."""
_OF_ONE_IMAGE = (
    codes.DCM.ImagePositionPatientX, codes.DCM.ImagePositionPatientY, codes.DCM.ImagePositionPatientZ,
)  # fmt: skip


def energy_code(energy: EnergyBin, label: str) -> CodedConcept:
    """Return the code of an energy window: the same thresholds always have the same code."""
    meaning = label if energy.effective_kev is None else f"{label}, effective {energy.effective_kev:.4g} keV"
    return CodedConcept(label.replace(" ", ""), PRIVATE_SCHEME, meaning)


def image_library(sources: Sequence[Source], slices: Sequence[int]) -> ContainerContentItem:
    """Return the container of the library.

    Parameters
    ----------
    sources
        The measured series.
    slices
        Which of their slices are listed.
    """
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=RelationshipTypeValues.CONTAINS)
    library.ContentSequence = ContentSequence([_group(source, slices) for source in sources])
    return library


def _group(source: Source, slices: Sequence[int]) -> ContainerContentItem:
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=RelationshipTypeValues.CONTAINS)
    images = (_image(source.slices[place]) for place in slices)
    group.ContentSequence = ContentSequence([*_descriptors(source), *images])
    return group


def _descriptors(source: Source) -> list[ContentItem]:
    header = copy.copy(source.slices[0])
    if not header.get("SliceThickness"):
        header.SliceThickness = source.grid.spacing_mm_zyx[0]
    context = RelationshipTypeValues.HAS_ACQ_CONTEXT
    shared = [item for item in ImageLibraryEntryDescriptors(header) if item.name not in _OF_ONE_IMAGE]
    shared.append(UIDRefContentItem(codes.DCM.SeriesInstanceUID, source.series_instance_uid, context))
    if source.energy is not None:
        code = energy_code(source.energy, source.energy_label)
        shared.append(CodeContentItem(codes.DCM.PhotonEnergy, code, context))
    return shared


def _image(header: Dataset) -> ImageContentItem:
    return ImageContentItem(
        CodedConcept("260753009", "SCT", "Source"),
        header.SOPClassUID,
        header.SOPInstanceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
