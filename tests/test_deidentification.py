"""De-identification of whole objects: what must not survive, what must, and what is refused."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from io import BytesIO
from itertools import groupby
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom._uid_dict import UID_dictionary
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)

from config.deidentification import Option
from config.settings import SettingsError, load_settings
from index.deidentification.dates import Shift
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.descriptors import Cleaner
from index.deidentification.profile import MaskRule, Profile
from index.deidentification.secret import KEY_FILE, Secret, load_secret
from index.deidentification.table import attribute
from index.errors import CannotDeidentify, NotFound
from index.files import is_part10
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.registry import read_scan
from reconstruct.simulate import simulate_scan

SECRET = Secret(bytes(range(32)))
BASIC = Profile("basic")
CLEAN = frozenset({Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS})


def under(profile: Profile, secret: Secret = SECRET) -> Deidentifier:
    return Deidentifier(profile, secret)


# What must not survive

SHORTEST_TEXT = 6
LARGEST_FILE = 3_000_000


def readable_files(folder: Path) -> Iterator[Path]:
    """Two files of each folder: those of one folder are slices of one series, mostly, or of all kinds in `pydicom`."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < LARGEST_FILE)
    for where, paths in groupby((path for path in found if is_part10(path)), key=lambda path: path.parent):
        several = 400 if "pydicom" in where.parts else 2
        yield from list(paths)[:several]


def raw_values(dataset: Dataset, *, identifying: bool) -> Iterator[bytes]:
    """Yield values as they are encoded, those that identify or those that do not, in sequences as well."""
    for tag, raw in list(dataset.items()):
        try:
            element = dataset[tag]
        except Exception:  # noqa: BLE001  (a damaged value)
            continue
        if element.VR == "SQ":
            for item in element.value or []:
                yield from raw_values(item, identifying=identifying)
            continue
        row = attribute(int(tag))
        names = tag.is_private or element.VR == "PN" or row is not None
        if names == identifying and isinstance(getattr(raw, "value", None), bytes) and element.VR not in BINARY:
            yield from raw.value.split(b"\\")


BINARY = ("OB", "OW", "OF", "OD", "OL", "OV", "UN", "US", "UL", "SS", "SL", "FD", "FL", "AT", "UV", "SV")


def is_searched(value: bytes) -> bool:
    """Shorter values, and short numbers, are found by chance: they are the words and numbers of other attributes."""
    if value.decode("ascii", "replace") in UID_dictionary or not value.strip(b"0 .") or value == b"removed":
        return False
    is_number = re.fullmatch(rb"[-+0-9.eE ]+", value) is not None
    return len(value) >= (8 if is_number else SHORTEST_TEXT)


def searched(path: Path) -> set[bytes]:
    """Return what must not be in the de-identified file: identifying values that no other attribute has as well."""
    kept = b"\\".join(raw_values(dcmread(path, stop_before_pixels=True), identifying=False)).lower()
    found = set()
    for value in raw_values(dcmread(path, stop_before_pixels=True), identifying=True):
        plain = value.strip(b" \0").lower()
        parts = [plain, *re.split(rb"[\^=]", plain)]
        found.update(part for part in parts if is_searched(part) and part not in kept)
    return found


def encodings(value: bytes) -> set[bytes]:
    """Return a value as other writers would encode it."""
    text = value.decode("latin-1")
    return {value, text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("utf-8")}


def dates_of(dataset: Dataset) -> set[str]:
    found = set()
    for element in dataset.iterall():
        if element.VR in ("DA", "TM", "DT") and element.value:
            values = element.value if element.VM > 1 else [element.value]
            found.update(str(value) for value in values)
    return found


