"""The command about stored segments: what they measure, and how they look."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import pydicom
import typer
from rich.markup import escape
from rich.table import Table

from commands.console import USAGE, ConfigOption, DataOption, JsonOption, err, fail, out, print_json, settings_from
from index.archive import Archive
from index.errors import NotFound

if TYPE_CHECKING:
    from plugins.measurement.measuring import Measurements, SegmentMeasurements
    from plugins.measurement.statistics import Statistics
    from plugins.measurement.subject import Source, Subject
    from plugins.node import Series


def report(
    series: Annotated[str, typer.Argument(metavar="SERIES", help="Series Instance UID of a stored SEG.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Write its key picture there.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Measure the segments of a stored segmentation, and draw them.

    Prints volume, mean and standard deviation of every segment, in every energy bin of the scan when this node
    reconstructed it. A node stores the same numbers as a measurement report (DICOM SR, TID 1500) and the same
    picture as Secondary Capture; this command only reads, and works on segmentations from elsewhere too.

    `tharsis find --level SERIES StudyInstanceUID=1.2.3 Modality=SEG` tells which segmentations a study has.

    Example:  tharsis report 1.2.3.4 --picture segments.png
    """
    from plugins.measurement.measuring import measure
    from plugins.measurement.subject import read_subject
    from plugins.node import CannotProceed

    settings = settings_from(config, data=data)
    if not (settings.archive.data / "catalogue.sqlite").exists():
        fail(f"{settings.archive.data} is no data folder of a node")
    archive = Archive.from_settings(settings.archive)
    told = []
    try:
        paths = _segmentation(archive, series).paths
        if picture is not None and len(paths) > 1:
            fail(f"--picture is for one SEG, and series {series} holds {len(paths)}", USAGE)
        for path in paths:
            subject = read_subject(archive, pydicom.dcmread(path))
            measured = measure(archive, subject, min_volume_mm3=settings.report.min_volume_mm3)
            told.append(_as_json(subject, measured))
            if not as_json:
                out.print(_table(measured))
            if picture is not None:
                _write(picture, subject, measured, settings.report.picture_width)
                err.print(f"picture in {picture}", highlight=False, soft_wrap=True, markup=False)
    except (NotFound, CannotProceed) as error:
        fail(str(error))
    if as_json:
        print_json(told)


def _segmentation(archive: Archive, uid: str) -> Series:
    """Return the series if it holds SEG objects; else say which ones of its study do."""
    from plugins.measurement.subject import is_segmentation
    from plugins.node import Series

    series = Series(archive, uid)
    if not is_segmentation(series):
        _fail_with_others(archive, series)
    return series


def _fail_with_others(archive: Archive, series: Series) -> NoReturn:
    rows = archive.database.execute(
        "SELECT series_instance_uid FROM series JOIN study ON study.id = series.study "
        "WHERE study_instance_uid = ? AND modality = 'SEG' ORDER BY series.id",
        (series.study_instance_uid,),
    ).fetchall()
    others = f"; its study has {' and '.join(row[0] for row in rows)}" if rows else ""
    fail(f"series {series.uid} holds no segmentation{others}", USAGE)


def _table(measured: Measurements) -> Table:
    from plugins.measurement.picture import volume_text

    table = Table("segment", "volume", title="mean ± standard deviation" if measured.segments else "no segments")
    table.columns[1].justify = "right"
    for source in measured.sources:
        table.add_column(escape(f"{source.energy_label or 'source'}, {source.unit}"), justify="right")
    for row in measured.segments:
        numbers = zip(measured.sources, row.of_series, strict=True)
        table.add_row(
            escape(row.segment.label),
            volume_text(row.volume_mm3),
            *("" if found is None else _spread(source, found) for source, found in numbers),
        )
    return table


def _spread(source: Source, found: Statistics) -> str:
    digits = 0 if source.unit == "HU" else 3
    return f"{found.mean:.{digits}f} ± {found.standard_deviation:.{digits}f}"


def _as_json(subject: Subject, measured: Measurements) -> dict[str, Any]:
    return {
        "sop_instance_uid": str(subject.seg.SOPInstanceUID),
        "source_series": measured.segmented.series_instance_uid,
        "segments": [_segment_as_json(row, measured) for row in measured.segments],
    }


def _segment_as_json(row: SegmentMeasurements, measured: Measurements) -> dict[str, Any]:
    kind = row.segment.type
    return {
        "number": row.segment.number,
        "label": row.segment.label,
        "type": kind and {"value": kind.value, "scheme": kind.scheme_designator, "meaning": kind.meaning},
        "voxels": row.voxels,
        "volume_mm3": row.volume_mm3,
        "measured": [
            {
                "series": source.series_instance_uid,
                "energy": source.energy_label,
                "unit": source.unit,
                **({} if found is None else asdict(found)),
            }
            for source, found in zip(measured.sources, row.of_series, strict=True)
        ],
    }


def _write(file: Path, subject: Subject, measured: Measurements, width: int) -> None:
    from PIL import Image

    from plugins.measurement.picture import picture_of

    if not measured.slices:
        fail("there is nothing to draw: no segment has a voxel")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_of(subject, measured, width)).save(file, format="PNG")
