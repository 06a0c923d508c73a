"""What a site mapping can name besides angles and distances: a camera that moves, vectors, matrices, tilts, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from scan_encodings import (
    COLUMN,
    COLUMN_PITCH,
    COLUMNS,
    CT,
    FLATS,
    OPEN_BEAM,
    ROWS,
    SITE,
    THARSIS,
    VIEWS,
    WRITERS,
    angles,
    counts,
    image,
    p1,
    p6,
    phantom,
    private,
    tilted,
)  # fmt: skip

from config.settings import load_settings
from config.site_mappings import Correction, SiteMapping
from reconstruct.corrections.wanted import APPLIED
from reconstruct.geometry import VolumeGrid
from reconstruct.phantoms import voxelise
from reconstruct.pipeline import Parameters, reconstruct_scan
from reconstruct.projections.assembly import assemble
from reconstruct.projections.description import skeleton, varying_elements
from reconstruct.projections.elements import ELEMENTS
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.registry import read_header
from reconstruct.projections.scan import ReconstructionRequest, Scan, ScanError
from reconstruct.quality import rmse

ACME = (0x0029, "ACME CT")
CAMERA_COLUMNS, CAMERA_STEP = 20, 12
"""Three positions of a camera less than half as wide as the object's shadow."""
CAMERA_RULE = """
[[site_mappings]]
name = "MARS-like camera"
creator = "ACME CT"
angle = { element = "(0029,xx10)", creator = "ACME CT", vr = "UL", unit = "deg", scale = -0.01, offset = -90.0 }
source_to_isocentre = { value = 20.0, unit = "cm" }
source_to_detector = { value = 320.0, unit = "mm" }
pitch_row = { value = 1.3, unit = "mm" }
pitch_column = { value = 1.2, unit = "mm" }
principal_row = { value = 18.25, unit = "px" }
principal_column = { value = 8.75, unit = "px" }         # of the camera at position 0
camera_column = { element = "(0029,xx12)", creator = "ACME CT", vr = "SL", unit = "um", scale = -1.0, offset = 50000.0 }
role = { element = "(0029,xx13)", creator = "ACME CT", flat = ["OPEN"] }
"""


def camera(number: int) -> dict[str, tuple[int, str, Any]]:
    """The stage of the camera counts in µm from its end, and against the columns."""
    return {"stage": (0x12, "SL", 50_000 - round(1000 * (number - 1) * CAMERA_STEP * COLUMN_PITCH))}


def tiled() -> list[Dataset]:
    """Each angle is taken at three places of a camera whose pixels differ from place to place."""
    shadow, datasets = np.exp(-tilted().integrals()), []
    for place in range(3):
        columns = slice(place * CAMERA_STEP, place * CAMERA_STEP + CAMERA_COLUMNS)
        field = np.rint(OPEN_BEAM * (0.8 + 0.05 * place + 0.04 * np.sin(np.arange(CAMERA_COLUMNS))))
        for view, part in enumerate(shadow[:, :, columns]):
            ds = image(np.rint(field * part).astype(np.uint16), CT, len(datasets) + 1, PatientPosition="HFS")
            turned = (0x10, "UL", round(float(-angles()[view] % 360) * 100))
            private(ds, *ACME, angle=turned, kind=(0x13, "LO", "OBJECT"), **camera(place))
            datasets.append(ds)
        ds = image(np.tile(field, (ROWS, 1)).astype(np.uint16), CT, len(datasets) + 1)
        private(ds, *ACME, kind=(0x13, "LO", "OPEN"), **camera(place))
        datasets.append(ds)
    return datasets


GRID = VolumeGrid((32, 32, 32), (0.8, 0.8, 0.8))
REQUEST = ReconstructionRequest((0.8, 0.8, 0.8), (32, 32, 32), (0.0, 0.0, 0.0))


def volume(scan: Scan, folder: Path) -> np.ndarray:
    """Attenuation, 1/mm, of the series that the pipeline writes."""
    [series] = reconstruct_scan(replace(scan, request=REQUEST), Parameters(), lambda _fraction: None, folder)
    slices = sorted(series.instances, key=lambda ds: float(ds.ImagePositionPatient[2]))
    mapping = slices[0].RealWorldValueMappingSequence[0]
    values = np.stack([ds.pixel_array for ds in slices]) * mapping.RealWorldValueSlope
    return (values + mapping.RealWorldValueIntercept) / 10


