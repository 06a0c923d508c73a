"""The Markdown table of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.conformance.case import Case

PASS, FAIL, NOT_TRIED = "pass", "fail", "not tried"
_MARK = {PASS: "✓", FAIL: "✗", NOT_TRIED: "–"}


@dataclass(frozen=True)
class Verdict:
    """What a node did for a case.

    Attributes
    ----------
    verdict
        "pass", "fail" or "not tried".
    did
        What it did, or why it was not tried.
    """

    verdict: str
    did: str
    seconds: float = 0.0


Results = Mapping[str, Mapping[str, Verdict]]
"""Node → case id → verdict."""


def _cell(text: str) -> str:
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean.replace("|", "\\|").replace("<", "&lt;").strip()[:220]


def markdown(cases: Sequence[Case], results: Results, names: Mapping[str, str], command: str, day: str) -> str:
    """Return the scoreboard: totals, then a table for each section.

    Parameters
    ----------
    names
        Node → its name with version.
    command
        How to make it again.
    """
    nodes = list(results)
    lines = [
        "# Conformance scoreboard", "",
        "One probe, a network client written from the standard, asked the same of every node. Each line is a promise",
        "of the specification of this node's DIMSE behaviour. ✓ as expected, ✗ otherwise,",
        "– not tried, with the reason. Peers run as they are installed, with every AE of the probe made known to",
        "them; a row about a setting that a peer does not have is asked of it as it is.", "",
        f"Made on {day} by `{command}`.", "", "| node | ✓ | ✗ | – |", "|---|---|---|---|",
    ]
    for node in nodes:
        counts = [sum(v.verdict == kind for v in results[node].values()) for kind in _MARK]
        lines.append(f"| {names[node]} | " + " | ".join(map(str, counts)) + " |")
    for section in dict.fromkeys(case.section for case in cases):
        head = ["case", "standard", "expected", *(names[node].split(" (")[0] for node in nodes)]
        lines += ["", f"## {section}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for case in cases:
            if case.section != section:
                continue
            cells = [f"**{_cell(case.row)}**: {_cell(case.promise)}", case.clause, _cell(case.expected)]
            for node in nodes:
                verdict = results[node].get(case.id)
                cells.append(f"{_MARK[verdict.verdict]} {_cell(verdict.did)}" if verdict else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_json(cases: Sequence[Case], results: Results, names: Mapping[str, str]) -> str:
    """Return everything as JSON."""
    told = {
        "nodes": dict(names),
        "cases": [
            {
                "section": case.section, "row": case.row, "promise": case.promise, "clause": case.clause,
                "expected": case.expected, "variant": case.variant,
                "did": {node: asdict(verdicts[case.id]) for node, verdicts in results.items() if case.id in verdicts},
            }
            for case in cases
        ],
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def from_json(text: str) -> tuple[dict[str, str], dict[str, dict[str, Verdict]]]:
    """Return names and results of `as_json`."""
    told = json.loads(text)
    results: dict[str, dict[str, Verdict]] = {node: {} for node in told["nodes"]}
    for case in told["cases"]:
        for node, did in case["did"].items():
            results[node][f"{case['section']}/{case['row']}/{case['promise']}"] = Verdict(**did)
    return told["nodes"], results
