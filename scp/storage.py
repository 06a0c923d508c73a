"""C-STORE: bytes as they came, Status after the commit (PS3.4 Annex B)."""

from __future__ import annotations

from config.application_entities import Right
from index.archive import Archive
from scp.caller import Caller
from scp.messages import Answer, StoreRequest
from scp.status import STORED_WITH_A_WARNING, SUCCESS, Status


def store(archive: Archive, caller: Caller, request: StoreRequest) -> Answer:
    """Bring the received file into the archive.

    Success means that its bytes and its catalogue rows are on disk. The same object again is a Success too. An object
    that its sender had lost the end of is stored as it came, since nobody may have a better one; its sender is warned.

    Raises
    ------
    NotAuthorized
        The caller may not store (0124).
    InvalidInstance, InstanceConflict, PatientMismatch, OutOfSpace
        See `index.archive.Archive.ingest` (A900 or C000, B006, A900, A700).
    """
    try:
        caller.require(Right.STORE)
        ingested = archive.ingest(
            request.file,
            source_aet=caller.title,
            expected=(request.sop_class_uid, request.sop_instance_uid),
        )
    finally:
        request.file.unlink(missing_ok=True)
    return Answer(Status(STORED_WITH_A_WARNING, ingested.cut_off) if ingested.cut_off else SUCCESS)
