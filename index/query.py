"""Queries of the Query/Retrieve information models (PS3.4 C.6): Identifier in, Identifiers out.

The one query engine: C-FIND, C-MOVE, C-GET, the similarity query's filters and every later door ask here, so they
cannot disagree about what exists.
"""

from __future__ import annotations

import json
import marshal
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from sqlite_utils import Database

from index.archive import Archive, StoredInstance
from index.charset import charset_from_text, choose_charset
from index.identifier import BASELINE, Model, Query, QueryOptions, columns_of, parse_identifier, parse_level
from index.keys import KEYS, Level, Matching
from index.values import element_of

_ABOUT = ("specific_character_set", "originals", "id")
_STORED = ", ".join(
    f"instance.{name}"
    for name in ("sop_instance_uid", "sop_class_uid", "transfer_syntax_uid", "path", "size", "sha256", "damage")
)
"""What an instance is sent by, and no more: a retrieve reads a row for each."""

_SHARED_UIDS = ("sop_class_uid", "transfer_syntax_uid", "series_instance_uid", "study_instance_uid")

Row = tuple[Any, ...]

_SOON_S, _LONG_S = 0.05, 0.5
_MOST_AT_ONCE, _BLOCK = 2000, 100
"""Rows, of which each takes two kilobytes: those that are held, and those that are put aside together."""

_JOINS = (
    "{top} JOIN study ON study.patient = patient.id",
    "{top} JOIN series ON series.study = study.id",
    "{top} JOIN instance ON instance.series = series.id",
)


def _tables(level: Level) -> str:
    tables = "patient"
    for join in _JOINS[: level.depth]:
        tables = join.format(top=tables)
    return tables


@dataclass(frozen=True)
class Selection:
    """The SQL of a query, and what its rows hold.

    A row has the values of the keywords in their order; then Specific Character Set, originals and number of the row of
    each table, from the patient down; last the Timezone Offset From UTC of the level.

    Attributes
    ----------
    tables
        From the patient down to the level.
    """

    query: Query
    sql: str
    parameters: list[str | int | float]
    tables: tuple[str, ...]

    def _part(self, place: int) -> slice:
        first = len(self.query.keywords) + place * len(self.tables)
        return slice(first, first + len(self.tables))

    @property
    def charsets(self) -> slice:
        """Where a row has the Specific Character Sets."""
        return self._part(0)

    @property
    def originals(self) -> slice:
        """Where a row has what was changed to be compared, as JSON."""
        return self._part(1)

    @property
    def ids(self) -> slice:
        """Where a row has the numbers of the rows that it is made of."""
        return self._part(2)


def select(query: Query) -> Selection:
    """Return how the catalogue is asked for what `query` wants to know of each entity that matches."""
    tables = tuple(level.table for level in Level if level.depth <= query.level.depth)
    columns = [_column(keyword, query.zone) for keyword in query.keywords]
    columns += [f"{table}.{column}" for column in _ABOUT for table in tables]
    columns.append(f"{query.level.table}.timezone_offset_from_utc")
    where, parameters = query.where()
    sql = f"SELECT {', '.join(columns)} FROM {_tables(query.level)} WHERE {where}"
    return Selection(query, sql, parameters, tables)


@contextmanager
def found(archive: Archive, selection: Selection) -> Iterator[tuple[Database, Iterator[Row]]]:
    """Give the rows that a query finds, and a connection on which the items of sequences are asked for, row by row."""
    with archive.reading() as database:
        if not selection.query.sequences:
            with closing(database.execute(selection.sql, selection.parameters)) as rows:
                yield database, _at_once(rows, archive.incoming)
            return
        database.execute("BEGIN")  # rows and their items are of one state
        try:
            with closing(database.execute(selection.sql, selection.parameters)) as rows:
                yield database, rows
        finally:
            database.execute("COMMIT")


def _at_once(rows: sqlite3.Cursor, folder: Path) -> Iterator[Row]:
    """Yield the rows of a cursor, and keep an old state of the catalogue, in its log, for no longer than has to be.

    Those that are found soon are all read before the first is given. Who takes many answers slowly has the rest of them
    put into a file without a name, in `folder`.
    """
    begun = time.monotonic()
    read: deque[Row] = deque()
    for row in rows:
        read.append(row)
        if len(read) == _MOST_AT_ONCE or time.monotonic() > begun + _SOON_S:
            break
    while read:
        yield read.popleft()
    for row in rows:
        yield row
        if time.monotonic() > begun + _LONG_S:
            break
    yield from _put_aside(rows, folder)