def test_a_camera_that_moves_is_mapped_and_gives_the_volume_of_one_detector(tmp_path: Path) -> None:
    config = tmp_path / "room3.toml"
    config.write_text(CAMERA_RULE, encoding="utf-8")
    encodings = encodings_from(load_settings(config, environment={}).site_mappings)
    files = []
    for number, dataset in enumerate(tiled()):
        files.append(tmp_path / f"{number:03d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    assert encodings.recognise(tiled()[0]) == "P6"
    scan = encodings.read_scan(files)
    assert scan.shape == (VIEWS, ROWS, COLUMNS)
    assert "stitched from 3 tiles" in scan.notes[-1]
    stitched = volume(scan, tmp_path)
    whole, canonical = volume(read(p6(), SITE), tmp_path), volume(read_canonical(), tmp_path)
    assert rmse(stitched, whole) < 2e-5, "to the rounding of counts"
    inside = voxelise(phantom()[:1], GRID) > 0.019
    assert rmse(stitched, canonical, inside) < 0.0012, "as every encoding of the golden scan"
    assert rmse(stitched[:, :, ::-1], canonical, inside) > 0.002


def load_settings_of(text: str, folder: Path) -> Sequence[SiteMapping]:
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return load_settings(folder / "own.toml", environment={}).site_mappings


def read(datasets: Sequence[Dataset], rule: SiteMapping) -> Scan:
    (encoding, *_) = encodings_from([rule]).encodings
    assert encoding.name == "P6"
    return assemble(encoding, datasets)


def read_canonical() -> Scan:
    encoding = encodings_from([]).of(p1()[0])
    assert encoding is not None
    return assemble(encoding, p1())


def mapping(**changes: Any) -> SiteMapping:
    return SiteMapping.model_validate(SITE.model_dump() | changes)


def element(which: str, **more: Any) -> dict[str, Any]:
    return {"element": f"(0029,xx{which})", "creator": "ACME CT"} | more


def with_elements(*values: dict[str, tuple[int, str, Any]]) -> list[Dataset]:
    datasets = p6()
    for view, dataset in enumerate(datasets):
        private(dataset, *ACME, **values[view])
    return datasets


def test_tile_origins_from_a_vector_of_two() -> None:
    shadow, datasets = counts(tilted().integrals()), []
    for place in range(3):
        first = place * CAMERA_STEP
        for view, frame in enumerate(shadow[:, :, first : first + CAMERA_COLUMNS]):
            ds = image(frame, CT, len(datasets) + 1, PatientPosition="HFS")
            turned = (0x10, "UL", round(float(-angles()[view] % 360) * 100))
            private(ds, *ACME, angle=turned, origin=(0x14, "FD", [1.0, 1.0 + first]))
            datasets.append(ds)
    one_based = {"unit": "px", "offset": -1.0}
    rule = mapping(tile_row=element("14", index=0, **one_based), tile_column=element("14", index=1, **one_based))
    scan, whole = read(datasets, rule), read(p6(), SITE)
    np.testing.assert_allclose(scan.geometry.projection_matrices(), whole.geometry.projection_matrices(), atol=1e-9)
    np.testing.assert_allclose(scan.line_integrals(1), whole.line_integrals(1), atol=1e-5)


TURNED = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
"""From the patient to a scanner's x = -y, y = z, z = -x; then back: x = -z, y = -x, z = y."""


def test_vectors_and_matrices_in_the_axes_of_the_scanner() -> None:
    geometry, told = tilted().geometry(), []
    bases = geometry.projection_matrices()
    into_cm = np.vstack([np.column_stack([TURNED.T * 10, np.zeros(3)]), [0, 0, 0, 1]])
    for view in range(VIEWS):
        vectors = [v[view] @ TURNED.T / 10 for v in (
            geometry.sources, geometry.detector_centres, geometry.column_steps, geometry.row_steps,
        )]  # fmt: skip
        told.append({
            "vectors": (0x20, "FD", np.concatenate(vectors).tolist()),
            "matrix": (0x21, "FD", (bases[view] @ into_cm).reshape(12).tolist()),
        })  # fmt: skip
    datasets = with_elements(*told)
    axes = {"unit": "cm", "axes": ["-z", "-x", "y"]}
    names = ("source_position", "detector_centre", "column_step", "row_step")
    by_vectors = mapping(**{name: element("20", index=3 * n, **axes) for n, name in enumerate(names)})
    by_matrix = mapping(angle=None, matrix=element("21", **axes))
    for rule, taken_from in ((by_vectors, "vectors"), (by_matrix, "projection matrices")):
        scan = read(datasets, rule)
        assert scan.geometry_from == taken_from
        np.testing.assert_allclose(scan.geometry.projection_matrices(), bases, rtol=1e-6, atol=1e-6)
        assert not any("differ" in note for note in scan.notes)
    wrong = read(datasets, by_vectors.model_copy(update={"angle": SITE.angle.model_copy(update={"offset": -80.0})}))
    assert any("angles and distances differ from them by up to 10.00 degrees" in note for note in wrong.notes)


def test_tilts_and_the_secondary_angle_are_those_of_the_private_block() -> None:
    """The same by THARSIS elements, whose meaning the tests of P1 and P4 hold."""
    tilt, standard = [2.0, -1.0, 3.0], p6()
    for view, dataset in enumerate(standard):
        del dataset[0x0029, 0x1010]
        dataset.DistanceSourceToPatient, dataset.DistanceSourceToDetector = 200.0, 320.0
        dataset.ImagerPixelSpacing, dataset.PositionerIsocenterSecondaryAngle = [1.3, 1.2], 4.0
        private(dataset, *THARSIS, role=(0x10, "CS", "PROJECTION"), angle=(0x11, "FD", float(angles()[view] - 90)),
                point=(0x17, "FD", [COLUMN, 18.25]), tilt=(0x18, "FD", tilt), full=(0x09, "FD", OPEN_BEAM))  # fmt: skip
    encoding = encodings_from([]).of(standard[0])
    assert encoding is not None
    assert encoding.name == "P4"
    expected = assemble(encoding, standard).geometry.projection_matrices()
    datasets = with_elements(*({"tilt": (0x22, "FD", tilt), "second": (0x23, "FD", np.deg2rad(4.0))},) * VIEWS)
    for dataset in datasets:
        dataset.PositionerIsocenterDetectorRotationAngle = 45.0  # not believed: the rule knows the scanner
    about = enumerate(("columns", "rows", "ray"))
    tilts = {f"tilt_about_{name}": element("22", index=number, unit="deg") for number, name in about}
    rule = mapping(secondary_angle=element("23", unit="rad"), **tilts)
    np.testing.assert_allclose(read(datasets, rule).geometry.projection_matrices(), expected, rtol=1e-6, atol=1e-6)
    plain = read(p6(), SITE).geometry.projection_matrices()
    assert np.abs(expected / expected[:, 2:, 3:] - plain / plain[:, 2:, 3:]).max() > 0.005


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("s", lambda s: (0x24, "FD", 5e8 + s)),
        ("ms", lambda s: (0x24, "FD", 1000.0 * s)),
        ("TM", lambda s: (0x24, "TM", f"1015{s:05.2f}")),
        ("DT", lambda s: (0x24, "DT", f"202503141015{s:05.2f}+0100")),
    ],
)
def test_when_and_how_long_frames_were_exposed(unit: str, value: Any) -> None:
    datasets = with_elements(*({"at": value(0.5 * view), "for": (0x25, "FD", 0.25)} for view in range(VIEWS)))
    rule = mapping(acquired=element("24", unit=unit), exposure=element("25", unit="s"))
    views = read(datasets, rule).counters[0].views
    assert {view.duration_ms for view in views} == {250.0}
    times = np.array([view.acquired_s for view in views])
    np.testing.assert_allclose(times - times[0], 0.5 * np.arange(VIEWS), atol=1e-5)


