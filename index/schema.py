"""The tables of the catalogue, as the SQL of the steps in `index.migrations` that make them.

Tables: ``patient`` → ``study`` → ``series`` → ``instance`` (what exists), ``item`` (items of their sequences),
``change`` (append-only feed), ``job`` (durable queue), ``derivation`` and ``derivation_output`` (what was made from
what), ``encoder`` and ``embedding`` (vectors; the truth of which every index is a cache), ``activation`` (which encoder
answered when), ``embedding_change`` (lets those caches follow), ``vector_base`` (the saved index that counts),
``removal`` (files that a committed deletion still has to remove), ``tally`` (sums, kept by triggers), ``commitment``
(requests for storage commitment), ``asked`` and ``question`` (what similarity queries had embedded, and the images that
were sent to ask), ``told`` (what UIDs stand for that were told through a de-identification profile), ``delivery`` and
``destination_trouble`` (what was sent on to whom), ``plugin_trouble`` (plug-ins that hang), ``orthanc_series`` and
``orthanc_instance`` (what an Orthanc holds as well). Key columns come from
`index.keys`.
"""

from __future__ import annotations

from index.keys import Key, Level, Matching, item_keywords, keys_of, snake_case

_TEXT = "TEXT NOT NULL DEFAULT ''"


def _column(key: Key) -> str:
    is_count = key.counted and key.matching is Matching.NUMBER
    return f"{snake_case(key.keyword)} {'INTEGER NOT NULL DEFAULT 0' if is_count else _TEXT}"


def _columns(level: Level) -> str:
    names = [_column(key) for key in keys_of(level)]
    names += [
        f"{snake_case(key.keyword)}_folded {_TEXT}"
        for key in keys_of(level)
        if key.matching is Matching.PERSON_NAME
    ]
    return ",\n    ".join([*names, f"specific_character_set {_TEXT}"])


CATALOGUE = f"""
CREATE TABLE patient (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,
    {_columns(Level.PATIENT)}
);
CREATE TABLE study (
    id INTEGER PRIMARY KEY,
    patient INTEGER NOT NULL REFERENCES patient(id),
    {_columns(Level.STUDY)}
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    study INTEGER NOT NULL REFERENCES study(id),
    {_columns(Level.SERIES)},
    UNIQUE (study, series_instance_uid)
);
CREATE TABLE instance (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series(id),
    {_columns(Level.IMAGE)},
    transfer_syntax_uid TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    source_aet TEXT NOT NULL DEFAULT '',  -- see index.senders
    received_at TEXT NOT NULL             -- when it came last, also as a duplicate
);
CREATE UNIQUE INDEX study_uid ON study(study_instance_uid);
CREATE UNIQUE INDEX instance_uid ON instance(sop_instance_uid);
CREATE INDEX series_uid ON series(series_instance_uid);
CREATE INDEX study_patient ON study(patient);
CREATE INDEX instance_series ON instance(series);
CREATE INDEX patient_patient_id ON patient(patient_id);
CREATE INDEX patient_name ON patient(patient_name_folded);
CREATE INDEX study_date ON study(study_date);
CREATE INDEX study_accession ON study(accession_number);
"""

WORK = """
CREATE TABLE change (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    level TEXT NOT NULL,
    uid TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
);
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    parameters TEXT NOT NULL DEFAULT '{}',
    state TEXT NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    not_before REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '',
    claim_expires REAL,
    error TEXT NOT NULL DEFAULT '',
    progress REAL NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    finished REAL
);
CREATE UNIQUE INDEX job_queued ON job(kind, subject, parameters) WHERE state = 'queued';
CREATE INDEX job_due ON job(state, not_before);
CREATE TABLE derivation (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    recipe TEXT NOT NULL,
    source_digest TEXT NOT NULL,
    outputs TEXT NOT NULL,
    at TEXT NOT NULL,
    UNIQUE (source, recipe)
);
"""

EMBEDDINGS = """
CREATE TABLE encoder (
    model_id TEXT PRIMARY KEY,
    dimension INTEGER NOT NULL,
    active INTEGER NOT NULL DEFAULT 0,
    at TEXT NOT NULL
);
CREATE TABLE embedding (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL REFERENCES encoder(model_id),
    series INTEGER NOT NULL REFERENCES series(id) ON DELETE CASCADE,
    instance INTEGER REFERENCES instance(id) ON DELETE CASCADE,
    frame INTEGER NOT NULL DEFAULT 0,
    vector BLOB NOT NULL
);
CREATE UNIQUE INDEX embedding_of ON embedding(model_id, series, coalesce(instance, 0), frame);
CREATE INDEX embedding_series ON embedding(series);
CREATE INDEX embedding_instance ON embedding(instance);
CREATE TABLE embedding_change (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL,
    embedding INTEGER NOT NULL,
    removed INTEGER NOT NULL
);
CREATE TRIGGER embedding_added AFTER INSERT ON embedding BEGIN
    INSERT INTO embedding_change (model_id, embedding, removed) VALUES (new.model_id, new.id, 0);
END;
CREATE TRIGGER embedding_removed AFTER DELETE ON embedding BEGIN
    INSERT INTO embedding_change (model_id, embedding, removed) VALUES (old.model_id, old.id, 1);
END;
"""

