"""De-identification of pixels: masks that reach out of an image, overlays inside of pixels, kinds that show names."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import UID

from index.deidentification.deidentifier import Deidentifier
from index.deidentification.profile import MaskRule, Profile
from index.deidentification.secret import Secret
from index.errors import CannotDeidentify

SECRET = Secret(bytes(range(32)))
BASIC = Profile("basic")


def under(profile: Profile) -> Deidentifier:
    return Deidentifier(profile, SECRET)


def masked(*rectangles: tuple[int, int, int, int]) -> Profile:
    return Profile("masked", masks=(MaskRule(modality="US", rectangles=rectangles),))


@pytest.mark.parametrize(
    "rectangles",
    [((0, 8, 8, 2),), ((8, 0, 1, 1),), ((0, 6, 8, 3),), ((6, 0, 3, 8),), ((0, 0, 8, 2), (0, 100, 8, 2))],
    ids=["below", "right of it", "partly below", "partly right of it", "one of two"],
)
def test_a_rule_that_reaches_out_of_the_image_does_not_fit(make_dataset, rectangles):
    dataset = make_dataset(1, Modality="US", BurnedInAnnotation="YES")
    assert (dataset.Rows, dataset.Columns) == (8, 8)
    with pytest.raises(CannotDeidentify, match="no mask rule fits"):
        under(masked(*rectangles)).deidentify(dataset)


def test_a_rule_that_covers_the_image_to_its_edges_fits(make_dataset):
    dataset = make_dataset(1, Modality="US", BurnedInAnnotation="YES")
    dataset.PixelData = np.arange(1, 65, dtype=np.uint16).tobytes()
    assert (under(masked((0, 0, 8, 8))).deidentify(dataset).pixel_array == 1).all()


def test_no_rule_fits_an_image_that_does_not_tell_its_size(make_dataset):
    dataset = make_dataset(1, Modality="US", BurnedInAnnotation="YES")
    del dataset.Rows
    with pytest.raises(CannotDeidentify, match="no mask rule fits"):
        under(masked((0, 0, 1, 1))).deidentify(dataset)


def test_why_a_mask_failed_quotes_no_value_of_the_object(make_dataset):
    dataset = make_dataset(1, Modality="US")
    dataset[0x00280004] = DataElement(0x00280004, "LO", "DOE^JANE")
    with pytest.raises(CannotDeidentify) as raised:
        under(masked((0, 0, 1, 1))).deidentify(dataset)
    assert str(raised.value) == "a mask rule fits, but the pixels cannot be decoded"
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("sop_class", ["1.2.826.0.1.3680043.9.7133.4711", "1.2.840.10008.5.1.4.1.1.104.4711"])
def test_no_sentence_quotes_a_uid_that_the_standard_does_not_define(make_dataset, sop_class):
    dataset = make_dataset(1, SOPClassUID=sop_class, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    with pytest.raises(CannotDeidentify, match=r"^the image") as raised:
        under(BASIC).deidentify(dataset)
    assert "4711" not in str(raised.value)


@pytest.mark.parametrize(
    ("elements", "is_refused"),
    [
        pytest.param({0x0100: ("US", 16), 0x0102: ("US", 15)}, True, id="as the standard says"),
        pytest.param({0x0100: ("US", 16)}, True, id="no bit position"),
        pytest.param({0x0100: ("US", 16), 0x0102: ("US", 0)}, True, id="the lowest bit"),
        pytest.param({0x0010: ("US", 8), 0x0011: ("US", 8)}, True, id="rows and columns alone"),
        pytest.param({0x0100: ("US", 16), 0x0102: ("US", 15), 0x3000: ("OW", b"")}, True, id="empty data"),
        pytest.param({0x0100: ("US", 16), 0x0102: ("US", 15), 0x3000: ("OW", bytes(8))}, True, id="both"),
        pytest.param({0x0100: ("US", 1), 0x0102: ("US", 0), 0x3000: ("OW", bytes(8))}, False, id="data of its own"),
        pytest.param({0x0100: ("US", 1), 0x3000: ("OW", bytes(8))}, False, id="data, and no bit position"),
        pytest.param({0x0050: ("SS", [1, 1])}, False, id="no plane"),
    ],
)
@pytest.mark.parametrize("group", [0x6000, 0x6002, 0x6020])
def test_an_overlay_inside_of_pixels_is_refused(make_dataset, elements, is_refused, group):
    dataset = make_dataset(1)
    for element, (vr, value) in elements.items():
        dataset.add_new((group, element), vr, value)
    if is_refused:
        with pytest.raises(CannotDeidentify, match="overlay"):
            under(BASIC).deidentify(dataset)
    else:
        made = under(BASIC).deidentify(dataset)
        assert not [tag for tag in made.keys() if tag.group >> 8 == 0x60]  # noqa: SIM118


STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize("uid", ["77.1", "77.2", "77.1.1", "77.1.1.1", "77.1.4", "77.1.7", "6.1", "7.4"])
def test_unmarked_photographs_and_the_trial_classes_are_refused(make_dataset, uid):
    name = UID(STORAGE + uid).name
    with pytest.raises(CannotDeidentify, match=rf"^{name} may show names"):
        under(BASIC).deidentify(make_dataset(1, SOPClassUID=STORAGE + uid))
    assert under(BASIC).deidentify(make_dataset(1, SOPClassUID=STORAGE + uid, BurnedInAnnotation="NO")).PixelData


@pytest.mark.parametrize("uid", ["77.1.3", "77.1.6", "77.1.5.1", "2", "4"])
def test_slides_and_the_inside_of_an_eye_pass(make_dataset, uid):
    assert under(BASIC).deidentify(make_dataset(1, SOPClassUID=STORAGE + uid)).PixelData
