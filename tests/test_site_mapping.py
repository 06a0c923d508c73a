"""From a scanner's own elements to a rule in the settings: describe, write, validate, reconstruct."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError
from scan_encodings import ROWS, SITE, VIEWS, p4_multi_frame, p6, private

from config.settings import SettingsError, load_settings
from config.site_mappings import SiteMapping
from reconstruct.projections.assembly import assemble
from reconstruct.projections.description import skeleton, varying_elements
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.registry import STANDARD, read_header
from reconstruct.projections.scan import ScanError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("acme")
    paths = []
    for number, dataset in enumerate(p6()):
        private(dataset, 0x0029, "ACME CT", serial=(0x11, "LO", "same"), noise=(0x12, "FD", float((number * 7) % 11)))
        paths.append(folder / f"{number:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_describe_lists_what_varies_and_what_rises(files: list[Path]) -> None:
    varying = varying_elements(files)
    told = {each.element: each for each in varying}
    assert "(0029,xx11)" not in told, "it is the same in all files"
    angle = told["(0029,xx10)"]
    assert (angle.creator, angle.rises, angle.different) == ("ACME CT", True, VIEWS)
    assert not told["(0029,xx12)"].rises
    assert varying[0] == angle


def test_the_skeleton_becomes_a_rule_when_it_is_completed(files: list[Path], tmp_path: Path) -> None:
    headers = [read_header(path) for path in files]
    text = skeleton(headers, varying_elements(files), "room 3")
    told = tomllib.loads(text)["site_mappings"][0]
    assert told["manufacturer"] == "ACME"
    assert told["angle"]["vr"] == "UL"
    config = tmp_path / "room3.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=r"site_mappings\.0\.angle\.unit: expected .*'deg', 'rad'.*, got '\?'"):
        load_settings(config, environment={})
    whole = text.replace('unit = "?", scale = 1.0, offset = 0.0', 'unit = "deg", scale = -0.01, offset = -90.0')
    for line, value in (
        ("source_to_isocentre", 200), ("source_to_detector", 320), ("pitch_row", 1.3), ("pitch_column", 1.2),
        ("unattenuated", 60000),
    ):  # fmt: skip
        whole = whole.replace(f"# {line} = {{ value = 0.0", f"{line} = {{ value = {float(value)}")
    config.write_text(whole)
    encodings = encodings_from(load_settings(config, environment={}).site_mappings)
    assert encodings.holds_projections(files)
    assert encodings.read_scan(files).geometry.views == VIEWS
    assert not STANDARD.holds_projections(files)


def test_unknown_bytes_are_shown_as_what_they_may_be(tmp_path: Path) -> None:
    import struct

    paths = []
    for number, dataset in enumerate(p6()[:4]):
        dataset[0x0029, 0x1010].VR = "UN"
        dataset[0x0029, 0x1010]._value = struct.pack("<f", 1.5 + 0.1 * number)
        paths.append(tmp_path / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    (angle, *_) = varying_elements(paths)
    assert angle.readings[0] == ("FL", "1.5")
    assert angle.rises


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"creator": ""}, "name at least one of manufacturer, model, sop_class and creator"),
        ({"pitch_row": None}, "pitch_row and pitch_column go together"),
        ({"travel": {"value": 1.0, "unit": "deg"}}, "the unit of travel is 'deg', expected 'mm' or 'cm'"),
        ({"travel": {"unit": "mm"}}, "either an element or a constant value"),
        ({"travel": {"element": "(0029,xx10)", "unit": "mm"}}, "is private, so its creator has to be named"),
        ({"travel": {"element": "29-10", "unit": "mm"}}, "expected a keyword .* got '29-10'"),
        ({"travel": {"value": 1.0, "unit": "mm", "scale": 0.0}}, "a scale of 0"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"pixels": "GREY"}, "Input should be"),
    ],
)
def test_a_rule_is_validated(changes, sentence: str) -> None:
    told = SITE.model_dump() | changes
    with pytest.raises(ValidationError, match=sentence):
        SiteMapping.model_validate(told)


def test_roles_and_vectors_of_values_at_the_top(tmp_path: Path) -> None:
    """A multi-frame image with one angle for each frame in one element, and flats that a word tells apart."""
    (dataset,) = p4_multi_frame()
    for item in dataset.PerFrameFunctionalGroupsSequence:
        for element in list(item.group_dataset(0x0071)):
            del item[element.tag]
    from scan_encodings import FLATS, image

    views = dataset.pixel_array[:VIEWS]
    run = image(views, dataset.SOPClassUID, 1, ImageType=["ORIGINAL", "PRIMARY"])
    private(run, 0x0029, "ACME CT", angle=(0x10, "FD", [8.0 * view for view in range(VIEWS)]))
    open_beam = image(FLATS, dataset.SOPClassUID, 2, ContentLabel="OPEN")
    private(open_beam, 0x0029, "ACME CT", kind=(0x30, "LO", "x"))
    rule = SiteMapping.model_validate(
        SITE.model_dump()
        | {
            "angle": {"element": "(0029,xx10)", "creator": "ACME CT", "unit": "deg"},
            "unattenuated": None,
            "role": {"element": "ContentLabel", "flat": ["OPEN"]},
        }
    )
    (encoding, *_) = encodings_from([rule]).encodings
    scan = assemble(encoding, [run, open_beam])
    assert scan.geometry.views == VIEWS
    assert scan.geometry.rows == ROWS
    assert len(scan.counters[0].flats) == len(FLATS)
    with pytest.raises(ScanError, match="neither flat fields"):
        assemble(encoding, [run])


@pytest.mark.slow
def test_the_command_shows_and_writes(tharsis, files: list[Path], tmp_path: Path) -> None:
    rule = tmp_path / "rule.toml"
    done = tharsis("describe", files[0].parent, "--rule", rule, "--name", "room 3")
    assert done.returncode == 0, done.stderr
    assert f"{VIEWS} files; the first is of no encoding of projections that is known" in done.stdout
    assert "(0029,xx10)" in done.stdout
    assert 'element = "(0029,xx10)"' in rule.read_text()
    assert tharsis("describe", files[0], "--rule", rule).returncode == 1, "a file is not overwritten"
