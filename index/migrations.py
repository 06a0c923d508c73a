"""The schema of the catalogue, as steps that each run once. A change of the schema is a new step at the end.

What the steps make is in `index.schema`.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database, Migrations

from index import plugin_troubles as troubles
from index import schema
from index.matching import SEVERAL_GROUPS
from index.unit_vectors import from_bytes, to_bytes, whole_direction

migrations = Migrations("tharsis")


def _run(database: Any, script: str) -> None:
    for statement in _statements(script):
        database.execute(statement)


def _statements(script: str) -> list[str]:
    statements, current = [], ""
    for line in script.strip().splitlines():
        current += line + "\n"
        in_trigger = "CREATE TRIGGER" in current and not current.rstrip().endswith("END;")
        if line.rstrip().endswith(";") and not in_trigger:
            statements.append(current)
            current = ""
    return statements


@migrations()
def catalogue(database: Database) -> None:
    """Patients, studies, series, instances."""
    _run(database, schema.CATALOGUE)


@migrations()
def work(database: Database) -> None:
    """Change feed, jobs, derivations."""
    _run(database, schema.WORK)


@migrations()
def embeddings(database: Database) -> None:
    """Encoders and embeddings."""
    _run(database, schema.EMBEDDINGS)


@migrations()
def lookups(database: Database) -> None:
    """Find an instance by its file, and a derivation by what it made."""
    _run(database, schema.LOOKUPS)


@migrations()
def output_counts(database: Database) -> None:
    """Tell whether all that a derivation made is still there."""
    _run(database, schema.OUTPUT_COUNTS)


@migrations()
def integrity(database: Database) -> None:
    """When each file was last read back and what was found, files still to be removed, sums that are kept."""
    _run(database, schema.INTEGRITY)


@migrations()
def commitments(database: Database) -> None:
    """Requests for storage commitment, and what was found."""
    _run(database, schema.COMMITMENTS)


@migrations()
def queries(database: Database) -> None:
    """Time zones, text as it was sent where it is compared in another form, and items of sequences.

    What is stored already gets neither time zones nor items here, since they are in the files: `tharsis rebuild` reads
    them.
    """
    _run(database, schema.QUERIES)


@migrations()
def outputs_of_derivations(database: Database) -> None:
    """Find what a derivation made without reading all outputs, when it is forgotten."""
    database.execute("CREATE INDEX derivation_output_of ON derivation_output(derivation)")


@migrations()
def activations(database: Database) -> None:
    """Which encoder answered when, so that one can go back; and which one is to follow."""
    _run(database, schema.ACTIVATIONS)


@migrations()
def whole_series(database: Database) -> None:
    """The vector of a series says what is to be seen in any of it, beside what most of it looks like.

    It is made again from the vectors of its frames, as a new row, so that indexes follow.
    """
    means = database.execute("SELECT id, model_id, series FROM embedding WHERE instance IS NULL").fetchall()
    for row, model_id, series in means:
        frames = database.execute(
            "SELECT vector FROM embedding WHERE model_id = ? AND series = ? AND instance IS NOT NULL",
            (model_id, series),
        ).fetchall()
        database.execute("DELETE FROM embedding WHERE id = ?", (row,))
        if frames:
            whole = to_bytes(whole_direction([from_bytes(vector) for (vector,) in frames]))
            database.execute(
                "INSERT INTO embedding (model_id, series, vector) VALUES (?, ?, ?)", (model_id, series, whole)
            )


@migrations()
def vector_bases(database: Database) -> None:
    """Which saved index of vectors counts; and rows of embeddings found without reading their vectors."""
    _run(database, schema.VECTOR_BASES)


@migrations()
def asked(database: Database) -> None:
    """Vectors of what is embedded only because somebody asks about it, and the images that were sent to ask."""
    _run(database, schema.ASKED)


@migrations()
def told(database: Database) -> None:
    """What replaced UIDs stand for that were told through a profile; through which one a commitment was asked for."""
    _run(database, schema.TOLD)


@migrations()
def deliveries(database: Database) -> None:
    """What was sent on to whom, and which destinations cannot be reached."""
    _run(database, schema.DELIVERIES)


@migrations()
def plugin_troubles(database: Database) -> None:
    """Which plug-ins hang or kill their worker."""
    _run(database, troubles.SCHEMA)


@migrations()
def orthanc(database: Database) -> None:
    """What of the archive an Orthanc holds as well."""
    _run(database, schema.ORTHANC)


@migrations()
def finding(database: Database) -> None:
    """Find a patient by name where it has several component groups, and by birth date; a study by its ID."""
    _run(
        database,
        f"""
        CREATE INDEX patient_grouped_name ON patient(patient_name_folded)
            WHERE patient_name_folded GLOB '{SEVERAL_GROUPS}';
        CREATE INDEX patient_birth_date ON patient(patient_birth_date);
        CREATE INDEX study_id ON study(study_id);
        """,
    )


@migrations()
def network_processes(database: Database) -> None:
    """Which process should take a job, where it has the association that a report is to go out on."""
    database.execute("ALTER TABLE job ADD COLUMN preferred TEXT NOT NULL DEFAULT ''")


@migrations()
def arrivals(database: Database) -> None:
    """How far the journal of arrivals is in the catalogue: a row for each lane."""
    _run(database, schema.ARRIVALS)


@migrations()
def paths(database: Database) -> None:
    """Find an instance by its file without an index of all paths: most names have the UID."""
    _run(database, schema.PATHS)
