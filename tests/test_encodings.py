"""Every encoding of projections, through one suite: the same object, the same refusals, whatever the scanner wrote."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scan_encodings import COLUMNS, HALF_WIDTH_MM, SITE, VIEWS, WRITERS, image, p3, phantom, private

from reconstruct.fdk import fdk
from reconstruct.geometry import VolumeGrid
from reconstruct.phantoms import voxelise
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.registry import STANDARD
from reconstruct.projections.scan import Scan, ScanError

ENCODINGS = encodings_from([SITE])
GRID = VolumeGrid((32, 32, 32), (0.8, 0.8, 0.8))
NAMES = list(WRITERS)
ONE_EACH = ("P1", "P2", "P2-series", "P3", "P4", "P4-multi-frame", "P5", "P6")


@pytest.fixture(scope="module")
def written() -> dict[str, list[Dataset]]:
    """Every encoding of the golden scan, head first and supine."""
    return {name: write("HFS") for name, write in WRITERS.items()}


@pytest.fixture
def scan_of(written: dict[str, list[Dataset]]):
    return lambda name: copy.deepcopy(written[name])


def saved(datasets: list[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(folder / f"{number:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def read(datasets: list[Dataset]) -> Scan:
    from reconstruct.projections.assembly import assemble

    encoding = next(e for e in map(ENCODINGS.of, datasets) if e is not None)
    return assemble(encoding, datasets)


def volume_of(scan: Scan) -> np.ndarray:
    return fdk(scan.line_integrals(1), scan.geometry, GRID, threads=1)


def marker_mm_xyz(volume: np.ndarray) -> tuple[float, ...]:
    """Centre of the densest part."""
    dense = volume > 0.04
    return tuple(float(np.average(axis, weights=dense.sum(axis=sum_over))) for axis, sum_over in (
        (GRID.x_mm, (0, 1)), (GRID.y_mm, (0, 2)), (GRID.z_mm, (1, 2)),
    ))  # fmt: skip


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference within the object, 1/mm."""
    return float(np.sqrt(np.mean((one - other)[INSIDE] ** 2)))


MARKER_MM_XYZ = np.multiply((0.35, 0.25, 0.20), HALF_WIDTH_MM)
INSIDE = voxelise(phantom()[:1], GRID) > 0.019


@pytest.fixture(scope="module")
def reference(written: dict[str, list[Dataset]]) -> np.ndarray:
    return volume_of(read(written["P1"]))


@pytest.mark.parametrize("name", NAMES)
def test_golden(written: dict[str, list[Dataset]], reference: np.ndarray, name: str) -> None:
    """The same volume from every encoding, and its marker to the left, behind, and towards the head."""
    volume = volume_of(read(written[name]))
    np.testing.assert_allclose(marker_mm_xyz(volume), MARKER_MM_XYZ, atol=0.4)
    assert distance(volume, voxelise(phantom(), GRID)) < 0.003
    assert distance(volume, reference) < 0.0012
    assert min(distance(np.flip(volume, axis), reference) for axis in range(3)) > 0.002


@pytest.mark.parametrize("name", ["P2", "P3", "P5"])
def test_feet_first_shows_the_same_patient(name: str) -> None:
    """What lies in the patient lies there however the patient was laid into the scanner."""
    volume = volume_of(read(WRITERS[name]("FFS")))
    np.testing.assert_allclose(marker_mm_xyz(volume), MARKER_MM_XYZ, atol=0.4)


@pytest.mark.parametrize("name", NAMES)
def test_recognises_its_own_and_only_its_own(written: dict[str, list[Dataset]], name: str) -> None:
    assert {ENCODINGS.recognise(dataset) for dataset in written[name]} <= {name[:2], *(["P4"] if name == "P6" else [])}
    for encoding in ENCODINGS.encodings:
        if encoding.name not in (name[:2], "P4"):
            assert not any(encoding.recognise(dataset) for dataset in written[name])


def without(*keywords: str):
    """A change that removes standard elements from every instance."""

    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)

    return change


def without_private(group: int, *offsets: int):
    """A change that removes private elements, also from the items of frames."""

    def change(dataset: Dataset) -> None:
        for item in [dataset, *dataset.get("PerFrameFunctionalGroupsSequence", [])]:
            for element in list(item.group_dataset(group)):
                if element.tag.element > 0xFF and element.tag.element & 0xFF in offsets:
                    del item[element.tag]

    return change


