"""A map of concentrations as CT images with multi-energy attributes (PS3.3 C.8.2.1, C.8.2.2), one instance a slice.

For viewers that show CT but no Parametric Map: 16-bit pixels, Rescale Type MGML, Image Type MAT_SPECIFIC.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.identity import derived_uid
from plugins.materials.bins import Bins
from plugins.materials.material_codes import CONCENTRATION, MG_PER_ML
from plugins.node import CannotProceed
from reconstruct.dicom_items import code, decimal, item_of
from reconstruct.multi_energy import describe
from reconstruct.part10 import with_file_meta
from reconstruct.projections import elements
from reconstruct.projections.scan import SourceInstance
from reconstruct.provenance import add_sources

_HIGHEST = 32767
_FINEST_STEP = 2.0**-10
"""mg/ml; doubled until the highest concentration fits."""
_NOT_OF_A_MATERIAL = (
    "ConvolutionKernel", "RealWorldValueMappingSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
    "DerivationDescription", "SourceImageSequence", "PrivateDataElementCharacteristicsSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class MaterialImages:
    """Concentrations of one material.

    Attributes
    ----------
    mg_per_ml
        (z, y, x) float32, none negative.
    name, code
        Of the material.
    basis
        Codes of all materials of the decomposition.
    """

    mg_per_ml: NDArray[np.float32]
    name: str
    code: Code
    basis: tuple[Code, ...]


def refuse_without_energies(bins: Bins) -> None:
    """Raise `CannotProceed` when the images of the bins lack the attributes that those of materials have to share."""
    if not bins.first.get("MultienergyCTAcquisitionSequence"):
        raise CannotProceed(
            "the CT images of the energy bins have no multi-energy attributes, which those of materials share: "
            'the scan tells no thresholds or no date, or an older version reconstructed it; leave "ct" out of objects'
        )


def material_ct(
    shown: MaterialImages, bins: Bins, *, series_uid: str, series_number: int, derivation: str
) -> Iterator[Dataset]:
    """Yield the images from feet to head, each with File Meta Information.

    Parameters
    ----------
    bins
        What it was decomposed from, with multi-energy attributes: the lowest bin gives patient, study, geometry,
        equipment and acquisition.
    """
    step = _step(float(shown.mg_per_ml.max()))
    multi_energy = _acquisition(bins)
    processing = item_of(
        DecompositionMethod="IMAGE_BASED",
        DecompositionDescription=derivation,
        DecompositionMaterialSequence=[item_of(MaterialCodeSequence=[_item(each)]) for each in shown.basis],
    )
    for index, source in enumerate(bins.bins[0].slices):
        dataset = _template(source)
        dataset.SeriesInstanceUID = series_uid
        dataset.SeriesNumber = series_number
        dataset.SeriesDescription = f"{shown.name} mg/ml"
        dataset.SOPInstanceUID = derived_uid(series_uid, f"slice {index}")
        dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]
        sources = [each.slices[index] for each in bins.bins]
        add_sources(dataset, [SourceInstance(s.SOPClassUID, s.SOPInstanceUID) for s in sources], derivation)
        dataset.MultienergyCTAcquisitionSequence = [copy.deepcopy(multi_energy)]
        dataset.MultienergyCTProcessingSequence = [copy.deepcopy(processing)]
        _add_values(dataset, shown, step)
        pixels = np.minimum(np.rint(shown.mg_per_ml[index] / step), _HIGHEST).astype("<i2")
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        yield with_file_meta(dataset)


def _step(highest: float) -> float:
    return _FINEST_STEP * 2.0 ** max(0, math.ceil(math.log2(max(highest, 1e-9) / (_HIGHEST * _FINEST_STEP))))


def _item(coded: Code) -> Dataset:
    return code(coded.value, coded.scheme_designator, coded.meaning)


def _template(source: Dataset) -> Dataset:
    """Return the source's header without what belongs to its energy bin."""
    dataset = copy.deepcopy(source)
    for keyword in _NOT_OF_A_MATERIAL:
        if keyword in dataset:
            del dataset[keyword]
    for element in list(dataset.group_dataset(elements.GROUP)):
        del dataset[element.tag]
    return dataset


def _add_values(dataset: Dataset, shown: MaterialImages, step: float) -> None:
    highest = max(float(shown.mg_per_ml.max()), step)
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = decimal(0), decimal(step), "MGML"
    dataset.WindowCenter, dataset.WindowWidth = decimal(highest / 2), decimal(highest)
    if highest < 1:
        dataset.VOILUTFunction = "LINEAR_EXACT"
    mapping = item_of(
        LUTExplanation=f"Concentration of {shown.name}",
        LUTLabel=shown.name.upper()[:16],
        MeasurementUnitsCodeSequence=[_item(MG_PER_ML)],
        QuantityDefinitionSequence=[
            item_of(
                ValueType="CODE",
                ConceptNameCodeSequence=[code(*name)],
                ConceptCodeSequence=[_item(value)],
            )
            for name, value in (
                (("246205007", "SCT", "Quantity"), CONCENTRATION),
                (("246093002", "SCT", "Component"), shown.code),
            )
        ],
        RealWorldValueIntercept=0.0,
        RealWorldValueSlope=step,
    )
    mapping.add_new("RealWorldValueFirstValueMapped", "SS", 0)
    mapping.add_new("RealWorldValueLastValueMapped", "SS", _HIGHEST)
    dataset.RealWorldValueMappingSequence = [mapping]


def _acquisition(bins: Bins) -> Dataset:
    """Return the item of Multi-energy CT Acquisition of the bins, which is that of the materials too."""
    acquisition: Dataset = copy.deepcopy(bins.first.MultienergyCTAcquisitionSequence[0])
    acquisition.MultienergyAcquisitionDescription = describe(len(bins.bins))
    return acquisition
