"""The demo's pictures, drawn from what the receiver was sent: what a viewer would show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from commands.demo_data import Sample
from commands.pictures import Picture, sheet, three_planes
from index.archive import Archive
from plugins.node import Series
from plugins.segmentation.seg_object import read_labels
from plugins.segmentation.volume_reader import read_volume

_HU_WINDOW = (-1000.0, 1500.0)


@dataclass(frozen=True, eq=False)
class _Study:
    """The derived series of a study: volumes ``(z, y, x)`` by energy bin, and the labels on the first of them."""

    volumes: list[tuple[str, NDArray[np.float32]]]
    labels: NDArray[np.uint8] | None
    segments: list[str]


def draw(
    folder: Path,
    received: Archive,
    samples: Sequence[Sample],
    neighbours: Sequence[dict[str, Any]],
    progress: Callable[[float], None],
) -> list[Path]:
    """Draw projections, reconstructions and neighbours; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("projections.png", "reconstructions.png", "segments.png", "neighbours.png")]
    _projections(samples, files[0])
    progress(0.2)
    studies = {}
    for number, sample in enumerate(samples, start=1):
        studies[sample.study] = _read_study(received, sample.study)
        progress(0.2 + 0.6 * number / len(samples))
    _reconstructions(samples, studies, files[1])
    _segments(samples, studies, files[2])
    _neighbours(received, samples[0], studies, neighbours, files[3])
    progress(1.0)
    return files


def _projections(samples: Sequence[Sample], file: Path) -> None:
    rows = []
    for sample in samples:
        scan = next(dataset for dataset in map(pydicom.dcmread, sample.files) if _is_first_counter(dataset))
        counts = scan.pixel_array
        shown = [int(len(counts) * part / 4) for part in range(4)]
        angles = [360 * index / len(counts) for index in shown]
        rows.append(
            [
                Picture(f"{angle:.0f}°", np.log(np.maximum(counts[index], 1).astype(np.float32)))
                for index, angle in zip(shown, angles, strict=True)
            ]
        )
    names = [sample.scan.name for sample in samples]
    sheet(rows, file, title="Projections: counts of the lowest counter (logarithm)", row_names=names)


def _is_first_counter(dataset: Dataset) -> bool:
    return int(dataset.InstanceNumber) == 1


def _read_study(archive: Archive, study: str) -> _Study:
    volumes, labels, segments = [], None, []
    ct: list[tuple[int, str]] = []
    seg = None
    for series in _series_of(archive, study):
        modality = str(series.header.Modality)
        if modality == "CT":
            ct.append((int(series.header.SeriesNumber), series.uid))
        elif modality == "SEG":
            seg = series
    for _, uid in sorted(ct):
        series = Series(archive, uid)
        _, volume = read_volume(series.paths)
        volumes.append((str(series.header.SeriesDescription), volume.values))
    if seg is not None:
        dataset = pydicom.dcmread(seg.paths[0])
        labels = read_labels(dataset, volumes[0][1].shape)
        segments = [str(item.SegmentLabel) for item in dataset.SegmentSequence]
    return _Study(volumes, labels, segments)


def _series_of(archive: Archive, study: str) -> list[Series]:
    rows = archive.database.execute(
        "SELECT series.series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study.study_instance_uid = ?",
        (study,),
    ).fetchall()
    return [Series(archive, uid) for (uid,) in rows]


def _reconstructions(samples: Sequence[Sample], studies: dict[str, _Study], file: Path) -> None:
    rows = [
        [Picture(name, volume[len(volume) // 2], window=_HU_WINDOW) for name, volume in studies[sample.study].volumes]
        for sample in samples
    ]
    names = [sample.scan.name for sample in samples]
    sheet(rows, file, title="Reconstructed slices of each energy bin (-1000 to 1500 HU)", row_names=names)


def _segments(samples: Sequence[Sample], studies: dict[str, _Study], file: Path) -> None:
    legend = list(dict.fromkeys(name for sample in samples for name in studies[sample.study].segments))
    rows = []
    for sample in samples:
        study = studies[sample.study]
        volume = study.volumes[0][1]
        labels = _renumbered(study, legend)
        plain, *_ = three_planes(volume, window=_HU_WINDOW)
        rows.append([plain, *three_planes(volume, labels, window=_HU_WINDOW)])
    names = [sample.scan.name for sample in samples]
    sheet(rows, file, title="Segments over the lowest energy bin", row_names=names, legend=legend)


def _renumbered(study: _Study, legend: Sequence[str]) -> NDArray[np.uint8] | None:
    """Labels numbered as in the sheet's legend, which has all that any study has."""
    if study.labels is None:
        return None
    table = np.zeros(len(study.segments) + 1, np.uint8)
    for number, name in enumerate(study.segments, start=1):
        table[number] = legend.index(name) + 1
    return table[study.labels]


def _neighbours(
    archive: Archive,
    query: Sample,
    studies: dict[str, _Study],
    neighbours: Sequence[dict[str, Any]],
    file: Path,
) -> None:
    asked = studies[query.study].volumes[0][1]
    row = [Picture("query", asked[len(asked) // 2], subtitle=query.scan.patient_name, window=_HU_WINDOW)]
    for neighbour in neighbours:
        title = f"#{neighbour['rank']}  score {neighbour['score']:.4f}"
        known = studies.get(neighbour["study"])
        if known is not None:
            volume = known.volumes[0][1]
            row.append(
                Picture(title, volume[len(volume) // 2], subtitle=neighbour["patient"], window=_HU_WINDOW)
            )
            continue
        image = pydicom.dcmread(_series_of(archive, neighbour["study"])[0].paths[0]).pixel_array
        row.append(Picture(title, image.reshape(-1, *image.shape[-2:])[0], subtitle=neighbour["patient"]))
    sheet([row], file, title="A query and the most similar cases")
