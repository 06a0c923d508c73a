"""The job `orthanc_push`: give Orthanc the derived series that this node has made of what Orthanc has.

What Orthanc has already is not sent again. An instance that was made anew, with other content, takes the place of the
old one there, and what the series no longer has goes; no other object in Orthanc is ever touched.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from config.identity import UID_ROOT
from index import elsewhere
from index.archive import Archive, StoredInstance
from index.elsewhere import Held, OrthancSeries
from index.errors import NotFound
from plugins.node import CannotProceed, Series, Task
from plugins.orthanc.client import OrthancClient, OrthancLacks, OrthancRefused
from plugins.orthanc.waiting import waits_for_orthanc

_DERIVED = f"{UID_ROOT}.3."


@waits_for_orthanc
def push(task: Task, orthanc: OrthancClient) -> None:
    """Give Orthanc what it lacks of the series that the job's subject names.

    Raises
    ------
    CannotProceed
        Orthanc refuses an object.
    """
    try:
        series = task.series()
    except NotFound:  # made anew under another name, or deleted: nothing is left to give
        return
    if series.made_by is None or not series.comes_from_orthanc:
        return
    known = elsewhere.held(task.archive.database, [instance.sop_instance_uid for instance in series.instances])
    try:
        for done, instance in enumerate(series.instances):
            task.progress(done / len(series.instances))
            before = known.get(instance.sop_instance_uid)
            if before is None or before.version != instance.sha256:
                _give(task.archive, orthanc, instance)
        _remove_leftovers(task.archive, orthanc, series)
    except OrthancRefused as error:
        raise CannotProceed(str(error)) from error


def _give(archive: Archive, orthanc: OrthancClient, instance: StoredInstance) -> None:
    told = orthanc.upload(instance.path)
    if told.get("Status") == "AlreadyStored" and not _is_same(orthanc, told["ID"], instance.path):
        with archive.transaction() as database:  # first: a deletion in Orthanc of what is not noted means nothing here
            elsewhere.forget_instance(database, instance.sop_instance_uid)
        with suppress(OrthancLacks):
            orthanc.delete(f"/instances/{told['ID']}")
        told = orthanc.upload(instance.path)
    if told.get("Status") not in ("Success", "AlreadyStored"):
        raise OrthancRefused(f"Orthanc has not stored {instance.sop_instance_uid}: it says {told.get('Status')!r}")
    place = {key: str(told[key]) for key in ("ID", "ParentSeries", "ParentStudy")}
    with archive.transaction() as database:
        elsewhere.note_instance(
            database, Held(instance.sop_instance_uid, place["ID"], instance.sha256), place["ParentSeries"]
        )
        if elsewhere.find_series(database, place["ParentSeries"]) is None:
            elsewhere.note_series(
                database,
                OrthancSeries(place["ParentSeries"], place["ParentStudy"], instance.series_instance_uid),
            )


def _is_same(orthanc: OrthancClient, orthanc_id: str, file: Path) -> bool:
    with file.open("rb") as content:
        own = hashlib.file_digest(content, "md5").hexdigest()  # what Orthanc keeps of its attachments
    try:
        return orthanc.text(f"/instances/{orthanc_id}/attachments/dicom/md5").strip().lower() == own
    except OrthancLacks:
        return False


def _remove_leftovers(archive: Archive, orthanc: OrthancClient, series: Series) -> None:
    """Delete what an earlier run made in this series, and this node no longer has."""
    own = elsewhere.held(archive.database, [instance.sop_instance_uid for instance in series.instances])
    places = elsewhere.series_by_instances(archive.database, [instance.orthanc_id for instance in own.values()])
    for place in places:
        for each in orthanc.get(f"/series/{place}/instances"):
            uid = _uid(each)
            if uid not in own and uid.startswith(_DERIVED) and not _is_stored(archive, uid):
                with suppress(OrthancLacks):
                    orthanc.delete(f"/instances/{each['ID']}")


def _uid(instance: dict[str, Any]) -> str:
    return str(instance["MainDicomTags"].get("SOPInstanceUID", ""))


def _is_stored(archive: Archive, uid: str) -> bool:
    try:
        archive.open_instance(uid)
    except NotFound:
        return False
    return True