def test_energy_mode_and_what_the_scanner_corrected() -> None:
    rule = mapping(
        effective_energy={"value": 52.0, "unit": "keV"}, counting_mode="CSM", corrections_applied=["DARK", "RING"],
        energy_bins={"value": 1.0, "unit": ""},
    )  # fmt: skip
    scan = read(p6(), rule)
    assert scan.bins[0].effective_kev == 52.0
    assert (scan.counting_mode, scan.corrections) == ("CSM", {"DARK", "RING"})
    assert set(APPLIED) <= set(get_args(Correction)), "whatever is not done again can be named"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expected_frames": {"value": 50.0, "unit": ""}}, "has 45 of 50 frames"),
        ({"expected_instances": {"value": 50.0, "unit": ""}}, "has 45 of 50 instances"),
        ({"energy_bins": {"value": 2.0, "unit": ""}}, "has 0 of 2 energy bins|has 1 of 2 energy bins"),
        ({"acquired": element("10", vr="UL", unit="DT")}, r"\(0029,xx10\) is \d+, expected DT"),
        ({"matrix": element("10", vr="UL", unit="mm")}, r"\(0029,xx10\) has 1 values, expected 12 from number 0"),
        ({"matrix": element("30", unit="mm")}, r"\(0029,xx30\) is .*, expected numbers"),
    ],
)
def test_what_a_named_element_lacks_is_told(changes: dict[str, Any], sentence: str) -> None:
    datasets = with_elements(*({"words": (0x30, "LO", ["a"] * 12)},) * VIEWS)
    with pytest.raises(ScanError, match=sentence):
        read(datasets, mapping(**changes))


