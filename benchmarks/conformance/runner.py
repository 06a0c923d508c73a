"""Run cases against a node: one node for each configuration, restarted when it dies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.conformance.case import Case, Failed, NotTried
from benchmarks.conformance.node import CannotStart, Node, NotOffered, Setup
from benchmarks.conformance.probe import Bench
from benchmarks.conformance.receivers import Receivers
from benchmarks.conformance.report import FAIL, NOT_TRIED, PASS, Verdict
from benchmarks.conformance.wire import Gone, Rejected, Silent

BESIDE = ("idle",)
"""Configurations whose cases mostly wait: they run beside the others, on a node of their own, without receivers."""


def run_cases(
    cases: Sequence[Case], driver: type[Node], receivers: Receivers, options: dict[str, Any], folder: Path,
    certificates: Path,
) -> Iterator[tuple[Case, Verdict]]:
    """Run `cases`, configuration by configuration, the default first."""
    told = {name: str(options[name]) for name in ("qrscp_python", "transport")}

    def bench_for(variant: str) -> Bench:
        setup = Setup(folder / variant.replace(" ", "-"), receivers.peers, variant, certificates, told)
        setup.folder.mkdir(parents=True, exist_ok=True)
        return Bench(driver(setup), receivers, options, certificates)

    beside = [case for case in cases if case.variant in BESIDE]
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(lambda case: list(_run_all([case], bench_for(case.variant))), case) for case in beside]
        for variant in dict.fromkeys(["default", *(case.variant for case in cases)]):
            chosen = [case for case in cases if case.variant == variant and case not in beside]
            if chosen:
                yield from _run_all(chosen, bench_for(variant))
        for done in waiting:
            yield from done.result()


def _run_all(cases: Sequence[Case], bench: Bench) -> Iterator[tuple[Case, Verdict]]:
    """Start the node, run the cases, end the node."""
    try:
        try:
            bench.node.start()
        except NotOffered as error:
            yield from ((case, _absent(error)) for case in cases)
            return
        except CannotStart as error:
            yield from ((case, Verdict(FAIL, str(error))) for case in cases)
            return
        for case in cases:
            yield case, verdict_of(case, bench)
    finally:
        bench.node.stop()


def _absent(error: NotOffered) -> Verdict:
    return Verdict(NOT_TRIED if "may not" in str(error) else FAIL, str(error))


def verdict_of(case: Case, bench: Bench) -> Verdict:
    """Run a case on a node that runs; whatever goes wrong is the verdict."""
    try:
        if not bench.node.alive():
            bench.node.start()
    except CannotStart as error:
        return Verdict(FAIL, str(error))
    bench.renew()
    if case.variant not in BESIDE:
        bench.receivers.reset()
    began = time.monotonic()
    try:
        verdict, did = PASS, case.run(bench)
    except Failed as error:
        verdict, did = FAIL, str(error)
    except NotTried as error:
        verdict, did = NOT_TRIED, str(error)
    except (Gone, Silent, Rejected, LookupError, OSError, CannotStart) as error:
        verdict, did = FAIL, str(error)
    except Exception as error:  # noqa: BLE001  what the node sent could not be read: its failure, told as such
        verdict, did = FAIL, f"{type(error).__name__}: {error}"
    if not bench.node.alive():
        verdict, did = FAIL, f"{did}; the node died"
    return Verdict(verdict, did, time.monotonic() - began)
