"""Attribute matching as SQL conditions: one function per matching type of PS3.4 C.2.2.2.

A `Condition` is a piece of SQL over the catalogue's tables with its parameters. Text is compared in Unicode NFC.
"""

from __future__ import annotations

import fnmatch
import json
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_VR

from index import date_times
from index.condition import Condition, any_of
from index.date_times import Columns, date_in_zone, time_in_zone
from index.errors import InvalidIdentifier
from index.keys import Key, Matching
from index.phonetic import sounds_like

_MOST_VALUES = 1000
"""Values that a key other than a UID may have in one query; only UIDs have lists without end."""

_TEXTUAL = frozenset({Matching.TEXT, Matching.PERSON_NAME, Matching.MODALITIES})
_NO_WILD_CARDS = frozenset({"UI", "AS"})
"""VRs whose values are compared as text, and take no wild card all the same (C.2.2.2.4)."""
_SORTS = {"UI": "a UID", "AS": "an age", "DA": "a date", "TM": "a time"}

SEVERAL_GROUPS = "*[=\\]*"
"""GLOB of folded names that have several component groups, or are several names; an index of the catalogue has it."""

_LAST_CHARACTER = "\U0010ffff"
_VOICING_MARKS = "\u3099\u309a"
"""Of Japanese kana: they tell consonants apart and are no accents."""
_STROKES = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe"})
"""Letters with an accent that Unicode does not decompose."""


def normalise(text: str) -> str:
    """Text as it is stored and compared: NFC, without padding."""
    return unicodedata.normalize("NFC", text).strip(" \0")


def fold_name(name: str) -> str:
    r"""A person name for comparison: per component group without case, accents and trailing delimiters.

    Groups (PS3.5 6.2.1: alphabetic, ideographic, phonetic) stay joined by ``=`` and several names by ``\``; wild cards
    are kept.
    """
    return "\\".join("=".join(map(_fold_group, value.split("="))).rstrip("=") for value in name.split("\\"))


def _fold_group(group: str) -> str:
    decomposed = unicodedata.normalize("NFKD", group.casefold())
    base = "".join(
        character
        for character in decomposed
        if character in _VOICING_MARKS or not unicodedata.combining(character)
    )
    composed = unicodedata.normalize("NFC", base).translate(_STROKES)
    return "^".join(component.strip() for component in composed.split("^")).rstrip("^")


def has_wild_card(value: str) -> bool:
    """Whether `value` holds ``*`` or ``?``."""
    return "*" in value or "?" in value


def takes_wild_cards(key: Key) -> bool:
    """Whether ``*`` and ``?`` may stand in a value for `key` (C.2.2.2.4)."""
    return key.matching in _TEXTUAL and dictionary_VR(key.keyword) not in _NO_WILD_CARDS


def is_universal(value: str, matching: Matching) -> bool:
    """Whether `value` matches everything: empty, only asterisks (not for a UID), or a name without a character."""
    if matching is Matching.PERSON_NAME:
        value = fold_name(value)
    return not value or (matching is not Matching.UID and not value.strip("*"))


def uid_list(column: str, values: list[str], _key: Key) -> Condition:
    """List of UID matching (C.2.2.2.2): any of `values`, however many."""
    if len(values) == 1:
        return Condition(f"{column} = ?", (values[0],))
    # One JSON parameter: SQLite limits the number of parameters, the standard does not limit the list.
    return Condition(f"{column} IN (SELECT value FROM json_each(?))", (json.dumps(values),))


def text(column: str, value: str, _key: Key) -> Condition:
    """Single value (C.2.2.2.1) or wild card matching (C.2.2.2.4), case-sensitive."""
    if has_wild_card(value):
        return Condition(f"{column} GLOB ?", (value.replace("[", "[[]"),))
    return Condition(f"{column} = ?", (value,))


def person_name(column: str, value: str, _key: Key) -> Condition:
    """Person name matching: any component group, without case and accents (C.2.2.2.1 leaves this to the SCP).

    Names of one group, which most are, are found by an index where the value begins with a character; those of several
    groups have an index of their own.
    """
    folded = fold_name(value)
    column = f"{column}_folded"
    grouped = f"({column} > '' AND {column} GLOB '{SEVERAL_GROUPS}')"
    if not has_wild_card(folded) and "=" not in folded:
        groups = f"'=' || replace({column}, '\\', '=') || '='"
        return Condition(f"({column} = ? OR ({grouped} AND instr({groups}, '=' || ? || '=') > 0))", (folded, folded))
    single = _begins_alike(column, folded.split("=")[0])
    return Condition(f"(({single.sql} OR {grouped}) AND name_matches({column}, ?))", (*single.parameters, folded))


def _begins_alike(column: str, pattern: str) -> Condition:
    """Condition that lets through every name of one component group that `pattern` may match, by an index if it can."""
    base = pattern
    while base.endswith("^*"):  # may be missing
        base = base[:-2]
    literal = re.split(r"[*?]", base, maxsplit=1)[0]
    if not literal:
        return Condition(f"{column} GLOB ?", (base.replace("[", "[[]") + "*",))
    if literal == base != pattern:
        more = literal + "^"
        return Condition(f"({column} = ? OR ({column} >= ? AND {column} < ?))", (base, more, more + _LAST_CHARACTER))
    return Condition(f"({column} >= ? AND {column} < ?)", (literal, literal + _LAST_CHARACTER))