@pytest.mark.slow
def test_no_identifier_of_a_real_file_survives_the_basic_profile(shared_data, tmp_path):
    files = values = 0
    deidentifier, out = under(Profile("basic", burned_in="trust_unmarked")), tmp_path / "out.dcm"
    for path in readable_files(shared_data):
        try:
            deidentifier.deidentify_file(path, out)
        except CannotDeidentify:
            continue
        made = dcmread(out)
        dates = dates_of(made)
        assert dates <= {"19000101", "000000", "19000101000000"}, path
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if keyword in made:
                del made[keyword]  # bits of an image, in which anything may be by chance
        stream = BytesIO()
        made.file_meta.TransferSyntaxUID = made.file_meta.TransferSyntaxUID.replace(
            "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.1"
        )
        try:
            made.save_as(stream, enforce_file_format=True)
            content = stream.getvalue().lower()
        except ValueError:
            content = out.read_bytes().lower()
        told = searched(path)
        left = {value for value in told if any(form in content for form in encodings(value))}
        assert not left, path
        files, values = files + 1, values + len(told)
    assert files > 200
    assert values > 2500


def test_file_meta_and_preamble_tell_nothing_of_the_sender(make_file, tmp_path):
    path = make_file(1)
    dataset = dcmread(path)
    dataset.preamble = b"Doe^Jane at Saint Nowhere".ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = "NOWHERE_CT"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3.4"
    dataset.file_meta.PrivateInformation = b"Doe^Jane"
    dataset.save_as(path)
    under(BASIC).deidentify_file(path, tmp_path / "out.dcm")
    content = (tmp_path / "out.dcm").read_bytes()
    assert not re.search(rb"nowhere|doe|jane|1\.2\.826\.0", content, re.IGNORECASE)
    assert content[:132] == bytes(128) + b"DICM"


def test_an_identifier_that_other_text_repeats_is_cleaned_from_it(make_dataset):
    """Image Type and others have no row in the table; free text of the site may repeat a name all the same."""
    dataset = make_dataset(1, PatientName="Xylander^Zoe")
    dataset.SegmentDescription = "liver of Xylander"
    dataset.ProtocolName = "Xylander head"
    made = under(Profile("clean", CLEAN)).deidentify(dataset)
    assert made.SegmentDescription == "liver of"
    assert made.ProtocolName == "head"


# What must survive

def test_patients_studies_and_references_stay_together(make_dataset):
    deidentifier = under(BASIC)
    one, other = (deidentifier.deidentify(make_dataset(number)) for number in (1, 2))
    stranger = deidentifier.deidentify(make_dataset(3, PatientID="P2"))
    assert one.PatientID == other.PatientID == deidentifier.pseudonym("", "P1") == str(one.PatientName)
    assert one.StudyInstanceUID == other.StudyInstanceUID == deidentifier.uid(make_dataset(1).StudyInstanceUID)
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert stranger.PatientID not in ("", "P2", one.PatientID)
    assert under(BASIC, Secret(b"x" * 32)).deidentify(make_dataset(1)).StudyInstanceUID != one.StudyInstanceUID
    assert re.fullmatch(r"2\.25\.[1-9]\d{30,38}", one.StudyInstanceUID)


