"""C-STORE: bytes as they came, Status after the commit (PS3.4 Annex B)."""

from __future__ import annotations

import logging

from config.application_entities import Right
from index.admission import require_expected
from index.archive import Archive
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.files import require_complete
from index.errors import ArchiveError, InvalidInstance
from index.header import read_header
from scp.caller import Caller
from scp.deidentifying import deidentified_file
from scp.errors import NotAuthorized, ScpError
from scp.messages import Answer, StoreRequest
from scp.status import STORED_WITH_A_WARNING, SUCCESS, Status

_AUDIT = logging.getLogger("tharsis.audit")


def store(archive: Archive, caller: Caller, request: StoreRequest) -> Answer:
    """Bring the received file into the archive.

    Success means that its bytes are on disk, and its catalogue rows or what they are made from again. The same object
    again is a Success too. An object that its sender had lost the end of is stored as it came, since nobody may have a
    better one; its sender is warned.

    Raises
    ------
    NotAuthorized
        The caller may not store (0124).
    InvalidInstance, InstanceConflict, PatientMismatch, OutOfSpace
        See `index.archive.Archive.ingest` (A900 or C000, B006, A900, A700).
    """
    try:
        caller.require(Right.STORE)
    except NotAuthorized:
        request.file.unlink(missing_ok=True)
        raise
    ingested = archive.ingest(  # which leaves nothing behind where it came in
        request.file,
        source_aet=caller.title,
        expected=(request.sop_class_uid, request.sop_instance_uid),
        received=request.received,
    )
    return Answer(Status(STORED_WITH_A_WARNING, ingested.cut_off) if ingested.cut_off else SUCCESS)


def store_deidentified(
    archive: Archive, deidentifier: Deidentifier, caller: Caller, request: StoreRequest, *, max_nesting: int
) -> Answer:
    """De-identify the received file and bring the result into the archive; what was received does not stay.

    The object is found by nobody before, and what is refused leaves nothing behind. The same object again is the same
    one de-identified, so a Success. Neither the answer nor a log has a value of it.

    Parameters
    ----------
    max_nesting
        Sequences that may lie inside each other.

    Raises
    ------
    NotAuthorized
        The caller may not store (0124).
    CannotDeidentify
        It cannot be made safe, or its end is missing (C010).
    InvalidInstance, InstanceConflict, PatientMismatch, OutOfSpace
        See `index.archive.Archive.ingest`.
    """
    try:
        caller.require(Right.STORE)
        request.wait()
        _require_readable(request, max_nesting)
        with deidentified_file(deidentifier, request.file, archive.scratch_file) as target:
            archive.ingest(
                target,
                source_aet=caller.title,
                expected=(request.sop_class_uid, deidentifier.uid(request.sop_instance_uid.strip(" \0"))),
            )
    except (ArchiveError, ScpError) as error:
        _AUDIT.info("an object refused from %s, called %s: %s", caller, caller.called, error)
        raise
    finally:
        request.file.unlink(missing_ok=True)
    return Answer(SUCCESS)


def _require_readable(request: StoreRequest, max_nesting: int) -> None:
    """Raise unless the data set is whole and is the one that the command named; no sentence has a value of it."""
    try:
        require_complete(request.file, max_nesting)
        header = read_header(request.file, named_by_meta=False)
    except InvalidInstance as error:
        if error.element:
            raise
        raise InvalidInstance("the data set cannot be read") from None
    require_expected(header, (request.sop_class_uid, request.sop_instance_uid))
