"""One measurement each: C-STORE, C-FIND, C-MOVE, C-GET of one node, as rows of the tables."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from benchmarks.conformance.node import Node
from benchmarks.network import client
from benchmarks.network.client import NotMeasured
from benchmarks.network.corpus import Corpus, patient_id
from benchmarks.network.watch import resident, watched

KEYS = (
    "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)  # fmt: skip
"""What the work list of a viewer shows."""
_MOST_NAMED = 5000
"""Files that a command names."""

Row = dict[str, Any]


def identifier(**values: str) -> Dataset:
    """Return the Identifier of a query for studies."""
    asked = Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    for keyword in KEYS:
        setattr(asked, keyword, values.get(keyword))
    return asked


def started(node: Node, seconds: float) -> Row:
    """Return how long a node took to accept its first association, and what its processes hold when nobody asks."""
    sizes = resident(node.pids())
    return {
        "what": "started", "client": "idle", "count": len(sizes), "ready_s": seconds,
        "peak_mb": sum(sizes), "largest_process_mb": max(sizes),
    }  # fmt: skip


def _attempted(named: Row, take: Callable[[], Row]) -> Row:
    """Return `named` with the figures that `take` returns, or with why there are none."""
    try:
        return named | take()
    except (NotMeasured, OSError) as error:  # a client that cannot be started, with 100,000 files for instance
        return named | {"not_measured": str(error)}


def figures(row: Row) -> Row:
    """Return `row`; raises `NotMeasured` when it has no figures."""
    if "not_measured" in row:
        raise NotMeasured(f"{row['what']}, {row['client']}: {row['not_measured']}")
    return row


def store(node: Node, corpus: Corpus, *, tool: str, associations: int) -> Row:
    """Send a corpus, which the node does not have yet, with ``dcmsend`` or with our own client.

    When that fails, one sender sends all of it once more, unmeasured: what is asked of the node later is there.
    """
    named = {"what": f"C-STORE {corpus.name}", "client": _named(tool, associations), "count": len(corpus.files)}
    row = _attempted(named, partial(_stored, node, corpus, tool, associations))
    if "not_measured" in row:
        again = _attempted({}, partial(_stored, node, corpus, "dcmsend", 1))
        if "not_measured" in again:
            row["not_measured"] += "; nor can one sender store them"
    return row


def _stored(node: Node, corpus: Corpus, tool: str, associations: int) -> Row:
    with watched(node.pids) as taken:
        if tool == "client":
            timed = client.store(node.port, node.title, corpus.files, associations)
            seconds, latencies = timed.seconds, timed.latencies
        else:
            seconds, latencies = _sent(node, corpus.files, associations), []
    count = len(corpus.files)
    if "move" in node.services and (held := _held(node, corpus)) != count:  # type: ignore[attr-defined]
        raise NotMeasured(f"all {count} were answered 0000, but it has {held} of them")
    return {**_rates(count, seconds, corpus.bytes_each), **costs(taken, count), **latencies_of(latencies)}


def _sent(node: Node, files: Sequence[Path], associations: int) -> float:
    """Send files with so many ``dcmsend`` side by side; return the seconds. It calls itself successful when refused.

    More than a command line has room for go one after the other.
    """
    if len(files) > _MOST_NAMED * associations:
        first, others = files[: _MOST_NAMED * associations], files[_MOST_NAMED * associations :]
        return _sent(node, first, associations) + _sent(node, others, associations)
    size = -(-len(files) // associations)
    parts = [files[first : first + size] for first in range(0, len(files), size)]
    with TemporaryDirectory(prefix="tharsis-dcmsend-") as folder:
        reports = [Path(folder) / f"{number}.txt" for number in range(len(parts))]
        seconds = run_tools([
            ["dcmsend", "+crf", str(report), "-aec", node.title, "127.0.0.1", str(node.port), *map(str, part)]
            for report, part in zip(reports, parts, strict=True)
        ])  # fmt: skip
        told = "".join(report.read_text(encoding="utf-8", errors="replace") for report in reports)
    stored = len(re.findall(r"^DIMSE Status +: 0x0000", told, re.MULTILINE))
    if stored != len(files):
        other = re.search(r"^DIMSE Status +: (?!0x0000)(.*)", told, re.MULTILINE)
        why = f"the first of the others was answered {other[1]}" if other else "the others were not sent"
        raise NotMeasured(f"{stored} of {len(files)} were stored; {why}")
    return seconds


def find_patients(node: Node, run: int, studies: int, *, queries: int, associations: int, own: bool = False) -> Row:
    """Ask for one patient after the other."""
    named = {
        "what": f"C-FIND one patient of {studies:,}", "client": _named("client", associations), "count": queries,
    }  # fmt: skip
    chosen = np.random.default_rng(5).integers(0, studies, queries)
    ids = [bulk_id(int(study)) if own else patient_id(run, int(study)) for study in chosen]
    asked = [identifier(PatientID=each) for each in ids]
    return _attempted(named, partial(_found_patients, node, asked, associations))


def _found_patients(node: Node, asked: Sequence[Dataset], associations: int) -> Row:
    with watched(node.pids) as taken:
        timed = client.find(node.port, node.title, asked, associations)
    _require(node, timed.answers, len(asked))
    return {"per_s": len(asked) / timed.seconds, **costs(taken, len(asked)), **latencies_of(timed.latencies)}


def bulk_id(number: int) -> str:
    """Return the Patient ID of a study of a catalogue made in bulk."""
    from benchmarks.network.catalogue import patient_id as made

    return made(number)


def find_all(node: Node, studies: int, *, study_date: str, tool: str) -> Row:
    """Ask for all studies of a day at once."""
    named = {"what": f"C-FIND all of {studies:,}", "client": tool, "count": studies}
    return _attempted(named, partial(_found_all, node, studies, study_date, tool))


def _found_all(node: Node, studies: int, study_date: str, tool: str) -> Row:
    latencies: list[float] = []
    first: list[float] = []
    with watched(node.pids) as taken:
        if tool == "client":
            timed = client.find(node.port, node.title, [identifier(StudyDate=study_date)], 1)
            seconds, answers, first = timed.seconds, timed.answers, timed.first
        else:
            values = {"StudyDate": f"StudyDate={study_date}"}
            keys = [part for keyword in KEYS for part in ("-k", values.get(keyword, keyword))]
            command = ["findscu", "-v", "-S", "-aec", node.title, "-k", "QueryRetrieveLevel=STUDY", *keys]
            started = time.perf_counter()
            told = subprocess.run([*command, "127.0.0.1", str(node.port)], capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
            answers = len(re.findall(r"Find Response: \d+ ", told.stdout + told.stderr))
    _require(node, answers, studies)
    return {
        "per_s": answers / seconds, **costs(taken, answers), **latencies_of(latencies),
        "first_ms": 1e3 * first[0] if first else None,
    }  # fmt: skip


def retrieve(node: Node, corpus: Corpus, *, tool: str, associations: int) -> Row:
    """Retrieve the studies of a corpus with ``movescu`` (to the sink) or ``getscu``, each a share of them."""
    kind = "C-MOVE" if tool == "movescu" else "C-GET"
    named = {"what": f"{kind} {corpus.name}", "client": _named(tool, associations), "count": len(corpus.files)}
    return _attempted(named, partial(_retrieved, node, corpus, tool, associations))


def _retrieved(node: Node, corpus: Corpus, tool: str, associations: int) -> Row:
    studies = corpus.study_uids()
    count = _held(node, corpus)  # a peer may have lost some, and the tools call it a success when less is sent
    if not count:
        raise NotMeasured("it has none of them")
    with watched(node.pids) as taken:
        commands = []
        for part in filter(None, (studies[first::associations] for first in range(associations))):
            more = ["-aem", "SINK"] if tool == "movescu" else ["--ignore"]
            commands.append([
                tool, "-S", "-aet", "BENCHMARK", "-aec", node.title, *more, "-k", "QueryRetrieveLevel=STUDY",
                "-k", "StudyInstanceUID=" + "\\".join(part), "127.0.0.1", str(node.port),
            ])  # fmt: skip
        seconds = run_tools(commands)
    figures = {"count": count, **_rates(count, seconds, corpus.bytes_each), **costs(taken, count)}
    return {**figures, **latencies_of([])}


def _held(node: Node, corpus: Corpus) -> int:
    """Return how many instances of the corpus a node says that it has."""
    asked = []
    for study, series in zip(corpus.study_uids(), corpus.series_uids(), strict=True):
        one = Dataset()
        one.QueryRetrieveLevel, one.SOPInstanceUID = "IMAGE", ""
        one.StudyInstanceUID, one.SeriesInstanceUID = study, series
        asked.append(one)
    try:
        return client.ask(node.port, node.title, "BENCHMARK", asked).answers
    except RuntimeError as error:
        raise NotMeasured(str(error)) from error


def run_tools(commands: Sequence[list[str]]) -> float:
    """Run commands side by side; return the seconds until the last has ended. Raises `NotMeasured` when one fails."""
    started = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    told = [process.communicate()[0].decode(errors="replace") for process in running]
    seconds = time.perf_counter() - started
    for process, words in zip(running, told, strict=True):
        complaints = [line.partition(": ")[2] for line in words.splitlines() if line[:3] in ("E: ", "F: ")]
        if process.returncode or complaints:
            why = complaints[0] if complaints else f"exit code {process.returncode}"
            raise NotMeasured(f"{process.args[0]} failed: {why}")  # type: ignore[index]
    return seconds


def _named(tool: str, associations: int) -> str:
    return f"{tool} ×{associations}"


def _rates(count: int, seconds: float, size: int) -> Row:
    return {"per_s": count / seconds, "mb_per_s": count * size / seconds / 1e6}


def costs(taken: Any, count: int) -> Row:
    """Return CPU time for each of `count`, and memory."""
    return {
        "cpu_ms_each": 1e3 * taken.cpu_s / max(1, count),
        "peak_mb": taken.peak_mb,
        "largest_process_mb": taken.largest_mb,
    }


def latencies_of(seconds: Sequence[float]) -> Row:
    """Return median and 99th percentile, ms."""
    if not seconds:
        return {"p50_ms": None, "p99_ms": None}
    return {"p50_ms": 1e3 * float(np.median(seconds)), "p99_ms": 1e3 * float(np.percentile(seconds, 99))}


def _require(node: Node, got: int, wanted: int) -> None:
    if got != wanted:
        raise NotMeasured(f"{node.name} gave {got} answers, expected {wanted}")
