"""Instances found by the path of their file, without an index of all paths."""

from __future__ import annotations

import pytest

from index import catalogue, deletion, schema
from index.archive import Archive
from index.files import named_uid
from index.keys import Level
from index.migrations import migrations
from index.old_catalogue import OldCatalogue

ODD_UIDS = ("not a UID", "1.2.x", "files", "x%", "1." + "2" * 70)
"""Their files have names of their own."""


def path_of(archive, uid: str) -> str:
    return archive.database.execute("SELECT path FROM instance WHERE sop_instance_uid = ?", (uid,)).fetchone()[0]


@pytest.fixture
def filled(archive, make_instance):
    """The UIDs of instances, with valid ones and others."""
    archive.ingest(make_instance(1))
    archive.ingest(make_instance(2))
    for number, uid in enumerate(ODD_UIDS, 3):
        archive.ingest(make_instance(number, SOPInstanceUID=uid))
    return [row[0] for row in archive.database.execute("SELECT sop_instance_uid FROM instance")]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_instance_is_known_by_its_path_whatever_its_uid(archive, filled):
    assert set(ODD_UIDS) < set(filled)
    for uid in filled:
        path = path_of(archive, uid)
        assert (named_uid(path) == uid) == (uid not in ODD_UIDS)
        assert catalogue.is_known(archive.database, path)
        assert not catalogue.is_known(archive.database, path.replace(".dcm", "0.dcm"))
        assert not catalogue.is_known(archive.database, "files/1.2/" + path.rpartition("/")[2])


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_only_those_with_another_name_are_in_the_index_of_paths(archive, filled):
    counted = archive.database.execute(
        f"SELECT count(*) FROM instance INDEXED BY instance_other_name WHERE {schema.HAS_ANOTHER_NAME}"
    ).fetchone()
    assert counted == (len(ODD_UIDS),)


def test_no_table_is_read_for_it(archive):
    plan = archive.database.execute(
        f"EXPLAIN QUERY PLAN SELECT 1 FROM instance WHERE {catalogue.AT_PATH}", catalogue.at_path("files/1/2/3-4.dcm")
    ).fetchall()
    words = " ".join(row[3] for row in plan)
    assert "SCAN" not in words
    assert {"instance_uid", "instance_other_name"} <= set(words.split())


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_catalogue_with_an_index_of_all_paths_is_brought_to_this_one(archive, filled):
    with archive.transaction() as database:
        database.execute("DROP INDEX instance_other_name")
        database.execute("CREATE INDEX instance_path ON instance(path)")
        done = "DELETE FROM _sqlite_migrations WHERE migration_set = ? AND name = 'paths'"
        database.execute(done, (migrations.name,))
    archive.close()
    again = Archive(archive.data)
    indexes = {row[0] for row in again.database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert "instance_path" not in indexes
    assert "instance_other_name" in indexes
    assert all(catalogue.is_known(again.database, path_of(again, uid)) for uid in filled)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_what_is_to_be_removed_is_so_only_while_no_row_points_to_it(archive, filled):
    paths = [path_of(archive, uid) for uid in filled]
    gone = "files/1.2/1.3/1.4-0123456789abcdef.dcm"
    with archive.transaction() as database:
        deletion.promise_removal(database, [gone, *paths])
    old = OldCatalogue(archive.database)
    assert old.removals() == {gone}
    for uid, path in zip(filled, paths, strict=True):
        assert old.sha256(path) == archive.open_instance(uid).sha256
        assert old.source_aet(path) == ""
    with archive.transaction() as database:
        deletion.revoke_promises(database)
    assert deletion.promised(archive.database, 100) == [gone]


def test_a_broken_catalogue_says_of_no_file_that_it_is_to_be_removed(archive, make_instance):
    archive.ingest(make_instance(1))
    path = path_of(archive, "1.2.826.0.1.3680043.9.7133.9.1")
    with archive.transaction() as database:
        deletion.promise_removal(database, [path])
        database.execute("ALTER TABLE instance RENAME TO lost")
    assert OldCatalogue(archive.database).removals() == frozenset()


def test_a_deletion_leaves_no_name_known(archive, make_instance):
    archive.ingest(make_instance(1))
    path = path_of(archive, "1.2.826.0.1.3680043.9.7133.9.1")
    archive.delete(Level.IMAGE, "1.2.826.0.1.3680043.9.7133.9.1")
    assert not catalogue.is_known(archive.database, path)
