"""Every promise of the specification of DIMSE behaviour, asked over the network."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.slow(200)
def test_this_node_does_what_every_row_says(tmp_path, transport_name):
    told = tmp_path / "scoreboard.json"
    command = [sys.executable, "-m", "benchmarks.conformance", "--nodes", "tharsis", "--json", str(told)]
    command += ["--out", str(tmp_path / "scoreboard.md"), "--keep", str(tmp_path / "nodes")]
    command += ["--transport", transport_name]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800, check=False)
    assert told.exists(), ran.stdout + ran.stderr
    cases = json.loads(told.read_text(encoding="utf-8"))["cases"]
    unasked = [case["promise"] for case in cases if "tharsis" not in case["did"]]
    assert not unasked, f"{ran.stderr}\nnot asked: {unasked}"
    failed = [
        f"{case['section']}, {case['row']}: {case['promise']}\n    expected: {case['expected']} ({case['clause']})\n"
        f"    did:      {case['did']['tharsis']['did']}"
        for case in cases
        if case["did"]["tharsis"]["verdict"] == "fail"
    ]
    assert not failed, f"{len(failed)} of {len(cases)} rows fail\n" + "\n".join(failed)
    assert ran.returncode == 0, ran.stderr


def test_a_node_that_answers_success_and_stores_nothing_fails_the_rows_that_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKOUT))
    importlib.import_module("benchmarks.conformance.cases_store")
    cases = importlib.import_module("benchmarks.conformance.case").CASES
    probe = importlib.import_module("benchmarks.conformance.probe")
    runner = importlib.import_module("benchmarks.conformance.runner")
    entity = AE("LIAR")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(probe.FIND["S"])
    entity.add_supported_context(probe.FIND["P"])
    answers = [(evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_C_FIND, lambda event: iter(()))]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=answers)
    node = SimpleNamespace(
        port=server.server_address[1], title="LIAR", key="liar", alive=lambda: True, files=set, outside=set
    )
    bench = probe.Bench(node, SimpleNamespace(reset=lambda: None), {}, tmp_path)
    try:
        verdicts = {
            case.promise: runner.verdict_of(case, bench)
            for case in cases
            if case.promise in ("what was answered 0000 can be found and fetched", "Study Instance UID")
        }
    finally:
        server.shutdown()
    assert {promise: verdict.verdict for promise, verdict in verdicts.items()} == {
        "what was answered 0000 can be found and fetched": "fail",
        "Study Instance UID": "fail",
    }
    assert "C-FIND lists []" in verdicts["what was answered 0000 can be found and fetched"].did