def test_the_input_stays_and_the_same_gives_the_same(make_file, tmp_path):
    path = make_file(1)
    dataset, untouched = dcmread(path), dcmread(path)
    before = dict(dataset.items())
    one = under(Profile("all", CLEAN, dates="modified")).deidentify(dataset)
    assert dict(dataset.items()) == before
    assert dataset == untouched
    assert one == under(Profile("all", CLEAN, dates="modified")).deidentify(dcmread(path))
    for name in ("a.dcm", "b.dcm"):
        under(BASIC).deidentify_file(path, tmp_path / name)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_it_says_what_was_done(make_dataset):
    options = frozenset({Option.RETAIN_SAFE_PRIVATE, Option.CLEAN_DESCRIPTORS})
    made = under(Profile("x", options, "modified")).deidentify(make_dataset(1))
    assert made.PatientIdentityRemoved == "YES"
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [item.CodeValue for item in made.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113107", "113111"]
    again = under(BASIC).deidentify(made)
    assert [item.CodeValue for item in again.DeidentificationMethodCodeSequence] == codes
    assert again.LongitudinalTemporalInformationModified == "REMOVED"
    assert again.PatientID not in ("", made.PatientID)
    once_more = under(Profile("full", dates="full")).deidentify(again)
    assert once_more.LongitudinalTemporalInformationModified == "REMOVED"


@pytest.fixture(scope="module")
def segmentations_and_reports(shared_data) -> list[Path]:
    paths = [path for path in sorted((shared_data / "highdicom").rglob("*.dcm")) if path.stat().st_size < 300_000]
    return [path for path in paths if dcmread(path, specific_tags=["Modality"]).get("Modality") in ("SEG", "SR")][:8]


@pytest.mark.parametrize("options", [frozenset(), CLEAN], ids=["basic", "clean"])
def test_segmentations_and_reports_still_refer_to_their_sources(segmentations_and_reports, tmp_path, options):
    deidentifier, out = under(Profile("refs", options)), tmp_path / "out.dcm"
    for path in segmentations_and_reports:
        original = dcmread(path)
        deidentifier.deidentify_file(path, out)
        made = dcmread(out)
        uids, left = references(original), references(made)
        assert left <= {deidentifier.uid(uid) for uid in uids}
        assert not uids or left, path
        if made.Modality == "SEG":
            assert left == {deidentifier.uid(uid) for uid in uids}
            assert np.array_equal(hd.seg.segread(out).pixel_array, original.pixel_array)
        elif options:
            hd.sr.srread(out)


def references(dataset: Dataset) -> set[str]:
    return {str(element.value) for element in dataset.iterall() if element.keyword == "ReferencedSOPInstanceUID"}


def test_a_report_keeps_its_numbers_and_loses_its_names(shared_data, tmp_path):
    path = next(
        path for path in sorted(shared_data.rglob("*.dcm"))
        if "highdicom" in path.parts and dcmread(path, stop_before_pixels=True).get("Modality") == "SR"
    )  # fmt: skip
    original, made = dcmread(path), under(Profile("sr", CLEAN)).deidentify(dcmread(path))
    for keyword in ("NumericValue", "MeasurementUnitsCodeSequence"):
        before = [element.value for element in original.iterall() if element.keyword == keyword]
        assert [element.value for element in made.iterall() if element.keyword == keyword] == before
    persons = {str(element.value) for element in made.iterall() if element.VR == "PN" and element.value}
    assert persons <= {"", "REMOVED", str(made.PatientName)}


def test_overlays_curves_and_icons_go_with_all_that_describes_them(shared_data, tmp_path):
    path = next(iter(sorted(shared_data.rglob("MR-SIEMENS-DICOM-WithOverlays.dcm"))))
    made = under(Profile("x", CLEAN)).deidentify(dcmread(path))
    assert [tag for tag in dcmread(path).keys() if tag.group >> 8 == 0x60]  # noqa: SIM118
    assert not [tag for tag in made.keys() if tag.group >> 8 in (0x50, 0x60)]  # noqa: SIM118


# Dates

PATIENT = Shift(100)


@pytest.mark.parametrize(
    ("move", "value", "expected"),
    [
        (PATIENT.date, "20240301", "20231122"),  # over a leap day
        (PATIENT.date, "2024.03.01", "20231122"),
        (PATIENT.date, "20230229", ""),
        (PATIENT.date, "00010101", ""),
        (PATIENT.date, "nonsense", ""),
        (PATIENT.time, "101500.123456", "101500.123456"),
        (PATIENT.time, "Doe^Jane", ""),
        (PATIENT.date_time, "20240301101500", "20231122101500"),
        (PATIENT.date_time, "20240301101500.5+0100", "20231122101500.5+0100"),
        (PATIENT.date_time, "202403011015-0800", "202311221015-0800"),
        (PATIENT.date_time, "20240301", "20231122"),
        (PATIENT.date_time, "202403", "202311"),
        (PATIENT.date_time, "2024", "2023"),
        (PATIENT.date_time, "20240301Doe", ""),
    ],
)
def test_a_date_moves_and_keeps_its_precision_time_and_offset(move, value, expected):
    assert move(value) == expected


def test_modified_dates_keep_every_interval_of_a_patient(make_dataset):
    deidentifier = under(Profile("moved", dates="modified"))
    originals = [
        make_dataset(1, StudyDate="20240102", StudyTime="235959"),
        make_dataset(2, StudyDate="20240103", StudyTime="000001"),
    ]
    originals[1].AcquisitionDateTime = "20240103000001+0100"
    item = Dataset()
    item.StudyDate, item.StudyTime = "20240103", "000001"
    originals[1].ReferencedSeriesSequence = [item]
    one, other = (deidentifier.deidentify(dataset) for dataset in originals)
    moments = [datetime.strptime(d.StudyDate + d.StudyTime, "%Y%m%d%H%M%S") for d in (one, other)]
    assert moments[1] - moments[0] == timedelta(seconds=2)
    assert other.AcquisitionDateTime == f"{other.StudyDate}{other.StudyTime}+0100"
    assert other.ReferencedSeriesSequence[0].StudyDate == other.StudyDate
    assert date(2013, 12, 1) < moments[0].date() < date(2024, 1, 2)
    assert deidentifier.deidentify(make_dataset(1, PatientID="P2")).StudyDate != one.StudyDate
    assert deidentifier.deidentify(make_dataset(1)).StudyDate != "20240102"


# Text

@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CT Abdomen with contrast", "CT Abdomen with contrast"),
        ("Doe, Jane: liver 5.0 mm", "liver 5.0 mm"),
        ("seen by Dr. Kwrtzmann on 2024-01-02, ID 4711", "seen by on"),
        ("L4 120kV call 555-0199", "L4 120kV"),
        ("腹部 CT", "CT"),
        ("", ""),
    ],
)
def test_descriptors_keep_words_of_the_field_only(text, expected, make_dataset):
    assert Cleaner.of(make_dataset(1)).clean(text) == expected


