"""DIMSE Status, and the one table from exception to Status (PS3.7 Annex C, PS3.4 B.2.3, C.4)."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from pydicom.datadict import tag_for_keyword

from index.errors import (
    CannotDeidentify,
    CatalogueBusy,
    CatalogueLost,
    DiskFailed,
    InstanceConflict,
    InvalidIdentifier,
    InvalidInstance,
    NotEmbedded,
    NotFound,
    NotRecovered,
    NotRemoved,
    OutOfSpace,
    PatientMismatch,
    QueryCancelled,
    SimilarityError,
    UnknownModel,
    UnknownQuery,
    WrongDimension,
    WrongState,
)
from scp.errors import (
    ConversionError,
    InvalidArgument,
    NotAuthorized,
    NotOffered,
    PeerError,
    ResourceLimitation,
    UnknownAction,
    UnknownDestination,
    UnrecognizedOperation,
)
from scp.private_elements import ELEMENTS, private_tag

LONGEST_COMMENT = 64
"""Error Comment (0000,0902) is LO."""

_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})
"""Warnings outside Bxxx (PS3.7 C.4)."""


@dataclass(frozen=True)
class Status:
    """Status (0000,0900) of a response, with what explains it.

    Attributes
    ----------
    code
        Status code.
    comment
        Error Comment (0000,0902): at most 64 ASCII characters, no backslash; longer text is cut.
    offending
        Tags for Offending Element (0000,0901).
    """

    code: int
    comment: str = ""
    offending: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ascii_only = self.comment.encode("ascii", errors="replace").decode().replace("\\", "/")
        printable = "".join(character if character.isprintable() else " " for character in ascii_only)
        object.__setattr__(self, "comment", printable[:LONGEST_COMMENT].rstrip())

    @property
    def is_success(self) -> bool:
        """0000."""
        return self.code == 0x0000

    @property
    def is_pending(self) -> bool:
        """FF00 or FF01."""
        return self.code in (0xFF00, 0xFF01)

    @property
    def is_warning(self) -> bool:
        """Bxxx, 0001, 0107, 0116."""
        return self.code & 0xF000 == 0xB000 or self.code in _WARNINGS

    @property
    def is_cancel(self) -> bool:
        """FE00."""
        return self.code == 0xFE00

    @property
    def is_failure(self) -> bool:
        """Whether it is none of the others."""
        return not (self.is_success or self.is_pending or self.is_warning or self.is_cancel)

    def __str__(self) -> str:
        return f"{self.code:04X} ({self.comment})" if self.comment else f"{self.code:04X}"


SUCCESS = Status(0x0000)
PENDING = Status(0xFF00)
PENDING_WARNING = Status(0xFF01)
"""Matches are continuing; an optional key was not supported (PS3.4 C.4.1.1.4)."""
CANCELLED = Status(0xFE00, "stopped, as the C-CANCEL asked")

OUT_OF_RESOURCES = 0xA700
SUB_OPERATIONS_FAILED = 0xA702
SUB_OPERATIONS_WARNING = 0xB000
CANNOT_UNDERSTAND = 0xC000
STORED_WITH_A_WARNING = 0xB007
"""Data Set does not match SOP Class: it was stored as it came (PS3.4 B.2.3)."""
DATA_SET_MISMATCH = 0xA900
PROCESSING_FAILURE = 0x0110
SOP_CLASS_NOT_SUPPORTED = 0x0122
MISTYPED_ARGUMENT = 0x0212

CODES: dict[type[Exception], int] = {
    InvalidInstance: DATA_SET_MISMATCH,
    # "Elements Discarded": of the warnings of PS3.4 B.2.3 the one that says the truth, for the data set received was
    # discarded in favour of the stored one. B000 (coercion) and B007 would claim that it had been stored.
    InstanceConflict: 0xB006,
    PatientMismatch: DATA_SET_MISMATCH,
    CannotDeidentify: 0xC010,
    CatalogueLost: PROCESSING_FAILURE,
    NotRecovered: PROCESSING_FAILURE,
    NotRemoved: PROCESSING_FAILURE,
    CatalogueBusy: OUT_OF_RESOURCES,
    OutOfSpace: OUT_OF_RESOURCES,
    DiskFailed: OUT_OF_RESOURCES,
    InvalidIdentifier: DATA_SET_MISMATCH,
    NotFound: 0x0112,
    InvalidArgument: 0x0115,
    UnknownAction: 0x0123,
    ResourceLimitation: 0x0213,
    WrongState: PROCESSING_FAILURE,
    SimilarityError: DATA_SET_MISMATCH,
    UnknownQuery: 0xC001,
    NotEmbedded: 0xC002,
    UnknownModel: 0xC003,
    WrongDimension: 0xC004,
    QueryCancelled: CANCELLED.code,
    NotAuthorized: 0x0124,
    NotOffered: SOP_CLASS_NOT_SUPPORTED,
    UnrecognizedOperation: 0x0211,
    UnknownDestination: 0xA801,
    ConversionError: SUB_OPERATIONS_FAILED,
    PeerError: SUB_OPERATIONS_FAILED,
}


def is_expected(error: Exception) -> bool:
    """Whether the table knows `error`; what it does not know is a fault of this node, worth a traceback."""
    return any(kind in CODES for kind in type(error).__mro__) or _is_disk_full(error)


def status_of(error: Exception) -> Status:
    """Return the Status that answers a request which raised `error`; 0110 (processing failure) for an unknown one."""
    element = str(getattr(error, "element", ""))
    tag = private_tag(element) if element in ELEMENTS else tag_for_keyword(element) if element else None
    offending = () if tag is None else (int(tag),)
    if isinstance(error, InvalidInstance) and not element:
        return Status(CANNOT_UNDERSTAND, str(error))
    if _is_disk_full(error):
        return Status(OUT_OF_RESOURCES, "the disk is full: nothing stored")
    for kind in type(error).__mro__:
        if kind in CODES:
            return Status(CODES[kind], str(error), offending)
    why = error.strerror if isinstance(error, OSError) else None  # without the path, which is nobody's business
    return Status(PROCESSING_FAILURE, f"processing failed: {why or type(error).__name__}")


def _is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