VECTOR = {"value": [1.0, 0.0, 0.0], "unit": "mm"}
ALL_VECTORS = dict.fromkeys(("source_position", "detector_centre", "column_step", "row_step"), VECTOR)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tile_row": {"value": 1.0, "unit": "px"}}, "tile_row and tile_column go together"),
        ({"column_step": VECTOR}, "source_position, detector_centre, column_step and row_step go together"),
        (ALL_VECTORS, "expected an element for one of source_position"),
        ({"matrix": {"value": [1.0] * 12, "unit": "mm"}}, "expected an element for matrix"),
        (ALL_VECTORS | {"row_step": {"value": [1.0], "unit": "mm"}}, "row_step has 1 values, expected 3"),
        ({"matrix": element("21", unit="mm", axes=["x", "x", "z"])}, "axes name each of x, y and z once, got x, x, z"),
        ({"matrix": {"unit": "mm"}}, "expected either an element or a constant value"),
        ({"acquired": {"unit": "DT"}}, "expected an element"),
        ({"exposure": {"value": 1.0, "unit": "keV"}}, "the unit of exposure is 'keV', expected 'ms' or 's' or 'us'"),
        ({"counting_mode": "XYZ"}, "Input should be 'SPM' or 'CSM'|Input should be ''"),
        ({"corrections_applied": ["RINGS"]}, "Input should be 'DARK'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        mapping(**changes)


def test_flats_without_a_camera_position_serve_all_places(tmp_path: Path) -> None:
    (rule,) = load_settings_of(CAMERA_RULE, tmp_path)
    datasets = [ds for ds in tiled() if "OPEN" not in str(ds[0x0029, 0x1013].value)]
    flat = image(FLATS[0][:, :CAMERA_COLUMNS].copy(), CT, 999)
    private(flat, *ACME, kind=(0x13, "LO", "OPEN"))
    assert read([*datasets, flat], rule).shape == (VIEWS, ROWS, COLUMNS)


def test_a_view_without_its_camera_position_is_refused(tmp_path: Path) -> None:
    (rule,) = load_settings_of(CAMERA_RULE, tmp_path)
    datasets = tiled()
    del datasets[3][0x0029, 0x1012]
    with pytest.raises(ScanError, match=r"Camera Position \(0071,xx1A\) is missing in a part of the views"):
        read(datasets, rule)


def test_describe_shows_angle_and_camera_of_a_tiled_scan(tmp_path: Path) -> None:
    """The angle is found though it begins anew at each position of the camera."""
    files = []
    for number, dataset in enumerate(tiled()):
        files.append(tmp_path / f"{number:03d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    told = {each.element: each for each in varying_elements(files)}
    assert (told["(0029,xx10)"].rises, told["(0029,xx10)"].different) == (True, VIEWS)
    assert (told["(0029,xx12)"].rises, told["(0029,xx12)"].different) == (False, 3)
    text = skeleton([read_header(file) for file in files[:1]], varying_elements(files), "room 3")
    assert 'angle = { element = "(0029,xx10)"' in text
    assert "# camera_column = " in text


@pytest.mark.parametrize(
    ("name", "told"),
    [(name, told) for name in ("P2-series", "P3", "P5") for told in ("secondary_angle", "tilt_about_columns")],
)
def test_constants_complete_the_geometry_of_other_encodings(name: str, told: str) -> None:
    datasets = WRITERS[name]("HFS")
    for dataset in datasets:
        dataset.pop("PositionerSecondaryAngle", None)
    constant = {"name": "all of them", "manufacturer": "ACME", told: {"value": 5.0, "unit": "deg"}}

    def matrices(*rules: SiteMapping) -> np.ndarray:
        encodings = encodings_from(rules)
        encoding = next(found for found in map(encodings.of, datasets) if found is not None)
        assert encoding.name == name[:2]
        return assemble(encoding, datasets).geometry.projection_matrices()

    changed, plain = matrices(SiteMapping.model_validate(constant)), matrices()
    assert np.abs(changed / changed[:, 2:, 3:] - plain / plain[:, 2:, 3:]).max() > 0.005


def test_every_element_of_a_scan_can_be_mapped() -> None:
    """All that the private block says of a scan but its identity and what the operator asked for."""
    from reconstruct.projections import p6 as reader

    mapped = {*reader._KEYWORDS.values(), *reader._GROUPS, *reader._VECTORS.values(), "PixelMeaning", "CounterKind",
              "FrameRole", "CountingMode", "CorrectionsApplied"}  # fmt: skip
    site = {"ViewAngle": "SiteAngle", "PrincipalPoint": "SitePrincipalPoint", "DetectorTilt": "SiteTilt",
            "AxialSamplePosition": "SiteTravel"}  # fmt: skip
    lacking = {keyword for keyword in ELEMENTS if site.get(keyword, keyword) not in mapped}
    assert lacking == {"ScanSetUID", *(keyword for keyword in ELEMENTS if keyword.startswith("Requested"))}
