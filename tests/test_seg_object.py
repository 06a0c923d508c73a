"""What a SEG of this node takes over from its images, however little these tell or in whatever script they tell it."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from segmented import SHAPE, slices, truth

from plugins.segmentation.seg_object import read_labels, seg_object
from plugins.segmentation.segmenter import Algorithm, Segment, Segmentation
from plugins.segmentation.stored_segments import stored_segments
from reconstruct.dicom_items import item_of

ALGORITHM = Algorithm("Test", "1", codes.DCM.ArtificialIntelligence, {})
LIVER = Segment("Liver", codes.SCT.AnatomicalStructure, codes.SCT.Liver)


def as_stored(dataset: Dataset) -> Dataset:
    """Return a data set as it is read from a file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def images(without: str = "", **attributes: Any) -> list[Dataset]:
    """Stored CT slices; a value is written as it is, whether the standard allows it or not."""
    written = []
    for image in slices(truth()[0]):
        for keyword, value in attributes.items():
            image[keyword] = DataElement(keyword, dictionary_VR(keyword), value, validation_mode=0)
        if without:
            del image[without]
        written.append(as_stored(image))
    return written


def seg(of: list[Dataset], segment: Segment = LIVER) -> Dataset:
    labels = truth()[1][0].astype(np.uint8)
    made = as_stored(seg_object(Segmentation(labels, (segment,), ALGORITHM), of, recipe="{}"))
    assert np.array_equal(read_labels(made, SHAPE), labels)
    return made


@pytest.mark.parametrize(
    "keyword",
    ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
     "AccessionNumber", "ReferringPhysicianName"],
)  # fmt: skip
def test_what_the_images_lack_is_empty_in_the_seg(keyword: str) -> None:
    """Types 2 of PS3.3 C.7.1.1 and C.7.2.1: programs that de-identify delete them."""
    made = seg(images(without=keyword))
    assert keyword in made
    assert not made[keyword].value
    assert made.StudyInstanceUID


@pytest.mark.parametrize("attributes", [{"without": "SliceThickness"}, {"SliceThickness": None}])
def test_slices_of_no_thickness_are_as_thick_as_they_are_far_apart(attributes: dict[str, Any]) -> None:
    measures = seg(images(**attributes)).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.5, 2.5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientSex", "W"), ("PatientBirthDate", "00000000"), ("StudyDate", "yesterday"), ("StudyTime", "10:15:00")],
)
def test_values_that_the_standard_does_not_allow_are_taken_over_as_they_are(keyword: str, value: str) -> None:
    assert seg(images(**{keyword: value}))[keyword].value == value


def test_a_series_number_below_0_is_followed_by_one_above() -> None:
    assert seg(images(SeriesNumber=-2000)).SeriesNumber > 0


@pytest.mark.parametrize("character_set", [["", "ISO 2022 IR 87"], "GB18030", "ISO_IR 192"])
def test_names_of_any_script_come_through_in_unicode(character_set: list[str] | str) -> None:
    name, hospital = "Yamada^Tarou=山田^太郎", "山田病院"
    made = seg(
        images(
            SpecificCharacterSet=character_set, PatientName=name, InstitutionName=hospital,
            OtherPatientIDsSequence=[item_of(PatientID="1", IssuerOfPatientID=hospital, TypeOfPatientID="TEXT")],
        )
    )  # fmt: skip
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert made.PatientName == name
    assert made.OtherPatientIDsSequence[0].IssuerOfPatientID == hospital
    assert made.ContributingEquipmentSequence[0].InstitutionName == hospital


def test_labels_need_not_be_in_the_script_of_the_images() -> None:
    segment = seg(images(), Segment("Κνήμη", codes.SCT.Tissue, codes.SCT.Bone)).SegmentSequence[0]
    assert (segment.SegmentLabel, segment.TrackingID) == ("Κνήμη", "Κνήμη")


def test_codes_that_are_long_or_have_a_long_meaning_are_written() -> None:
    """A segmenter that was trained has the codes of those whose annotations it learned from."""
    told = Segment(
        "x", codes.SCT.Tissue, Code("1", "99X", "m" * 80), modifiers=(Code("123456789012345678", "SCT", "Left half"),)
    )
    type_ = seg(images(), told).SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert type_.CodeMeaning == "m" * 64
    assert type_.SegmentedPropertyTypeModifierCodeSequence[0].LongCodeValue == "123456789012345678"


def test_parameters_with_commas_come_back() -> None:
    parameters = {"thresholds_hu": "-500,-235,-60", "width_mm": "31.5"}
    result = Segmentation(truth()[1][0].astype(np.uint8), (LIVER,), replace(ALGORITHM, parameters=parameters))
    made = as_stored(seg_object(result, images(), recipe="{}"))
    (segment,) = stored_segments(made).segments.values()
    assert segment.algorithm is not None
    assert segment.algorithm.parameters == parameters


def test_the_images_stay_as_they_are() -> None:
    of = images(without="AccessionNumber")
    seg(of)
    assert str(of[0].PatientName) == "Müller^Jörg"
    assert of[0].SpecificCharacterSet == "ISO_IR 100"
    assert "AccessionNumber" not in of[0]
