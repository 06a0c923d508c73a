"""The measurement report of a SEG: TID 1500 in an Enhanced SR (PS3.3 A.35.2, PS3.16 annex A), through highdicom.

Everything that it says is text, code, number or reference, so that Enhanced SR, the smallest class that holds it, does.
A segment has one measurement group (TID 1411) for each measured series, all with its Tracking Unique Identifier; the
group of the segmented series holds the volume as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    FindingSite,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr.enum import RelationshipTypeValues
from highdicom.sr.value_types import CodeContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from config.identity import MANUFACTURER, MODEL_NAME, derived_uid, version
from plugins.measurement.image_library import PRIVATE_SCHEME, energy_code, image_library
from plugins.measurement.measuring import Measurements, SegmentMeasurements
from plugins.measurement.provenance import context_of
from plugins.measurement.segments import StoredSegment, is_laterality
from plugins.measurement.statistics import VERSION as STATISTICS_VERSION
from plugins.measurement.statistics import Statistics
from plugins.measurement.subject import Source
from reconstruct.dicom_items import item_of
from reconstruct.part10 import with_file_meta
from reconstruct.provenance import TYPE_2, number_after

VERSION = "2"
"""Part of the recipe: raised when the same segments would be reported otherwise, or with other numbers."""

_SERIES_NUMBER_OFFSET = 1000
_UNITS: Mapping[str, Code] = {"HU": codes.UCUM.HounsfieldUnit, "1/cm": Code("/cm", "UCUM", "/cm")}
_DERIVATIONS: Mapping[str, Code] = {
    "mean": codes.SCT.Mean,
    "standard_deviation": codes.SCT.StandardDeviation,
    "minimum": codes.SCT.Minimum,
    "maximum": codes.SCT.Maximum,
}


def report(seg: Dataset, measured: Measurements, *, recipe: str, observer: str, series_uid: str) -> Dataset:
    """Return the Enhanced SR that reports the measurements of a SEG, with File Meta Information.

    Parameters
    ----------
    seg
        The SEG.
    measured
        With at least one segment.
    recipe
        Canonical recipe, told as the parameters of the measuring algorithm.
    observer
        AE title of this node: it observed.
    series_uid
        Series Instance UID of the reports of the SEG's series; with that of the SEG it makes the SOP Instance UID.
    """
    content = _content(seg, measured, recipe, observer)
    dataset = EnhancedSR(
        evidence=_evidence(seg, measured),
        content=content[0],
        series_instance_uid=series_uid,
        series_number=number_after(seg, _SERIES_NUMBER_OFFSET),
        sop_instance_uid=derived_uid(series_uid, str(seg.SOPInstanceUID)),
        instance_number=int(seg.get("InstanceNumber") or 1),
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=version(),
        device_serial_number="0",
        is_complete=True,
        series_description=f"Measurements: {seg.get('SeriesDescription') or 'segments'}"[:64],
    )
    context = context_of(seg)
    for keyword in TYPE_2:
        dataset[keyword] = context[keyword]
    if any(source.energy is not None for source in measured.sources):
        dataset.CodingSchemeIdentificationSequence = [_private_scheme()]
    return with_file_meta(dataset)


def _content(seg: Dataset, measured: Measurements, recipe: str, observer: str) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device observer", observer),
        name=observer,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
    )
    content = MeasurementReport(
        observation_context=ObservationContext(ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=list(_groups(seg, measured, recipe)),
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept("en", "RFC5646", "English")
        ),
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, image_library(measured.sources, measured.slices))
    return content


def _evidence(seg: Dataset, measured: Measurements) -> list[Dataset]:
    images = (source.slices[place] for source in measured.sources for place in measured.slices)
    evidence = [context_of(dataset) for dataset in (seg, *images)]
    for each in evidence:
        for keyword in TYPE_2:
            del each[keyword]
            setattr(each, keyword, None)
    return evidence


def _private_scheme() -> Dataset:
    """Say whose the private codes are (PS3.3 C.12.1.1, Coding Scheme Identification Sequence)."""
    return item_of(
        CodingSchemeDesignator=PRIVATE_SCHEME,
        CodingSchemeName="Tharsis energy windows",
        CodingSchemeResponsibleOrganization=MANUFACTURER,
    )


def _groups(
    seg: Dataset, measured: Measurements, recipe: str
) -> Iterator[VolumetricROIMeasurementsAndQualitativeEvaluations]:
    algorithm = AlgorithmIdentification(name="Voxel statistics", version=STATISTICS_VERSION, parameters=[recipe])
    for row in measured.segments:
        for source, statistics in zip(measured.sources, row.of_series, strict=True):
            numbers = _numbers(source, statistics)
            if source is measured.segmented:
                numbers.insert(0, _volume(row))
            if numbers:
                yield _group(seg, measured, row.segment, source, numbers, algorithm)


def _group(
    seg: Dataset,
    measured: Measurements,
    segment: StoredSegment,
    source: Source,
    numbers: Sequence[Measurement],
    algorithm: AlgorithmIdentification,
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    name = segment.tracking_id or segment.label
    several = len(measured.sources) > 1 and source.energy_label
    uid = segment.tracking_uid or derived_uid(str(seg.SOPInstanceUID), f"segment {segment.number}")
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid, f"{name}, {source.energy_label}" if several else name),
        referenced_segment=ReferencedSegment(
            str(seg.SOPClassUID),
            str(seg.SOPInstanceUID),
            segment.number,
            source_series=SourceSeriesForSegmentation(measured.segmented.series_instance_uid),
        ),
        finding_category=segment.category,
        finding_type=segment.type,
        finding_sites=finding_sites(segment),
        algorithm_id=algorithm,
        measurements=numbers,
    )


def finding_sites(segment: StoredSegment) -> list[FindingSite] | None:
    """Return where the finding is, and on which side (TID 1411): the Anatomic Region.

    A finding has no modifiers in TID 1411. So a type with modifiers and without a region is its own site: the left
    kidney lies at the kidney, on the left.
    """
    site, modifiers = segment.site, segment.site_modifiers
    if site is None and segment.modifiers:
        site, modifiers = segment.type, segment.modifiers
    if site is None:
        return None
    topographical = next((modifier for modifier in modifiers if not is_laterality(modifier)), None)
    return [FindingSite(site, laterality=segment.laterality, topographical_modifier=topographical)]


def _volume(row: SegmentMeasurements) -> Measurement:
    method = codes.DCM.SumOfSegmentedVoxelMethodForVolume
    return Measurement(codes.SCT.Volume, row.volume_mm3, codes.UCUM.CubicMillimeter, method=method)


def _numbers(source: Source, statistics: Statistics | None) -> list[Measurement]:
    if statistics is None:
        return []
    made = []
    for what, derivation in _DERIVATIONS.items():
        number = Measurement(
            codes.DCM.AttenuationCoefficient, getattr(statistics, what), _UNITS[source.unit], derivation=derivation
        )
        number[0].ContentSequence.extend(_measured_in(source))
        made.append(number)
    return made


def _measured_in(source: Source) -> list[CodeContentItem | UIDRefContentItem]:
    """Say which series and which energies a number comes from (TID 1419 row 6; PS3.3 table A.35.2-2, INFERRED FROM)."""
    series = UIDRefContentItem(
        codes.DCM.SeriesInstanceUID, source.series_instance_uid, RelationshipTypeValues.INFERRED_FROM
    )
    if source.energy is None:
        return [series]
    code = energy_code(source.energy, source.energy_label)
    return [CodeContentItem(codes.DCM.PhotonEnergy, code, RelationshipTypeValues.HAS_CONCEPT_MOD), series]
