"""An instance as it leaves: as it is stored, or de-identified into a file that is gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pydicom.filereader import read_file_meta_info

from index.archive import Archive, StoredInstance


class Deidentifies(Protocol):
    """What the router needs of a de-identification profile."""

    def deidentify_file(self, source: Path, target: Path) -> None:
        """Write `source` de-identified; raises an `ArchiveError` for what cannot be, one sentence."""

    def uid(self, original: str) -> str:
        """Return the UID that stands for `original`."""


@contextmanager
def outgoing(
    archive: Archive, instance: StoredInstance, deidentifier: Deidentifies | None
) -> Iterator[StoredInstance]:
    """Give the instance to send.

    The file of a de-identified one lies in the archive's `incoming` folder, where what a dead process left is removed.

    Raises
    ------
    ArchiveError
        It cannot be de-identified, or there is no room for it.
    """
    if deidentifier is None:
        yield instance
        return
    path = archive.scratch_file(instance.size)
    try:
        deidentifier.deidentify_file(instance.path, path)
        meta = read_file_meta_info(path)
        yield replace(
            instance,
            path=path,
            size=path.stat().st_size,
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            series_instance_uid=deidentifier.uid(instance.series_instance_uid),
            study_instance_uid=deidentifier.uid(instance.study_instance_uid),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
        )
    finally:
        path.unlink(missing_ok=True)
