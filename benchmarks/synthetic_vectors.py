"""Fill an archive with synthetic vectors, and the patients, studies, series and images that they belong to, in bulk.

    python benchmarks/synthetic_vectors.py /tmp/data --count 100000 --dimension 512

What it makes is rows only: nothing can be retrieved, and nothing of it is in `files/`. 1e5 vectors take ten seconds or
so. A node that runs on the folder keeps answering with these vectors as long as their ModelID is that of its encoder,
which is what they get when their length allows it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index import embeddings
from index.archive import Archive
from index.encoders.texture import TextureEncoder
from index.unit_vectors import Vectors, unit, whole_direction

ROOT = "2.25.20260713"
SLICES, SERIES_A_STUDY, STUDIES_A_PATIENT = 20, 2, 2
_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_MODALITIES, _BODY_PARTS = ("CT", "MR", "CR", "US"), ("HEAD", "CHEST", "ABDOMEN", "PELVIS", "KNEE")
_BLOCK = 1000
"""Series in one transaction."""


def clustered(
    count: int, dimension: int, *, seed: int = 0, draw: int = 0, clusters: int = 200, rank: int = 32
) -> Vectors:
    """Return unit vectors, axes (count, dimension), around centres of uneven weight, each spread in `rank` directions.

    Embeddings look like that: few degrees of freedom around each kind of image, and a little of everything.

    Parameters
    ----------
    seed
        Of the clusters.
    draw
        Of the vectors: another one draws others from the same clusters.
    """
    random, rank = np.random.default_rng(seed), min(rank, dimension)
    centres = random.standard_normal((clusters, dimension), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = random.dirichlet(np.full(clusters, 1.0))
    directions = random.standard_normal((clusters, rank, dimension), dtype=np.float32) / np.float32(np.sqrt(dimension))
    scales = np.float32(0.6) * np.arange(1, rank + 1, dtype=np.float32) ** np.float32(-0.5)
    random = np.random.default_rng([seed, draw])
    kinds = random.choice(clusters, count, p=weights)
    out = random.standard_normal((count, dimension), dtype=np.float32) * np.float32(0.1 / np.sqrt(dimension))
    for kind in range(clusters):
        rows = np.flatnonzero(kinds == kind)
        along = random.standard_normal((len(rows), rank), dtype=np.float32) * scales
        out[rows] += centres[kind] + along @ directions[kind]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


@dataclass(frozen=True)
class _Table:
    """Rows for one table, and where their numbers begin."""

    name: str
    columns: str
    first: int

    def insert(self, database: Any, rows: list[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * len(self.columns.split(",")))
        database.conn.executemany(f"INSERT INTO {self.name} ({self.columns}) VALUES ({marks})", rows)


_COLUMNS = {
    "patient": "id, identity, patient_id, patient_name, patient_name_folded, number_of_patient_related_studies, "
               "number_of_patient_related_series, number_of_patient_related_instances",
    "study": "id, patient, study_instance_uid, study_date, accession_number, study_id, study_description, "
             "modalities_in_study, sop_classes_in_study, number_of_study_related_series, "
             "number_of_study_related_instances",
    "series": "id, study, series_instance_uid, modality, series_number, body_part_examined, "
              "number_of_series_related_instances",
    "instance": "id, series, sop_instance_uid, sop_class_uid, instance_number, transfer_syntax_uid, path, size, "
                "sha256, received_at, verified_at",
    "embedding": "model_id, series, instance, frame, vector",
}  # fmt: skip


def fill(archive: Archive, vectors: Vectors, model_id: str = "", *, series_vectors: bool = True) -> str:
    """Store `vectors`, axes (n, d), in order, each as one image; return their ModelID.

    Twenty to a series, two series to a study, two studies to a patient: PatientID ``SYN<n>``, modalities and body parts
    in turn by series. May be called again to add more.

    Parameters
    ----------
    model_id
        Empty: this node's own texture encoder where its vectors are as long, else ``synthetic-1-<d>``.
    series_vectors
        Whether each series gets its own vector as well.
    """
    model_id = model_id or _model_for(vectors.shape[1])
    embeddings.register(archive, model_id, vectors.shape[1])
    groups = np.array_split(vectors, range(SLICES, len(vectors), SLICES))
    for first in range(0, len(groups), _BLOCK):
        with archive.transaction() as database:
            tables = {
                name: _Table(name, columns, 1 + (database.execute(f"SELECT max(id) FROM {name}").fetchone()[0] or 0))
                for name, columns in _COLUMNS.items()
            }
            _insert(database, tables, groups[first : first + _BLOCK], model_id, series_vectors=series_vectors)
    return model_id


def _model_for(dimension: int) -> str:
    encoder = TextureEncoder.load()
    return encoder.model_id if encoder.dimension == dimension else f"synthetic-1-{dimension}"


def _insert(
    database: Any, tables: dict[str, _Table], groups: list[Vectors], model_id: str, *, series_vectors: bool
) -> None:
    now = time.time()
    per_patient = SERIES_A_STUDY * STUDIES_A_PATIENT
    numbers = range(0, len(groups), SERIES_A_STUDY)
    studies = [groups[at : at + SERIES_A_STUDY] for at in numbers]
    tables["patient"].insert(database, [
        (p := tables["patient"].first + at // per_patient, f"SYN{p}", f"SYN{p}", f"Synthetic^{p}", f"SYNTHETIC^{p}",
         -(-len(part := groups[at : at + per_patient]) // SERIES_A_STUDY), len(part), sum(map(len, part)))
        for at in range(0, len(groups), per_patient)
    ])  # fmt: skip
    tables["study"].insert(database, [
        (s := tables["study"].first + at, tables["patient"].first + at // STUDIES_A_PATIENT, f"{ROOT}.{s}",
         f"20{10 + s % 15}0{1 + s % 9}1{s % 10}", f"A{s}", str(s), f"Synthetic study {s}",
         _modality(tables["series"].first + at * SERIES_A_STUDY), _CT_IMAGE_STORAGE, len(part), sum(map(len, part)))
        for at, part in enumerate(studies)
    ])  # fmt: skip
    tables["series"].insert(database, [
        (r := tables["series"].first + at, tables["study"].first + at // SERIES_A_STUDY,
         f"{ROOT}.{tables['study'].first + at // SERIES_A_STUDY}.{r}", _modality(r), str(1 + at % SERIES_A_STUDY),
         _BODY_PARTS[r % len(_BODY_PARTS)], len(group))
        for at, group in enumerate(groups)
    ])  # fmt: skip
    images = list(_images(tables, groups))
    tables["instance"].insert(database, [
        (image, series, f"{ROOT}.{series}.{image}.0", _CT_IMAGE_STORAGE, str(number), _EXPLICIT_LITTLE_ENDIAN,
         f"synthetic/{image}", 0, "", "2026-01-01T00:00:00+00:00", now)
        for image, series, number, _ in images
    ])  # fmt: skip
    rows = [(model_id, series, image, 0, vector.astype("<f4").tobytes()) for image, series, _, vector in images]
    if series_vectors:
        rows += [
            (model_id, tables["series"].first + at, None, 0, whole_direction(group).astype("<f4").tobytes())
            for at, group in enumerate(groups)
        ]
    tables["embedding"].insert(database, rows)


def _images(tables: dict[str, _Table], groups: list[Vectors]) -> Iterator[tuple[int, int, int, Vectors]]:
    """Yield (instance row, series row, Instance Number, vector)."""
    image = tables["instance"].first
    for series, group in enumerate(groups, tables["series"].first):
        for number, vector in enumerate(group, 1):
            yield image, series, number, vector
            image += 1


def _modality(series: int) -> str:
    """Both series of a study have the same one."""
    return _MODALITIES[(series - 1) // SERIES_A_STUDY % len(_MODALITIES)]


def in_series(count: int, dimension: int, *, seed: int = 0) -> Vectors:
    """Return `clustered` vectors in which those of one series lie close together, as slices do."""
    series = clustered(-(-count // SLICES), dimension, seed=seed)
    random = np.random.default_rng(seed + 1)
    slices = np.repeat(series, SLICES, axis=0)[:count]
    slices += random.standard_normal(slices.shape, dtype=np.float32) * np.float32(0.3 / np.sqrt(dimension))
    return unit(slices)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder; made when absent")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-id", default="", help="default: the texture encoder's, when its vectors are as long")
    arguments = parser.parse_args()
    started = time.perf_counter()
    archive = Archive(arguments.data)
    vectors = in_series(arguments.count, arguments.dimension, seed=arguments.seed)
    model_id = fill(archive, vectors, arguments.model_id)
    print(f"{arguments.count:,} vectors of {model_id} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
