"""Run the scoreboard.

::

    python -m benchmarks.conformance --nodes tharsis,orthanc,dcmqrscp,qrscp --out scoreboard.md

The exit code is 1 when this node fails a row.
"""

from __future__ import annotations

import datetime
import fnmatch
import importlib
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pydicom.config
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.conformance.case import CASES, Case
from benchmarks.conformance.certificates import make_certificates
from benchmarks.conformance.node import CannotStart
from benchmarks.conformance.nodes import NODES, TRANSPORTS
from benchmarks.conformance.receivers import Receivers
from benchmarks.conformance.report import FAIL, Verdict, as_json, from_json, markdown
from benchmarks.conformance.runner import run_cases

console = Console(stderr=True)

for module in (  # the cases register themselves, in this order
    "store", "again", "hostile", "find", "matching", "negotiation", "retrieve", "conversion", "services", "access",
):
    importlib.import_module(f"benchmarks.conformance.cases_{module}")


def main(
    nodes: Annotated[str, typer.Option(help="Which nodes, separated by commas.")] = ",".join(NODES),
    out: Annotated[Path | None, typer.Option(help="Where the Markdown goes (default: standard output).")] = None,
    json: Annotated[Path | None, typer.Option(help="Where everything goes as JSON.")] = None,
    only: Annotated[str, typer.Option(help="Cases whose section/row/promise matches this pattern (* and ?).")] = "*",
    large_mb: Annotated[int, typer.Option(help="Size of the large instance, MB.")] = 256,
    many: Annotated[int, typer.Option(help="Instances of the row > 65,535 sub-operations (0: not tried).")] = 0,
    qrscp_python: Annotated[str, typer.Option(help="A Python with pynetdicom and SQLAlchemy, for qrscp.")] = "",
    transport: Annotated[str, typer.Option(help="What carries this node's associations.")] = TRANSPORTS[0],
    earlier: Annotated[Path | None, typer.Option(help="JSON of an earlier run, for all else.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder to keep the nodes' logs and data in.")] = None,
) -> None:
    """Ask every node the same and write down what each did."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    wanted = nodes.split(",")
    for name in wanted:
        if name not in NODES:
            raise typer.BadParameter(f"unknown node {name!r}; there are {', '.join(NODES)}")
    pattern = only.lower() if "*" in only else f"*{only.lower()}*"
    cases = [case for case in CASES if fnmatch.fnmatch(case.id.lower(), pattern)]
    if transport not in TRANSPORTS:
        raise typer.BadParameter(f"unknown transport {transport!r}; there are {', '.join(TRANSPORTS)}")
    if not cases:
        raise typer.BadParameter(f"no case matches {only!r}")
    options = {"large_mb": large_mb, "many": many, "qrscp_python": qrscp_python, "transport": transport}
    names, results = from_json(earlier.read_text(encoding="utf-8")) if earlier is not None else ({}, {})
    with tempfile.TemporaryDirectory() as temporary:
        _ask(wanted, cases, options, keep or Path(temporary), names, results)
    if earlier is not None:
        cases = CASES
    results = {name: results[name] for name in NODES if name in results}
    command = f"python -m benchmarks.conformance {shlex.join(_portable(sys.argv[1:]))}".rstrip()
    text = markdown(cases, results, names, command, datetime.datetime.now(datetime.UTC).date().isoformat())
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")
    if json is not None:
        json.write_text(as_json(cases, results, names), encoding="utf-8")
    verdicts = results.get("tharsis", {}).values()
    if "tharsis" in wanted and (not verdicts or any(one.verdict == FAIL for one in verdicts)):
        raise typer.Exit(1)


def _ask(
    wanted: list[str], cases: list[Case], options: dict[str, Any], folder: Path, names: dict[str, str],
    results: dict[str, dict[str, Verdict]],
) -> None:
    """Run `cases` on the nodes that are `wanted`; fill in `names` and `results`."""
    certificates = make_certificates(folder / "certificates")
    receivers = Receivers()
    progress = Progress(
        TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[case]}"), console=console,
    )
    try:
        with progress:
            for name in wanted:
                driver = NODES[name]
                try:
                    names[name] = driver.version(options)
                except CannotStart as error:
                    console.print(f"{name} is left out: {error}", markup=False)
                    continue
                names[name] += f" ({driver.settings_note})" if driver.settings_note else ""
                task = progress.add_task(name, total=len(cases), case="")
                done = results.setdefault(name, {})
                for case, verdict in run_cases(cases, driver, receivers, options, folder / name, certificates):
                    done[case.id] = verdict
                    progress.update(task, advance=1, case=f"{case.row}: {case.promise}"[:60])
                    if verdict.verdict == FAIL and name == "tharsis":
                        console.print(f"✗ {case.id}: {verdict.did}", markup=False, highlight=False, soft_wrap=True)
    finally:
        receivers.close()


def _portable(arguments: list[str]) -> list[str]:
    """Leave out what belongs to one machine: where the output and the other Python lie."""
    dropped = ["--json", "--keep", "--earlier", "--nodes"] + (["--only"] if "--earlier" in arguments else [])
    told, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in dropped:
            skip = True
        elif argument == "--qrscp-python":
            told += [argument, "PYTHON"]
            skip = True
        elif argument == "--out":
            told += [argument, "docs/conformance-scoreboard.md"]
            skip = True
        else:
            told.append(argument)
    return told


if __name__ == "__main__":
    typer.run(main)
