"""Who has sent an instance: the AE titles in ``source_aet`` of its row, the first sender first.

They are separated by a backslash, as the values of an element are: no AE title has one (PS3.5 6.2). "" stands for what
was imported or made here. Rules and policies go by the first one, since a duplicate is no news. The others are there so
that what they have sent as well does not go when the first one deletes its own.
"""

from __future__ import annotations

HAS_SENT = r"instr('\' || source_aet || '\', '\' || ? || '\') > 0"
"""Condition on a row of ``instance``: the AE of that title is one of its senders."""


def all_senders(told: str) -> tuple[str, ...]:
    """Return every sender that ``source_aet`` tells."""
    return tuple(told.split("\\"))


def first_sender(told: str) -> str:
    """Return the sender from whom the instance came first."""
    return told.partition("\\")[0]


def with_sender(told: str, title: str) -> str:
    """Return ``source_aet`` with one more sender; the same when that one is told already."""
    return told if title in all_senders(told) else f"{told}\\{title}"
