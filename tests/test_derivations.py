"""What was made from what: one row for each source and recipe, found again from either end."""

from __future__ import annotations

import pytest

from index import changes, derivations
from index.archive import Archive
from index.changes import ChangeKind
from index.keys import Level

RECIPE = {"kind": "fdk", "version": 1, "parameters": {"filter": "hann", "cutoff": 0.8}}
SAME = {"parameters": {"cutoff": 0.8, "filter": "hann"}, "version": 1, "kind": "fdk"}


def record(archive, source="1.1", recipe=RECIPE, digest="d", outputs=("1.5", "1.6")):
    with archive.transaction() as database:
        derivations.record(database, source, recipe, digest, tuple(outputs))


def test_what_was_recorded_is_found_however_the_recipe_is_written(archive):
    assert derivations.find(archive.database, "1.1", RECIPE) is None
    record(archive)
    found = derivations.find(Archive(archive.data).database, "1.1", SAME)
    assert found is not None
    assert (found.source, found.source_digest, found.outputs) == ("1.1", "d", ("1.5", "1.6"))
    assert derivations.find(archive.database, "1.2", RECIPE) is None
    assert derivations.find(archive.database, "1.1", {**RECIPE, "version": 2}) is None


def test_doing_it_again_replaces_the_row(archive):
    record(archive)
    record(archive, recipe=SAME, digest="e", outputs=["1.7"])
    (made,) = derivations.made_from(archive.database, "1.1")
    assert (made.source_digest, made.outputs) == ("e", ("1.7",))
    assert derivations.is_derived(archive.database, "1.7")
    assert not derivations.is_derived(archive.database, "1.5")


def test_a_series_knows_its_maker_and_uids_that_resemble_it_do_not(archive):
    record(archive)
    record(archive, source="1.6", recipe={"kind": "seg"}, outputs=["1.61"])
    assert derivations.maker(archive.database, "1.5").source == "1.1"
    assert derivations.maker(archive.database, "1.61").source == "1.6"
    for uid in ("1.1", "1", ".5", "1.5%", "", "1.62"):
        assert derivations.maker(archive.database, uid) is None
        assert not derivations.is_derived(archive.database, uid)


def test_of_several_makers_the_latest_counts(archive):
    record(archive)
    record(archive, recipe={"kind": "fdk", "version": 2}, outputs=["1.5", "1.5"])
    assert derivations.maker(archive.database, "1.5").recipe == '{"kind":"fdk","version":2}'
    assert len(derivations.made_from(archive.database, "1.1")) == 2


def test_the_lookup_uses_an_index(archive):
    plan = archive.database.execute(
        "EXPLAIN QUERY PLAN SELECT 1 FROM derivation JOIN derivation_output "
        "ON derivation_output.derivation = derivation.id WHERE derivation_output.series_instance_uid = '1'"
    ).fetchall()
    assert not any("SCAN" in row[3] for row in plan)


def test_each_output_is_announced_in_the_same_transaction(archive):
    def record_and_fail():
        with archive.transaction() as database:
            derivations.record(database, "1.1", RECIPE, "d", ("1.5",))
            raise KeyError

    with pytest.raises(KeyError):
        record_and_fail()
    assert derivations.find(archive.database, "1.1", RECIPE) is None
    record(archive)
    feed = [(change.kind, change.level, change.uid, change.detail) for change in changes.since(archive.database)]
    assert feed == [(ChangeKind.DERIVED, Level.SERIES, uid, "1.1") for uid in ("1.5", "1.6")]


def test_the_digest_of_a_source_follows_its_content(archive, make_instance):
    series = "1.2.826.0.1.3680043.9.7133.2"
    digests = []

    def note():
        digests.append(derivations.source_digest(archive.database, series))

    note()
    archive.ingest(make_instance(1))
    note()
    archive.ingest(make_instance(2))
    note()
    archive.ingest(make_instance(3, SeriesInstanceUID="1.9"))
    assert derivations.source_digest(archive.database, series) == digests[-1]
    archive.ingest(make_instance(2, PatientName="New^Name"), overwrite="always")
    note()
    assert len(set(digests)) == 4
    archive.delete(Level.IMAGE, "1.2.826.0.1.3680043.9.7133.9.2")
    assert derivations.source_digest(archive.database, series) == digests[1]
