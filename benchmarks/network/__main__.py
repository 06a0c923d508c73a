"""Measure the network side of this node beside its peers, in one run, with the same objects and clients.

    python benchmarks/network --peers orthanc,storescp,dcmqrscp --json
    python benchmarks/network --grow 1000,10000,100000 --instances-a-study 100

Each measurement is made of one node after the other before the next one begins, so that what else the machine does
meets all of them. Every client sends each node instances that it does not have. DCMTK, as Debian builds it, writes a
PDU in two pieces and leaves Nagle's algorithm on: two waits of 40 ms for each instance. So its tools, and Orthanc, run
with TCP_NODELAY=1 here; ``--nagle`` leaves them as they are. What a peer does not manage is told in its row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.conformance.node import CannotStart, Node
from benchmarks.network import beside, corpus, grow, limits, measure
from benchmarks.network.peers import PEERS, running
from benchmarks.network.report import text

Row = dict[str, Any]
Runs = Iterator[tuple[str, Callable[[Node], Row]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="orthanc,storescp,dcmqrscp", help="which of them, separated by commas")
    parser.add_argument("--instances", type=int, default=200, help="CT images of 0.5 MB, and a fifth as many studies")
    parser.add_argument("--tiny", type=int, default=1000, help="images of 32 x 32")
    parser.add_argument("--multiframes", type=int, default=4, help="objects of many frames")
    parser.add_argument("--multiframe-mb", type=int, default=200, help="size of each of them, MB")
    parser.add_argument("--studies", type=int, default=1000, help="in the catalogue that is asked, one tiny image each")
    parser.add_argument("--queries", type=int, default=400, help="for one patient each")
    parser.add_argument("--only", default="store,find,retrieve", help="what is measured, separated by commas")
    parser.add_argument("--grow", default="", metavar="N,N,…", help="measure this node at so many studies instead")
    parser.add_argument("--instances-a-study", type=int, default=1, help="in the catalogue that --grow fills")
    parser.add_argument("--images", type=Path, help="where --grow puts its pictures")
    parser.add_argument("--limits", action="store_true", help="of this machine, and the parts of a C-STORE, instead")
    parser.add_argument("--beside", action="store_true", help="C-STORE without and with a reconstruction, instead")
    parser.add_argument("--folder", type=Path, help="where objects and nodes are put (default: a temporary folder)")
    parser.add_argument(
        "--nagle", action="store_true", help="leave DCMTK's tools, and the nodes made with it, as they are installed"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.nagle:
        os.environ["TCP_NODELAY"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="tharsis-network-", dir=arguments.folder))
    started = time.perf_counter()
    try:
        if arguments.limits:
            found = limits.measured(folder)
            print(json.dumps(found, indent=1) if arguments.json else limits.text(found))
            return
        if arguments.beside:
            facts: dict[str, Any] = {"rows": beside.measured(folder, arguments.instances)}
        elif arguments.grow:
            sizes = [int(size) for size in arguments.grow.split(",")]
            rows = grow.measured(sizes, folder, arguments.queries, instances=arguments.instances_a_study)
            if arguments.images:
                grow.draw(rows, arguments.images)
            facts = {"rows": rows}
        else:
            facts = _compared(arguments, folder)
    finally:
        shutil.rmtree(folder)
    facts |= {
        "processors": os.cpu_count(), "load_average": os.getloadavg()[1], "seconds": time.perf_counter() - started,
    }  # fmt: skip
    print(json.dumps(facts, indent=1) if arguments.json else text(facts))
    if any("not_measured" in row and row["node"] == "tharsis" for row in facts["rows"]):
        raise SystemExit("this node failed in a measurement, see above")


def _compared(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names, versions = [], {}
    for name in ["tharsis", *filter(None, arguments.peers.split(","))]:
        if name not in PEERS:
            raise SystemExit(f"unknown peer {name!r}; there are {', '.join(PEERS)}")
        try:
            versions[name] = PEERS[name].version({})
            names.append(name)
        except CannotStart as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    wanted = arguments.only.split(",")
    rows: list[Row] = []
    with running(names, folder) as (nodes, seconds):
        rows += [measure.started(node, seconds[name]) | {"node": name} for name, node in nodes.items()]
        for service, run in _runs(arguments, wanted, folder):
            for name, node in nodes.items():
                if service in node.services:  # type: ignore[attr-defined]
                    rows.append({"node": name, **run(node)})
                    print(_progress(rows[-1]), file=sys.stderr)
    return {
        "nodes": {name: {"version": versions[name], "durability": PEERS[name].durability} for name in names},  # type: ignore[attr-defined]
        "rows": rows,
    }


def _runs(arguments: argparse.Namespace, wanted: list[str], folder: Path) -> Runs:
    """Yield each measurement, with the service that a node needs for it; what it needs is made before."""
    made = folder / "corpora"
    kinds = [
        corpus.make(made / "ct", "CT 0.5 MB", arguments.instances, side=512,
                    instances_a_study=max(20, arguments.instances // 20)),
        corpus.make(made / "tiny", "tiny 32×32", arguments.tiny, side=32,
                    instances_a_study=max(20, arguments.tiny // 20)),
        corpus.make(
            made / "multiframe", f"multi-frame {arguments.multiframe_mb} MB", arguments.multiframes, side=512,
            frames=arguments.multiframe_mb * 1_000_000 // (2 * 512 * 512), instances_a_study=1,
        ),
    ]  # fmt: skip
    run = 0
    for kind in kinds if "store" in wanted or "retrieve" in wanted else []:
        for tool, associations in (("client", 1), ("client", 4), ("dcmsend", 1), ("dcmsend", 4)):
            if not kind.files or ("store" not in wanted and (tool, associations) != ("dcmsend", 4)):
                continue
            run += 1
            kind.renew(run)
            yield "store", partial(measure.store, corpus=kind, tool=tool, associations=associations)
    if "retrieve" in wanted:
        for kind in filter(attrgetter("files"), kinds):
            for tool in ("movescu", "getscu"):
                for associations in (1, 4):
                    service = "move" if tool == "movescu" else "get"
                    yield service, partial(measure.retrieve, corpus=kind, tool=tool, associations=associations)
    if "find" in wanted:
        yield from _finds(arguments, folder, run + 1)


def _finds(arguments: argparse.Namespace, folder: Path, run: int) -> Runs:
    day = "20260102"
    single = corpus.make(
        folder / "studies", "one image a study", arguments.studies, side=32, instances_a_study=1, study_date=day
    )
    single.renew(run)
    yield "find", partial(measure.store, corpus=single, tool="client", associations=4)
    for associations in (1, 4):
        yield "find", partial(
            measure.find_patients, run=run, studies=arguments.studies, queries=arguments.queries,
            associations=associations,
        )  # fmt: skip
    for tool in ("client", "findscu"):
        yield "find", partial(measure.find_all, study_date=day, studies=arguments.studies, tool=tool)


def _progress(row: Row) -> str:
    result = row.get("not_measured") or f"{row['per_s']:,.1f}/s"
    return f"{row['what']}, {row['client']}, {row['node']}: {result}"


if __name__ == "__main__":
    main()