# Private elements

def with_private(make_dataset, status: str, **declaration) -> Dataset:
    dataset = make_dataset(1)
    block = dataset.private_block(0x0029, "SITE 1.0", create=True)
    block.add_new(0x01, "LO", "geometry")
    block.add_new(0x02, "PN", "Doe^Jane")
    block.add_new(0x03, "UI", "1.2.3.4.5")
    item = Dataset()
    item.PatientName = "Doe^Jane"
    block.add_new(0x04, "SQ", [item])
    block.add_new(0x05, "UN", b"\1\2\3\4")
    declared = Dataset()
    declared.PrivateGroupReference, declared.PrivateCreatorReference = 0x0029, "SITE 1.0"
    declared.BlockIdentifyingInformationStatus = status
    for keyword, value in declaration.items():
        setattr(declared, keyword, value)
    dataset.PrivateDataElementCharacteristicsSequence = [declared]
    return dataset


SAFE = Profile("safe", frozenset({Option.RETAIN_SAFE_PRIVATE}))


def test_a_block_that_is_declared_safe_is_kept_but_for_names_and_uids(make_dataset):
    made = under(SAFE).deidentify(with_private(make_dataset, "SAFE"))
    block = made.private_block(0x0029, "SITE 1.0")
    assert block[0x01].value == "geometry"
    assert block[0x02].value == "REMOVED"
    assert block[0x03].value == SECRET.uid("1.2.3.4.5")
    assert str(block[0x04].value[0].PatientName) == made.PatientName
    assert 0x05 not in block  # nobody knows what it is
    assert made.PrivateDataElementCharacteristicsSequence[0].BlockIdentifyingInformationStatus == "SAFE"


def test_of_a_mixed_block_what_is_named_stays(make_dataset):
    action = Dataset()
    action.IdentifyingPrivateElements, action.DeidentificationAction = [0x03], "U"
    dataset = with_private(
        make_dataset, "MIXED", NonidentifyingPrivateElements=[0x01], DeidentificationActionSequence=[action]
    )
    block = under(SAFE).deidentify(dataset).private_block(0x0029, "SITE 1.0")
    assert block[0x01].value == "geometry"
    assert block[0x03].value == SECRET.uid("1.2.3.4.5")
    assert 0x02 not in block
    assert 0x04 not in block


@pytest.mark.parametrize(("status", "profile"), [("UNSAFE", SAFE), ("SAFE", BASIC)])
def test_no_private_block_stays_that_is_unsafe_or_not_asked_for(make_dataset, status, profile):
    made = under(profile).deidentify(with_private(make_dataset, status))
    assert not [tag for tag in made.keys() if tag.is_private]  # noqa: SIM118
    assert "PrivateDataElementCharacteristicsSequence" not in made


