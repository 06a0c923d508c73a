"""Whose an image file is: by default its own patient, else as a pattern or a table says of its path."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from index.errors import InvalidInstance
from index.image_files import ImageFile
from index.tables import read_table

PatientOf = Callable[[Path, ImageFile], str]
"""Patient ID of the image that is in a path; raises `InvalidInstance` when it cannot be told."""

_STEM, _DIGEST = 48, 8


def own_patient(path: Path, image: ImageFile) -> str:
    """Return a Patient ID that no other image has: the file's name and 8 hex digits of its SHA-256.

    The name alone would make one patient of ``AbdomenCT/0001.png`` and ``HeadCT/0001.png``.
    """
    return f"{path.stem[:_STEM]}-{image.sha256[:_DIGEST]}"


def by_pattern(pattern: str) -> PatientOf:
    r"""Return the rule that takes the first group of a regular expression, found in the path with slashes.

    ``([^/]+)_\d+\.png$`` makes one patient of ``p7_1.png`` and ``p7_2.png``.

    Raises
    ------
    ValueError
        No regular expression, or one without a group.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if not expression.groups:
        raise ValueError(f"a group in parentheses has to say which part of the path is the patient: {pattern!r}")

    def patient(path: Path, _image: ImageFile) -> str:
        found = expression.search(path.as_posix())
        if found is None or not found[1]:
            raise InvalidInstance(f"its path does not tell the patient by {pattern!r}")
        return str(found[1])

    return patient


def by_table(file: Path) -> PatientOf:
    """Return the rule that looks in a CSV file: path, or its last parts, or the file's name; then the Patient ID.

    Raises
    ------
    InvalidTable
        A mistake in the file.
    """
    lines = read_table(file)

    def patient(path: Path, _image: ImageFile) -> str:
        for start in range(len(path.parts)):
            line = lines.get("/".join(path.parts[start:]))
            if line is not None:
                return line.value
        raise InvalidInstance(f"{file} names no patient for it")

    return patient
