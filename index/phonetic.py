"""Fuzzy semantic matching of person names (PS3.4 C.2.2.2.1.1): how names sound, in any order.

A name is taken as the words of one component group, whichever component they are in. A word that was asked for matches
a stored word

- that begins with it (so that an initial is enough),
- that matches its wild cards, or
- for Latin letters, that has the same code: Soundex (American, as in the US census of 1920), after spellings that sound
  alike at the beginning of a word have been made one, after Phonex (Lait and Randell 1996): ``PH`` and ``F``, ``C``,
  ``Q`` and ``K``, ``J`` and ``Y``, ``W`` and ``V``, ``Z`` and ``S``, ``KN`` and ``N``, ``WR`` and ``R``, ``H`` before a
  vowel and none.

All words that were asked for have to find a stored word of their own. Ideographs, kana, hangul and other scripts have
no code here: their words match by their beginning. What matches without fuzziness matches with it as well.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache

_OPENINGS = (
    (re.compile(r"^(kn|gn|pn)"), "n"),
    (re.compile(r"^wr"), "r"),
    (re.compile(r"^ph"), "f"),
    (re.compile(r"^h(?=[aeiouy])"), ""),
    (re.compile(r"^[cq]"), "k"),
    (re.compile(r"^j"), "y"),
    (re.compile(r"^w"), "v"),
    (re.compile(r"^[xz]"), "s"),
)
_CODES = {
    **dict.fromkeys("bfpv", "1"), **dict.fromkeys("cgjkqsxz", "2"), **dict.fromkeys("dt", "3"), "l": "4",
    **dict.fromkeys("mn", "5"), "r": "6",
}  # fmt: skip
_CODE_LENGTH = 4
_SILENT = "hw"
"""Letters that do not part two letters of the same code."""


@lru_cache(maxsize=4096)
def code(word: str) -> str:
    """Return how `word`, folded, sounds; "" for what is not written in Latin letters."""
    letters = re.sub(r"[^a-z]", "", word)
    if not letters or not all(letter.isascii() for letter in word):
        return ""
    for opening, sound in _OPENINGS:
        letters = opening.sub(sound, letters)
    if not letters:
        return ""
    digits, last = "", _CODES.get(letters[0], "")
    for letter in letters[1:]:
        digit = _CODES.get(letter, "")
        if digit and digit != last:
            digits += digit
        if letter not in _SILENT:
            last = digit
    first = "a" if letters[0] in "aeiou" else letters[0]
    return (first + digits + "0" * _CODE_LENGTH)[:_CODE_LENGTH]


def sounds_like(stored: str, asked: str) -> bool:
    r"""SQL function: whether one of the folded names `stored`, joined by ``\``, sounds like the folded `asked`.

    A name asked for without ``=`` may sound like any component group; one with groups has to in each group it gives.
    """
    patterns = asked.split("=")
    return any(_name_sounds_like(name.split("="), patterns) for name in stored.split("\\"))


def _name_sounds_like(groups: list[str], patterns: list[str]) -> bool:
    if len(patterns) == 1:
        return any(_group_sounds_like(group, patterns[0]) for group in groups)
    groups = groups + [""] * (len(patterns) - len(groups))
    return all(
        not pattern or _group_sounds_like(group, pattern) for group, pattern in zip(groups, patterns, strict=False)
    )


def _group_sounds_like(group: str, asked: str) -> bool:
    stored, wanted = _words(group), [word for word in _words(asked) if word.strip("*")]
    return len(wanted) <= len(stored) and _assign(wanted, stored)


def _words(group: str) -> list[str]:
    return [word for word in re.split(r"[\^\s,.\-]+", group) if word][:12]


def _assign(wanted: list[str], stored: list[str]) -> bool:
    """Whether each wanted word finds a stored one of its own (augmenting paths; a name has few words)."""
    taken: dict[int, int] = {}

    def place(word: int, seen: set[int]) -> bool:
        for position, candidate in enumerate(stored):
            if position in seen or not _word_matches(candidate, wanted[word]):
                continue
            seen.add(position)
            if position not in taken or place(taken[position], seen):
                taken[position] = word
                return True
        return False

    return all(place(word, set()) for word in range(len(wanted)))


def _word_matches(stored: str, asked: str) -> bool:
    if "*" in asked or "?" in asked:
        return _expression(asked).fullmatch(stored) is not None
    return stored.startswith(asked) or (bool(code(asked)) and code(asked) == code(stored))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