def _put_aside(rows: sqlite3.Cursor, folder: Path) -> Iterator[Row]:
    """Read all that is left of a cursor at once, and then yield it."""
    block = rows.fetchmany(_BLOCK)
    if not block:
        return
    with TemporaryFile(dir=folder) as file:
        while block:
            marshal.dump(block, file)
            block = rows.fetchmany(_BLOCK)
        file.seek(0)
        with suppress(EOFError):
            while True:
                yield from marshal.load(file)  # noqa: S302  (nobody else has written to it)


def find(archive: Archive, query: Query) -> Iterator[Dataset]:
    """Yield one response Identifier for each entity that matches, as they are found.

    Keys that only the network edge can answer (Retrieve AE Title, Instance Availability) are left to it.
    """
    selection = select(query)
    with found(archive, selection) as (database, rows):
        for row in rows:
            yield answer_of(database, selection, row)


def _column(keyword: str, zone: str) -> str:
    key = KEYS[keyword]
    if key.matching is Matching.DATE:
        return columns_of(key, zone).date
    return columns_of(key, zone).time if key.matching is Matching.TIME else key.column


def answer_of(database: Database, selection: Selection, row: tuple[Any, ...]) -> Dataset:
    """Return the response Identifier of a row."""
    query, tables = selection.query, selection.tables
    charsets, originals, ids = row[selection.charsets], row[selection.originals], row[selection.ids]
    values = dict(zip(query.keywords, map(str, row[: len(query.keywords)]), strict=True))
    for original in filter(None, originals):
        values |= {keyword: text for keyword, text in json.loads(original).items() if keyword in values}
    answer = Dataset()
    for tag, vr in query.empty:
        answer.add_new(tag, vr, None)
    for keyword, value in values.items():
        answer.add(element_of(Tag(keyword), dictionary_VR(keyword), value))
    stored = [*charsets]
    for request in query.sequences:
        table = request.key.level.table
        found = list(request.answer(database, table, ids[tables.index(table)]))
        answer.add(DataElement(Tag(request.key.keyword), "SQ", Sequence([item for item, _ in found])))
        stored += [charset for _, charset in found]
    answer.QueryRetrieveLevel = query.level.value
    if query.returns_offset:
        answer.TimezoneOffsetFromUTC = query.zone or row[-1] or None
    chosen = choose_charset(texts_of(answer), [query.charset, *(charset_from_text(each) for each in stored if each)])
    if chosen.terms:
        answer.SpecificCharacterSet = list(chosen.terms) if len(chosen.terms) > 1 else chosen.terms[0]
    return answer


def texts_of(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield the VR and value of each element that holds text, inside sequences as well."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from texts_of(item)
        elif element.value is not None:
            parts = element.value if element.VM > 1 else [element.value]
            yield from ((element.VR, str(part)) for part in parts)


def instances(archive: Archive, query: Query) -> list[StoredInstance]:
    """Return every instance below what matches, series by series, in the order of their numbers.

    UIDs that many instances share are kept once, which halves what a hundred thousand instances take.
    """
    where, parameters = query.where()
    cursor = archive.database.execute(
        f"SELECT {_STORED}, series.series_instance_uid, study.study_instance_uid "
        f"FROM {_tables(Level.IMAGE)} WHERE {where} "
        "ORDER BY study.id, CAST(series.series_number AS INTEGER), series.id, "
        "CAST(instance.instance_number AS INTEGER), instance.id",
        parameters,
    )
    names = [column[0] for column in cursor.description]
    shared: dict[str, str] = {}
    found = []
    for row in cursor:
        values = dict(zip(names, row, strict=True))
        for name in _SHARED_UIDS:
            values[name] = shared.setdefault(values[name], values[name])
        found.append(archive.stored(values))
    return found


def count(archive: Archive, query: Query) -> int:
    """Return how many entities match."""
    where, parameters = query.where()
    row = archive.database.execute(
        f"SELECT count(*) FROM {_tables(query.level)} WHERE {where}", parameters
    ).fetchone()
    return int(row[0])


__all__ = [
    "BASELINE",
    "Model",
    "Query",
    "QueryOptions",
    "Selection",
    "answer_of",
    "count",
    "find",
    "instances",
    "parse_identifier",
    "parse_level",
    "select",
    "texts_of",
]
