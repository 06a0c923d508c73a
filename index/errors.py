"""What can go wrong in the archive; `scp.status` maps each to a DIMSE Status, once.

::

    ArchiveError
    ├── InvalidInstance        the object cannot be stored: unreadable, or without the UIDs that identify it
    ├── InstanceConflict       same SOP Instance UID, other content; the stored one was kept
    ├── PatientMismatch        the study is another patient's, and the policy refuses such an instance
    ├── CatalogueBusy          somebody has held the catalogue for longer than a writer waits
    ├── OutOfSpace             reserve, quota or disk: there is no room; nothing was written
    ├── DiskFailed             the disk has not taken what was stored before: nothing more is, until it is brought back
    ├── CatalogueLost          files without a catalogue: `tharsis rebuild` makes it again
    ├── NotRecovered           after a power cut, the journal cannot be brought back now; it is kept
    ├── NotRemoved             the disk refuses to remove files of what is deleted; they are still to go
    ├── InvalidIdentifier      a query that the information model does not allow
    ├── NotFound               no such patient, study, series, instance, job
    ├── CannotDeidentify       what would leave could still identify somebody; nothing left
    ├── WrongState             a job or an encoder that is not in a state in which that can be done
    └── SimilarityError
        ├── UnknownQuery       the query's image or series is not in the archive
        ├── NotEmbedded        it is in the archive, but has no embedding yet
        ├── UnknownModel       no such ModelID
        ├── WrongDimension     a query vector of another length than the model's
        └── QueryCancelled     whoever asked wants no answer any more

Each carries one sentence for the user; `element` is the keyword of the DICOM element to blame, where one is.
"""

from __future__ import annotations

import sqlite3


class ArchiveError(Exception):
    """Base of everything that the archive refuses."""

    def __init__(self, sentence: str, *, element: str = "") -> None:
        super().__init__(sentence)
        self.element = element


class InvalidInstance(ArchiveError):
    """The object cannot be stored; nothing was."""


class InstanceConflict(ArchiveError):
    """Same SOP Instance UID with other content; the stored instance was kept as it is."""


class PatientMismatch(ArchiveError):
    """The study belongs to another patient, and ``patient_mismatch = "reject"``; nothing was stored."""


class CatalogueBusy(ArchiveError, sqlite3.OperationalError):
    """Another process has held the catalogue for longer than a writer waits; nothing was stored."""


class OutOfSpace(ArchiveError):
    """Less than the reserve would stay free, the quota is used up, or the disk is full; nothing was written."""


class DiskFailed(ArchiveError):
    """The disk has not taken what was stored before; nothing more is, until the next start has brought it back."""


class NotRecovered(ArchiveError):
    """What the journal of arrivals has cannot be brought back now; the archive stays closed, the journal is kept."""


class NotRemoved(ArchiveError):
    """The disk refuses to remove files that no row points to any more; what it let go has gone, the rest is noted.

    Attributes
    ----------
    done
        What would have been returned, had all of them gone.
    """

    def __init__(self, sentence: str, *, done: int = 0) -> None:
        super().__init__(sentence)
        self.done = done


class CatalogueLost(ArchiveError):
    """The data folder has files, but no catalogue; or another one than was opened."""


class InvalidIdentifier(ArchiveError):
    """A query that the information model does not allow (PS3.4 C.4)."""


class NotFound(ArchiveError):
    """What was named does not exist."""


class CannotDeidentify(ArchiveError):
    """The object cannot be de-identified under its profile, so that nothing of it may leave or be stored."""


class WrongState(ArchiveError):
    """A job or an encoder is not in a state in which what was asked can be done."""


class SimilarityError(ArchiveError):
    """A similarity query that cannot be answered."""


class UnknownQuery(SimilarityError):
    """The query names an image or a series that the archive does not hold."""


class NotEmbedded(SimilarityError):
    """The query's image or series has no embedding, or not yet; the comment says why."""


class UnknownModel(SimilarityError):
    """No encoder with that ModelID."""


class WrongDimension(SimilarityError):
    """A query vector of another length than the model's."""


class QueryCancelled(SimilarityError):
    """Whoever asked cancelled the request while its vectors were being made."""
