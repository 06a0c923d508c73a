"""What a plug-in sees of the node: the series that it is asked about, and the task that it carries out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pluggy
import pydicom
from pydicom.dataset import Dataset

from config.settings import Settings
from index import derivations, elsewhere
from index.archive import Archive, StoredInstance
from index.derivations import Derivation
from index.errors import NotFound
from index.jobs import Job
from index.senders import first_sender
from plugins.watch import UNWATCHED, Watch
from reconstruct.projections.p6 import encodings_from
from reconstruct.projections.registry import STANDARD, Encodings

_LONGEST_VALUE = 1 << 20
"""Bytes of a value beyond which it stays in the file until somebody asks for it."""


class CannotProceed(Exception):
    """The input cannot be worked on, and trying again will not help; the message is one sentence for the user."""


class Interrupted(Exception):
    """The worker has to stop: the job goes back to the queue, as if it had not been tried."""


class Postponed(Exception):
    """What the job needs is not there at the moment (a peer is off, a disk is full): it is tried again, without limit.

    Parameters
    ----------
    sentence
        What it waits for, for the user.
    delay_s
        How long, seconds.
    """

    def __init__(self, sentence: str, delay_s: float) -> None:
        super().__init__(sentence)
        self.delay_s = delay_s


class Cancelled(Exception):
    """Somebody cancelled the job while it was running."""


@dataclass(frozen=True)
class Work:
    """A job that a plug-in asks for.

    Attributes
    ----------
    kind
        One of the kinds that the plug-ins' `job_functions` name.
    subject
        What to work on, usually a Series Instance UID. Two jobs on one subject never run at the same time.
    parameters
        JSON-serialisable; part of the job's identity.
    """

    kind: str
    subject: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Series:
    """A stored series.

    Parameters
    ----------
    archive
        Where it is stored.
    series_instance_uid
        Its UID.
    encodings
        The encodings of projections that count.

    Raises
    ------
    NotFound
        The archive holds no instance of it (any more).
    CannotProceed
        Two studies use the UID, so that it does not tell whose series is meant.
    """

    def __init__(self, archive: Archive, series_instance_uid: str, encodings: Encodings = STANDARD) -> None:
        self._archive = archive
        self.encodings = encodings
        self.uid = series_instance_uid
        self.instances: tuple[StoredInstance, ...] = tuple(_instances(archive, series_instance_uid))
        if not self.instances:
            raise NotFound(f"no series {series_instance_uid}", element="SeriesInstanceUID")
        studies = sorted({instance.study_instance_uid for instance in self.instances})
        if len(studies) > 1:
            raise CannotProceed(
                f"expected series {self.uid} in one study, got {len(studies)}: {studies[0]} and {studies[1]}"
            )

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID."""
        return self.instances[0].study_instance_uid

    @property
    def paths(self) -> list[Path]:
        """The Part 10 files, in the order of Instance Number."""
        return [instance.path for instance in self.instances]

    @property
    def projection_paths(self) -> list[Path]:
        """The files that may hold projections, going by their SOP Class, in the order of Instance Number."""
        classes = self.encodings.sop_classes
        return [instance.path for instance in self.instances if instance.sop_class_uid in classes]

    @cached_property
    def holds_projections(self) -> bool:
        """Whether any instance is one of a cone-beam scan; the others may be, say, its flat fields."""
        return self.encodings.holds_projections(self.projection_paths)

    def others_with_projections(self) -> list[Series]:
        """Return the other series of the study that may hold projections, going by the SOP Classes."""
        rows = self._archive.database.execute(
            "SELECT DISTINCT series.series_instance_uid FROM instance JOIN series ON series.id = instance.series "
            "JOIN study ON study.id = series.study WHERE study.study_instance_uid = ? AND "
            "series.series_instance_uid <> ? AND instance.sop_class_uid IN (SELECT value FROM json_each(?))",
            (self.study_instance_uid, self.uid, json.dumps(sorted(self.encodings.sop_classes))),
        ).fetchall()
        return [Series(self._archive, uid, self.encodings) for (uid,) in rows]

    @cached_property
    def header(self) -> Dataset:
        """The first instance's data set without pixels."""
        return pydicom.dcmread(self.instances[0].path, stop_before_pixels=True, defer_size=_LONGEST_VALUE)

    @property
    def digest(self) -> str:
        """Changes when an instance comes, goes or is replaced."""
        return derivations.source_digest(self._archive.database, self.uid)

    @cached_property
    def made_by(self) -> Derivation | None:
        """The derivation that made this series, when this node made it."""
        return derivations.maker(self._archive.database, self.uid)

    @cached_property
    def comes_from_orthanc(self) -> bool:
        """Whether an Orthanc holds it, or what it was made from."""
        return elsewhere.comes_from_orthanc(self._archive.database, self.uid)

    @property
    def sources(self) -> frozenset[str]:
        """AE titles that its instances came from first; "" for those that were imported or made by this node."""
        rows = self._archive.database.execute(
            "SELECT DISTINCT instance.source_aet FROM instance JOIN series ON series.id = instance.series "
            "WHERE series.series_instance_uid = ?",
            (self.uid,),
        )
        return frozenset(first_sender(senders) for (senders,) in rows.fetchall())

    @property
    def patient_id(self) -> str:
        """Patient ID."""
        return str(self.header.get("PatientID", "") or "")


def _instances(archive: Archive, series_instance_uid: str) -> list[StoredInstance]:
    rows = archive.database.execute(
        "SELECT instance.sop_instance_uid FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid = ? ORDER BY CAST(instance.instance_number AS INTEGER), instance.id",
        (series_instance_uid,),
    ).fetchall()
    return [archive.open_instance(uid) for (uid,) in rows]


@dataclass(frozen=True)
class Task:
    """A claimed job, with everything that its function needs.

    Attributes
    ----------
    archive
        What is stored, and its job queue.
    settings
        Of the node.
    job
        What is to be done: kind, subject, parameters.
    progress
        Call it often with the fraction done (0 to 1): it keeps the claim, and raises `Interrupted` or `Cancelled`
        when the job has to stop. Let those pass. A job that does not call it for its limit (`stalled_limits`) hangs.
    plugins
        Those of the worker, for a job that asks them in its turn; None: nobody can be asked.
    own
        Settings of the plug-in's own that does the job.
    watch
        Who looks whether the job comes back.
    """

    archive: Archive
    settings: Settings
    job: Job
    progress: Callable[[float], None]
    plugins: pluggy.PluginManager | None = None
    own: Any = None
    watch: Watch = UNWATCHED

    def series(self) -> Series:
        """The job's subject as a series."""
        return Series(self.archive, self.job.subject, encodings_from(self.settings.site_mappings))

    def progress_of(self, part: int, parts: int) -> Callable[[float], None]:
        """Return the `progress` of one of `parts` equal parts of the job; `part` counts from 0."""
        return lambda fraction: self.progress((part + fraction) / parts)

    def in_hands_of(self, plugin: str, limit_s: float) -> AbstractContextManager[None]:
        """Let another plug-in do a part of the job, in a block: should it hang there, it is told by its own name.

        Parameters
        ----------
        limit_s
            How long it may report no progress, seconds.
        """
        return self.watch.over(plugin, f"job {self.job.kind}", limit_s)
