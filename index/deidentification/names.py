"""Identifiers of an object as they may stand in other text: whole, in parts, joined, and in any writing.

An identifier of four letters or more is found anywhere in a text. A shorter one, from two letters or digits, is found
as a word of its own: ``Lee`` in "Mrs. Lee", not in "sleeve". In writings that put no spaces between words, two letters
are enough anywhere; a part of one letter is found only joined with the rest of the name, as it is or without ``^`` and
spaces. Names that are words of the field as well, such as ``Hip`` or ``Head``, are found like any other: nobody can
tell which of the two is meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

_SHORTEST = 4
_SHORTEST_WORD = 2
_SHORTEST_NUMBER = 3
"""Of a number that is none of the patient's: those of two digits stand everywhere."""

_SHORTEST_UNSPACED = 2
_SHORTEST_JOINED = 6
"""Of two parts of a name: ``Ma`` and ``Li`` would be found in "malignant"."""

_PARTS_OF_NAME = 3
"""Family, given and middle name; prefix and suffix are no names."""

_PLAIN_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Ideographs, kana, hangul and bopomofo; Thai, Lao, Burmese and Khmer."""


def folded(text: str) -> str:
    """Return a text so that capitals, full width and decomposed letters make no difference."""
    return unicodedata.normalize("NFKC", text).casefold()


@dataclass(frozen=True)
class Identifiers:
    """What identifies somebody or something in one object, folded.

    Attributes
    ----------
    anywhere
        Is found in the middle of a word as well.
    words
        Is found as a whole word.
    joined
        Is found in a text of which all signs and spaces are taken out.
    """

    anywhere: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()

    def found_in(self, text: str, *, short: bool = True) -> bool:
        """Whether `text` has one of them in it.

        Parameters
        ----------
        short
            Also look for those that are found as whole words.
        """
        plain = folded(text)
        if any(value in plain for value in self.anywhere):
            return True
        if short and not self.words.isdisjoint(_PLAIN_WORD.findall(plain)):
            return True
        bare = _without_signs(plain) if self.joined else ""
        return any(value in bare for value in self.joined)


def of_names(names: Iterable[str]) -> Identifiers:
    """Return what persons' names (PN) are found by: all components of all their representations, and joined."""
    anywhere: set[str] = set()
    words: set[str] = set()
    joined: set[str] = set()
    for name in names:
        anywhere.add(folded(name).strip())
        for group in folded(name).split("="):
            components = [component.strip() for component in group.split("^")]
            parts = [part for part in components[:_PARTS_OF_NAME] if part]
            of_parts = [word for part in parts for word in _PLAIN_WORD.findall(part)]
            anywhere.update((*components, *of_parts))
            words.update(word for word in of_parts if len(word) >= _SHORTEST_WORD)
            for whole in _wholes(parts):
                is_long = len(whole) >= _SHORTEST_JOINED
                (joined if _UNSPACED.fullmatch(whole) else anywhere if is_long else words).add(whole)
    return Identifiers(frozenset(filter(_is_long, anywhere)), frozenset(words), frozenset(joined))


def of_values(values: Iterable[str], *, are_of_patient: bool = False) -> Identifiers:
    """Return what other identifiers are found by: numbers, institutions, places.

    Parameters
    ----------
    are_of_patient
        They say who the patient is, so that a number of two digits counts as well.
    """
    plain = {folded(value).strip() for value in values}
    anywhere = frozenset(value for value in plain if _is_long(value))
    shortest = _SHORTEST_WORD if are_of_patient else _SHORTEST_NUMBER
    words = {value for value in plain - anywhere if _PLAIN_WORD.fullmatch(value)}
    enough = (value for value in words if len(value) >= (shortest if value.isdecimal() else _SHORTEST_WORD))
    return Identifiers(anywhere, frozenset(enough))


def together(*several: Identifiers) -> Identifiers:
    """Return all of several identifiers as one."""
    return Identifiers(
        frozenset[str]().union(*(each.anywhere for each in several)),
        frozenset[str]().union(*(each.words for each in several)),
        frozenset[str]().union(*(each.joined for each in several)),
    )


def _is_long(value: str) -> bool:
    """Whether a value is found anywhere, in the middle of words as well."""
    return len(value) >= (_SHORTEST_UNSPACED if _UNSPACED.fullmatch(value) else _SHORTEST)


def _wholes(parts: list[str]) -> set[str]:
    """Return parts of a name without signs between them: all, and each two in either order."""
    plain = [_without_signs(part) for part in parts]
    wholes = {"".join(plain), *("".join(two) for two in permutations(plain, 2))}
    return {whole for whole in wholes if len(whole) >= _SHORTEST_WORD}


def _without_signs(text: str) -> str:
    return "".join(_PLAIN_WORD.findall(text))
