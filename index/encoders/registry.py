"""Which encoder bears a ModelID, and where its weights are: in this package, or a file that training wrote.

A learned encoder is the file ``<ModelID>.pt`` in the folder ``models`` of the archive. Its name promises what is in it:
the digest is checked each time that it is loaded. An encoder whose preprocessing this version no longer does cannot
make vectors any more; those that it has made stay, and are searched as before.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from index import embeddings
from index.archive import Archive
from index.durable import write_whole
from index.encoders.encoder import Encoder, model_id
from index.encoders.pixels import VERSION
from index.encoders.texture import TextureEncoder
from index.errors import UnknownModel

LEARNED = "learned"
"""Name of the encoders that training makes."""

_LEARNED_ID = re.compile(rf"{LEARNED}-(?P<version>[0-9]{{1,6}})-[0-9a-f]{{12}}")
_WEIGHTS, _FACTS = ".pt", ".json"


@dataclass(frozen=True)
class Weights:
    """A weights file of the archive.

    Attributes
    ----------
    facts
        What training noted beside it (seed, held-out share, labels, figures); empty when there is no such note.
    """

    model_id: str
    path: Path
    facts: dict[str, Any]


def models_folder(archive: Archive) -> Path:
    """Return the folder of the weights that training writes; it need not exist yet."""
    return archive.data / "models"


def built_in() -> Encoder:
    """Return the encoder that needs no training."""
    return _texture()


def load(archive: Archive, wanted: str) -> Encoder:
    """Return the encoder with that ModelID; one process loads it once.

    Raises
    ------
    UnknownModel
        No weights here that bear it, or weights for another preprocessing (Status C003).
    """
    if wanted == built_in().model_id:
        return built_in()
    match = _LEARNED_ID.fullmatch(wanted)
    if match is None:
        raise UnknownModel(f"no weights here of the encoder {wanted[:64]!r}", element="ModelID")
    if int(match["version"]) != VERSION:
        raise UnknownModel(
            f"{wanted} was trained on preprocessing {match['version']}, this version does {VERSION}: train again",
            element="ModelID",
        )
    return _learned(models_folder(archive) / f"{wanted}{_WEIGHTS}", wanted)


def current(archive: Archive) -> Encoder:
    """Return the encoder that queries are answered with; before there is any, the one that needs no training."""
    active = embeddings.active_model(archive)
    return built_in() if active is None else load(archive, active.model_id)


def add(archive: Archive, weights: bytes, facts: dict[str, Any]) -> Encoder:
    """Keep the weights that training made, and what it noted about them, and make the encoder known.

    Nothing is answered with it before it is activated.

    Raises
    ------
    ValueError
        Bytes that are no weights of a learned encoder.
    """
    wanted = model_id(LEARNED, VERSION, weights)
    folder = models_folder(archive)
    write_whole(folder / f"{wanted}{_FACTS}", json.dumps(facts, indent=2, sort_keys=True).encode())
    write_whole(folder / f"{wanted}{_WEIGHTS}", weights)
    encoder = load(archive, wanted)
    embeddings.register(archive, encoder.model_id, encoder.dimension, activate_first=False)
    return encoder


def trained(archive: Archive) -> list[Weights]:
    """Return the weights files of the archive, the oldest first."""
    found = [path for path in models_folder(archive).glob(f"*{_WEIGHTS}") if _LEARNED_ID.fullmatch(path.stem)]
    return [Weights(path.stem, path, _facts(path)) for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]


def forget(archive: Archive, unwanted: str) -> None:
    """Delete the weights of an encoder, if it has any here. Its vectors are `index.embeddings`' to delete."""
    if _LEARNED_ID.fullmatch(unwanted):
        for suffix in (_WEIGHTS, _FACTS):
            (models_folder(archive) / f"{unwanted}{suffix}").unlink(missing_ok=True)


def _facts(weights: Path) -> dict[str, Any]:
    try:
        facts = json.loads(weights.with_suffix(_FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a note for people; the weights do without
        return {}
    return facts if isinstance(facts, dict) else {}


@lru_cache(maxsize=1)
def _texture() -> Encoder:
    return TextureEncoder.load()


@lru_cache(maxsize=4)
def _learned(path: Path, wanted: str) -> Encoder:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UnknownModel(f"no weights here of the encoder {wanted}", element="ModelID") from error
    if model_id(LEARNED, VERSION, content) != wanted:
        digest = hashlib.sha256(content).hexdigest()[:12]
        raise UnknownModel(f"{path.name} was altered: its digest is {digest}", element="ModelID")
    from index.encoders.learned.encoder import LearnedEncoder  # torch takes seconds and hundreds of megabytes

    return LearnedEncoder.from_bytes(content)
