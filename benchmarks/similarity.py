"""Nearest vectors: recall@10, ms a query, build time and size of this node's index and of its peers, in one run.

    python benchmarks/similarity.py --count 100000 --dimension 512 --peers faiss hnswlib mrpt
    python benchmarks/similarity.py --count 1000000 --dimension 256 --peers mrpt --keep /tmp/vectors
    python benchmarks/similarity.py --restart --keep /tmp/vectors

All work on the same clustered vectors and answer the same queries, which none of them holds; the truth is this node's
exact search. Times are processor time, which other programs on the machine do not change: of one thread for queries, of
all threads for building. The node is asked through its own `VectorIndex`, over an archive of rows:
its times include the look for changes in SQL, the mask of deleted rows and exact ranking in double precision.
Compare what stands in one table: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "2")  # to build; queries are asked with one

import faiss  # noqa: E402 - reads the environment
import numpy as np  # noqa: E402
from synthetic_vectors import clustered, fill  # noqa: E402

from index.archive import Archive  # noqa: E402
from index.bases import building, files  # noqa: E402
from index.bases.limits import IndexLimits  # noqa: E402
from index.bases.selection import Grain, Selection  # noqa: E402
from index.neighbours import SearchMode  # noqa: E402
from index.vectors import VectorIndex  # noqa: E402

K = 10
TARGETS = (0.90, 0.95, 0.99)
BETWEEN = (0.97, 0.98, 0.995, 0.999)
"""More targets for MRPT, whose promise is a mean: to compare times at equal recall."""
PEERS = ("faiss", "hnswlib", "mrpt")
EFFORTS = (10, 20, 40, 80, 160, 320)

Row = dict[str, Any]


class Problem:
    """The vectors, the queries and, once known, the true neighbours."""

    def __init__(self, count: int, dimension: int, queries: int) -> None:
        self.vectors, self.queries = clustered(count, dimension), clustered(queries, dimension, draw=1)
        self.truth = np.empty((0, K), np.int64)

    def judged(self, name: str, ask: Callable[[np.ndarray], np.ndarray], **more: Any) -> Row:
        """Ask one by one and all at once; `ask` takes queries (m, d) and returns rows (m, 10)."""
        ask(self.queries)  # not counted: maps, fills caches
        found, start = [], time.process_time()
        for query in self.queries:
            found.append(ask(query[None, :])[0])  # noqa: PERF401 - timed
        single = time.process_time() - start
        start = time.process_time()
        ask(self.queries)
        batched = time.process_time() - start
        if not len(self.truth):
            self.truth = np.stack(found)
        shares = [np.isin(true, mine).mean() for true, mine in zip(self.truth, found, strict=True)]
        count = len(self.queries)
        return {
            "name": name, "recall": float(np.mean(shares)), "error": float(np.std(shares) / np.sqrt(count)),
            "ms": 1e3 * single / count, "ms_batched": 1e3 * batched / count, **more,
        }  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        yield
    faiss.omp_set_num_threads(2)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _timed(make: Callable[[], Any]) -> tuple[Any, Row]:
    """Make an index; return it, and what that took in seconds and in resident memory."""
    before, start = _resident(), time.process_time()
    made = make()
    return made, {"build_s": time.process_time() - start, "mb": (_resident() - before) / 1e6}


def node_rows(problem: Problem, archive: Archive, model_id: str, hnsw_up_to: int) -> Iterator[Row]:
    """Exact search of this node, then its own choice for a size beyond the exact limit, tuned to each target."""
    dimension = problem.vectors.shape[1]
    limits = IndexLimits(exact_up_to=min(200_000, len(problem.vectors) // 2), hnsw_up_to=hnsw_up_to)
    made = files.find(archive.database, model_id, Grain.FRAME)
    start = time.process_time()
    if made is None:
        made = building.build(archive, model_id, Grain.FRAME, limits, lambda _fraction: None)
    if made is None or (made.vectors, made.dimension) != problem.vectors.shape:
        sys.exit(f"expected {problem.vectors.shape} vectors and values in the archive, got {made}")
    size = sum(size for size, _ in made.files.values()) / 1e6
    took: Row = {"build_s": time.process_time() - start, "mb": size}
    first = made.last_id - made.vectors + 1  # row ids follow each other in the archive that `fill` made

    def asking(index: VectorIndex, mode: SearchMode | None) -> Callable[[np.ndarray], np.ndarray]:
        def ask(queries: np.ndarray) -> np.ndarray:
            index.refresh()
            return np.stack([hits.ids[:K] - first for hits in index.nearest_each(queries, K, Selection(), mode)])

        return ask

    index = VectorIndex(archive, model_id, dimension, Grain.FRAME, limits)
    index.refresh()
    with one_thread():
        yield problem.judged("tharsis exact", asking(index, SearchMode.EXACT), build_s=0.0, mb=size)
        for target in TARGETS:
            tuned = replace(limits, target_recall=target)
            index = VectorIndex(archive, model_id, dimension, Grain.FRAME, tuned)
            index.refresh()
            assert made.curve is not None
            step = made.curve.step(K, target)
            told = {"target": target, "promised": step.bound, "effort": step.effort, **took}
            yield problem.judged(f"tharsis {made.kind}", asking(index, None), **told)


def faiss_rows(problem: Problem) -> Iterator[Row]:
    def make() -> Any:
        index = faiss.IndexHNSWFlat(problem.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.add(problem.vectors)
        return index

    index, took = _timed(make)
    with one_thread():
        for effort in EFFORTS:
            parameters = faiss.SearchParametersHNSW(efSearch=effort)
            yield problem.judged(
                f"faiss {faiss.__version__} HNSW32",
                lambda queries, parameters=parameters: index.search(queries, K, params=parameters)[1],
                effort=effort, **took,
            )  # fmt: skip


def hnswlib_rows(problem: Problem) -> Iterator[Row]:
    import hnswlib

    def make() -> Any:
        index = hnswlib.Index(space="ip", dim=problem.vectors.shape[1])
        index.init_index(max_elements=len(problem.vectors), ef_construction=80, M=32)
        index.add_items(problem.vectors, num_threads=2)
        index.set_num_threads(1)
        return index

    index, took = _timed(make)
    with one_thread():
        for effort in EFFORTS:
            index.set_ef(effort)
            ask = lambda queries: index.knn_query(queries, K)[0].astype(np.int64)  # noqa: E731
            yield problem.judged(f"hnswlib {metadata.version('hnswlib')} M32", ask, effort=effort, **took)


def mrpt_rows(problem: Problem) -> Iterator[Row]:
    from mrpt import MRPTIndex

    def make() -> Any:
        index = MRPTIndex(problem.vectors)
        index.build_autotune_sample(None, K)
        return index

    index, took = _timed(make)
    with one_thread():
        for target in sorted(TARGETS + BETWEEN):
            tuned = index.subset(target)

            def ask(queries: np.ndarray, tuned: Any = tuned) -> np.ndarray:
                return np.stack([np.asarray(tuned.ann(query), dtype=np.int64) for query in queries])

            promised = tuned.parameters()["estimated_recall"]
            yield problem.judged(f"mrpt {metadata.version('mrpt')}", ask, target=target, promised=promised, **took)


_ROWS_OF = {"faiss": faiss_rows, "hnswlib": hnswlib_rows, "mrpt": mrpt_rows}


def measure(problem: Problem, archive: Archive, model_id: str, peers: Iterable[str], hnsw_up_to: int) -> Row:
    result: Row = {
        "count": len(problem.vectors), "dimension": problem.vectors.shape[1], "queries": len(problem.queries),
        "cpus": os.cpu_count(), "rows": [], "not_run": [],
    }  # fmt: skip
    parts = [("tharsis", lambda each: node_rows(each, archive, model_id, hnsw_up_to))]
    parts += [(peer, _ROWS_OF[peer]) for peer in peers]
    for name, rows in parts:
        try:
            for row in rows(problem):
                result["rows"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
        except ImportError:
            result["not_run"].append(f"{name}: not installed (pip install {name})")
    return result


def table(result: Row) -> str:
    """Return the result as a table in Markdown."""
    lines = [
        f"{result['count']:,} × {result['dimension']}, {result['queries']} queries, recall@{K}, processor time:", "",
        "| index | target | promised | recall@10 | ms | ms batched | build s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        name = row["name"] + (f", effort {row['effort']}" if "effort" in row else "")
        target, promised = (f"{row[key]:.3f}".rstrip("0") if key in row else "" for key in ("target", "promised"))
        lines.append(
            f"| {name} | {target} | {promised} | {row['recall']:.4f} ± {row['error']:.4f} | {row['ms']:.3f} | "
            f"{row['ms_batched']:.3f} | {row['build_s']:.0f} | {row['mb']:.0f} |"
        )
    return "\n".join([*lines, *result["not_run"]])


_FIRST_ANSWER = """
import sys, time, numpy as np
from pathlib import Path
from index.archive import Archive
from index.bases.limits import IndexLimits
from index.bases.selection import Grain, Selection
from index.vectors import VectorIndex
archive = Archive(Path(sys.argv[1]))
model_id, dimension = archive.database.execute("SELECT model_id, dimension FROM encoder").fetchone()
index = VectorIndex(archive, model_id, dimension, Grain.FRAME, IndexLimits(exact_up_to=1))
index.refresh()
hits = index.nearest(np.ones(dimension, np.float32) / np.sqrt(dimension), 10, Selection())
print(index.ntotal, hits.mode, len(hits.ids))
"""


def restart(folder: Path) -> None:
    """Say how long a new process takes from its start to its first answer."""
    start = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", _FIRST_ANSWER, folder], capture_output=True, text=True, check=True)
    count, mode, hits = told.stdout.split()
    print(f"{int(count):,} vectors: {hits} neighbours, {mode}, {time.perf_counter() - start:.2f} s after the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--hnsw-up-to", type=int, default=IndexLimits().hnsw_up_to, help="the node's setting")
    parser.add_argument("--keep", type=Path, help="folder of the archive; it stays, and what it holds is used again")
    parser.add_argument("--restart", action="store_true", help="time from the start of a process to its first answer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.restart:
        restart(arguments.keep)
        return
    problem = Problem(arguments.count, arguments.dimension, arguments.queries)
    with tempfile.TemporaryDirectory() as temporary:
        archive = Archive(arguments.keep or Path(temporary))
        known = archive.database.execute("SELECT model_id FROM encoder").fetchone()
        model_id = known[0] if known else fill(archive, problem.vectors, "synthetic-1", series_vectors=False)
        result = measure(problem, archive, model_id, arguments.peers, arguments.hnsw_up_to)
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