ACTIVATIONS = """
ALTER TABLE encoder ADD COLUMN wanted INTEGER NOT NULL DEFAULT 0;
CREATE TABLE activation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL REFERENCES encoder(model_id),
    at TEXT NOT NULL
);
INSERT INTO activation (model_id, at) SELECT model_id, at FROM encoder WHERE active;
"""

HAS_ANOTHER_NAME = "instr(path, '/' || sop_instance_uid || '-') = 0"
"""Condition for the instances whose file is not named by their UID, since that is not valid."""

PATHS = f"""
DROP INDEX instance_path;
CREATE INDEX instance_other_name ON instance(path) WHERE {HAS_ANOTHER_NAME};
"""
"""An index of all paths was a quarter of the catalogue."""

LOOKUPS = """
CREATE INDEX instance_path ON instance(path);
CREATE TABLE derivation_output (
    series_instance_uid TEXT NOT NULL,
    derivation INTEGER NOT NULL REFERENCES derivation(id) ON DELETE CASCADE,
    PRIMARY KEY (series_instance_uid, derivation)
);
INSERT INTO derivation_output (series_instance_uid, derivation)
    SELECT DISTINCT json_each.value, derivation.id FROM derivation, json_each(derivation.outputs);
"""


OUTPUT_COUNTS = """
ALTER TABLE derivation_output ADD COLUMN instances INTEGER NOT NULL DEFAULT 0;
UPDATE derivation_output SET instances = (
    SELECT count(*) FROM instance JOIN series ON series.id = instance.series
    WHERE series.series_instance_uid = derivation_output.series_instance_uid
);
"""

INTEGRITY = """
ALTER TABLE instance ADD COLUMN verified_at REAL NOT NULL DEFAULT 0;
ALTER TABLE instance ADD COLUMN damage TEXT NOT NULL DEFAULT '';
CREATE INDEX instance_verified ON instance(verified_at);
CREATE INDEX instance_damaged ON instance(damage) WHERE damage <> '';
CREATE TABLE removal (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE tally (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO tally (name, value) SELECT 'stored_bytes', coalesce(sum(size), 0) FROM instance;
INSERT INTO tally (name, value) VALUES ('studies_deleted_by_retention', 0);
CREATE TRIGGER instance_stored AFTER INSERT ON instance BEGIN
    UPDATE tally SET value = value + new.size WHERE name = 'stored_bytes';
END;
CREATE TRIGGER instance_removed AFTER DELETE ON instance BEGIN
    UPDATE tally SET value = value - old.size WHERE name = 'stored_bytes';
END;
"""

COMMITMENTS = """
CREATE TABLE commitment (
    requestor TEXT NOT NULL,
    transaction_uid TEXT NOT NULL,
    address TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('requested', 'checked', 'reported')),
    instances TEXT NOT NULL,
    failures TEXT NOT NULL DEFAULT '[]',
    requested_at REAL NOT NULL,
    reported_at REAL,
    PRIMARY KEY (requestor, transaction_uid)
);
CREATE INDEX job_of_kind ON job(kind, state, not_before);
"""

QUERIES = f"""
ALTER TABLE patient ADD COLUMN timezone_offset_from_utc TEXT NOT NULL DEFAULT '';
ALTER TABLE study ADD COLUMN timezone_offset_from_utc TEXT NOT NULL DEFAULT '';
ALTER TABLE series ADD COLUMN timezone_offset_from_utc TEXT NOT NULL DEFAULT '';
ALTER TABLE instance ADD COLUMN timezone_offset_from_utc TEXT NOT NULL DEFAULT '';
ALTER TABLE patient ADD COLUMN originals TEXT NOT NULL DEFAULT '';
ALTER TABLE study ADD COLUMN originals TEXT NOT NULL DEFAULT '';
ALTER TABLE series ADD COLUMN originals TEXT NOT NULL DEFAULT '';
ALTER TABLE instance ADD COLUMN originals TEXT NOT NULL DEFAULT '';
CREATE TABLE item (
    id INTEGER PRIMARY KEY,
    study INTEGER REFERENCES study(id) ON DELETE CASCADE,
    series INTEGER REFERENCES series(id) ON DELETE CASCADE,
    instance INTEGER REFERENCES instance(id) ON DELETE CASCADE,
    parent INTEGER REFERENCES item(id) ON DELETE CASCADE,
    sequence TEXT NOT NULL,
    number INTEGER NOT NULL,
    specific_character_set TEXT NOT NULL DEFAULT '',
    originals TEXT NOT NULL DEFAULT '',
    {", ".join(f"{snake_case(keyword)} TEXT" for keyword in item_keywords())}
);
CREATE INDEX item_study ON item(study) WHERE study IS NOT NULL;
CREATE INDEX item_series ON item(series) WHERE series IS NOT NULL;
CREATE INDEX item_instance ON item(instance) WHERE instance IS NOT NULL;
CREATE INDEX item_parent ON item(parent) WHERE parent IS NOT NULL;
CREATE INDEX item_code ON item(sequence, code_value);
CREATE INDEX item_accession ON item(sequence, accession_number);
CREATE INDEX item_procedure ON item(sequence, requested_procedure_id);
CREATE INDEX item_step ON item(sequence, scheduled_procedure_step_id);
"""

