"""How long a similarity query takes on a running node, end to end, and what each part of it takes.

    python benchmarks/similarity_query.py --count 100000 --dimension 128 --json

Fills an archive with synthetic vectors (rows only), starts `tharsis serve` on it, and sends C-FIND requests with the
private block over one association, then over several at the same time. Then the same questions are put to the same
services in this process, with clocks around SQL and the vector index: what is left of the end-to-end time is DIMSE, the
network between two processes, and the client.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from sqlite_utils import Database
from synthetic_vectors import fill, in_series

from config.application_entities import Right
from config.settings import load_settings
from index.archive import Archive
from index.on_demand import OnDemand
from index.questions import Questions
from index.similarity import Similarity
from index.vectors import VectorIndex
from index.views import Whole
from scp import similarity, transport
from scp.caller import Caller
from scp.contexts import SIMILARITY_FIND, Proposal
from scp.messages import FindRequest
from scp.private_elements import put_block
from scp.question import question
from scp.requestor import Peer, Timeouts, connect
from scp.similarity import Desk

ASKER = "BENCHMARK"
SETTINGS = f"""
[scp]
host = "127.0.0.1"
port = 0
[archive]
data = "DATA"
reserve_mb = 0
[integrity]
scrub_days = 0
[[application_entities]]
title = "{ASKER}"
rights = ["similar"]
"""


def identifier(level: str, uid: str, k: int) -> Dataset:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = level
    for keyword in ("PatientID", "PatientName", "StudyDate", "StudyDescription", "StudyInstanceUID"):
        setattr(wanted, keyword, None)
    if level != "STUDY":
        wanted.SeriesInstanceUID = None
    put_block(wanted, {"QuerySOPInstanceUID": uid, "MaximumResults": k})
    return wanted


@contextmanager
def node(folder: Path, data: Path) -> Iterator[int]:
    """Run a node on the data folder and give its port."""
    config = folder / "tharsis.toml"
    config.write_text(SETTINGS.replace("DATA", str(data)), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "tharsis", "serve", "--config", str(config)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            line = process.stdout.readline()
            yield int(line.split("listens on ")[1].split(":")[1].split()[0])
        finally:
            process.terminate()
            process.wait(60)


def ask(port: int, questions: list[Dataset], seconds: list[float], answers: list[int]) -> None:
    """Send the queries one after the other over one association."""
    proposals = [Proposal(SIMILARITY_FIND, ("1.2.840.10008.1.2.1",))]
    link = connect(Peer("127.0.0.1", port, "THARSIS"), proposals, calling=ASKER, timeouts=Timeouts())
    try:
        for wanted in questions:
            started = time.perf_counter()
            transport.hold(link.assoc)
            responses = list(link.assoc.send_c_find(wanted, SIMILARITY_FIND))
            seconds.append(time.perf_counter() - started)
            if responses[-1][0].Status != 0:
                raise SystemExit(f"answered {responses[-1][0].Status:04X} {responses[-1][0].get('ErrorComment')}")
            answers.append(len(responses) - 1)
    finally:
        link.release()


def end_to_end(port: int, questions: list[Dataset], associations: int) -> dict[str, Any]:
    """Median and 99th percentile of the queries over so many associations, in milliseconds."""
    seconds: list[float] = []
    answers: list[int] = []
    parts = [questions[first::associations] for first in range(associations)]
    threads = [threading.Thread(target=ask, args=(port, part, seconds, answers)) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if len(answers) != len(questions):
        raise SystemExit(f"{len(answers)} of {len(questions)} queries were answered")
    return {
        "associations": associations,
        "queries": len(seconds),
        "answers_each": float(np.mean(answers)),
        **_figures(seconds),
        "queries_per_s": len(seconds) / elapsed,
    }


def _figures(seconds: list[float]) -> dict[str, float]:
    milliseconds = 1e3 * np.asarray(seconds)
    return {"median_ms": float(np.median(milliseconds)), "p99_ms": float(np.percentile(milliseconds, 99))}


class Clocks:
    """Seconds spent in SQL and in the vector index; SQL that the index runs counts as SQL."""

    def __init__(self) -> None:
        self.sql = self.index = 0.0
        self._depth = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clocks while the block does."""
        execute, methods = Database.execute, ("refresh", "nearest", "vectors", "competing", "count")
        originals = {name: getattr(VectorIndex, name) for name in methods}
        clocks = self

        def timed_execute(self: Database, *arguments: Any) -> Any:
            started = time.perf_counter()
            cursor = execute(self, *arguments)
            rows = cursor.fetchall() if cursor.description else []
            taken = time.perf_counter() - started
            clocks.sql += taken
            if clocks._depth:
                clocks.index -= taken
            return _Rows(rows, cursor)

        def timed(original: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                started, clocks._depth = time.perf_counter(), clocks._depth + 1
                try:
                    return original(*arguments, **options)
                finally:
                    clocks._depth -= 1
                    if not clocks._depth:
                        clocks.index += time.perf_counter() - started

            return call

        Database.execute = timed_execute
        for name, original in originals.items():
            setattr(VectorIndex, name, timed(original))
        try:
            yield
        finally:
            Database.execute = execute
            for name, original in originals.items():
                setattr(VectorIndex, name, original)


class _Rows:
    """A cursor whose rows have been fetched already."""

    def __init__(self, rows: list[Any], cursor: Any) -> None:
        self._rows = iter(rows)
        self.description, self.rowcount = cursor.description, cursor.rowcount

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def fetchone(self) -> Any:
        return next(self._rows, None)


def in_process(archive: Archive, questions: list[Dataset]) -> dict[str, float]:
    """What the service takes without DIMSE and network, and how much of it SQL and the index take, in milliseconds."""
    settings = load_settings(environment={}).similarity
    on_demand = OnDemand(archive, timeout_s=1.0)
    desk = Desk(Whole(archive), Similarity(archive), Questions(archive, on_demand, kept_s=1.0, most_images=1), settings)
    caller = Caller(ASKER, "THARSIS", "127.0.0.1", frozenset({Right.SIMILAR}))
    totals, sql, index = [], [], []
    for number, wanted in enumerate(questions):
        request = FindRequest(SIMILARITY_FIND, wanted, lambda: False)
        clocks = Clocks()
        with clocks.running():
            started = time.perf_counter()
            list(similarity.find(desk, caller, request, question(request, caller, lambda: False)))
            taken = time.perf_counter() - started
        if number:  # the first one reads the index
            totals.append(taken)
            sql.append(clocks.sql)
            index.append(clocks.index)
    service, in_sql, in_index = (1e3 * float(np.median(part)) for part in (totals, sql, index))
    return {
        "service_ms": service,
        "sql_ms": in_sql,
        "index_ms": in_index,
        "python_ms": service - in_sql - in_index,
    }


def measure(data: Path, level: str, count: int, k: int, port: int, seed: int) -> dict[str, Any]:
    archive = Archive(data)
    uids = [row[0] for row in archive.database.execute("SELECT sop_instance_uid FROM instance ORDER BY id")]
    chosen = np.random.default_rng(seed).choice(len(uids), count + 1, replace=False)

    def questions() -> list[Dataset]:  # anew each time: a service takes the block out of the Identifier
        return [identifier(level, uids[place], k) for place in chosen]

    started = time.perf_counter()
    ask(port, questions()[:1], [], [])
    first = time.perf_counter() - started
    runs = [end_to_end(port, questions()[1:], associations) for associations in (1, 4)]
    parts = in_process(archive, questions())
    return {
        "level": level,
        "first_query_s": first,
        "runs": runs,
        "parts": {**parts, "network_ms": runs[0]["median_ms"] - parts["service_ms"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="vectors")
    parser.add_argument("--dimension", type=int, default=128, help="128: as the texture encoder's")
    parser.add_argument("--queries", type=int, default=200, help="for each level and number of associations")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", default=["IMAGE", "SERIES"], choices=["IMAGE", "SERIES", "STUDY"])
    parser.add_argument("--data", type=Path, help="data folder that is filled already, or is to be kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tharsis-benchmark-") as name:
        folder = Path(name)
        data = arguments.data or folder / "data"
        if not data.exists():
            fill(Archive(data), in_series(arguments.count, arguments.dimension, seed=arguments.seed))
        with node(folder, data) as port:
            results = [
                measure(data, level, arguments.queries, arguments.k, port, arguments.seed)
                for level in arguments.levels
            ]
    facts = {
        "vectors": arguments.count,
        "dimension": arguments.dimension,
        "k": arguments.k,
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[1],  # what else ran meanwhile is in every figure
        "results": results,
    }
    print(json.dumps(facts, indent=2) if arguments.json else _report(facts))


def _report(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['vectors']:,} vectors of {facts['dimension']} values, k = {facts['k']}; "
        f"{facts['processors']} processors, load average {facts['load_average']:.1f}"
    ]
    for result in facts["results"]:
        lines.append(f"{result['level']}: the first query, which reads the index, took {result['first_query_s']:.2f} s")
        lines += [
            f"  {run['associations']} association(s): median {run['median_ms']:.1f} ms, "
            f"99th percentile {run['p99_ms']:.1f} ms, {run['queries_per_s']:.0f} queries/s"
            for run in result["runs"]
        ]
        parts = result["parts"]
        lines.append(
            f"  of the median over one: SQL {parts['sql_ms']:.1f}, vector index {parts['index_ms']:.1f}, "
            f"Python {parts['python_ms']:.1f}, DIMSE and network {parts['network_ms']:.1f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