@pytest.mark.parametrize("kept", [True, False], ids=["known tag", "unknown tag"])
def test_sequences_that_came_as_un_are_walked_or_removed(make_dataset, kept):
    item = Dataset()
    item.PatientName, item.ReferencedSOPInstanceUID = "Doe^Jane", "1.2.3.4"
    inner = BytesIO()
    holder = Dataset()
    holder.ReferencedSeriesSequence = [item]
    holder.save_as(inner, implicit_vr=True, little_endian=True)
    dataset = make_dataset(1)
    tag = Tag("ReferencedSeriesSequence") if kept else Tag(0x0008, 0x11FE)
    content = inner.getvalue()[8:]
    dataset[tag] = RawDataElement(tag, "UN", len(content), content, 0, False, True)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    made = under(BASIC).deidentify(dcmread(stream))
    assert (tag in made) == kept
    if kept:
        assert made[tag].value[0].ReferencedSOPInstanceUID == SECRET.uid("1.2.3.4")
        assert str(made[tag].value[0].PatientName) == made.PatientName


# Pixels

def marked(make_dataset, **values) -> Dataset:
    dataset = make_dataset(1, Modality="US", Manufacturer="ACME", BurnedInAnnotation="YES", **values)
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PixelData = np.arange(1, 65, dtype=np.uint16).tobytes()
    return dataset


MASK = MaskRule(modality="us", manufacturer="Acme", rows=8, columns=8, rectangles=((0, 0, 8, 2), (6, 6, 2, 2)))
MASKED = Profile("masked", masks=(MASK,))


def test_a_mask_paints_over_its_rectangles_and_nothing_else(make_dataset):
    made = under(MASKED).deidentify(marked(make_dataset))
    expected = np.arange(1, 65, dtype=np.uint16).reshape(8, 8)
    expected[:2, :] = 1
    expected[6:, 6:] = 1
    assert np.array_equal(made.pixel_array, expected)
    assert (made.BurnedInAnnotation, list(made.ImageType)) == ("NO", ["DERIVED", "PRIMARY"])
    assert "113101" in [item.CodeValue for item in made.DeidentificationMethodCodeSequence]


def test_a_compressed_colour_image_of_many_frames_is_masked_in_each(shared_data, tmp_path):
    path = next(iter(sorted(shared_data.rglob("examples_ybr_color.dcm"))))
    original, out = dcmread(path), tmp_path / "masked.dcm"
    assert original.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    rule = MaskRule(modality="US", rectangles=((0, 0, 50, 20),))
    under(Profile("masked", masks=(rule,))).deidentify_file(path, out)
    made = dcmread(out)
    assert made.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    frames = made.pixel_array
    assert frames.shape[0] == int(original.NumberOfFrames) > 1
    assert made.LossyImageCompression == "01"
    assert not frames[:, :20, :50].any()
    assert np.array_equal(frames[:, 20:], original.pixel_array[:, 20:])
    assert np.array_equal(frames[:, :20, 50:], original.pixel_array[:, :20, 50:])


