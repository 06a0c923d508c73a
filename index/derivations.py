"""What was made from what: one row for each (source, recipe), so that a job run twice makes nothing twice.

The recipe is everything that determines the result: the kind of work, its parameters and the version of the code that
does it. The source digest tells whether the source has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from index import changes
from index.changes import ChangeKind
from index.keys import Level


@dataclass(frozen=True)
class Derivation:
    """A derivation that has been carried out.

    Attributes
    ----------
    source
        Series Instance UID that it started from.
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


def source_digest(database: Database, series_instance_uid: str) -> str:
    """Digest of the contents of a series: changes when an instance comes, goes or is replaced."""
    rows = database.execute(
        "SELECT instance.sop_instance_uid, instance.sha256 FROM instance JOIN series ON series.id = instance.series "
        "WHERE series.series_instance_uid = ? ORDER BY instance.sop_instance_uid",
        (series_instance_uid,),
    )
    digest = hashlib.sha256()
    for uid, sha256 in rows:
        digest.update(f"{uid}\0{sha256}\n".encode())
    return digest.hexdigest()


def find(database: Database, source: str, recipe: Mapping[str, Any]) -> Derivation | None:
    """Return what was recorded for (source, recipe), or None."""
    row = database.execute(
        "SELECT source, recipe, source_digest, outputs FROM derivation WHERE source = ? AND recipe = ?",
        (source, canonical(recipe)),
    ).fetchone()
    return None if row is None else Derivation(row[0], row[1], row[2], tuple(json.loads(row[3])))


def record(
    database: Database, source: str, recipe: Mapping[str, Any], digest: str, outputs: tuple[str, ...]
) -> None:
    """Record that (source, recipe) has been carried out, inside the caller's transaction."""
    database.execute(
        "INSERT INTO derivation (source, recipe, source_digest, outputs, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (source, recipe) DO UPDATE SET source_digest = excluded.source_digest, "
        "outputs = excluded.outputs, at = excluded.at",
        (source, canonical(recipe), digest, json.dumps(outputs), changes.now()),
    )
    (number,) = database.execute(
        "SELECT id FROM derivation WHERE source = ? AND recipe = ?", (source, canonical(recipe))
    ).fetchone()
    database.execute("DELETE FROM derivation_output WHERE derivation = ?", (number,))
    for uid in outputs:
        database.execute(
            "INSERT OR IGNORE INTO derivation_output (series_instance_uid, derivation) VALUES (?, ?)", (uid, number)
        )
        changes.append(database, ChangeKind.DERIVED, Level.SERIES, uid, source)


def made_from(database: Database, source: str) -> list[Derivation]:
    """Everything that was made from the series `source`."""
    rows = database.execute(
        "SELECT source, recipe, source_digest, outputs FROM derivation WHERE source = ? ORDER BY id", (source,)
    )
    return [Derivation(row[0], row[1], row[2], tuple(json.loads(row[3]))) for row in rows]


def is_derived(database: Database, series_instance_uid: str) -> bool:
    """Whether this node made the series."""
    return maker(database, series_instance_uid) is not None


def maker(database: Database, series_instance_uid: str) -> Derivation | None:
    """The derivation that made the series (the latest of several), or None when it came from outside."""
    row = database.execute(
        "SELECT source, recipe, source_digest, outputs FROM derivation JOIN derivation_output "
        "ON derivation_output.derivation = derivation.id WHERE derivation_output.series_instance_uid = ? "
        "ORDER BY derivation.id DESC LIMIT 1",
        (series_instance_uid,),
    ).fetchone()
    return None if row is None else Derivation(row[0], row[1], row[2], tuple(json.loads(row[3])))
