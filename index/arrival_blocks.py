"""How the journal of arrivals is written: blocks, each of what one group commit brings (`index.arrivals`).

The bytes of instances lie in it as their senders chose them, and what is left of older blocks is not erased. So that
nothing of that is ever taken for a block, a block bears a digest with the key of the journal, which nobody is told.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = 4096
"""Blocks begin and end at multiples of it: what O_DIRECT asks for (open(2))."""

_MAGIC = b"THARSIS1"
_DIGEST_BYTES = 16
_HEAD = struct.Struct(f"<8sQII{_DIGEST_BYTES}s")  # magic, number, bytes behind it, instances, digest of the facts
_ENTRY = struct.Struct("<II")  # bytes of the facts, bytes of the instance


@dataclass(frozen=True)
class Arrived:
    """What the journal keeps of one instance.

    Attributes
    ----------
    path
        Of its file, below the data folder.
    incoming
        Name in the incoming folder under which its bytes are flushed; "" for one whose bytes are in the journal.
    size, sha256
        Of the file, bytes and hex.
    source_aet
        AE title that sent it.
    content
        The file; empty for one that is flushed as `incoming`.
    """

    path: str
    incoming: str
    size: int
    sha256: str
    source_aet: str
    content: bytes = b""

    @property
    def facts(self) -> bytes:
        """All but the content, as JSON."""
        return json.dumps([self.path, self.incoming, self.size, self.sha256, self.source_aet]).encode()


@dataclass(frozen=True)
class Block:
    """What one group commit brought.

    Attributes
    ----------
    lane
        In which it is.
    number
        Blocks of a lane are numbered from 1 on, in the order of their commits.
    """

    lane: int
    number: int
    instances: tuple[Arrived, ...]


class Encoder:
    """Encodes blocks, one at a time, in memory that the next one uses again."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PAGE)

    def encoded(self, key: bytes, number: int, instances: Sequence[Arrived]) -> memoryview:
        """Return a block as it is written; it begins at a page in memory, and has whole ones."""
        heads = [_ENTRY.pack(len(facts := each.facts), len(each.content)) + facts for each in instances]
        length = sum(map(len, heads)) + sum(len(each.content) for each in instances)
        whole = -(-(_HEAD.size + length) // PAGE) * PAGE
        if len(self._memory) < whole:
            self._memory = mmap.mmap(-1, whole)
        block = self._memory
        block.seek(0)
        block.write(_HEAD.pack(_MAGIC, number, length, len(instances), _digest(key, number, heads)))
        for head, each in zip(heads, instances, strict=True):
            block.write(head)
            block.write(each.content)
        block.write(bytes(whole - block.tell()))
        return memoryview(block)[:whole]


def _digest(key: bytes, number: int, heads: Sequence[bytes]) -> bytes:
    """Return what proves the facts of a block; what proves the bytes of an instance, its SHA-256, is one of them."""
    keyed = hashlib.blake2b(number.to_bytes(8, "little"), key=key, digest_size=_DIGEST_BYTES)
    for head in heads:
        keyed.update(head)
    return keyed.digest()


def blocks(path: Path, lane: int, key: bytes) -> Iterator[Block]:
    """Yield the blocks of a segment from its begin on, as far as each follows the one before; raises `OSError`."""
    with path.open("rb") as file:
        while (block := _read(file, lane, key)) is not None:
            yield block
            file.seek(-file.tell() % PAGE, os.SEEK_CUR)


def _read(file: Any, lane: int, key: bytes) -> Block | None:
    """Read one block; None when there is none, or it is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, number, length, count, digest = _HEAD.unpack(head)
    if magic != _MAGIC or length > os.fstat(file.fileno()).st_size:
        return None
    body = memoryview(file.read(length))
    if len(body) < length:
        return None
    instances, heads, at = [], [], 0
    for _ in range(count):
        if at + _ENTRY.size > length:
            return None
        facts, content = _ENTRY.unpack_from(body, at)
        begin = at + _ENTRY.size + facts
        heads.append(bytes(body[at:begin]))
        at = begin + content
        if at > length:
            return None
        instances.append((bytes(body[begin - facts : begin]), bytes(body[begin:at])))
    if _digest(key, number, heads) != digest:
        return None
    return Block(lane, number, tuple(_arrived(facts, content) for facts, content in instances))


def _arrived(facts: bytes, content: bytes) -> Arrived:
    path, incoming, size, sha256, source_aet = json.loads(facts)
    return Arrived(path, incoming, size, sha256, source_aet, content)