@pytest.mark.parametrize("name", ["SC_rgb_expb_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_other_encodings_are_masked_as_well(shared_data, tmp_path, name):
    path, out = next(iter(sorted(shared_data.rglob(name)))), tmp_path / "masked.dcm"
    original = dcmread(path)
    rule = MaskRule(modality="OT", rectangles=((0, 0, 5, 5),))
    under(Profile("masked", masks=(rule,))).deidentify_file(path, out)
    made = dcmread(out)
    assert not made.pixel_array[..., :5, :5, :].any()
    assert np.array_equal(made.pixel_array[..., 5:, :, :], original.pixel_array[..., 5:, :, :])
    assert made.Rows == original.Rows


@pytest.mark.parametrize(
    ("profile", "values", "sentence"),
    [
        (BASIC, {"BurnedInAnnotation": "YES"}, "Burned In Annotation is YES"),
        (Profile("x", burned_in="trust_unmarked"), {"BurnedInAnnotation": "YES"}, "Burned In Annotation is YES"),
        (BASIC, {"SOPClassUID": SecondaryCaptureImageStorage}, "Secondary Capture Image Storage may show names"),
        (BASIC, {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "may show names"),
        (BASIC, {"SpecimenLabelInImage": "YES"}, "specimen label"),
        (BASIC, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated document"),
        (BASIC, {"SOPInstanceUID": None}, "no SOP Instance UID"),
        (Profile("x", masks=(MaskRule(modality="CT", rectangles=((0, 0, 1, 1),)),)), {"PixelData": b"\0"}, "decoded"),
    ],
)
def test_what_may_show_names_is_refused(make_dataset, profile, values, sentence):
    dataset = make_dataset(1, **values)
    if "SOPInstanceUID" in values:
        del dataset.file_meta
    with pytest.raises(CannotDeidentify, match=sentence):
        under(profile).deidentify(dataset)


@pytest.mark.parametrize(
    ("profile", "values"),
    [
        (BASIC, {"SOPClassUID": SecondaryCaptureImageStorage, "BurnedInAnnotation": "NO"}),
        (Profile("x", burned_in="trust_unmarked"), {"SOPClassUID": SecondaryCaptureImageStorage}),
        (BASIC, {}),
    ],
)
def test_what_does_not_show_names_passes(make_dataset, profile, values):
    assert under(profile).deidentify(make_dataset(1, **values)).PixelData


# Files, answers, keys, settings

def test_a_large_value_is_copied_without_being_held(make_file, tmp_path, monkeypatch):
    path = make_file(1, Rows=1024, Columns=1024, PixelData=os.urandom(2 << 20))
    from index.deidentification import pixels

    monkeypatch.setattr(pixels.decoding, "frames", lambda *_: pytest.fail("decoded"))
    under(BASIC).deidentify_file(path, tmp_path / "out.dcm")
    assert dcmread(tmp_path / "out.dcm").PixelData == dcmread(path).PixelData


def test_nothing_is_left_of_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.dcm").write_bytes(b"no DICOM at all")
    with pytest.raises(CannotDeidentify, match="Part 10"):
        under(BASIC).deidentify_file(tmp_path / "bad.dcm", tmp_path / "out.dcm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.dcm"]


CUT_OFF = "the data set is cut off: nobody knows what its end would tell"


@pytest.mark.parametrize(
    ("values", "syntax", "missing"),
    [
        pytest.param({"PixelData": None, "StorageMediaFileSetUID": "1.2.826.0.1.3680043.9.7133.77"},
                     ExplicitVRLittleEndian, 6, id="half a UID"),
        pytest.param({}, ExplicitVRLittleEndian, 20, id="pixels"),
        pytest.param({}, ImplicitVRLittleEndian, 20, id="pixels, implicit"),
        pytest.param({"Rows": 1024, "Columns": 1024, "PixelData": bytes(2 << 20)}, ExplicitVRLittleEndian, 20,
                     id="pixels that are left in the file"),
        pytest.param({"PixelData": encapsulate([b"\0" * 64])}, JPEGBaseline8Bit, 8, id="the end of fragments"),
        pytest.param({}, DeflatedExplicitVRLittleEndian, 20, id="deflated"),
    ],
)  # fmt: skip
def test_what_is_cut_off_is_refused(make_dataset, tmp_path, values, syntax, missing):
    path = tmp_path / "original.dcm"
    make_dataset(1, transfer_syntax=syntax, **values).save_as(path, enforce_file_format=True)
    under(BASIC).deidentify_file(path, tmp_path / "out.dcm")
    (tmp_path / "out.dcm").unlink()
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(CannotDeidentify, match=f"^{CUT_OFF}$"):
        under(BASIC).deidentify_file(path, tmp_path / "out.dcm")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["original.dcm"]


def test_an_answer_keeps_its_keys(make_dataset):
    answer = Dataset()
    answer.QueryRetrieveLevel, answer.RetrieveAETitle = "STUDY", "THARSIS"
    answer.PatientID, answer.PatientName, answer.StudyInstanceUID = "P1", "Doe^Jane", "1.2.3"
    answer.StudyDescription, answer.StudyDate, answer.NumberOfStudyRelatedInstances = "Head", "20240102", 3
    answer.add_new(0x00730010, "LO", "THARSIS SIMILARITY 1.0")
    answer.add_new(0x00731021, "FD", 0.5)
    answer.add_new(0x00731023, "UI", "1.2.3.4")
    made = under(BASIC).deidentify_answer(answer)
    assert set(made.keys()) == set(answer.keys())
    assert (made.QueryRetrieveLevel, made.RetrieveAETitle) == ("STUDY", "THARSIS")
    assert made.NumberOfStudyRelatedInstances == 3
    assert made.PatientID == made.PatientName == under(BASIC).pseudonym("", "P1")
    assert made.StudyInstanceUID == SECRET.uid("1.2.3")
    assert not made.StudyDescription
    assert not made.StudyDate
    assert (made[0x00731021].value, made[0x00731023].value) == (0.5, SECRET.uid("1.2.3.4"))
    moved = under(Profile("x", dates="modified")).deidentify_answer(answer)
    assert moved.StudyDate == under(Profile("x", dates="modified")).deidentify(make_dataset(1)).StudyDate


def test_only_what_passes_unchanged_may_be_matched():
    deidentifier = under(BASIC)
    assert deidentifier.keeps(Tag("Modality"))
    for keyword in ("PatientID", "StudyDate", "StudyInstanceUID", "StudyDescription"):
        assert not deidentifier.keeps(Tag(keyword))
    assert under(Profile("x", dates="full")).keeps(Tag("StudyDate"))
    assert not under(Profile("x", dates="modified")).keeps(Tag("StudyDate"))
    assert not deidentifier.keeps(0x00291010)


def test_the_key_is_made_once_for_the_owner_alone(tmp_path):
    one = load_secret(tmp_path / "data")
    assert load_secret(tmp_path / "data") == one
    path = tmp_path / "data" / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [KEY_FILE]
    assert path.read_bytes().hex() not in repr(one)
    assert one != load_secret(tmp_path / "other")
    path.write_bytes(b"short")
    with pytest.raises(CannotDeidentify, match="5 bytes"):
        load_secret(tmp_path / "data")


def test_well_known_uids_are_not_replaced():
    for uid in ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.4.1.1", ""):
        assert SECRET.uid(uid) == uid
    assert SECRET.uid("1.2.840.10008.99.1") != "1.2.840.10008.99.1"


def settings_of(*entries: dict) -> object:
    return load_settings(environment={}, overrides={"deidentification": list(entries)})


def test_a_profile_comes_from_the_settings(tmp_path):
    masks = [{"modality": "US", "rectangles": [[0, 0, 9, 9]]}]
    entry = {"name": "r", "options": ["retain_uids"], "dates": "full", "masks": masks}
    profile = Deidentifier.from_settings(settings_of(entry), tmp_path, "r").profile
    assert (profile.options, profile.dates) == ({Option.RETAIN_UIDS}, "full")
    assert profile.masks[0].rectangles == ((0, 0, 9, 9),)
    with pytest.raises(NotFound, match=r"no profile 'q'.*known: r"):
        Deidentifier.from_settings(settings_of(entry), tmp_path, "q")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"name": "r", "options": ["clean_recognizable_visual_features"]}, "cannot remove a face"),
        ({"name": "r", "options": ["retain_longitudinal_full_dates"]}, 'dates = "full"'),
        ({"name": "r", "options": ["clean_pixel_data"]}, "masks"),
        ({"name": "r", "masks": [{"rectangles": [[0, 0, 1, 1]]}]}, "modality, manufacturer or model"),
        ({"name": "a b"}, "deidentification.0.name"),
    ],
)
def test_a_mistake_in_a_profile_is_told_in_one_sentence(entry, sentence):
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        settings_of(entry)


