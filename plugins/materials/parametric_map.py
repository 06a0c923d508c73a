"""A map of values as Parametric Map Storage (PS3.3 A.75), 32-bit float, through highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.identity import MANUFACTURER, MODEL_NAME, derived_uid, version

_LONGEST_DESCRIPTION = 64


@dataclass(frozen=True, eq=False)
class MapValues:
    """What a map shows.

    Attributes
    ----------
    values
        (z, y, x) float32, in the order of the source slices.
    name
        Short, for the descriptions of series and content.
    label
        At most 16 capitals, digits and underscores.
    unit, quantity
        Coded.
    of
        Concept that the quantity is of, for example a material; None: the quantity says it all.
    """

    values: NDArray[np.float32]
    name: str
    label: str
    unit: Code
    quantity: Code
    of: Code | None = None


def parametric_map(
    shown: MapValues, bins: Sequence[Sequence[Dataset]], *, series_uid: str, series_number: int, derivation: str
) -> Dataset:
    """Return one Parametric Map with a frame for each slice.

    Parameters
    ----------
    bins
        Headers of the slices of each energy bin, from feet to head; the first bin gives patient, study and geometry,
        and every frame refers to the slices of all bins that it was made from.
    series_uid
        Of the map; its SOP Instance UID follows from it.
    derivation
        How it was made, for Derivation Description.
    """
    first = bins[0][0]
    top = max(float(shown.values.max()), 1e-6)
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label=shown.label,
        lut_explanation=shown.name[:_LONGEST_DESCRIPTION],
        unit=shown.unit,
        value_range=(0.0, top),
        slope=1.0,
        intercept=0.0,
        quantity_definition=shown.quantity,
    )
    if shown.of is not None:
        mapping.QuantityDefinitionSequence.append(
            highdicom.sr.CodeContentItem(name=Code("246093002", "SCT", "Component"), value=shown.of)
        )
    dataset = highdicom.pm.ParametricMap(
        source_images=list(bins[0]),
        further_source_images=[header for each in bins[1:] for header in each],
        pixel_array=shown.values,
        series_instance_uid=series_uid,
        series_number=series_number,
        sop_instance_uid=derived_uid(series_uid, "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=version(),
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=top / 2, window_width=top)],
        content_label=shown.label,
        content_description=shown.name[:_LONGEST_DESCRIPTION],
        series_description=shown.name[:_LONGEST_DESCRIPTION],
    )
    for item in dataset.PerFrameFunctionalGroupsSequence:
        for source in item.get("DerivationImageSequence", []):
            source.DerivationDescription = derivation
    _keep_to_the_source(dataset, first, derived_uid(series_uid, "dimensions"))
    return dataset  # type: ignore[no-any-return]  # highdicom is not typed


def _keep_to_the_source(dataset: Dataset, first: Dataset, organization_uid: str) -> None:
    """Tell of scanner and time what the source tells; the same work then gives the same map."""
    for keyword in ("BodyPartExamined", "Laterality"):
        if keyword in first:
            dataset[keyword] = first[keyword]
    library = dataset.ContributingEquipmentSequence[-1]
    del library.ContributionDateTime
    dataset.ContributingEquipmentSequence = [*first.get("ContributingEquipmentSequence", []), library]
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization_uid
    dataset.ContentDate, dataset.ContentTime = first.ContentDate, first.ContentTime
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SeriesDate, dataset.SeriesTime = first.SeriesDate, first.SeriesTime
