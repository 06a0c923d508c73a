"""`tharsis import --images`: the options that say what an image file is, and the rule that they make."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import USAGE, fail

if TYPE_CHECKING:
    from index.image_patients import PatientOf

ImagesOption = Annotated[
    bool,
    typer.Option(
        "--images",
        help="Bring in PNG, JPEG, BMP and TIFF files too, as Secondary Capture; the name of the folder becomes the "
        "Series Description.",
    ),
]
ModalityOption = Annotated[str | None, typer.Option(help="Modality of the images; OT (other) when not given.")]
PatientPatternOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="The first group, found in an image's path, is its Patient ID. Default: each image is its own patient.",
    ),
]
PatientTableOption = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Table of file names (or paths) and Patient IDs.", exists=True, dir_okay=False),
]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

Convert = Callable[[Path], bytes]
"""Part 10 file of an image file; raises `InvalidInstance`, `OSError`."""


def image_converter(
    modality: str | None, pattern: str | None, table: Path | None, *, images: bool
) -> Convert | None:
    """Return what makes DICOM of an image file, None when images are left alone; a mistake ends the command."""
    told = {"--modality": modality, "--patient-pattern": pattern, "--patient-table": table}
    given = [option for option, value in told.items() if value is not None]
    if not images:
        if given:
            fail(f"{given[0]} is about images: add --images", USAGE)
        return None
    if modality is not None and not re.fullmatch(r"[A-Z0-9_ ]{1,16}", modality):
        fail(f"--modality: expected up to 16 capitals and digits, such as OT or DX, got {modality!r}", USAGE)
    from index.image_files import read_image_file
    from index.secondary_capture import MODALITY, Description, secondary_capture

    patient_of = _patient_of(pattern, table)

    def convert(file: Path) -> bytes:
        image = read_image_file(file)
        return secondary_capture(
            image, Description(patient_of(file, image), file.resolve().parent.name, modality or MODALITY)
        )

    return convert


def _patient_of(pattern: str | None, table: Path | None) -> PatientOf:
    from index.image_patients import by_pattern, by_table, own_patient

    if pattern is not None and table is not None:
        fail("--patient-pattern and --patient-table are two ways of saying the same: give one of them", USAGE)
    try:
        if pattern is not None:
            return by_pattern(pattern)
        return by_table(table) if table is not None else own_patient
    except ValueError as error:
        fail(str(error), USAGE)


def is_image_file(path: Path) -> bool:
    """Whether `path` is named like an image that `index.image_files` reads."""
    return path.suffix.lower() in _SUFFIXES


def content(file: Path, convert: Convert | None) -> bytes | None:
    """Return what the archive stores of a file that is not DICOM, None when it is left alone."""
    return convert(file) if convert is not None and is_image_file(file) else None
