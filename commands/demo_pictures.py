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

from commands.demo_data import MODALITIES, Sample
from commands.pictures import Picture, sheet
from commands.planes import Planes, fullest_contrast, planes_through, position_of, three_planes
from index.archive import Archive
from index.encoders.pixels import canonical_frames
from plugins.node import Series
from plugins.segmentation.seg_object import read_labels
from plugins.segmentation.segmenter import Volume
from plugins.segmentation.volume_reader import read_volume

_HU_WINDOW = (-1000.0, 1500.0)
_WINDOW = "−1000 (black) to 1500 HU (white)"
_MOST_FRAMES = 1000
_COORDINATES = "z towards the head, y towards the back, x towards the left"


@dataclass(frozen=True, eq=False)
class _Study:
    """The derived series of a study: volumes by energy bin, the labels on the first of them, the planes to look at."""

    volumes: list[tuple[str, Volume]]
    labels: NDArray[np.uint8] | None
    segments: list[str]
    planes: Planes

    @property
    def first(self) -> Volume:
        """The lowest energy bin."""
        return self.volumes[0][1]

    @property
    def axial(self) -> str:
        """Where the axial plane is."""
        return position_of(self.first, 0, self.planes[0])

    def slice_of(self, volume: Volume) -> NDArray[np.float32]:
        """Return the axial plane of an energy bin, (y, x)."""
        plane: NDArray[np.float32] = volume.values[self.planes[0]]
        return plane


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
    title = "Projections of the turning scanner: photon counts of the lowest threshold, logarithm (white: many)"
    sheet(rows, file, title=title, row_names=names)


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
        volumes.append((str(series.header.SeriesDescription), volume))
    first = volumes[0][1].values
    if seg is not None:
        dataset = pydicom.dcmread(seg.paths[0])
        labels = read_labels(dataset, (first.shape[0], first.shape[1], first.shape[2]))
        segments = [str(item.SegmentLabel) for item in dataset.SegmentSequence]
    return _Study(volumes, labels, segments, planes_through(first, labels, window=_HU_WINDOW))


def _series_of(archive: Archive, study: str) -> list[Series]:
    rows = archive.database.execute(
        "SELECT series.series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study.study_instance_uid = ?",
        (study,),
    ).fetchall()
    return [Series(archive, uid) for (uid,) in rows]


def _reconstructions(samples: Sequence[Sample], studies: dict[str, _Study], file: Path) -> None:
    rows, names = [], []
    for sample in samples:
        study = studies[sample.study]
        rows.append(
            [
                Picture(name, study.slice_of(volume), window=_HU_WINDOW, pixel_mm=volume.spacing_mm_zyx[2])
                for name, volume in study.volumes
            ]
        )
        names.append(f"{sample.scan.name}\n{study.axial}")
    sheet(rows, file, title=f"An axial slice in each energy bin, {_WINDOW}", row_names=names)


def _segments(samples: Sequence[Sample], studies: dict[str, _Study], file: Path) -> None:
    legend = list(dict.fromkeys(name for sample in samples for name in studies[sample.study].segments))
    rows = []
    for sample in samples:
        study = studies[sample.study]
        plain, *_ = three_planes(study.first, study.planes, window=_HU_WINDOW)
        over = three_planes(study.first, study.planes, _renumbered(study, legend), window=_HU_WINDOW)
        rows.append([plain, *over])
    names = [sample.scan.name for sample in samples]
    title = f"Segments over the lowest energy bin, {_WINDOW}; {_COORDINATES}"
    sheet(rows, file, title=title, row_names=names, legend=legend)


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
    row = [_case("query", query.scan.patient_name, studies[query.study])]
    for neighbour in neighbours:
        title, patient = f"#{neighbour['rank']}  score {neighbour['score']:.4f}", str(neighbour["patient"])
        known = studies.get(neighbour["study"])
        found = _image(archive, neighbour["study"], title, patient) if known is None else _case(title, patient, known)
        row.append(found)
    sheet([row], file, title="A query and the most similar cases (score 1: alike)")


def _case(title: str, patient: str, study: _Study) -> Picture:
    return Picture(
        title,
        study.slice_of(study.first),
        subtitle=f"{patient}\naxial, {study.axial}",
        window=_HU_WINDOW,
        pixel_mm=study.first.spacing_mm_zyx[2],
    )


def _image(archive: Archive, study: str, title: str, patient: str) -> Picture:
    """Return the image of most contrast in the largest series of a study, as encoders see it."""
    paths = max((series.paths for series in _series_of(archive, study) if str(series.header.Modality) in MODALITIES),
                key=len)  # fmt: skip
    seen = [canonical_frames(pydicom.dcmread(path), most=_MOST_FRAMES) for path in paths]
    images = [image for each in seen for image in each.images]
    ranges = [extent for each in seen for extent in each.ranges]
    # In a series a frame of noise fills its greys as well; how much of the modality's unit they stand for is little.
    best = fullest_contrast([image * extent for image, extent in zip(images, ranges, strict=True)])
    return Picture(title, images[best], subtitle=f"{patient}\nimage {best + 1} of {len(images)}", window=(0.0, 1.0))
