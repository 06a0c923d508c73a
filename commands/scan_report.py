"""The command that shows what a scan needs: `tharsis scan-report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.console import USAGE, ConfigOption, DataOption, fail, out, progress_bar, settings_from
from config.settings import Settings
from index.archive import Archive
from index.files import is_part10


def scan_report(
    what: Annotated[str, typer.Argument(metavar="FOLDER|SERIES", help="A folder of projections, or a stored series.")],
    out_folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where page and pictures go.")],
    bin_number: Annotated[int, typer.Option("--bin", min=1, help="The energy bin that is shown.")] = 1,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show what is wrong with a scan, and what the corrections do about it, on one page.

    The page (report.html) needs nothing else. It shows views, flat field, sinogram and the central slice with and
    without the corrections of the settings; where those are all off, with the ones that the scan seems to need.

    Example:  tharsis scan-report scan/ --out report/
    """
    from commands.scan_report_page import write_report
    from plugins.reconstruction import parameters_from
    from reconstruct.geometry import GeometryError
    from reconstruct.projections.p6 import encodings_from
    from reconstruct.projections.scan import ScanError
    from reconstruct.scan_quality import look_at

    settings = settings_from(config, data=data)
    try:
        scan = encodings_from(settings.site_mappings).read_scan(_files(what, settings))
        out_folder.mkdir(parents=True, exist_ok=True)
        parameters = parameters_from(settings)
        with progress_bar("Looking at the scan") as bar:
            report = look_at(
                scan, bin_number, parameters.corrections, bar.fraction,
                folder=out_folder, memory_mb=parameters.memory_mb,
            )  # fmt: skip
        page = write_report(report, out_folder)
    except (ScanError, GeometryError, OSError) as error:
        fail(str(error))
    for sentence in report.advice:
        out.print(sentence, highlight=False, markup=False)
    out.print(f"see {page}", highlight=False, soft_wrap=True, markup=False)


def _files(what: str, settings: Settings) -> list[Path]:
    if Path(what).is_dir():
        return sorted(file for file in Path(what).rglob("*") if file.is_file() and is_part10(file))
    if not (settings.archive.data / "catalogue.sqlite").exists():
        fail(f"{what} is no folder, and {settings.archive.data} is no data folder of a node", USAGE)
    from plugins.node import CannotProceed, Series
    from plugins.reconstruction import StoredScan

    try:
        return StoredScan.of(Series(Archive.from_settings(settings.archive), what)).paths
    except CannotProceed as error:
        fail(str(error))
