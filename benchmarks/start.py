"""What a node costs before anybody asks anything of it: processor time and time of a start, and memory when it idles.

``python -m benchmarks.start [--acceptors 2] [--rounds 5] [--json]``: starts a node on an empty folder so many times,
waits until every process runs and an association is accepted, and reads what the system has counted of all of its
processes (Linux). The folder of compiled bytecode is warm after the first round, which is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pynetdicom import AE
from pynetdicom.sop_class import Verification

_TICKS = os.sysconf("SC_CLK_TCK")
_SETTLES_S = 2.0
_SETTINGS = """[scp]
host = "127.0.0.1"
port = 0
[network]
acceptors = {acceptors}
[archive]
data = "{data}"
"""


def family(pid: int) -> list[int]:
    """Return a process and all that have come from it."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in map(int, told) for each in family(child))]


def cpu_s(pids: list[int]) -> float:
    """Return the processor time of `pids` and of what they have waited for, user and system, seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def memory_mb(pid: int) -> dict[str, float]:
    """Return ``rss``, ``pss`` (pages that several have count by their share) and ``own``, MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    told = {name: int(value) * 1024 / 1e6 for name, value in re.findall(r"(\w+): +(\d+) kB", lines)}
    return {"rss": told["Rss"], "pss": told["Pss"], "own": told["Private_Dirty"] + told["Private_Clean"]}


def start(acceptors: int) -> dict[str, float]:
    """Start a node, look, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "tharsis.toml")
        config.write_text(_SETTINGS.format(acceptors=acceptors, data=Path(folder, "data")), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "tharsis", "serve", "--config", str(config)]
        began = time.monotonic()
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            line = node.stdout.readline()  # told when every process is ready
            port = int(re.search(r"listens on \S+:(\d+)", line)[1])
            entity = AE("BENCHMARK")
            entity.add_requested_context(Verification)
            association = entity.associate("127.0.0.1", port, ae_title="THARSIS")
            ready_s = time.monotonic() - began
            assert association.is_established
            cpu = cpu_s(family(node.pid))
            association.release()
            time.sleep(_SETTLES_S)
            pids = family(node.pid)
            names = json.loads(Path(folder, "data", "node.json").read_text(encoding="utf-8"))["processes"]
            memory = {pid: memory_mb(pid) for pid in pids}
            network = [memory[pid]["rss"] for name, pid in names.items() if name.startswith("network")]
            return {
                "processes": len(pids),
                "cpu_s": cpu,
                "ready_s": ready_s,
                "pss_mb": sum(each["pss"] for each in memory.values()),
                "rss_mb": sum(each["rss"] for each in memory.values()),
                "network_rss_mb": max(network),
                "network_pss_mb": max(memory[pid]["pss"] for name, pid in names.items() if name.startswith("network")),
            }
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait()


def main() -> None:
    """Run the rounds and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--acceptors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    first, *rounds = [start(asked.acceptors) for _ in range(asked.rounds + 1)]
    median = {key: round(statistics.median(each[key] for each in rounds), 2) for key in first}
    if asked.json:
        print(json.dumps({"median": median, "first": first}))
        return
    for key, value in median.items():
        print(f"{key:<16}{value:>8}   (first round {first[key]:.2f})")


if __name__ == "__main__":
    main()
