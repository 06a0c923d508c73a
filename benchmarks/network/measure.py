"""One measurement each: C-STORE, C-FIND, C-MOVE, C-GET of one node, as rows of the tables."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from benchmarks.conformance.node import Node
from benchmarks.network import client
from benchmarks.network.corpus import Corpus, patient_id
from benchmarks.network.watch import resident, watched

KEYS = (
    "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)  # fmt: skip
"""What the work list of a viewer shows."""

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


def store(node: Node, corpus: Corpus, *, tool: str, associations: int) -> Row:
    """Send a corpus, which the node does not have yet, with ``dcmsend`` or with our own client."""
    with watched(node.pids) as taken:
        if tool == "client":
            timed = client.store(node.port, node.title, corpus.files, associations)
            seconds, latencies = timed.seconds, timed.latencies
        else:
            size = -(-len(corpus.files) // associations)
            parts = [corpus.files[first : first + size] for first in range(0, len(corpus.files), size)]
            to = ["-aec", node.title, "127.0.0.1", str(node.port)]
            seconds, latencies = run_tools([["dcmsend", *to, *map(str, part)] for part in parts]), []
    count = len(corpus.files)
    return {
        "what": f"C-STORE {corpus.name}", "client": _named(tool, associations), "count": count,
        **_rates(count, seconds, corpus.bytes_each), **costs(taken, count), **latencies_of(latencies),
    }  # fmt: skip


def find_patients(node: Node, run: int, studies: int, *, queries: int, associations: int, own: bool = False) -> Row:
    """Ask for one patient after the other."""
    chosen = np.random.default_rng(5).integers(0, studies, queries)
    ids = [bulk_id(int(study)) if own else patient_id(run, int(study)) for study in chosen]
    asked = [identifier(PatientID=each) for each in ids]
    with watched(node.pids) as taken:
        timed = client.find(node.port, node.title, asked, associations)
    _require(node, timed.answers, queries)
    return {
        "what": f"C-FIND one patient of {studies:,}", "client": _named("client", associations), "count": queries,
        "per_s": queries / timed.seconds, **costs(taken, queries), **latencies_of(timed.latencies),
    }  # fmt: skip


def bulk_id(number: int) -> str:
    """Return the Patient ID of a study of a catalogue made in bulk."""
    from benchmarks.network.catalogue import patient_id as made

    return made(number)


def find_all(node: Node, studies: int, *, study_date: str, tool: str) -> Row:
    """Ask for all studies of a day at once."""
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
            told = subprocess.run([*command, "127.0.0.1", str(node.port)], capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - started
            answers = len(re.findall(r"Find Response: \d+ ", told.stdout + told.stderr))
    _require(node, answers, studies)
    return {
        "what": f"C-FIND all of {studies:,}", "client": tool, "count": answers, "per_s": answers / seconds,
        **costs(taken, answers), **latencies_of(latencies), "first_ms": 1e3 * first[0] if first else None,
    }  # fmt: skip


def retrieve(node: Node, corpus: Corpus, *, tool: str, associations: int) -> Row:
    """Retrieve the studies of a corpus with ``movescu`` (to the sink) or ``getscu``, each a share of them."""
    studies = corpus.study_uids()
    with watched(node.pids) as taken:
        commands = []
        for part in filter(None, (studies[first::associations] for first in range(associations))):
            more = ["-aem", "SINK"] if tool == "movescu" else ["--ignore"]
            commands.append([
                tool, "-S", "-aet", "BENCHMARK", "-aec", node.title, *more, "-k", "QueryRetrieveLevel=STUDY",
                "-k", "StudyInstanceUID=" + "\\".join(part), "127.0.0.1", str(node.port),
            ])  # fmt: skip
        seconds = run_tools(commands)
    count = len(corpus.files)
    return {
        "what": f"{'C-MOVE' if tool == 'movescu' else 'C-GET'} {corpus.name}", "client": _named(tool, associations),
        "count": count, **_rates(count, seconds, corpus.bytes_each), **costs(taken, count), **latencies_of([]),
    }  # fmt: skip


def run_tools(commands: Sequence[list[str]]) -> float:
    """Run commands side by side; return the seconds until the last has ended."""
    started = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    told = [process.communicate()[0].decode(errors="replace") for process in running]
    seconds = time.perf_counter() - started
    for process, words in zip(running, told, strict=True):
        if process.returncode or "E: " in words:
            raise SystemExit(f"{process.args[0]} failed: {words[-500:]}")  # type: ignore[index]
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
        raise SystemExit(f"{node.name} gave {got} answers, expected {wanted}")
