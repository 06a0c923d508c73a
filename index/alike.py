"""Headers of images that are laid out like one that came before: only what differs is read.

The images of a series differ in a few values, and most often not in how long these are. A data set whose bytes differ
from another one's within values only has the same elements at the same places: what was found of its structure holds
for both, and so does every value that is the same. To find the differences costs one look at the bytes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from index.header import Header, header_like
from index.structure import Scan

_MOST_LAYOUTS = 32

_DIFFERENT = re.compile(rb"[^\0]+")


@dataclass(frozen=True)
class _Known:
    """An image that has been read."""

    most_nesting: int
    scan: Scan
    header: Header
    number: int


class Alike:
    """The last images of several layouts. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, str], _Known] = OrderedDict()
        self._lock = Lock()

    def header(self, memory: memoryview, begin: tuple[int, str], most_nesting: int) -> Header | None:
        """Return what reading all of it would return, and that is a whole data set; None where it has to be read.

        Parameters
        ----------
        memory
            The file.
        begin
            Where the data set begins and its Transfer Syntax UID.
        most_nesting
            Sequences that may lie inside each other.
        """
        offset, transfer_syntax = begin
        place = len(memory), offset, transfer_syntax
        with self._lock:
            known = self._known.get(place)
            if known is not None:
                self._known.move_to_end(place)
        if known is None or known.most_nesting != most_nesting or (layout := known.scan.layout) is None:
            return None
        content = memory[offset : layout.pixels].tobytes()
        difference = int.from_bytes(content, "little") ^ known.number
        changed: dict[int, bytes] = {}
        values, at = layout.values, 0
        are_sequences_changed = False
        for run in _DIFFERENT.finditer(difference.to_bytes(len(content), "little")):
            begins, ends = run.start() + offset, run.end() + offset
            while at < len(values) and values[at][1] <= begins:
                at += 1
            if at == len(values) or begins < values[at][0] or ends > values[at][1]:
                return None  # not in a value
            first, last, tag = values[at]
            if tag:
                changed[tag] = content[first - offset : last - offset]
            elif any(start <= first < end for start, end in layout.sequences):
                are_sequences_changed = True
        sequences = None
        if are_sequences_changed:
            sequences = b"".join(content[start - offset : end - offset] for start, end in layout.sequences)
        return header_like(known.header, changed, sequences, known.scan)

    def keep(self, memory: memoryview, scan: Scan, header: Header, most_nesting: int) -> None:
        """Take note of an image that was read, if others may be alike."""
        layout = scan.layout
        if layout is None:
            return
        tags = [tag for *_, tag in layout.values if tag]
        if len(set(tags)) < len(tags):  # of an element that is there twice, one counts
            return
        content = memory[layout.begin : layout.pixels].tobytes()
        known = _Known(most_nesting, scan, header, int.from_bytes(content, "little"))
        place = len(memory), layout.begin, scan.transfer_syntax_uid
        with self._lock:
            self._known[place] = known
            self._known.move_to_end(place)
            if len(self._known) > _MOST_LAYOUTS:
                self._known.popitem(last=False)
