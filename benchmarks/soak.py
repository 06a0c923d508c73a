"""A node under load for a long time: four senders, two movers and a finder; what grows, and whether anything is lost.

    python benchmarks/soak.py --minutes 60

Watches the memory, file handles and threads of every process of the node, and the catalogue's write-ahead log. Then
the node is stopped, every instance that was answered 0000 is looked for in the catalogue, and `tharsis fsck` reads all
files back. The exit code is 1 when something grew or was lost. Growth is judged between the second quarter of the time
and the last: by then everything has been used once.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.conformance.node import Peer, Setup, free_port
from benchmarks.network import client, corpus, measure
from benchmarks.network.peers import MeasuredTharsis, Sink
from index.archive import Archive

SENDERS, MOVERS = 4, 2
_LARGE_SIDE = 512
_LARGE_EVERY_S = 1.0
"""One of the senders sends images of half a megabyte, a few in this time: an hour of them takes some gigabytes."""
_EVERY_S = 0.5
_MOST_RUNS = 100_000
"""Runs of a sender: each has counters of its own in the UIDs."""

_TOLERANCE = {"memory_mb": (1.10, 24.0), "handles": (1.0, 48.0), "threads": (1.0, 16.0), "wal_mb": (1.5, 16.0)}
"""What may be more in the last quarter than in the second: a factor, and an amount for what comes and goes."""

Sample = dict[str, float]


class Load:
    """The clients, in threads; the first that fails ends all.

    Attributes
    ----------
    done
        Runs of each sender that were answered 0000 to the last instance.
    moved, asked
        Instances that movers had sent, and queries that were answered.
    failures
        What went wrong.
    """

    def __init__(self, node: MeasuredTharsis, folder: Path, batch: int, side: int) -> None:
        self._node = node
        self._stop = threading.Event()
        self._corpora = [
            corpus.make(folder / f"sender{number}", "", batch, side=side, instances_a_study=max(1, batch // 2))
            for number in range(SENDERS - 1)
        ]
        few = max(1, batch // 20)
        self._corpora.append(corpus.make(folder / "large", "", few, side=_LARGE_SIDE, instances_a_study=few))
        self._studies: list[list[str]] = [[] for _ in range(SENDERS)]
        self.done = [0] * SENDERS
        self.moved = self.asked = 0
        self.failures: list[str] = []
        lanes: list[tuple[Callable[[int], None], int]] = [(self._send, number) for number in range(SENDERS)]
        lanes += [(self._move, number) for number in range(MOVERS)] + [(self._find, 0)]
        self._threads = [threading.Thread(target=self._repeat, args=lane, daemon=True) for lane in lanes]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client end what it does."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        if any(thread.is_alive() for thread in self._threads):
            self.failures.append("a client hangs")

    @property
    def has_failed(self) -> bool:
        """Whether a client has met with what it should not."""
        return bool(self.failures)

    def expected(self) -> dict[str, int]:
        """Return how many instances each study has that was sent to the end."""
        studies: dict[str, int] = {}
        for number, kind in enumerate(self._corpora):
            for done in range(self.done[number]):
                kind.run = _run(number, done)
                studies |= dict.fromkeys(kind.study_uids(), kind.instances_a_study)
        return studies

    def _repeat(self, do: Callable[[int], None], number: int) -> None:
        while not self._stop.is_set():
            try:
                do(number)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it is, it is what this looks for)
                self.failures.append(f"{do.__name__.strip('_')} {number + 1}: {type(error).__name__}: {error}")
                self._stop.set()

    def _send(self, number: int) -> None:
        kind = self._corpora[number]
        kind.renew(_run(number, self.done[number]))
        client.send(self._node.port, self._node.title, f"SENDER{number + 1}", kind.files)
        self._studies[number] = kind.study_uids()
        self.done[number] += 1
        if number == SENDERS - 1:
            self._stop.wait(_LARGE_EVERY_S)

    def _move(self, number: int) -> None:
        known = [(study, kind) for sent, kind in zip(self._studies, self._corpora, strict=True) for study in sent]
        studies = dict(known[number::MOVERS])
        if not studies:
            self._stop.wait(_EVERY_S)
            return
        measure.run_tools([[
            "movescu", "-S", "-aet", "BENCHMARK", "-aec", self._node.title, "-aem", "SINK",
            "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=" + "\\".join(studies),
            "127.0.0.1", str(self._node.port),
        ]])  # fmt: skip
        self.moved += sum(kind.instances_a_study for kind in studies.values())

    def _find(self, _number: int) -> None:
        wanted = [measure.identifier(PatientName="Benchmark*")]
        wanted += [measure.identifier(StudyInstanceUID=study) for sent in self._studies for study in sent]
        client.ask(self._node.port, self._node.title, "FINDER", wanted)
        self.asked += len(wanted)


def _run(sender: int, done: int) -> int:
    return sender * _MOST_RUNS + done


def sample(node: MeasuredTharsis) -> Sample:
    """Return what the processes of the node hold now."""
    told = {"memory_mb": 0.0, "handles": 0.0, "threads": 0.0, "wal_mb": 0.0}
    for pid in node.pids():
        try:
            lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            told["memory_mb"] += int(lines["VmRSS"].split()[0]) / 1024
            told["threads"] += int(lines["Threads"])
            told["handles"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (OSError, KeyError):  # it has just ended
            continue
    wal = node.data / "catalogue.sqlite-wal"
    told["wal_mb"] = wal.stat().st_size / 1e6 if wal.exists() else 0.0
    return told


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return the median of each quantity in the second and in the last quarter."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    return {
        name: {"second_quarter": median(one[name] for one in second), "last_quarter": median(one[name] for one in last)}
        for name in samples[0]
    }


def complaints(grown: dict[str, dict[str, float]]) -> list[str]:
    """Return what is more in the last quarter than it may be."""
    return [
        f"{name} grew from {told['second_quarter']:.0f} to {told['last_quarter']:.0f}"
        for name, told in grown.items()
        if told["last_quarter"] > told["second_quarter"] * _TOLERANCE[name][0] + _TOLERANCE[name][1]
    ]


def missing(data: Path, expected: dict[str, int]) -> list[str]:
    """Return the studies of which the catalogue has fewer instances than were answered 0000."""
    archive = Archive(data)
    try:
        held = dict(archive.database.execute(
            "SELECT study.study_instance_uid, count(*) FROM instance JOIN series ON series.id = instance.series "
            "JOIN study ON study.id = series.study GROUP BY study.id"
        ).fetchall())  # fmt: skip
    finally:
        archive.close()
    return [study for study, count in expected.items() if held.get(study, 0) < count]


def soak(folder: Path, seconds: float, batch: int, side: int) -> dict[str, Any]:
    """Run everything for so long and tell what became of it."""
    known = (Peer("SINK", free_port()), Peer("BENCHMARK", 0))
    node, sink = (kind(Setup(folder / kind.key, known)) for kind in (MeasuredTharsis, Sink))
    sink.port = known[0].port
    samples: list[Sample] = []
    try:
        sink.start()
        node.start()
        load = Load(node, folder, batch, side)
        load.start()
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds and not load.has_failed:
            time.sleep(_EVERY_S)
            samples.append(sample(node))
        load.stop()
    finally:
        node.stop()
        sink.stop()
    expected = load.expected()
    command = [sys.executable, "-P", "-m", "tharsis", "fsck", "--config", str(folder / node.key / "node.toml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    lost = missing(node.data, expected)
    grown = growth(samples)
    problems = [*load.failures, *complaints(grown)]
    problems += [f"{len(lost)} studies have lost instances, for example {lost[0]}"] if lost else []
    problems += [f"fsck: {checked.stdout[-300:]}{checked.stderr[-300:]}"] if checked.returncode else []
    return {
        "minutes": passed / 60,
        "stored": sum(expected.values()),
        "moved": load.moved,
        "asked": load.asked,
        "grown": grown,
        "largest": {name: max(one[name] for one in samples) for name in samples[0]},
        "problems": problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=100, help="instances that a sender sends over one association")
    parser.add_argument("--side", type=int, default=64, help="of each image, pixels: an hour of 8 KB takes gigabytes")
    parser.add_argument("--folder", type=Path, help="where everything is put (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["TCP_NODELAY"] = "1"
    with tempfile.TemporaryDirectory(prefix="tharsis-soak-", dir=arguments.folder) as name:
        facts = soak(Path(name), 60 * arguments.minutes, arguments.batch, arguments.side)
    print(json.dumps(facts, indent=1) if arguments.json else text(facts))
    raise SystemExit(1 if facts["problems"] else 0)


def text(facts: dict[str, Any]) -> str:
    """Return what became of it, as lines."""
    lines = [
        f"{facts['minutes']:.1f} minutes: {facts['stored']:,} instances stored, {facts['moved']:,} moved, "
        f"{facts['asked']:,} queries",
        f"{'':12}{'2nd quarter':>14}{'last quarter':>14}{'largest':>14}",
    ]
    for name, told in facts["grown"].items():
        values = (told["second_quarter"], told["last_quarter"], facts["largest"][name])
        lines.append(f"{name:12}" + "".join(f"{value:>14,.1f}" for value in values))
    return "\n".join([*lines, *(facts["problems"] or ["nothing grew, nothing was lost"])])


if __name__ == "__main__":
    main()
