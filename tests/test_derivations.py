"""What was made from what: one row for each source and recipe, found again from either end."""

from __future__ import annotations

import pytest

from index import changes, derivations, migrations
from index.archive import Archive
from index.changes import ChangeKind
from index.derivations import Output
from index.keys import Level

RECIPE = {"kind": "fdk", "version": 1, "parameters": {"filter": "hann", "cutoff": 0.8}}
SAME = {"parameters": {"cutoff": 0.8, "filter": "hann"}, "version": 1, "kind": "fdk"}


def record(archive, source="1.1", recipe=RECIPE, digest="d", outputs=("1.5", "1.6"), instances=1):
    with archive.transaction() as database:
        derivations.record(database, source, recipe, digest, [Output(uid, instances) for uid in outputs])


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
    made = derivations.find(archive.database, "1.1", RECIPE)
    assert (made.source_digest, made.outputs) == ("e", ("1.7",))
    assert archive.database.execute("SELECT count(*) FROM derivation").fetchone() == (1,)
    assert derivations.maker(archive.database, "1.7") == made
    assert derivations.maker(archive.database, "1.5") is None


def test_a_series_knows_its_maker_and_uids_that_resemble_it_do_not(archive):
    record(archive)
    record(archive, source="1.6", recipe={"kind": "seg"}, outputs=["1.61"])
    assert derivations.maker(archive.database, "1.5").source == "1.1"
    assert derivations.maker(archive.database, "1.61").source == "1.6"
    for uid in ("1.1", "1", ".5", "1.5%", "", "1.62"):
        assert derivations.maker(archive.database, uid) is None


def test_of_several_makers_the_latest_counts(archive):
    record(archive)
    record(archive, recipe={"kind": "fdk", "version": 2}, outputs=["1.5", "1.5"])
    assert derivations.maker(archive.database, "1.5").recipe == '{"kind":"fdk","version":2}'
    assert derivations.find(archive.database, "1.1", RECIPE) is not None


def test_the_lookup_uses_an_index(archive):
    plan = archive.database.execute(
        "EXPLAIN QUERY PLAN SELECT 1 FROM derivation JOIN derivation_output "
        "ON derivation_output.derivation = derivation.id WHERE derivation_output.series_instance_uid = '1'"
    ).fetchall()
    assert not any("SCAN" in row[3] for row in plan)


def test_each_output_is_announced_in_the_same_transaction(archive):
    def record_and_fail():
        with archive.transaction() as database:
            derivations.record(database, "1.1", RECIPE, "d", [Output("1.5", 1)])
            raise KeyError

    with pytest.raises(KeyError):
        record_and_fail()
    assert derivations.find(archive.database, "1.1", RECIPE) is None
    record(archive)
    feed = [(change.kind, change.level, change.uid, change.detail) for change in changes.since(archive.database)]
    assert feed == [(ChangeKind.DERIVED, Level.SERIES, uid, "1.1") for uid in ("1.5", "1.6")]


def test_what_was_made_is_whole_while_no_instance_is_missing(archive, make_instance):
    series = "1.2.826.0.1.3680043.9.7133.2"
    record(archive, outputs=[series], instances=2)
    archive.ingest(make_instance(1))
    assert not derivations.is_whole(archive.database, "1.1", RECIPE)
    archive.ingest(make_instance(2))
    assert derivations.is_whole(archive.database, "1.1", SAME)
    archive.delete(Level.IMAGE, "1.2.826.0.1.3680043.9.7133.9.2")
    assert not derivations.is_whole(archive.database, "1.1", RECIPE)


def test_stale_is_what_is_made_no_more_and_all_that_came_of_it(archive):
    record(archive, outputs=["1.5", "1.6"])
    record(archive, recipe={"kind": "other"}, outputs=["1.7"])
    for source, made in (("1.5", "1.51"), ("1.51", "1.511"), ("1.6", "1.61")):
        record(archive, source=source, recipe={"kind": "seg"}, outputs=[made])
    stale = derivations.stale_outputs(archive.database, "1.1", RECIPE, [Output("1.6", 1)])
    assert sorted(stale) == ["1.5", "1.51", "1.511"]
    assert derivations.stale_outputs(archive.database, "1.9", RECIPE, []) == []


def test_another_source_of_the_same_outputs_takes_the_place_of_the_first(archive):
    """The lower series of a scan came later: the scan is recorded of that one from now on."""
    record(archive, source="1.2", outputs=["1.5", "1.6"])
    assert derivations.stale_outputs(archive.database, "1.1", RECIPE, [Output("1.5", 1)]) == ["1.6"]
    record(archive, source="1.1", outputs=["1.5"])
    assert derivations.find(archive.database, "1.2", RECIPE) is None
    assert derivations.maker(archive.database, "1.5").source == "1.1"
    assert derivations.maker(archive.database, "1.6") is None


def test_counts_of_outputs_recorded_before_are_those_that_are_stored(archive, make_instance):
    """The step of the schema that adds the counts, on a catalogue that has outputs already."""
    archive.ingest(make_instance(1))
    record(archive, outputs=["1.2.826.0.1.3680043.9.7133.2", "1.6"], instances=0)
    database = archive.database
    database.execute("ALTER TABLE derivation_output DROP COLUMN instances")
    migrations.output_counts(database)
    counts = database.execute("SELECT series_instance_uid, instances FROM derivation_output").fetchall()
    assert dict(counts) == {"1.2.826.0.1.3680043.9.7133.2": 1, "1.6": 0}


def test_the_digest_of_several_series_covers_each(archive, make_instance):
    archive.ingest(make_instance(1))
    both = ("1.2.826.0.1.3680043.9.7133.2", "1.9")
    alone = derivations.source_digest(archive.database, both[0])
    assert derivations.source_digest(archive.database, *both) == alone
    archive.ingest(make_instance(3, SeriesInstanceUID="1.9"))
    together = derivations.source_digest(archive.database, *both)
    assert together != alone
    assert derivations.source_digest(archive.database, *both[::-1]) == together


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
