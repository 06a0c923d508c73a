"""Files of torch: written as a whole or not at all, read without running anything in them."""

from __future__ import annotations

import io
from typing import Any

import torch


class UnusableFile(ValueError):
    """A file of weights or a checkpoint that cannot be used; the message is a sentence."""


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return `content` (tensors, numbers, texts, lists and dicts of them) as a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def from_bytes(file: bytes, what: str) -> dict[str, Any]:
    """Return what `to_bytes` wrote, on the CPU.

    Parameters
    ----------
    what
        What the file is called in the error.

    Raises
    ------
    UnusableFile
        Not such a file, or one with anything but tensors and plain values in it.
    """
    try:
        content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file makes torch's reader raise anything
        why = str(error).split(". ")[0].split("\n")[0][:120] or type(error).__name__
        raise UnusableFile(f"{what} is no file of weights: {why}") from error
    if not isinstance(content, dict):
        raise UnusableFile(f"{what} is no file of weights: expected a dictionary, got {type(content).__name__}")
    return content