def test_the_shell_goes_on_behind_a_refused_file(make_file, tmp_path, tharsis: Callable):
    (tmp_path / "my.toml").write_text('[[deidentification]]\nname = "basic"\n', encoding="utf-8")
    files = [make_file(1), make_file(2, BurnedInAnnotation="YES")]
    common = ["--profile", "basic", "--config", tmp_path / "my.toml", "--data", tmp_path / "data"]
    told = tharsis("deidentify", *files, "--to", tmp_path / "out", *common)
    assert told.returncode == 1
    assert "Burned In Annotation is YES" in " ".join(told.stdout.split())
    assert "1 files in" in told.stdout
    (made,) = (tmp_path / "out").rglob("*.dcm")
    content = made.read_bytes()
    again = tharsis("deidentify", files[0], "--to", tmp_path / "out", *common)
    assert again.returncode == 1
    assert "not overwritten" in " ".join(again.stdout.split())
    assert made.read_bytes() == content
    shown = tharsis("deidentify", files[0], "--explain", *common)
    assert "PatientName" in shown.stdout
    assert "pseudonym" in shown.stdout


def test_the_shell_makes_no_path_of_a_uid_that_is_none(make_file, tmp_path, tharsis: Callable):
    (tmp_path / "my.toml").write_text(
        '[[deidentification]]\nname = "uids"\noptions = ["retain_uids"]\n', encoding="utf-8"
    )
    file = make_file(1, StudyInstanceUID="../../elsewhere")
    common = ["--profile", "uids", "--config", tmp_path / "my.toml", "--data", tmp_path / "data"]
    told = tharsis("deidentify", file, "--to", tmp_path / "some" / "out", *common)
    assert told.returncode == 0, told.stdout
    (made,) = (path for path in tmp_path.rglob("*.dcm") if path != file)
    assert made.is_relative_to(tmp_path / "some" / "out")
    assert dcmread(made).StudyInstanceUID == "../../elsewhere"


