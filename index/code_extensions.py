r"""Text in the character sets of PS3.3 C.12.1.1.2, with the code extensions of ISO 2022 (PS3.5 6.1.2).

A value is decoded by the escape sequences that it holds. It is encoded so that the first character set is active again
before each delimiter and control character (PS3.5 6.1.2.5.3), and every change names its set anew: redundant for ISO
2022, and understood by decoders that know one active set only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_ESCAPE = 0x1B
_ASCII_ESCAPE = b"\x1b(B"
_CONTROL = frozenset("\r\n\f\t\v")
_NAME_DELIMITERS = frozenset("^=")
_HIGH = 0x80
_ROWS = range(0x21, 0x7F)


@dataclass(frozen=True)
class Repertoire:
    """A coded character set that takes the right half (G1) or, shifted in by its escape sequence, the left one (G0).

    Attributes
    ----------
    codec
        Python codec of its characters, as bytes with the high bit set where `width` is 1.
    escape
        Designates it.
    width
        Bytes of a character.
    left
        It takes G0: its bytes have no high bit.
    prefix
        Byte that `codec` wants before a character.
    """

    codec: str
    escape: bytes
    width: int = 1
    left: bool = False
    prefix: bytes = b""

    def read(self, raw: bytes) -> str:
        """Return the character that `raw` encodes; raises `UnicodeDecodeError`."""
        return (self.prefix + bytes(byte | _HIGH for byte in raw)).decode(self.codec)

    def write(self, character: str) -> bytes | None:
        """Return the bytes of `character`, None when this set has no such character."""
        return _table(self).get(character)


@lru_cache(maxsize=32)
def _table(repertoire: Repertoire) -> dict[str, bytes]:
    """Every character of a set with its bytes; where two codes mean the same character, the first one."""
    if repertoire.width == 1:
        codes = [bytes([byte]) for byte in range(0xA0, 0x100)]
    else:
        codes = [bytes([row | _HIGH, cell | _HIGH]) for row in _ROWS for cell in _ROWS]
    table: dict[str, bytes] = {}
    for code in codes:
        try:
            character = repertoire.read(code)
        except UnicodeDecodeError:
            continue
        if len(character) == 1 and not character.isascii():
            table.setdefault(character, bytes(byte & ~_HIGH for byte in code) if repertoire.left else code)
    return table


_JIS_ROMAN_ESCAPE = b"\x1b(J"
_KATAKANA = Repertoire("shift_jis", b"\x1b)I")

REPERTOIRES: dict[str, Repertoire] = {
    "IR 13": _KATAKANA,
    "IR 100": Repertoire("iso8859_1", b"\x1b-A"),
    "IR 101": Repertoire("iso8859_2", b"\x1b-B"),
    "IR 109": Repertoire("iso8859_3", b"\x1b-C"),
    "IR 110": Repertoire("iso8859_4", b"\x1b-D"),
    "IR 144": Repertoire("iso8859_5", b"\x1b-L"),
    "IR 127": Repertoire("iso8859_6", b"\x1b-G"),
    "IR 126": Repertoire("iso8859_7", b"\x1b-F"),
    "IR 138": Repertoire("iso8859_8", b"\x1b-H"),
    "IR 148": Repertoire("iso8859_9", b"\x1b-M"),
    "IR 203": Repertoire("iso8859_15", b"\x1b-b"),
    "IR 166": Repertoire("iso8859_11", b"\x1b-T"),
    "IR 87": Repertoire("euc_jp", b"\x1b$B", width=2, left=True),
    "IR 159": Repertoire("euc_jp", b"\x1b$(D", width=2, left=True, prefix=b"\x8f"),
    "IR 149": Repertoire("euc_kr", b"\x1b$)C", width=2),
    "IR 58": Repertoire("gb2312", b"\x1b$)A", width=2),
}
"""ISO registration → set, of PS3.3 tables C.12-2 to C.12-4."""

_BY_ESCAPE: dict[bytes, Repertoire | None] = {
    **{repertoire.escape: repertoire for repertoire in REPERTOIRES.values()},
    b"\x1b$@": REPERTOIRES["IR 87"],  # JIS C 6226-1978, its first edition
    _ASCII_ESCAPE: None,
    _JIS_ROMAN_ESCAPE: None,  # differs from ASCII in the glyphs of two characters
}


def decode(raw: bytes, first: Repertoire | None, *, is_name: bool = False) -> str:
    """Decode `raw`, in which escape sequences may change the character set.

    Parameters
    ----------
    first
        What the right half holds at the start and after each delimiter; None for nothing (ISO-IR 6).
    is_name
        The delimiters of component groups and components delimit as well.

    Returns
    -------
    str
        What no character set explains is taken for Latin-1, which senders forget to name most often.
    """
    delimiters = _CONTROL | {"\\"} | (_NAME_DELIMITERS if is_name else frozenset())
    text: list[str] = []
    left: Repertoire | None = None
    right, recent = first, first
    position = 0
    while position < len(raw):
        byte = raw[position]
        if byte == _ESCAPE:
            escape = next((raw[position : position + size] for size in (3, 4)
                           if raw[position : position + size] in _BY_ESCAPE), None)  # fmt: skip
            if escape is not None:
                named = _BY_ESCAPE[escape]
                if named is None or named.left:
                    left = named
                else:
                    right = recent = named
                position += len(escape)
                continue
        invoked = right if byte & _HIGH else left if byte in _ROWS else None
        if invoked is not None:
            character = _character(raw[position : position + invoked.width], invoked)
            if character is not None:
                text.append(character)
                position += invoked.width
                continue
        if byte & _HIGH:  # the set of this half has no such character
            character = _character(raw[position : position + recent.width], recent) if recent is not None else None
            text.append(character or chr(byte))
            position += recent.width if recent is not None and character else 1
            continue
        text.append(chr(byte))
        position += 1
        if text[-1] in delimiters:
            left, right = None, first
    return "".join(text)


def _character(raw: bytes, repertoire: Repertoire) -> str | None:
    halves = {bool(byte & _HIGH) for byte in raw}
    if len(raw) < repertoire.width or len(halves) != 1:
        return None
    try:
        return repertoire.read(raw)
    except UnicodeDecodeError:
        return None


def encode(text: str, first: Repertoire | None, more: tuple[Repertoire, ...], *, is_name: bool = False) -> bytes | None:
    """Encode `text`, one value, with `first` in the right half and, by escape sequences, `more`.

    Returns
    -------
    bytes or None
        None when these sets lack a character of it.
    """
    delimiters = _CONTROL | (_NAME_DELIMITERS if is_name else frozenset())
    encoded = bytearray()
    active = first
    for character in text:
        if character.isascii():
            if active is not first and (character in delimiters or (active is not None and active.left)):
                encoded += _back(active, first)
                active = first
            encoded += character.encode("ascii")
            continue
        choice = next(
            (each for each in (active, first, *more) if each is not None and each.write(character) is not None), None
        )
        if choice is None:
            return None
        if choice is not active:
            if active is not None and active.left:
                encoded += _ASCII_ESCAPE
            encoded += choice.escape
            active = choice
        encoded += choice.write(character) or b""
    if active is not first:
        encoded += _back(active, first)
    return bytes(encoded)


def _back(active: Repertoire | None, first: Repertoire | None) -> bytes:
    """Escape sequences from `active` to `first`; the empty right half of ISO-IR 6 needs none."""
    if active is not None and active.left:
        if first is _KATAKANA:
            return _JIS_ROMAN_ESCAPE
        return _ASCII_ESCAPE + (first.escape if first is not None else b"")
    return first.escape if first is not None else b""
