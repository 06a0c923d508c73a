"""What plug-ins have done to their worker: those that hang or kill it are left out, for a series or altogether.

A row is one kind of trouble: of a plug-in, at one place, with one subject, or, with the subject "", with how many
subjects in a row. What came back in time wipes the latter out. A single file that a plug-in cannot stand, tried again
and again, counts once: it costs its own job, not the plug-in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlite_utils import Database

SCHEMA = """
CREATE TABLE plugin_trouble (
    plugin TEXT NOT NULL,
    place TEXT NOT NULL,
    subject TEXT NOT NULL,
    how TEXT NOT NULL CHECK (how IN ('hung', 'died')),
    version TEXT NOT NULL DEFAULT '',
    times INTEGER NOT NULL,
    sentence TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (plugin, place, subject, how)
);
CREATE INDEX plugin_trouble_subject ON plugin_trouble(subject);
"""

_AT_WORK = ("jobs_for_series", "job ")
"""How the places begin that come again with each series; all others belong to the start of a worker."""

_MOST_AT_WORK = 3
_MOST_WITH_A_SUBJECT = {"hung": 1, "died": 2}
_MOST_AT_START = {"hung": 2, "died": 3}
"""A plug-in that has hung, or killed its worker, so often is left out. Once more for deaths, which others may cause."""


class How(StrEnum):
    """What became of the worker."""

    HUNG = "hung"
    DIED = "died"


@dataclass(frozen=True)
class Trouble:
    """What a plug-in has done.

    Attributes
    ----------
    place
        ``import``, the name of a hook, or ``job`` and the kind.
    subject
        Of the job meanwhile; empty when no job was done.
    version
        Of the plug-in: another one may behave.
    sentence
        What happened, without the name of the plug-in in front.
    """

    plugin: str
    place: str
    subject: str
    how: How
    version: str
    sentence: str


def note(database: Database, trouble: Trouble) -> None:
    """Count a trouble once more with its subject, and in a row if it is a new one; inside the caller's transaction."""
    known = database.execute(
        "SELECT 1 FROM plugin_trouble WHERE plugin = ? AND place = ? AND subject = ? AND how = ? AND subject <> ''",
        (trouble.plugin, trouble.place, trouble.subject, trouble.how.value),
    ).fetchone()
    for subject in {trouble.subject} if known else {trouble.subject, ""}:
        database.execute(
            "INSERT INTO plugin_trouble (plugin, place, subject, how, version, times, sentence, at) "
            "VALUES (?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT (plugin, place, subject, how) DO UPDATE SET "
            "times = CASE WHEN version = excluded.version THEN times + 1 ELSE 1 END, "
            "version = excluded.version, sentence = excluded.sentence, at = excluded.at",
            (
                trouble.plugin, trouble.place, subject, trouble.how.value, trouble.version, trouble.sentence,
                time.time(),
            ),
        )  # fmt: skip


def not_asked(database: Database, subject: str) -> dict[tuple[str, str], str]:
    """Return who is not to be asked while a job with this subject is done: (plug-in, place) → what it did."""
    rows = database.execute(
        "SELECT plugin, place, how, times, sentence FROM plugin_trouble WHERE subject = ?", (subject,)
    )
    return {
        (plugin, place): sentence
        for plugin, place, how, times, sentence in rows.fetchall()
        if subject and times >= _MOST_WITH_A_SUBJECT[how]
    }


def left_out(database: Database, versions: Mapping[str, str]) -> dict[str, str]:
    """Return who is not to be loaded at all: plug-in → what it did.

    Parameters
    ----------
    versions
        Of the plug-ins that are installed: what another version did is not held against this one.
    """
    rows = database.execute(
        "SELECT plugin, place, how, version, times, sentence FROM plugin_trouble WHERE subject = '' ORDER BY at"
    )
    return {
        plugin: sentence
        for plugin, place, how, version, times, sentence in rows.fetchall()
        if times >= _most(place, how) and version == versions.get(plugin, version)
    }


def _most(place: str, how: str) -> int:
    return _MOST_AT_WORK if place.startswith(_AT_WORK) else _MOST_AT_START[how]


def in_a_row(database: Database) -> set[tuple[str, str]]:
    """Return (plug-in, place) of all troubles that count towards being left out."""
    rows = database.execute("SELECT DISTINCT plugin, place FROM plugin_trouble WHERE subject = ''")
    return {(plugin, place) for plugin, place in rows.fetchall()}


def came_back(database: Database, plugin: str, place: str) -> None:
    """Forget the troubles in a row at a place, inside the caller's transaction: it went well this time."""
    database.execute("DELETE FROM plugin_trouble WHERE plugin = ? AND place = ? AND subject = ''", (plugin, place))


def forget_subject(database: Database, subject: str) -> None:
    """Ask everybody again about a subject, inside the caller's transaction."""
    database.execute("DELETE FROM plugin_trouble WHERE subject = ? AND subject <> ''", (subject,))


def forget(database: Database, plugin: str) -> int:
    """Forget all that a plug-in has done, inside the caller's transaction; return how many rows that were."""
    return int(database.execute("DELETE FROM plugin_trouble WHERE plugin = ?", (plugin,)).rowcount)
