"""How C-STORE and C-FIND of this node take it when the catalogue grows: the same work at each size, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.conformance.node import Peer, Setup
from benchmarks.network import catalogue, client, corpus, measure
from benchmarks.network.peers import MeasuredTharsis
from index.archive import Archive

_STORED = 200
Row = dict[str, Any]


def measured(sizes: Sequence[int], folder: Path, queries: int, *, instances: int = 1) -> list[Row]:
    """Fill a catalogue to each size, in bulk, and measure a node that runs on it.

    Parameters
    ----------
    sizes
        Studies in the catalogue, each of a patient of its own.
    folder
        Where node and objects are put.
    queries
        For one patient; a fourth as many by name and by accession.
    instances
        Of each study.
    """
    node = MeasuredTharsis(Setup(_made(folder / "tharsis"), (Peer("BENCHMARK", 0),)))
    tiny = corpus.make(folder / "tiny", "tiny 32×32", _STORED, side=32, instances_a_study=20)
    images = corpus.make(folder / "ct", "CT 0.5 MB", _STORED // 2, side=512, instances_a_study=20)
    rows: list[Row] = []
    filled = 0
    runs = count(1)
    for size in sorted(sizes):
        archive = Archive(node.data)
        catalogue.fill(archive, size - filled, instances=instances, first=filled)
        archive.close()
        filled = size
        node.start()
        found: list[Row] = []
        try:
            for kind in (tiny, images):
                kind.renew(next(runs))
                measure.store(node, kind, tool="client", associations=1)  # the first ones warm everything up
                kind.renew(next(runs))
                found.append(measure.figures(measure.store(node, kind, tool="client", associations=1)))
            found += [
                _find(node, "one patient", [
                    {"PatientID": catalogue.patient_id(i * 7919 % size)} for i in range(queries)
                ]),
                _find(node, "patients by name", [{"PatientName": name} for name in _names(size, queries // 4)]),
                _find(node, "one accession", [
                    {"AccessionNumber": f"A{i * 7919 % size:08d}"} for i in range(queries // 4)
                ]),
            ]  # fmt: skip
        finally:
            node.stop()
        rows += [{"studies": size, "instances": size * instances, "node": "tharsis", **row} for row in found]
    return rows


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _names(size: int, count: int) -> list[str]:
    wanted = {number * 7919 % size for number in range(count)}
    return [
        header.values["PatientName"] for number, header in enumerate(catalogue.headers(size)) if number in wanted
    ]


def _find(node: MeasuredTharsis, what: str, wanted: Sequence[dict[str, str]]) -> Row:
    asked = [measure.identifier(**values) for values in wanted]
    with measure.watched(node.pids) as taken:
        timed = client.find(node.port, node.title, asked, 1)
    return {
        "what": f"C-FIND {what}", "client": "client ×1", "count": len(asked), "per_s": len(asked) / timed.seconds,
        "answers": timed.answers, **measure.costs(taken, len(asked)), **measure.latencies_of(timed.latencies),
    }  # fmt: skip


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write `network-store.svg` and `network-find.svg`: rate and latency over the number of studies."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, begins, key, label in (
        ("network-store", "C-STORE", "per_s", "instances per second, one association"),
        ("network-find", "C-FIND", "p50_ms", "median latency, ms, one association"),
    ):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if row["what"].startswith(begins):
                lines.setdefault(row["what"], []).append(row)
        for what, points in lines.items():
            axes.plot([row["studies"] for row in points], [row[key] for row in points], "o-", label=what)
        axes.set(xscale="log", xlabel="studies in the catalogue", ylabel=label, ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
