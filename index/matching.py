"""Attribute matching as SQL conditions: one function per matching type of PS3.4 C.2.2.2.

A `Condition` is a piece of SQL over the catalogue's tables with its parameters. Text is compared in Unicode NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from index.errors import InvalidIdentifier
from index.keys import Key, Matching

_EARLIEST_TIME = "000000000000"
_LATEST_TIME = "235959999999"


@dataclass(frozen=True)
class Condition:
    """A SQL condition with positional parameters."""

    sql: str
    parameters: tuple[str | int | float, ...] = ()


def any_of(conditions: list[Condition]) -> Condition:
    """The conditions joined by OR."""
    return Condition(
        "(" + " OR ".join(condition.sql for condition in conditions) + ")",
        tuple(value for condition in conditions for value in condition.parameters),
    )


def normalise(text: str) -> str:
    """Text as it is stored and compared: NFC, without padding."""
    return unicodedata.normalize("NFC", text).strip(" \0")


def fold_name(name: str) -> str:
    """A person name for comparison: per component group without case, accents and trailing delimiters.

    Groups (PS3.5 6.2.1: alphabetic, ideographic, phonetic) stay joined by ``=``; wild cards are kept.
    """
    folded = []
    for group in name.split("="):
        decomposed = unicodedata.normalize("NFKD", group.casefold())
        base = "".join(character for character in decomposed if not unicodedata.combining(character))
        components = [component.strip() for component in unicodedata.normalize("NFC", base).split("^")]
        folded.append("^".join(components).rstrip("^"))
    return "=".join(folded).rstrip("=")


def has_wild_card(value: str) -> bool:
    """Whether `value` holds ``*`` or ``?``."""
    return "*" in value or "?" in value


def is_universal(value: str, matching: Matching) -> bool:
    """Whether `value` matches everything: empty, or only asterisks where wild cards are allowed."""
    wild = matching in (Matching.TEXT, Matching.PERSON_NAME, Matching.MODALITIES)
    return not value or (wild and not value.strip("*"))


def uid_list(column: str, values: list[str], key: Key) -> Condition:
    """List of UID matching (C.2.2.2.2): any of `values`, however many."""
    wrong = next((value for value in values if has_wild_card(value)), None)
    if wrong is not None:
        raise InvalidIdentifier(f"{key.keyword}: a UID takes no wild card, got {wrong[:20]}", element=key.keyword)
    if len(values) == 1:
        return Condition(f"{column} = ?", (values[0],))
    # One JSON parameter: SQLite limits the number of parameters, the standard does not limit the list.
    quoted = ",".join(f'"{value}"' for value in values if '"' not in value and "\\" not in value)
    return Condition(f"{column} IN (SELECT value FROM json_each(?))", (f"[{quoted}]",))


def text(column: str, value: str, _key: Key) -> Condition:
    """Single value (C.2.2.2.1) or wild card matching (C.2.2.2.4), case-sensitive."""
    if has_wild_card(value):
        return Condition(f"{column} GLOB ?", (value.replace("[", "[[]"),))
    return Condition(f"{column} = ?", (value,))


def person_name(column: str, value: str, _key: Key) -> Condition:
    """Person name matching: any component group, without case and accents (C.2.2.2.1 leaves this to the SCP)."""
    folded = fold_name(value)
    column = f"{column}_folded"
    if has_wild_card(folded) or "=" in folded:
        return Condition(f"name_matches({column}, ?)", (folded,))
    literal = folded.replace("[", "[[]")
    return Condition(
        f"({column} = ? OR {column} GLOB ? OR {column} GLOB ? OR {column} GLOB ?)",
        (folded, f"{literal}=*", f"*={literal}", f"*={literal}=*"),
    )


def name_matches(stored: str, pattern: str) -> bool:
    """SQL function: whether the folded name `stored` matches the folded `pattern`, group by group.

    A pattern without ``=`` may match any group; a pattern with groups must match each group that it gives.
    """
    groups = stored.split("=")
    patterns = [_expression(part) for part in pattern.split("=")]
    if len(patterns) == 1:
        return any(patterns[0].fullmatch(group) for group in groups)
    groups += [""] * (len(patterns) - len(groups))
    return all(
        not expression.pattern or expression.fullmatch(group)
        for expression, group in zip(patterns, groups, strict=False)
    )


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    translated = "".join({"*": ".*", "?": "."}.get(character) or re.escape(character) for character in pattern)
    return re.compile(translated, re.DOTALL)


def multi_valued(column: str, value: str, _key: Key) -> Condition:
    r"""Match `value` against any value of a multi-valued element, stored joined by ``\``."""
    if has_wild_card(value):
        return Condition(
            f"EXISTS (SELECT 1 FROM json_each('[\"' || replace(replace({column}, '\"', ''), '\\', '\",\"') || '\"]') "
            "WHERE value GLOB ?)",
            (value.replace("[", "[[]"),),
        )
    return Condition(f"instr('\\' || {column} || '\\', '\\' || ? || '\\') > 0", (value,))


def number(column: str, value: str, key: Key) -> Condition:
    """IS, DS, US: numeric comparison, so that ``02`` equals ``2``."""
    try:
        wanted = float(value)
    except ValueError as error:
        raise InvalidIdentifier(f"{key.keyword}: expected a number, got {value[:20]!r}", element=key.keyword) from error
    return Condition(f"({column} <> '' AND CAST({column} AS REAL) = ?)", (wanted,))


def date(column: str, value: str, key: Key) -> Condition:
    """Single value or range matching of dates (C.2.2.2.5.1)."""
    low, high = _range(value, key)
    low, high = (_date(low, key), _date(high, key))
    if "-" not in value:
        return Condition(f"{column} = ?", (low,))
    return Condition(f"({column} >= ? AND {column} <= ? AND {column} <> '')", (low, high or "99999999"))


def time(column: str, value: str, key: Key) -> Condition:
    """Single value or range matching of times (C.2.2.2.5.2): ``1015`` matches from 10:15:00 to 10:15:59.999999."""
    low, high = _range(value, key)
    comparable = f"substr(replace({column}, '.', '') || '{_EARLIEST_TIME}', 1, 12)"
    earliest, latest = _time(low, _EARLIEST_TIME, key), _time(high, _LATEST_TIME, key)
    return Condition(f"({column} <> '' AND {comparable} >= ? AND {comparable} <= ?)", (earliest, latest))


def _range(value: str, key: Key) -> tuple[str, str]:
    low, dash, high = value.partition("-")
    if (dash and not low and not high) or "-" in high:
        raise InvalidIdentifier(f"{key.keyword}: malformed range {value[:30]!r}", element=key.keyword)
    return (low.strip(), high.strip()) if dash else (value, value)


def _date(value: str, key: Key) -> str:
    digits = value.replace(".", "") if len(value) == 10 else value
    if digits and not re.fullmatch(r"\d{8}", digits, re.ASCII):
        raise InvalidIdentifier(f"{key.keyword}: expected YYYYMMDD, got {value[:20]!r}", element=key.keyword)
    return digits


def _time(value: str, padding: str, key: Key) -> str:
    digits = value.replace(":", "")
    if not re.fullmatch(r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?", digits, re.ASCII):
        raise InvalidIdentifier(f"{key.keyword}: expected HHMMSS, got {value[:20]!r}", element=key.keyword)
    digits = digits.replace(".", "")
    return digits + padding[len(digits) :]


_SINGLE: dict[Matching, Callable[[str, str, Key], Condition]] = {
    Matching.TEXT: text,
    Matching.PERSON_NAME: person_name,
    Matching.MODALITIES: multi_valued,
    Matching.NUMBER: number,
    Matching.DATE: date,
    Matching.TIME: time,
}


def condition(key: Key, values: list[str]) -> Condition | None:
    """The condition for `key` with the `values` of a query, or None when it matches everything.

    Several values are joined by OR.

    Raises
    ------
    InvalidIdentifier
        A value that the matching type of `key` does not allow (Status A900).
    """
    wanted = [normalise(value) for value in values]
    if not wanted or any(is_universal(value, key.matching) for value in wanted):
        return None
    if key.matching is Matching.UID:
        return uid_list(key.column, wanted, key)
    matcher = _SINGLE[key.matching]
    return any_of([matcher(key.column, value, key) for value in wanted])
