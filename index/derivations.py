"""What was made from what: one row for each (source, recipe), so that a job run twice makes nothing twice.

The recipe is everything that determines the result: the kind of work, its parameters and the version of the code that
does it. The source digest tells whether the source has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from index import changes
from index.changes import ChangeKind
from index.keys import Level


@dataclass(frozen=True)
class Output:
    """A series that was made.

    Attributes
    ----------
    series_instance_uid
        Its UID.
    instances
        How many instances it has when it is whole.
    """

    series_instance_uid: str
    instances: int


@dataclass(frozen=True)
class Derivation:
    """A derivation that has been carried out.

    Attributes
    ----------
    source
        Series Instance UID that it started from; of several series, the lowest.
    recipe
        Canonical JSON of what was done.
    source_digest
        Digest of the source's instances at that time.
    outputs
        Series Instance UIDs that it made.
    """

    source: str
    recipe: str
    source_digest: str
    outputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The recipe's ``kind``: which sort of job did it."""
        return str(json.loads(self.recipe).get("kind", ""))


def canonical(recipe: Mapping[str, Any]) -> str:
    """The one way to write a recipe down: JSON with sorted keys."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"))


def source_digest(database: Database, *series_instance_uids: str) -> str:
    """Digest of the contents of one or several series: changes when an instance comes, goes or is replaced."""
    rows = database.execute(
        "SELECT instance.sop_instance_uid, instance.sha256 FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid IN (SELECT value FROM json_each(?)) ORDER BY instance.sop_instance_uid",
        (json.dumps(series_instance_uids),),
    )
    digest = hashlib.sha256()
    for uid, sha256 in rows:
        digest.update(f"{uid}\0{sha256}\n".encode())
    return digest.hexdigest()


def count_instances(database: Database, series_instance_uid: str) -> int:
    """Return how many instances of a series are stored."""
    row = database.execute(
        "SELECT count(*) FROM instance JOIN series ON series.id = instance.series WHERE series.series_instance_uid = ?",
        (series_instance_uid,),
    ).fetchone()
    return int(row[0])


def find(database: Database, source: str, recipe: Mapping[str, Any]) -> Derivation | None:
    """Return what was recorded for (source, recipe), or None."""
    row = database.execute(
        "SELECT source, recipe, source_digest, outputs FROM derivation WHERE source = ? AND recipe = ?",
        (source, canonical(recipe)),
    ).fetchone()
    return None if row is None else Derivation(row[0], row[1], row[2], tuple(json.loads(row[3])))


_MADE_SOME_OF = (
    "SELECT derivation FROM derivation_output WHERE series_instance_uid IN (SELECT value FROM json_each(?))"
)


def is_whole(database: Database, source: str, recipe: Mapping[str, Any]) -> bool:
    """Whether every series that (source, recipe) made still has all the instances that it was made with."""
    missing = database.execute(
        "SELECT 1 FROM derivation_output JOIN derivation ON derivation.id = derivation_output.derivation "
        "WHERE derivation.source = ? AND derivation.recipe = ? AND max(derivation_output.instances, 1) > "
        "(SELECT count(*) FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid = derivation_output.series_instance_uid) LIMIT 1",
        (source, canonical(recipe)),
    ).fetchone()
    return missing is None


def stale_outputs(
    database: Database, source: str, recipe: Mapping[str, Any], outputs: Sequence[Output]
) -> list[str]:
    """Series that were made before in place of `outputs` and that these lack, with all that was made from those.

    Before: by (source, recipe), or by the same recipe from another source that made some of `outputs`. That is the same
    scan while not all of its series were there.
    """
    kept = json.dumps([output.series_instance_uid for output in outputs])
    rows = database.execute(
        "WITH RECURSIVE stale(uid) AS (SELECT series_instance_uid FROM derivation_output JOIN derivation "
        "ON derivation.id = derivation_output.derivation WHERE derivation.recipe = ? AND (derivation.source = ? "
        f"OR derivation.id IN ({_MADE_SOME_OF})) AND series_instance_uid NOT IN (SELECT value FROM json_each(?)) "
        "UNION SELECT derivation_output.series_instance_uid FROM stale "
        "JOIN derivation ON derivation.source = stale.uid "
        "JOIN derivation_output ON derivation_output.derivation = derivation.id) SELECT uid FROM stale",
        (canonical(recipe), source, kept, kept),
    )
    return [uid for (uid,) in rows]


def record(
    database: Database, source: str, recipe: Mapping[str, Any], digest: str, outputs: Sequence[Output]
) -> None:
    """Record that (source, recipe) has been carried out, inside the caller's transaction.

    It takes the place of what the same recipe made from another source if that was any of `outputs`.
    """
    uids = [output.series_instance_uid for output in outputs]
    database.execute(
        f"DELETE FROM derivation WHERE recipe = ? AND source <> ? AND id IN ({_MADE_SOME_OF})",
        (canonical(recipe), source, json.dumps(uids)),
    )
    database.execute(
        "INSERT INTO derivation (source, recipe, source_digest, outputs, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (source, recipe) DO UPDATE SET source_digest = excluded.source_digest, "
        "outputs = excluded.outputs, at = excluded.at",
        (source, canonical(recipe), digest, json.dumps(uids), changes.now()),
    )
    (number,) = database.execute(
        "SELECT id FROM derivation WHERE source = ? AND recipe = ?", (source, canonical(recipe))
    ).fetchone()
    database.execute("DELETE FROM derivation_output WHERE derivation = ?", (number,))
    for output in outputs:
        database.execute(
            "INSERT OR IGNORE INTO derivation_output (series_instance_uid, derivation, instances) VALUES (?, ?, ?)",
            (output.series_instance_uid, number, output.instances),
        )
        changes.append(database, ChangeKind.DERIVED, Level.SERIES, output.series_instance_uid, source)


def maker(database: Database, series_instance_uid: str) -> Derivation | None:
    """The derivation that made the series (the latest of several), or None when it came from outside."""
    row = database.execute(
        "SELECT source, recipe, source_digest, outputs FROM derivation JOIN derivation_output "
        "ON derivation_output.derivation = derivation.id WHERE derivation_output.series_instance_uid = ? "
        "ORDER BY derivation.id DESC LIMIT 1",
        (series_instance_uid,),
    ).fetchone()
    return None if row is None else Derivation(row[0], row[1], row[2], tuple(json.loads(row[3])))
