"""What `tharsis report` prints of segments whose names come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from segmented import SEG, report_settings, seg_of, slices, store, truth
from typer.testing import CliRunner

from index.archive import Archive


@pytest.mark.parametrize("label", ["Tumour [left]", "[/x] Liver", "[bold]Liver"])
def test_labels_with_brackets_are_printed_as_they_are(tmp_path: Path, label: str) -> None:
    from tharsis import app

    values, masks = truth()
    images = slices(values)
    seg = seg_of(images, masks)
    seg.SegmentSequence[0].SegmentLabel = label
    settings = report_settings(tmp_path)
    archive = Archive.from_settings(settings.archive)
    store(archive, *images, seg)
    archive.close()
    picture = tmp_path / "[left].png"
    told = CliRunner().invoke(
        app, ["report", SEG, "--data", str(settings.archive.data), "--picture", str(picture)], env={"COLUMNS": "300"}
    )
    assert told.exit_code == 0, told.output
    assert label in told.stdout
    assert str(picture) in told.stderr
    assert picture.exists()
