"""The job `orthanc_pull`: bring what this node has of one of Orthanc's series in line with what Orthanc has.

New and overwritten instances are fetched, one file at a time; those that Orthanc has deleted go. What this node has
made itself is noted and never fetched: so nothing goes round in circles.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from index import derivations, elsewhere, jobs
from index.archive import Archive
from index.elsewhere import Held, OrthancSeries
from index.errors import InstanceConflict, InvalidInstance, NotFound, PatientMismatch
from index.keys import Level
from plugins.node import CannotProceed, Task
from plugins.orthanc.client import OrthancClient, OrthancLacks, OrthancRefused
from plugins.orthanc.waiting import waits_for_orthanc

_REASON = "Orthanc has deleted it"


@dataclass(frozen=True)
class _Listed:
    """A series as Orthanc lists it: instance identifiers → (SOP Instance UID, FileUuid, bytes)."""

    orthanc_id: str
    orthanc_study: str
    series_instance_uid: str
    instances: Mapping[str, tuple[str, str, int]]

    @property
    def noted(self) -> OrthancSeries:
        """What is to be noted of it when all of it has been looked at."""
        return OrthancSeries(
            self.orthanc_id,
            self.orthanc_study,
            self.series_instance_uid,
            elsewhere.digest(self.instances),
            elsewhere.digest(f"{orthanc_id} {uuid}" for orthanc_id, (_, uuid, _) in self.instances.items()),
        )


@dataclass
class _Refusals:
    """Instances that the archive does not take: the others are stored all the same."""

    count: int = 0
    first: str = ""

    def add(self, error: Exception) -> None:
        self.count += 1
        self.first = self.first or str(error)


@waits_for_orthanc
def pull(task: Task, orthanc: OrthancClient) -> None:
    """Bring the series that the job's subject, an identifier of Orthanc's, names in line.

    Raises
    ------
    CannotProceed
        An instance cannot be stored; all others are.
    """
    archive = task.archive
    listed = _list(orthanc, task.job.subject)
    known = elsewhere.instances_of(archive.database, task.job.subject)
    present = {} if listed is None else listed.instances
    for orthanc_id, instance in known.items():
        if orthanc_id not in present:
            _remove(archive, instance, task.settings.orthanc.aet)
    if listed is None:
        with archive.transaction() as database:
            elsewhere.forget_series(database, task.job.subject)
        return
    made = derivations.maker(archive.database, listed.series_instance_uid) is not None
    refusals = _Refusals()
    for done, (orthanc_id, (uid, uuid, size)) in enumerate(present.items()):
        task.progress(done / len(present))
        before = known.get(orthanc_id)
        if made and _is_stored(archive, uid):
            if before is None:
                _note(archive, Held(uid, orthanc_id, ""), listed.orthanc_id)
        elif before is None or before.version != uuid:
            with suppress(OrthancLacks):  # deleted meanwhile, which will be told
                _fetch(task, orthanc, Held(uid, orthanc_id, uuid), listed.orthanc_id, size, before, refusals)
    _announce(archive, listed, made=made)
    if refusals.count:
        raise CannotProceed(
            f"{refusals.count} of {len(present)} instances of Orthanc's series {listed.orthanc_id} cannot be stored: "
            f"{refusals.first}"
        )


def _list(orthanc: OrthancClient, orthanc_id: str) -> _Listed | None:
    """Return the series as Orthanc lists it, None when it has none of that name."""
    try:
        told = orthanc.get(f"/series/{orthanc_id}")
        instances = orthanc.get(f"/series/{orthanc_id}/instances")
    except OrthancLacks:
        return None
    except OrthancRefused as error:
        raise CannotProceed(str(error)) from error
    return _Listed(
        orthanc_id,
        str(told["ParentStudy"]),
        str(told["MainDicomTags"].get("SeriesInstanceUID", "")),
        {each["ID"]: _file(each) for each in instances},
    )


def _file(instance: Mapping[str, Any]) -> tuple[str, str, int]:
    uid = str(instance["MainDicomTags"].get("SOPInstanceUID", ""))
    return uid, str(instance.get("FileUuid", "")), int(instance.get("FileSize", 0))


def _is_stored(archive: Archive, uid: str) -> bool:
    try:
        archive.open_instance(uid)
    except NotFound:
        return False
    return True


def _note(archive: Archive, instance: Held, orthanc_series: str) -> None:
    with archive.transaction() as database:
        elsewhere.note_instance(database, instance, orthanc_series)


def _fetch(
    task: Task, orthanc: OrthancClient, instance: Held, series: str, size: int, before: Held | None,
    refusals: _Refusals,
) -> None:  # fmt: skip
    """Fetch one instance into the archive; what was pulled before is replaced by what Orthanc has now."""
    archive, aet = task.archive, task.settings.orthanc.aet
    file = archive.scratch_file(size)
    try:
        with file.open("wb") as target:
            orthanc.download(f"/instances/{instance.orthanc_id}/file", target)
        archive.ingest(file, source_aet=aet, overwrite="always" if before else None, announce=False)
    except (InvalidInstance, InstanceConflict, PatientMismatch) as error:
        refusals.add(error)
        return
    except OrthancRefused as error:
        raise CannotProceed(str(error)) from error
    finally:
        file.unlink(missing_ok=True)
    _note(archive, instance, series)


def _remove(archive: Archive, instance: Held, aet: str) -> None:
    """Delete what Orthanc has deleted; what this node was also sent by others only loses its note."""
    uid = instance.sop_instance_uid

    goes = partial(elsewhere.is_known_from_it_alone, sop_instance_uid=uid, aet=aet)
    # It is asked before, since a deletion waits for the disk, and inside: another one may be sending it right now.
    if goes(archive.database) and archive.delete(Level.IMAGE, uid, reason=_REASON, only_if=goes):
        return
    with archive.transaction() as writing:
        elsewhere.forget_instance(writing, instance.sop_instance_uid)


def _announce(archive: Archive, listed: _Listed, *, made: bool) -> None:
    """Note that the series is whole here, and in the same transaction queue what is to be done with it."""
    noted = listed.noted
    with archive.transaction() as database:
        before = elsewhere.find_series(database, listed.orthanc_id)
        elsewhere.note_series(database, noted)
        is_news = before is None or before.content != noted.content
        if is_news and not made:
            jobs.push(database, jobs.SERIES_STABLE, listed.series_instance_uid)
        for uid in elsewhere.unsent(database, listed.series_instance_uid):
            jobs.push(database, jobs.ORTHANC_PUSH, uid)
