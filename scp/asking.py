"""Asking by sending: a C-STORE to the similarity AE is a question, and is never archived (PS3.4 Annex B).

The image is received into a temporary file, embedded by the encoder process, and deleted; what is kept for the caller,
for a while, is its vectors. The Status follows: 0000 means that the next query can ask about it.
"""

from __future__ import annotations

import logging

from config.application_entities import Right
from index.admission import require_expected
from index.errors import ArchiveError
from index.header import read_header
from index.questions import Questions
from index.structure import require_structure
from scp.caller import Caller
from scp.errors import NotOffered, ScpError
from scp.messages import Answer, StoreRequest
from scp.status import SUCCESS

AUDIT = logging.getLogger("tharsis.audit")


def receive(questions: Questions | None, caller: Caller, request: StoreRequest, *, max_nesting: int) -> Answer:
    """Keep the received image as what `caller` asks about.

    Parameters
    ----------
    questions
        None where the settings turn similarity off.
    max_nesting
        Sequences that may lie inside each other.

    Raises
    ------
    NotOffered
        Similarity is switched off (0122): the image is refused, not archived.
    NotAuthorized
        The caller lacks the right ``similar`` (0124).
    InvalidInstance
        The data set cannot be read, or is not what the command named (A900 or C000).
    NotEmbedded, UnknownModel
        No pixels, none that can be decoded, not embedded in time, nothing to compare with (C002); no encoder (C003).
    OutOfSpace
        The caller has sent as many images as it may (A700).
    """
    try:
        if questions is None:
            raise NotOffered(f"similarity is switched off here, and {caller.called} archives nothing")
        caller.require(Right.SIMILAR)
        request.wait()
        require_structure(request.file, max_nesting)
        header = read_header(request.file, named_by_meta=False)
        require_expected(header, (request.sop_class_uid, request.sop_instance_uid))
        questions.keep(caller.title, header, request.file)
    except (ArchiveError, ScpError) as error:
        AUDIT.info(
            "image to ask about refused from %s, called %s: %s: %s",
            caller, caller.called, request.sop_instance_uid, error,
        )  # fmt: skip
        raise
    finally:
        request.file.unlink(missing_ok=True)
    AUDIT.info(
        "image to ask about kept for %s, called %s: %s of series %s",
        caller, caller.called, header.sop_instance_uid, header.series_instance_uid,
    )  # fmt: skip
    return Answer(SUCCESS)
