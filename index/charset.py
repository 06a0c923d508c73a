"""Specific Character Set of an answer: the first candidate that represents every value without loss (PS3.5 6.1)."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

UTF_8 = ("ISO_IR 192",)


def choose_charset(texts: list[str], candidates: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first of `candidates` that can encode all `texts`, else ``ISO_IR 192``.

    Parameters
    ----------
    texts
        The values of the answer.
    candidates
        Values of Specific Character Set, the preferred one first; an empty one is the default repertoire.

    Returns
    -------
    tuple of str
        Empty when the default repertoire is enough and nothing else was asked for.
    """
    for candidate in candidates:
        if all(text.isascii() for text in texts) or _is_lossless(texts, candidate):
            return candidate
    return UTF_8


def _is_lossless(texts: list[str], charset: tuple[str, ...]) -> bool:
    if not any(charset) or not all(term in python_encoding for term in charset):
        return False
    encodings = convert_encodings(list(charset))
    return all(_survives(text, encodings) for text in texts if not text.isascii())


def _survives(text: str, encodings: list[str]) -> bool:
    # pydicom replaces what it cannot encode and warns; what comes back then differs.
    encoded = encode_string(text, encodings)
    return decode_bytes(encoded, encodings, TEXT_VR_DELIMS | PN_DELIMS) == text
