"""Derived objects into the archive: through the same door as everything else, whole series at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset

from index import derivations
from index.archive import Archive


def publish(archive: Archive, objects: Iterable[Dataset]) -> str:
    """Store `objects`, replacing what an earlier run of the same recipe made; return their Series Instance UID.

    The series is not announced as stable: the caller does that in the transaction that records the derivation.

    Parameters
    ----------
    objects
        Data sets with File Meta Information, all of one series.
    """
    series = ""
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        series = archive.ingest(buffer.getvalue(), overwrite="always", announce=False).series_instance_uid
    return series


def is_made(archive: Archive, source: str, recipe: Mapping[str, Any], digest: str) -> bool:
    """Whether (source, recipe) has been carried out on this content of the source, and its outputs still exist."""
    database = archive.database
    derivation = derivations.find(database, source, recipe)
    if derivation is None or derivation.source_digest != digest:
        return False
    return all(
        database.execute("SELECT 1 FROM series WHERE series_instance_uid = ?", (uid,)).fetchone() is not None
        for uid in derivation.outputs
    )