def test_the_shell_refuses_what_is_cut_off(make_file, tmp_path, tharsis: Callable):
    (tmp_path / "my.toml").write_text('[[deidentification]]\nname = "basic"\n', encoding="utf-8")
    cut_off, whole = make_file(1), make_file(2)
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    common = ["--profile", "basic", "--config", tmp_path / "my.toml", "--data", tmp_path / "data"]
    told = tharsis("deidentify", cut_off, whole, "--to", tmp_path / "out", *common)
    assert told.returncode == 1
    assert f"refused {cut_off}: {CUT_OFF}" in told.stdout
    assert "1 files in" in told.stdout
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 1
    shown = tharsis("deidentify", cut_off, "--explain", *common)
    assert shown.returncode == 1
    assert CUT_OFF in " ".join(shown.stderr.split())


# A scan, and what validators say

def test_a_scan_reconstructs_to_the_same_volume(tmp_path):
    """The private block THARSIS PROJECTION 1.0 carries the geometry, and is declared safe."""
    objects = simulate_scan("calibration", views=12, rows=8, columns=16, thresholds_kev=(18, 45), seed=1)
    deidentifier = under(Profile("scan", frozenset({Option.RETAIN_SAFE_PRIVATE}), "modified"))
    volumes = []
    for name in ("original", "clean"):
        (tmp_path / name).mkdir()
        for number, dataset in enumerate(objects):
            path = tmp_path / name / f"{number}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            if name == "clean":
                deidentifier.deidentify_file(path, path)
        scan = read_scan(sorted((tmp_path / name).iterdir()))
        images = [list(one.instances) for one in reconstruct_scan(scan, Parameters(), lambda _: None, tmp_path)]
        volumes.append([np.stack([image.pixel_array for image in series]) for series in images])
    for before, after in zip(*volumes, strict=True):
        assert np.array_equal(before, after)
    issuer, patient_id = str(objects[0].get("IssuerOfPatientID", "")), objects[0].PatientID
    assert images[0][0].PatientID == deidentifier.pseudonym(issuer, patient_id)


def test_validators_find_nothing_new(shared_data, tmp_path, validator_errors):
    names = (
        "CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "sr_document.dcm", "seg_image_ct_binary.dcm", "waveform_ecg.dcm",
    )  # fmt: skip
    profiles = [BASIC, Profile("all", frozenset(Option) - {Option.RETAIN_UIDS}, "modified")]
    out = tmp_path / "out.dcm"
    for name in names:
        path = next(iter(sorted(shared_data.rglob(name))))
        before = {without_uids(line) for line in validator_errors(path)}
        for profile in profiles:
            under(profile).deidentify_file(path, out)
            assert {without_uids(line) for line in validator_errors(out)} <= before, (name, profile.name)


def without_uids(line: str) -> str:
    return re.sub(r"\d+(\.\d+){2,}", "UID", line)
