"""Numbers in free text: which measure something and may stay, and which may be a date, a telephone or other number.

A number stays where it stands alone: at most three digits with at most three decimals, with or without a unit, and
without a leading zero. Where several follow each other with nothing but signs and spaces between them, as in
``123-456-789``, ``12/03/56`` and ``030 123 45 67``, all go. Three things look alike and stay: measures that have their
unit (``120kV 50mAs``), one number before such a measure (``2 5.0 mm``, ``5/5mm``), and a ratio to one (``10:1``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

_WORD = re.compile(r"[^\W\d_][^\W_]*(?:[.,]\d+)?|\d+(?:[.,]\d+)?[^\W_]*")
"""Letters and digits; decimals with their unit are one word."""

_CLEAR_UNITS = frozenset("mm cm kv kev kvp ma mas ms ml mg mbq gy cgy hz mhz".split())  # noqa: SIM905
"""Nothing but measures has these; ``m`` stands for male as well."""

_NUMBER = re.compile(
    r"(?P<whole>0|[1-9]\d{0,2})(?:[.,](?P<part>\d{1,3}))?"
    rf"(?P<unit>{'|'.join(sorted(_CLEAR_UNITS))}|m|s|min|g|kg|t|x)?",
    re.ASCII,
)
_MONTHS = frozenset("""
    jan feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august september october
    november december januar jänner februar feber märz mär mrz mai juni juli oktober okt dezember dez janvier février
    mars avril juin juillet août septembre octobre novembre décembre enero febrero marzo abril mayo junio julio agosto
    septiembre octubre noviembre diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre
""".split())  # noqa: SIM905

Word = re.Match[str]


def words(text: str) -> list[Word]:
    """Return the words of a text, numbers among them, with where they stand."""
    return list(_WORD.finditer(text))


def is_number(word: str) -> bool:
    """Whether a word, in lower case, is a number that may stay where it stands alone."""
    return _NUMBER.fullmatch(word) is not None


def doubtful(found: Sequence[Word], may_stay: Callable[[str], bool]) -> set[int]:
    """Return which of the words of a text are numbers that have to go, for they may be more than a measure.

    Parameters
    ----------
    may_stay
        Whether a word, in lower case, says nothing of a person.
    """
    lowered = [word[0].lower() for word in found]
    going: set[int] = set()
    for run in _runs(found, lowered, may_stay):
        if not _is_harmless(found, lowered, run):
            going.update(place for place in run if lowered[place] not in _MONTHS)
    for chunk in _chunks(found):
        counted = [place for place in chunk if _counts(lowered[place], may_stay)]
        is_unknown = any(not may_stay(lowered[place]) and lowered[place] != "x" for place in chunk)
        if is_unknown and len(counted) > 1:
            going.update(place for place in counted if not _has_clear_unit(found, lowered, place))
    return going


def _counts(word: str, may_stay: Callable[[str], bool]) -> bool:
    """Whether a word has digits and is none that is known for its own sake, as T1 is."""
    return _has_digit(word) and (is_number(word) or not may_stay(word))


def _runs(found: Sequence[Word], lowered: Sequence[str], may_stay: Callable[[str], bool]) -> Iterator[list[int]]:
    """Yield places of numbers, and of months, that follow each other without another word between them.

    What begins with a letter and stands apart, like the kernel in ``5.0 B30f``, begins anew: it is no part of a number
    before it.
    """
    run: list[int] = []
    for place, word in enumerate(lowered):
        is_apart = place > 0 and _is_space(_between(found, place - 1))
        if word not in _MONTHS and (not _has_digit(word) or (word[0].isalpha() and is_apart and not may_stay(word))):
            yield run
            run = []
        if _counts(word, may_stay) or word in _MONTHS:
            run.append(place)
    yield run


def _chunks(found: Sequence[Word]) -> Iterator[list[int]]:
    """Yield places of words that no space separates."""
    chunk: list[int] = []
    for place in range(len(found)):
        if any(sign.isspace() for sign in _between(found, place - 1)):
            yield chunk
            chunk = []
        chunk.append(place)
    yield chunk


def _between(found: Sequence[Word], place: int) -> str:
    """Return what stands between a word and the next; "" before the first."""
    return found[place].string[found[place].end() : found[place + 1].start()] if place >= 0 else ""


def _is_space(between: str) -> bool:
    return bool(between) and not between.strip()


def _has_digit(word: str) -> bool:
    return any(sign.isdecimal() for sign in word)


def _is_harmless(found: Sequence[Word], lowered: Sequence[str], run: Sequence[int]) -> bool:
    """Whether numbers that follow each other measure something."""
    clear = [_has_clear_unit(found, lowered, place) for place in run if lowered[place] not in _MONTHS]
    if all(clear):
        return True
    if any(not is_number(lowered[place]) or _is_day_and_month(found, lowered, place) for place in run):
        return False
    if len(run) == 1:
        return True
    if len(run) > 2:
        return False
    first, second = run
    between = _between(found, first) if second == first + 1 else "?"
    if between == ":":
        return lowered[first].isdecimal() and lowered[second] == "1"
    return clear == [False, True] and between.strip() in ("", "/")


def _has_clear_unit(found: Sequence[Word], lowered: Sequence[str], place: int) -> bool:
    """Whether a number is followed by a unit that only measures have."""
    number = _NUMBER.fullmatch(lowered[place])
    if number is None:
        return False
    if number["unit"] is None and place + 1 < len(found) and lowered[place + 1] in _CLEAR_UNITS:
        return _is_space(_between(found, place))
    return number["unit"] in _CLEAR_UNITS


def _is_day_and_month(found: Sequence[Word], lowered: Sequence[str], place: int) -> bool:
    """Whether a decimal without a clear unit may be a day and a month: 12.03, or 12.3 with a full stop behind it."""
    number = _NUMBER.fullmatch(lowered[place])
    if number is None or number["part"] is None or _has_clear_unit(found, lowered, place):
        return False
    is_stopped = found[place].string[found[place].end() : found[place].end() + 1] == "."
    has_two_digits = len(number["part"]) == 2
    return 1 <= int(number["whole"]) <= 31 and 1 <= int(number["part"]) <= 12 and (has_two_digits or is_stopped)
