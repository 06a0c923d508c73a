"""From the last C-STORE of a scan to its stored SEG, on a node of its own: seconds, and peak memory of each process.

    python benchmarks/scan_to_seg.py --size 256 --views 360

The node runs as `tharsis serve` runs it. The scan asks for a volume of size³ for each of four energy bins.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from index.archive import Archive
from reconstruct.projections.scan import ReconstructionRequest
from reconstruct.simulate import simulate_scan
from scp import client
from scp.client import Requestor
from scp.requestor import Peer

FIELD_OF_VIEW_MM = 36.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="detector rows and columns, and edge of the volume")
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--phantom", default="mouse-thorax")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_scan(Path(folder) / "scan", options)
        result = measure(Path(folder), files)
    result |= {"size": options.size, "views": options.views, "scan_mb": result.pop("scan_mb")}
    print(json.dumps(result, indent=2) if options.json else report(result))


def write_scan(folder: Path, options: argparse.Namespace) -> list[Path]:
    voxel = FIELD_OF_VIEW_MM / options.size
    request = ReconstructionRequest(voxel_mm_xyz=(voxel,) * 3, matrix_xyz=(options.size,) * 3)
    size, views = options.size, options.views
    folder.mkdir()
    files = []
    for dataset in simulate_scan(options.phantom, views=views, rows=size, columns=size, request=request):
        files.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def measure(folder: Path, files: list[Path]) -> dict[str, object]:
    config = folder / "node.toml"
    told = f"[scp]\nhost = \"127.0.0.1\"\nport = 0\n[archive]\ndata = \"{folder / 'data'}\"\nsettle_time_s = 1.0\n"
    config.write_text(told, encoding="utf-8")
    command = [sys.executable, "-P", "-m", "tharsis", "serve", "--config", str(config)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout is not None
        told = re.search(r":(\d+) ", node.stdout.readline())
        if told is None:
            raise SystemExit("the node did not start")
        peer = Peer("127.0.0.1", int(told[1]), "THARSIS")
        archive = Archive(folder / "data")
        idle = peaks(folder / "data")
        started = time.monotonic()
        if not all(sent.is_stored for sent in client.send(peer, files, Requestor())):
            raise SystemExit("the node did not store the scan")
        sent = time.monotonic()
        while not stored(archive, "SEG"):
            if archive.jobs.recent(states=("failed",)):
                raise SystemExit(archive.jobs.recent(states=("failed",))[0].error)
            time.sleep(0.05)
        done = time.monotonic()
        jobs = {job.kind: (job.finished or 0) - (job.started or 0) for job in archive.jobs.recent(states=("done",))}
        return {
            "scan_mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
            "c_store_s": round(sent - started, 2),
            "last_c_store_to_seg_s": round(done - sent, 2),
            "settle_s": 1.0,
            "reconstruct_job_s": round(jobs["reconstruct"], 2),
            "idle_mb": idle,
            "peak_mb": peaks(folder / "data"),
            "objects": stored(archive, "CT"),
        }
    finally:
        node.terminate()
        node.wait()


def stored(archive: Archive, modality: str) -> int:
    rows = archive.database.execute(
        "SELECT count(*) FROM instance JOIN series ON series.id = instance.series WHERE modality = ?", (modality,)
    )
    return int(rows.fetchone()[0])


def peaks(data: Path) -> dict[str, float]:
    """Peak resident memory of each process so far, MB (VmHWM)."""
    state = json.loads((data / "node.json").read_text())
    found = {}
    for name, pid in {"supervisor": state["pid"], **state["processes"]}.items():
        status = Path(f"/proc/{pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        found[name] = round(int(match[1]) / 1024, 0) if match else 0.0
    return found


def report(result: dict[str, object]) -> str:
    return "\n".join(f"{name:<24}{value}" for name, value in result.items())


if __name__ == "__main__":
    main()