ASKED = """
CREATE TABLE asked (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL REFERENCES encoder(model_id) ON DELETE CASCADE,
    instance INTEGER REFERENCES instance(id) ON DELETE CASCADE,
    frame INTEGER NOT NULL DEFAULT 0,
    region TEXT NOT NULL DEFAULT '',
    file TEXT NOT NULL DEFAULT '',
    vectors BLOB,
    refused_as TEXT NOT NULL DEFAULT '',
    refusal TEXT NOT NULL DEFAULT '',
    at REAL NOT NULL
);
CREATE UNIQUE INDEX asked_of ON asked(model_id, instance, frame, region) WHERE instance IS NOT NULL;
CREATE INDEX asked_instance ON asked(instance);
CREATE INDEX asked_at ON asked(at);
CREATE TABLE question (
    asked INTEGER PRIMARY KEY REFERENCES asked(id) ON DELETE CASCADE,
    asker TEXT NOT NULL,
    patient_id TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    is_closed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX question_asker ON question(asker);
CREATE INDEX job_of_subject ON job(subject, kind);
"""


VECTOR_BASES = """
CREATE TABLE vector_base (
    model_id TEXT NOT NULL REFERENCES encoder(model_id) ON DELETE CASCADE,
    grain TEXT NOT NULL CHECK (grain IN ('frame', 'series')),
    folder TEXT NOT NULL UNIQUE,
    seq INTEGER NOT NULL,
    vectors INTEGER NOT NULL,
    dimension INTEGER NOT NULL,
    last_id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    files TEXT NOT NULL,
    curve TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL,
    PRIMARY KEY (model_id, grain)
);
CREATE INDEX embedding_row ON embedding(model_id, series, instance);
DROP INDEX embedding_instance;
CREATE INDEX embedding_instance ON embedding(instance, model_id);
"""

TOLD = """
CREATE TABLE told (
    profile TEXT NOT NULL,
    uid TEXT NOT NULL,
    original TEXT NOT NULL,
    PRIMARY KEY (profile, uid)
) WITHOUT ROWID;
ALTER TABLE commitment ADD COLUMN profile TEXT NOT NULL DEFAULT '';
"""

DELIVERIES = """
CREATE TABLE delivery (
    destination TEXT NOT NULL,
    profile TEXT NOT NULL DEFAULT '',
    sop_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    sent_uid TEXT NOT NULL,
    rule TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL CHECK (state IN ('failing', 'refused', 'sent', 'committed')),
    told TEXT NOT NULL DEFAULT '',
    since REAL NOT NULL,
    at REAL NOT NULL,
    transaction_uid TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (destination, profile, sop_instance_uid)
);
CREATE INDEX delivery_of ON delivery(series_instance_uid, destination);
CREATE INDEX delivery_instance ON delivery(sop_instance_uid);
CREATE INDEX delivery_transaction ON delivery(transaction_uid) WHERE transaction_uid <> '';
CREATE TABLE destination_trouble (
    destination TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    since REAL NOT NULL,
    next_try REAL NOT NULL,
    error TEXT NOT NULL
) WITHOUT ROWID;
"""

ORTHANC = """
CREATE TABLE orthanc_series (
    orthanc_id TEXT PRIMARY KEY,
    orthanc_study TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    listing TEXT NOT NULL DEFAULT '',
    content TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX orthanc_series_uid ON orthanc_series(series_instance_uid);
CREATE INDEX orthanc_series_study ON orthanc_series(orthanc_study);
CREATE TABLE orthanc_instance (
    instance INTEGER PRIMARY KEY REFERENCES instance(id) ON DELETE CASCADE,
    orthanc_id TEXT NOT NULL,
    orthanc_series TEXT NOT NULL,
    version TEXT NOT NULL
);
CREATE INDEX orthanc_instance_id ON orthanc_instance(orthanc_id);
CREATE INDEX orthanc_instance_series ON orthanc_instance(orthanc_series);
"""

ARRIVALS = """
CREATE TABLE arrivals (
    lane INTEGER PRIMARY KEY,  -- of the journal, that of one process
    number INTEGER NOT NULL,   -- its last block whose rows are in the catalogue
    settled INTEGER NOT NULL,  -- its last block of which everything has reached the disk
    emptied INTEGER NOT NULL,  -- how often the journal has been emptied
    boot TEXT NOT NULL         -- which start of the system wrote last
);
"""
