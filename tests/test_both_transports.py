"""Each file of tests that starts a node runs on both transports (the Makefile's DIMSE), or here is why it does not."""

from __future__ import annotations

import re
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"

LEFT_OUT = {
    "test_commands.py": "about the command line: the node is there to be asked",
    "test_doors.py": "about what is similar: its requests come in other files, too",
    "test_encodings_end_to_end.py": "about reconstruction: its scans come in as any object does",
    "test_forked.py": "about processes, and what they have of their parent",
    "test_fsck.py": "about the archive",
    "test_niceness.py": "about processes, and threads that no transport has",
    "test_rebuild.py": "about the archive",
    "test_reports_over_the_network.py": "about reconstruction: what it made is asked for as any object is",
    "test_retention.py": "about the archive",
    "test_scan_to_similar.py": "about all from scan to similar case, for minutes",
    "test_scrubber.py": "about the archive",
    "test_state_table.py": "starts a node on each transport by itself",
}
"""By file: what it is about instead."""


def _listed():
    [names] = re.findall(r"^DIMSE := ((?:.*\\\n)*.*)", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"test_{name}.py" for name in names.replace("\\\n", " ").split()}


def test_every_file_that_starts_a_node_runs_on_both_or_there_is_a_reason(request):
    """Of the files that this run collects."""
    starting = {item.path.name for item in request.session.items if "transport_name" in item.fixturenames}
    forgotten = starting - _listed() - LEFT_OUT.keys()
    assert not forgotten, f"neither in DIMSE of the Makefile nor in LEFT_OUT: {', '.join(sorted(forgotten))}"


def test_the_lists_name_files_that_are_there_and_none_twice():
    folder = Path(__file__).parent
    named = [*_listed(), *LEFT_OUT]
    assert len(named) == len(set(named))
    assert [name for name in named if not (folder / name).is_file()] == []