def with_value(keyword: str, value):
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("P2", without("PositionerPrimaryAngle"), r"angle of the view is missing in view 1: .*\(0018,1510\)"),
        ("P2", without("DistanceSourceToPatient"), r"source to isocentre distance is missing .*\(0018,1111\)"),
        ("P2", without("DistanceSourceToDetector"), r"source to detector distance is missing .*\(0018,1110\)"),
        ("P2", without("ImagerPixelSpacing"), r"detector pitch is missing .*\(0018,1164\)"),
        ("P2", with_value("PixelIntensityRelationship", "DISP"), r"\(0028,1040\) is DISP .* expected LIN and 1"),
        ("P2", with_value("PositionerPrimaryAngleIncrement", [0.0, 40.0]), r"\(0018,1520\) has 2 values for"),
        ("P3", without_private(0x7031, 0x03), r"source to isocentre distance is missing .*\(7031,xx03\)"),
        ("P3", without_private(0x7031, 0x31), r"source to detector distance is missing .*\(7031,xx31\)"),
        ("P3", without_private(0x7029, 0x06), r"detector pitch is missing .*\(7029,xx06\)"),
        ("P3", without_private(0x7039, 0x09), r"Log Flag \(7039,xx09\) is missing, expected YES or NO"),
        ("P4", without_private(0x0071, 0x12), r"angle of the view is missing .*\(0018,9463\).*\(0071,xx11\)"),
        ("P5", without("RadiationMachineSAD"), r"source to isocentre distance is missing .*\(3002,0022\)"),
        ("P5", without("RTImageSID"), r"source to detector distance is missing .*\(3002,0026\)"),
        ("P5", without("ImagePlanePixelSpacing"), r"detector pitch is missing .*\(3002,0011\)"),
        ("P5", with_value("PatientSupportAngle", 90), r"\(300A,0122\) is 90 degrees, expected a table"),
        ("P5", with_value("RTImageOrientation", [1, 0, 0, 1, 0, 0]), r"\(3002,0010\) is .* at right angles"),
        ("P5", with_value("PixelIntensityRelationshipSign", -1), r"\(0028,1041\) -1: expected LIN and 1"),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_one_sentence(scan_of, name: str, change, sentence: str) -> None:
    datasets = scan_of(name)
    for dataset in datasets:
        change(dataset)
    with pytest.raises(ScanError, match=sentence):
        read(datasets)


@pytest.mark.parametrize("quantity", ["source_to_isocentre", "source_to_detector", "pitch", "unattenuated"])
def test_a_site_mapping_that_says_too_little_is_completed_by_name(scan_of, quantity: str) -> None:
    absent = {"pitch": ("pitch_row", "pitch_column")}.get(quantity, (quantity,))
    mapping = SITE.model_copy(update=dict.fromkeys(absent))
    (encoding, *_) = encodings_from([mapping]).encodings
    from reconstruct.projections.assembly import assemble

    named = "I0" if quantity == "unattenuated" else f"{quantity} of a site mapping"
    with pytest.raises(ScanError, match=named):
        assemble(encoding, scan_of("P6"))


def is_flat(dataset: Dataset) -> bool:
    from reconstruct.projections.encoding import is_without_object

    return is_without_object(dataset)


@pytest.mark.parametrize("name", ["P1", "P2", "P2-series", "P4", "P5"])
def test_without_flats_the_reference_is_named_and_with_them_it_works(scan_of, name: str) -> None:
    datasets = scan_of(name)
    views = [dataset for dataset in datasets if not is_flat(dataset)]
    with pytest.raises(ScanError, match=r"neither flat fields .* nor an unattenuated value|of 2 instances"):
        read(views)
    assert read(datasets).counters[0].flats


@pytest.mark.parametrize("name", ["P2-series", "P3-curved", "P4", "P5", "P6"])
def test_instances_may_come_in_any_order(scan_of, written, tmp_path: Path, name: str) -> None:
    datasets = scan_of(name)
    order = np.random.default_rng(5).permutation(len(datasets))
    paths = saved([datasets[index] for index in order], tmp_path)
    scan = ENCODINGS.read_scan(paths)
    told = read(written[name])
    # A file keeps FL in 32 bits and DS in decimals.
    np.testing.assert_allclose(scan.geometry.sources, told.geometry.sources, atol=1e-3)
    np.testing.assert_allclose(scan.line_integrals(1), told.line_integrals(1), atol=1e-4)
    assert ENCODINGS.holds_projections(paths)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_is_named(scan_of, tmp_path: Path, name: str) -> None:
    paths = saved(scan_of(name), tmp_path)
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[: len(whole) - 999])
    with pytest.raises(ScanError, match=r"the pixels of 000\.dcm cannot be decoded"):
        ENCODINGS.read_scan(paths).line_integrals(1)
    paths[0].write_bytes(whole[:200])
    with pytest.raises(ScanError, match=r"000\.dcm"):
        ENCODINGS.read_scan(paths)


