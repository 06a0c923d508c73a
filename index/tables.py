"""Tables of two columns that people write (CSV): what is meant, and what is said of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class InvalidTable(ValueError):
    """A mistake in a table; the message is a sentence with file and line."""


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes
    ----------
    number
        From 1.
    reference
        First column: what is meant.
    value
        Second column.
    """

    number: int
    reference: str
    value: str


def read_table(file: Path) -> dict[str, Line]:
    """Return the lines of a CSV file (UTF-8, commas) by their first column; columns after the second are ignored.

    Raises
    ------
    InvalidTable
        No text in UTF-8, no CSV, no line at all, an empty cell, or two lines that contradict each other.
    """
    lines: dict[str, Line] = {}
    for line in _read(file):
        other = lines.setdefault(line.reference, line)
        if other.value != line.value:
            raise InvalidTable(
                f"{file}, lines {other.number} and {line.number}: {line.reference!r} is {other.value!r} in one and "
                f"{line.value!r} in the other"
            )
    if not lines:
        raise InvalidTable(f"{file}: a table of two columns was expected, and it is empty")
    return lines


def _read(file: Path) -> Iterator[Line]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for row in reader:
                number = reader.line_num
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield _line(cells, number, f"{file}, line {number}")
    except UnicodeDecodeError as error:
        raise InvalidTable(f"{file}: expected text in UTF-8, got other bytes after line {number}") from error
    except csv.Error as error:
        raise InvalidTable(f"{file}: no CSV after line {number}: {error}") from error


def _line(cells: list[str], number: int, where: str) -> Line:
    if len(cells) < 2:
        raise InvalidTable(f"{where}: expected 2 columns, separated by a comma, got {len(cells)}")
    if not cells[0] or not cells[1]:
        raise InvalidTable(f"{where}: the {'second' if cells[0] else 'first'} column is empty")
    return Line(number, cells[0], cells[1])
