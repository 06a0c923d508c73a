"""The rows of a run as text: a table for each measurement, with the ratio to each peer."""

from __future__ import annotations

from typing import Any

_COLUMNS = (
    ("ready_s", "ready s", "{:.2f}"),
    ("per_s", "per s", "{:,.1f}"),
    ("mb_per_s", "MB/s", "{:,.1f}"),
    ("cpu_ms_each", "CPU ms each", "{:.2f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("first_ms", "first ms", "{:.2f}"),
    ("peak_mb", "peak MB", "{:,.0f}"),
    ("largest_process_mb", "largest MB", "{:,.0f}"),
)


def text(facts: dict[str, Any]) -> str:
    """Return the tables. A ratio is this node's rate over that of the peer, in the same run."""
    lines = [
        f"{facts['processors']} processors, load average {facts['load_average']:.1f}, {facts['seconds']:.0f} s. CPU "
        "and memory are those of all processes of a node, without the clients; × is this node's rate over the peer's."
    ]
    for name, node in facts.get("nodes", {}).items():
        lines.append(f"{name}: {node['version']}; durable: {node['durability']}")
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in facts["rows"]:
        what = row["what"] + (f", {row['studies']:,} studies" if "studies" in row else "")
        measured.setdefault((what, row["client"]), []).append(row)
    for (what, client), rows in measured.items():
        columns = [column for column in _COLUMNS if any(row.get(column[0]) is not None for row in rows)]
        lines += ["", f"{what}, {client} ({rows[0]['count']:,})"]
        lines.append(f"  {'':10}" + "".join(f"{title:>13}" for _, title, _ in columns) + f"{'×':>8}")
        own = next((row.get("per_s") for row in rows if row["node"] == "tharsis"), None)
        for row in rows:
            if "not_measured" in row:
                lines.append(f"  {row['node']:10}   not measured: {row['not_measured']}")
                continue
            cells = [shown.format(row[key]) if row.get(key) is not None else "–" for key, _, shown in columns]
            ratio = f"{own / row['per_s']:.2f}" if own and row["node"] != "tharsis" else ""
            lines.append(f"  {row['node']:10}" + "".join(f"{cell:>13}" for cell in cells) + f"{ratio:>8}")
    return "\n".join(lines)