@pytest.mark.parametrize("name", ["P2-series", "P3", "P4", "P5", "P6"])
def test_two_patients_and_two_sizes_are_not_mixed(scan_of, name: str) -> None:
    datasets = scan_of(name)
    datasets[3].StudyInstanceUID = "2.25.99"
    with pytest.raises(ScanError, match="2 studies"):
        read(datasets)
    datasets = scan_of(name)
    half = datasets[3].Rows // 2
    datasets[3].Rows = half
    with pytest.raises(ScanError, match="several sizes"):
        read(datasets)


@pytest.mark.parametrize("name", ONE_EACH)
def test_what_the_geometry_was_taken_from_is_recorded(written, name: str) -> None:
    origin = {
        "P1": "vectors", "P2": r"Positioner Primary Angle (0018,1510)", "P2-series": "(0018,1111)",
        "P3": "(7031,xx01)", "P4": "vectors", "P4-multi-frame": "vectors", "P5": "(300A,011E)",
        "P6": "angle of a site mapping",
    }[name]  # fmt: skip
    assert origin in read(written[name]).notes[0]


def test_private_vectors_go_before_standard_angles_and_a_disagreement_is_reported(scan_of, written) -> None:
    datasets = scan_of("P2-series")
    wrong = read(written["P4"]).geometry
    for view, dataset in enumerate(datasets[:VIEWS]):
        private(
            dataset, 0x0071, "THARSIS PROJECTION 1.0", source=(0x12, "FD", wrong.sources[view].tolist()),
            centre=(0x13, "FD", wrong.detector_centres[view].tolist()),
            column=(0x14, "FD", wrong.column_steps[view].tolist()), row=(0x15, "FD", wrong.row_steps[view].tolist()),
        )  # fmt: skip
    scan = read(datasets)
    np.testing.assert_array_equal(scan.geometry.sources, wrong.sources)
    assert any("vectors were taken; angles and distances differ" in note for note in scan.notes)


@pytest.mark.parametrize(("turn_deg", "is_reported"), [(0.05, False), (0.3, True)])
def test_a_private_angle_that_disagrees_with_the_standard_one_is_reported(scan_of, turn_deg, is_reported) -> None:
    datasets = scan_of("P2-series")
    for dataset in datasets[:VIEWS]:
        angle = float(dataset.PositionerPrimaryAngle) + turn_deg
        private(dataset, 0x0071, "THARSIS PROJECTION 1.0", angle=(0x11, "FD", angle))
    notes = " ".join(read(datasets).notes)
    assert ("standard attributes were taken; private scalars differ" in notes) is is_reported, notes


def test_constants_of_a_site_complete_other_encodings_and_never_go_before_them(scan_of) -> None:
    datasets = [dataset for dataset in scan_of("P5") if not is_flat(dataset)]
    rule = SITE.model_copy(
        update={"creator": "", "manufacturer": "acme", "angle": None, "principal_row": None, "principal_column": None}
    )
    paths_free = encodings_from([rule])
    from reconstruct.projections.assembly import assemble

    scan = assemble(next(e for e in paths_free.encodings if e.name == "P5"), datasets)
    assert scan.counters[0].unattenuated == (60_000.0,) * VIEWS
    np.testing.assert_allclose(scan.geometry.source_to_isocenter_mm, 200.0)


def test_two_spectra_of_ct_pd_are_two_bins(written) -> None:
    views = copy.deepcopy(written["P3"])
    other = copy.deepcopy(written["P3"])
    for number, datasets in ((1, views), (2, other)):
        for index, dataset in enumerate(datasets):
            dataset.SOPInstanceUID = f"2.25.7{number}{index}"
            private(
                dataset, 0x7033, "SourceDynamicsModule", spectra=(0x61, "US", 2), spectrum=(0x63, "US", number)
            )
    scan = read([*views, *other])
    assert len(scan.bins) == 2
    assert scan.bins[0].water_per_cm == pytest.approx(0.2)
    with pytest.raises(ScanError, match="1 of 2 energy bins"):
        read(views)
    for dataset in other:
        dataset[0x7031, 0x1001].value += 0.02
    with pytest.raises(ScanError, match="energy bin 2 was taken elsewhere than energy bin 1"):
        read([*views, *other])