def fuzzy_name(column: str, value: str, key: Key) -> Condition:
    """Fuzzy semantic matching of a person name (C.2.2.2.1.1): what matches anyway, and what sounds like it."""
    literal = person_name(column, value, key)
    return Condition(
        f"({literal.sql} OR sounds_like({column}_folded, ?))", (*literal.parameters, fold_name(value))
    )


def name_matches(stored: str, pattern: str) -> bool:
    r"""SQL function: whether one of the folded names `stored`, joined by ``\``, matches the folded `pattern`.

    A pattern without ``=`` may match any component group; one with groups must match each group that it gives.
    """
    patterns = pattern.split("=")
    return any(_groups_match(name.split("="), patterns) for name in stored.split("\\"))


def _groups_match(groups: list[str], patterns: list[str]) -> bool:
    if len(patterns) == 1:
        return any(_group_matches(group, patterns[0]) for group in groups)
    groups = groups + [""] * (len(patterns) - len(groups))
    return all(not pattern or _group_matches(group, pattern) for pattern, group in zip(patterns, groups, strict=False))


def _group_matches(group: str, pattern: str) -> bool:
    # Components that are not there are as good as empty ones: smith^* also matches smith.
    shorter = pattern
    while shorter.endswith("^*"):
        shorter = shorter[:-2]
        if _expression(shorter).fullmatch(group):
            return True
    return _expression(pattern).fullmatch(group) is not None


def value_matches(stored: str, pattern: str) -> bool:
    r"""SQL function: whether one of the values `stored`, joined by ``\``, matches the wild cards of `pattern`."""
    return any(_expression(pattern).fullmatch(value) for value in stored.split("\\"))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    # fnmatch's expressions take linear time, which a plain ".*" for each "*" does not; "[" is special to it only.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def multi_valued(column: str, value: str, _key: Key) -> Condition:
    r"""Match `value` against any value of a multi-valued element, stored joined by ``\``."""
    if has_wild_card(value):
        return Condition(f"value_matches({column}, ?)", (value,))
    return Condition(f"instr('\\' || {column} || '\\', '\\' || ? || '\\') > 0", (value,))


def number(column: str, value: str, key: Key) -> Condition:
    """IS, DS, US: numeric comparison, so that ``02`` equals ``2``."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([Ee][+-]?\d+)?", value, re.ASCII):
        raise InvalidIdentifier(f"{key.keyword}: expected a number, got {value[:20]!r}", element=key.keyword)
    # A stored value that is no number would be 0 to CAST.
    return Condition(f"({column} GLOB '[-+.0-9]*' AND CAST({column} AS REAL) = ?)", (float(value),))


_SINGLE: dict[Matching, Callable[[str, str, Key], Condition]] = {
    Matching.TEXT: text,
    Matching.PERSON_NAME: person_name,
    Matching.MODALITIES: multi_valued,
    Matching.NUMBER: number,
}

FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "name_matches": (2, name_matches),
    "value_matches": (2, value_matches),
    "sounds_like": (2, sounds_like),
    "date_in_zone": (4, date_in_zone),
    "time_in_zone": (4, time_in_zone),
}
"""SQL functions that conditions call: name → number of parameters, function."""


def wanted_values(key: Key, values: list[str]) -> list[str]:
    """Return what `key` is asked for, in comparable form; none when that is universal matching (C.2.2.2.3)."""
    if values == [""]:
        return []
    wanted = list(dict.fromkeys(value for value in map(normalise, values) if value))
    return [] if any(is_universal(value, key.matching) for value in wanted) else wanted


def condition(key: Key, values: list[str], *, fuzzy: bool = False, columns: Columns | None = None) -> Condition | None:
    """The condition for `key` with the `values` of a query, or None when it matches everything.

    Several values are joined by OR.

    Parameters
    ----------
    fuzzy
        Names of persons match by how they sound as well.
    columns
        Where a date or a time is compared, when that is not its own column.

    Raises
    ------
    InvalidIdentifier
        A value that the matching type of `key` does not allow (Status A900).
    """
    wanted = wanted_values(key, values)
    if not wanted:
        return None
    if not takes_wild_cards(key):
        _refuse_wild_cards(key, wanted)
    if key.matching is Matching.UID:
        return uid_list(key.column, wanted, key)
    if len(wanted) > _MOST_VALUES:
        raise InvalidIdentifier(
            f"{key.keyword}: expected at most {_MOST_VALUES} values, got {len(wanted)}", element=key.keyword
        )
    if key.matching in (Matching.DATE, Matching.TIME):
        match = date_times.date if key.matching is Matching.DATE else date_times.time
        return any_of([match(columns or Columns(key.column, key.column), value, key) for value in wanted])
    matcher = fuzzy_name if fuzzy and key.matching is Matching.PERSON_NAME else _SINGLE[key.matching]
    return any_of([matcher(key.column, value, key) for value in wanted])


def _refuse_wild_cards(key: Key, values: list[str]) -> None:
    what = _SORTS.get(dictionary_VR(key.keyword), "a number")
    wrong = next((value for value in values if has_wild_card(value)), None)
    if wrong is not None:
        raise InvalidIdentifier(f"{key.keyword}: {what} takes no wild card, got {wrong[:20]}", element=key.keyword)
