"""Labels of series: what training learns from and evaluation judges by.

They come from the archive itself (a DICOM keyword of any level, or a code sequence) or from a table that somebody
wrote (CSV). A series without a value has no label: it is left out, not put into a class of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from index.archive import Archive
from index.decoding import open_image
from index.errors import ArchiveError
from index.keys import KEYS
from index.tables import InvalidTable, Line, read_table

logger = logging.getLogger(__name__)

_JOINED = (
    "patient JOIN study ON study.patient = patient.id JOIN series ON series.study = study.id "
    "JOIN instance ON instance.series = series.id"
)
_IN_ORDER = "series.series_instance_uid, CAST(instance.instance_number AS INTEGER), instance.id"
_CODES = ("CodeValue", "LongCodeValue", "URNCodeValue")

_REFERENCES = (
    ("instance.sop_instance_uid", "SOP Instance UID"),
    ("series.series_instance_uid", "Series Instance UID"),
    ("study.study_instance_uid", "Study Instance UID"),
    ("patient.patient_id", "Patient ID"),
)
"""What the first column of a table may hold, the most specific first."""


class InvalidLabels(ValueError):
    """The source of labels cannot be used; the message is a sentence."""


def read_labels(archive: Archive, source: str) -> dict[str, str]:
    """Return the labels of the series that have one.

    Parameters
    ----------
    source
        A DICOM keyword (`BodyPartExamined`, `AdmittingDiagnosesCodeSequence`, …) or the path of a CSV file. Of a
        sequence the meaning of its first code counts, or its value where it has no meaning; of a keyword at image
        level the value of the first instance that has one.

        The first column of a CSV file (UTF-8, commas) is a SOP Instance, Series Instance or Study Instance UID or a
        Patient ID, the second one the label; further columns are ignored, and lines that name nothing here (a heading,
        patients of other archives) as well. The more specific line wins: one for a series over one for its patient.

    Returns
    -------
    dict
        Series Instance UID → label.

    Raises
    ------
    InvalidLabels
        Neither a keyword nor a file, or a mistake in the file (with its line).
    """
    if source in KEYS:
        return _from_column(archive, KEYS[source].column)
    if source and tag_for_keyword(source) is not None:
        return _from_headers(archive, source)
    if not Path(source).is_file():
        raise InvalidLabels(f"labels come from a DICOM keyword or a CSV file, and {source!r} is neither")
    try:
        return _from_table(archive, Path(source))
    except InvalidTable as error:
        raise InvalidLabels(str(error)) from error


def unlabelled(archive: Archive, labels: Mapping[str, str]) -> int:
    """Return how many series with images have no label."""
    rows = archive.database.execute(
        "SELECT DISTINCT series.series_instance_uid FROM series JOIN instance ON instance.series = series.id "
        "WHERE instance.rows <> ''"
    )
    return sum(uid not in labels for (uid,) in rows)


def _from_column(archive: Archive, column: str) -> dict[str, str]:
    found: dict[str, str] = {}
    rows = archive.database.execute(
        f"SELECT series.series_instance_uid, {column} FROM {_JOINED} WHERE {column} <> '' ORDER BY {_IN_ORDER}"
    )
    for uid, value in rows:
        found.setdefault(uid, str(value))
    return found


def _from_headers(archive: Archive, keyword: str) -> dict[str, str]:
    """Return what the first instance of each series says, for what the catalogue does not keep."""
    first: dict[str, str] = {}
    for uid, path in archive.database.execute(
        f"SELECT series.series_instance_uid, instance.path FROM {_JOINED} ORDER BY {_IN_ORDER}"
    ):
        first.setdefault(uid, path)
    found: dict[str, str] = {}
    for uid, path in first.items():
        try:
            with open_image(archive.files.path(path), archive.scratch_file) as (dataset, _):
                label = _value(dataset, keyword)
        except (ArchiveError, OSError, ValueError) as error:
            logger.warning("series %s has no label: its first instance cannot be read: %s", uid, error)
            continue
        if label:
            found[uid] = label
    return found


def _value(dataset: Dataset, keyword: str) -> str:
    """Return the value of `keyword` as text, "" where there is none."""
    value: Any = dataset.get(keyword)
    if value is None or (not value and value != 0):
        return ""
    if dictionary_VR(keyword) == "SQ":
        return next((meaning for meaning in map(_code, value) if meaning), "")
    if isinstance(value, MultiValue):
        return "\\".join(map(str, value)).strip()
    return str(value).strip()


def _code(item: Dataset) -> str:
    """Return the meaning of a code (PS3.3 8.8), else its value, else ""."""
    told = (str(item.get(keyword) or "").strip() for keyword in ("CodeMeaning", *_CODES))
    return next((text for text in told if text), "")


def _from_table(archive: Archive, file: Path) -> dict[str, str]:
    lines = read_table(file)
    found: dict[str, str] = {}
    for column, what in _REFERENCES:
        given: dict[str, Line] = {}
        for uid, reference in archive.database.execute(
            f"SELECT DISTINCT series.series_instance_uid, {column} FROM {_JOINED}"
        ):
            line = lines.get(reference)
            if line is None:
                continue
            other = given.setdefault(uid, line)
            if other.value != line.value:
                one, two = sorted((other, line), key=lambda each: each.number)
                raise InvalidLabels(
                    f"{file}, lines {one.number} and {two.number}: series {uid} gets two labels by {what}, "
                    f"{one.value!r} and {two.value!r}"
                )
        for uid, line in given.items():
            found.setdefault(uid, line.value)
    if not found:
        raise InvalidLabels(f"{file}: none of its {len(lines)} lines names a patient, study, series or instance here")
    return found
