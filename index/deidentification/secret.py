"""Replacements that follow from the original and a secret key: UIDs, pseudonyms, shifts of dates (HMAC-SHA-256).

The same original gives the same replacement in every object, run and process that has the key, so that references stay
whole; without the key nobody can tell which original a replacement stands for, nor try out guesses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from pydicom._uid_dict import UID_dictionary

from index.durable import flush
from index.errors import CannotDeidentify

KEY_FILE = "deidentification.key"
"""Below the data folder."""

_KEY_BYTES = 32
_MOST_DAYS = 3652
_PSEUDONYM_BYTES = 10


@dataclass(frozen=True)
class Secret:
    """A key, and what follows from it.

    Attributes
    ----------
    key
        32 secret bytes; shown nowhere.
    """

    key: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """Return the UID that stands for `original`: 2.25 and a number of 122 keyed bits (PS3.5 B.2).

        UIDs that the standard defines (SOP Classes, transfer syntaxes, well-known frames of reference) and an empty one
        are returned as they are.
        """
        plain = original.strip(" \0")
        return plain if not plain or plain in UID_dictionary else _uid(self.key, plain)

    def pseudonym(self, issuer: str, patient_id: str) -> str:
        """Return the Patient ID that stands for `patient_id` of `issuer`: 17 characters; "" for an empty one."""
        plain = patient_id.strip(" \0")
        if not plain:
            return ""
        digest = self._digest("patient", issuer.strip(" \0"), plain)
        return "P" + base64.b32encode(digest[:_PSEUDONYM_BYTES]).decode("ascii")

    def shift(self, issuer: str, patient_id: str) -> int:
        """Return how many days back the dates of a patient are moved: 1 to 3652."""
        digest = self._digest("dates", issuer.strip(" \0"), patient_id.strip(" \0"))
        return 1 + int.from_bytes(digest[:8], "big") % _MOST_DAYS

    def _digest(self, purpose: str, *parts: str) -> bytes:
        return _digest(self.key, purpose, *parts)


def _digest(key: bytes, purpose: str, *parts: str) -> bytes:
    return hmac.new(key, "\x1f".join((purpose, *parts)).encode(), hashlib.sha256).digest()


@lru_cache(maxsize=1 << 16)
def _uid(key: bytes, original: str) -> str:
    bits = bytearray(_digest(key, "uid", original)[:16])
    bits[6] = bits[6] & 0x0F | 0x80  # version 8: made by a rule of one's own (RFC 9562)
    bits[8] = bits[8] & 0x3F | 0x80
    return f"2.25.{UUID(bytes=bytes(bits)).int}"


def load_secret(data: Path) -> Secret:
    """Return the secret of the data folder; the first that asks makes the key: 32 random bytes, for the owner alone.

    Raises
    ------
    CannotDeidentify
        The file is not a key.
    OSError
        It cannot be read or made.
    """
    path = data / KEY_FILE
    if not path.exists():
        _make_key(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise CannotDeidentify(f"{KEY_FILE} has {len(key)} bytes, {_KEY_BYTES} are expected: it is not a key")
    return Secret(key)


def _make_key(path: Path) -> None:
    """Make the key file whole under its name, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        flush(draft)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)
