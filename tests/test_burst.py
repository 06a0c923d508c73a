"""A burst of senders slows down, all alike, before the memory of the node grows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.network import client, corpus

SENDERS, IMAGES = 48, 12
ASSOCIATION_MB = 2.0
"""What an association may take at most while it brings images of half a megabyte: memory, a connection to SQLite."""


def resident_mb(pid: int, what: str) -> float:
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


@pytest.mark.slow
def test_many_senders_at_once_are_served_alike_in_little_memory(serve, tmp_path):
    node = serve(acceptors=2)
    kinds = []
    for number in range(SENDERS):
        kind = corpus.make(tmp_path / str(number), "", IMAGES, side=512, instances_a_study=IMAGES)
        kind.renew(number + 1)
        kinds.append(kind)
    client.send(node.port, "THARSIS", "FIRST", kinds[0].files[:2])  # whatever the first one warms up
    networks = [pid for name, pid in node.processes().items() if name.startswith("network")]
    before = [resident_mb(pid, "VmRSS") for pid in networks]
    together = threading.Barrier(SENDERS)
    with ThreadPoolExecutor(SENDERS) as pool:
        runs = [
            pool.submit(client.send, node.port, "THARSIS", f"SENDER{number}", kind.files, ready=together.wait)
            for number, kind in enumerate(kinds)
        ]
        seconds = [sum(run.result().latencies) for run in runs]
    grown = [resident_mb(pid, "VmHWM") - was for pid, was in zip(networks, before, strict=True)]
    assert max(grown) < SENDERS / 2 * ASSOCIATION_MB, grown
    # All had as much to send. Who was served a third as often as another took three times as long.
    assert max(seconds) < 3 * min(seconds)