def test_elements_without_a_dictionary_are_understood(scan_of) -> None:
    """A peer that does not know private elements passes them on as UN."""
    import struct

    datasets = scan_of("P3")
    for dataset in datasets:
        for element in [e for e in dataset if e.tag.is_private and not e.tag.is_private_creator]:
            values = element.value if element.VM > 1 else [element.value]
            if element.VR == "FL":
                dataset.add_new(element.tag, "UN", struct.pack(f"<{len(values)}f", *values))
            elif element.VR in ("CS", "DS"):
                dataset.add_new(element.tag, "UN", str(element.value).encode())
    np.testing.assert_allclose(read(datasets).geometry.sources, read(p3()).geometry.sources, atol=1e-4)


def test_few_portal_images_and_stills_are_no_scan(scan_of, tmp_path: Path) -> None:
    for name in ("P5", "P2-series"):
        paths = saved(scan_of(name)[:2], tmp_path / name)
        assert not STANDARD.holds_projections(paths)
    still = image(np.zeros((4, 8, 8)), "1.2.840.10008.5.1.4.1.1.12.1", 1, PositionerPrimaryAngle=10)
    assert STANDARD.recognise(still) is None


def test_what_was_reconstructed_is_no_scan(written) -> None:
    """The CT images of this node carry energies in the private block, and no projections."""
    from reconstruct.derived import ct_series

    scan = read(written["P1"])
    grid = VolumeGrid((2, 4, 4), (1.0, 1.0, 1.0))
    (first, *_) = ct_series(np.zeros((2, 4, 4), np.float32), grid, scan=scan, energy_bin=scan.bins[0], recipe={})
    assert ENCODINGS.recognise(first) is None


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [0, 1, 0, 1, 0, 0]])
def test_rt_images_may_be_stored_in_any_orientation(scan_of, written, orientation: list[int]) -> None:
    """Rows upwards, columns to the left, rows and columns exchanged: the same rays."""
    along_row, along_column = np.array(orientation[:2]), np.array(orientation[3:5])
    datasets = [dataset for dataset in scan_of("P5") if not is_flat(dataset)]
    flat = [dataset for dataset in scan_of("P5") if is_flat(dataset)]
    for dataset in [*datasets, *flat]:
        pitch, first = np.array(dataset.ImagePlanePixelSpacing, float), np.array(dataset.RTImagePosition, float)
        pixels = dataset.pixel_array
        far = first + np.array([(COLUMNS - 1) * pitch[1], -(dataset.Rows - 1) * pitch[0]])
        if orientation[0]:
            if along_row[0] < 0:
                pixels, first[0] = pixels[:, ::-1], far[0]
            if along_column[1] > 0:
                pixels, first[1] = pixels[::-1], far[1]
        else:
            pixels = pixels[::-1].T
            first[1], pitch = far[1], pitch[::-1]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        dataset.RTImageOrientation, dataset.RTImagePosition = orientation, list(first)
        dataset.ImagePlanePixelSpacing = list(pitch)
    scan, told = read([*datasets, *flat]), read(written["P5"])
    points = np.array([[x, y, z, 1] for x in (-4, 3) for y in (-2, 5) for z in (-3, 2)], dtype=float)
    for geometry, integrals, at in [(one.geometry, one.line_integrals(1), []) for one in (told, scan)]:
        projected = np.einsum("vij,pj->vpi", geometry.projection_matrices(), points)
        column, row = np.moveaxis(np.rint(projected[..., :2] / projected[..., 2:]).astype(int), -1, 0)
        at.append(integrals[np.arange(VIEWS)[:, None], row, column])
        if geometry is told.geometry:
            expected = at[0]
        else:
            np.testing.assert_allclose(at[0], expected, atol=1e-5)


@pytest.mark.parametrize("keyword", ["PositionerPrimaryAngleIncrement", "PositionerPrimaryAngle", "NumberOfFrames"])
def test_words_in_place_of_numbers_are_one_sentence(scan_of, tmp_path: Path, keyword: str) -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    (run, _) = scan_of("P2")
    vr = "IS" if keyword == "NumberOfFrames" else "DS"
    run[keyword] = RawDataElement(Tag(keyword), vr, 8, b"sideways", 0, False, True)
    paths = saved([run], tmp_path)
    assert ENCODINGS.holds_projections(paths) is (keyword == "PositionerPrimaryAngle"), "increments alone make a run"
    with pytest.raises(ScanError, match=r"000\.dcm"):
        ENCODINGS.read_scan(paths)
