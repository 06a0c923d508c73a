"""Every real file of the test data goes over the network: stored as sent, found, and back again unchanged."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from retrieved import data_set

from index.errors import NotFound
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET
from scp.part10 import NotDicomError, read_object
from scp.requestor import Peer

_BATCH = 100
"""SOP Instance UIDs of one C-GET; and no more than 127 different contexts."""


def _unzipped(path: Path, folder: Path) -> Path:
    if path.suffix != ".gz":
        return path
    unzipped = folder / f"{path.name}.dcm"
    unzipped.write_bytes(gzip.decompress(path.read_bytes()))
    return unzipped


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "MANIFEST.tsv").open(newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["pydicom_read"]]


@pytest.mark.slow
def test_every_file_is_stored_as_sent_found_and_returned(shared_data, start_node, tmp_path):
    rows = _rows(shared_data)
    assert len(rows) > 700
    node = start_node(overwrite="always")
    peer, requestor = Peer("127.0.0.1", node.port, "THARSIS"), Requestor("SWEEP")

    # One UID with several contents exists in real life: each content goes into a round of its own.
    rounds: list[dict[str, Path]] = []
    for row in rows:
        path = _unzipped(shared_data / row["path"], tmp_path)
        try:
            uid = read_object(path).sop_instance_uid
        except NotDicomError:
            # Nothing that a C-STORE could name: no SOP Class or no SOP Instance UID anywhere in the file.
            assert row["pydicom_read"] != "ok" or not (row["sop_class"] and row["sop_instance"]), path
            continue
        place = next((seen for seen in rounds if uid not in seen), None)
        if place is None:
            rounds.append(place := {})
        place[uid] = path

    readable = {shared_data / row["path"] for row in rows if row["pydicom_read"] == "ok"}
    readable |= set(tmp_path.glob("*.gz.dcm"))
    refused: dict[Path, str] = {}
    for files in rounds:
        sent = {result.path: result for result in client.send(peer, files.values(), requestor)}
        assert set(sent) == set(files.values())
        stored = []
        for uid, path in files.items():
            result = sent[path]
            if result.status is None or result.status.is_failure:
                assert result.error, path
                refused[path] = result.error
                if result.status is not None:
                    assert result.status.comment, path
                continue
            instance = node.archive.open_instance(uid)
            assert data_set(instance.path) == data_set(path), path
            stored.append(instance)
        _check_found(peer, requestor, stored)
        _check_returned(peer, requestor, stored, tmp_path / f"got{rounds.index(files)}")

    # Of what pydicom reads, only objects that really lack a Study or Series Instance UID may be refused.
    without = {shared_data / row["path"] for row in rows if not (row["study"] and row["series"])}
    assert {path: why for path, why in refused.items() if path in readable and path not in without} == {}
    assert client.echo(peer, requestor) >= 0


def _check_found(peer, requestor, stored):
    by_series = defaultdict(set)
    for instance in stored:
        by_series[instance.study_instance_uid, instance.series_instance_uid].add(instance.sop_instance_uid)
    for (study, series), uids in by_series.items():
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID, identifier.SeriesInstanceUID = study, series
        identifier.SOPInstanceUID = sorted(uids)
        found = list(client.find(peer, identifier, STUDY_ROOT_FIND, requestor))
        assert sorted(match.SOPInstanceUID for match in found) == sorted(uids)


def _check_returned(peer, requestor, stored, folder):
    by_series = defaultdict(list)
    for instance in stored:
        by_series[instance.study_instance_uid, instance.series_instance_uid].append(instance)
    for (study, series), instances in by_series.items():
        for start in range(0, len(instances), _BATCH):
            batch = instances[start:start + _BATCH]
            identifier = Dataset()
            identifier.QueryRetrieveLevel = "IMAGE"
            identifier.StudyInstanceUID, identifier.SeriesInstanceUID = study, series
            identifier.SOPInstanceUID = [instance.sop_instance_uid for instance in batch]
            kinds = [(instance.sop_class_uid, instance.transfer_syntax_uid) for instance in batch]
            answers = list(client.get(peer, identifier, folder, STUDY_ROOT_GET, requestor, objects=kinds))
            assert answers[-1].status.is_success, (answers[-1], batch[0])
            assert answers[-1].counts.completed == len(batch)
    received = {read_object(path).sop_instance_uid: path for path in folder.glob("*.dcm")}
    for instance in stored:
        back = received[instance.sop_instance_uid]
        assert data_set(back) == data_set(instance.path), instance.sop_instance_uid
        assert read_object(back).transfer_syntax_uid == instance.transfer_syntax_uid


def test_a_refused_file_is_not_in_the_archive(start_node, make_file):
    node = start_node()
    path = make_file(1, StudyInstanceUID=None)
    [result] = client.send(Peer("127.0.0.1", node.port, "THARSIS"), [path], Requestor("SWEEP"))
    assert result.status is not None
    assert result.status.code == 0xA900
    assert "StudyInstanceUID" in result.status.comment
    with pytest.raises(NotFound):
        node.archive.open_instance(read_object(path).sop_instance_uid)
