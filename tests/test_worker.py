"""The worker: what plug-ins ask for is done once, and a plug-in that fails harms nobody else."""

from __future__ import annotations

import sqlite3
import threading
from types import ModuleType

import numpy as np
import pytest

from config.settings import load_settings
from index import jobs
from index.archive import Archive
from index.changes import ChangeKind, since
from plugins import manager
from plugins.claim import Claim
from plugins.hookspecs import hookimpl
from plugins.node import CannotProceed, Work
from plugins.worker import Worker


@pytest.fixture
def archive(tmp_path, make_dataset):
    return Archive(tmp_path / "data", settle_time_s=0.0)


@pytest.fixture
def stored(archive, make_file):
    return archive.ingest(make_file(1))


@pytest.fixture
def settings(tmp_path):
    overrides = {"archive": {"data": tmp_path / "data"}, "jobs": {"max_attempts": 2, "retry_delay_s": 0.0}}
    return load_settings(environment={}, overrides=overrides)


def plugin(kind: str, function, *, wanted: bool = True) -> ModuleType:
    """A plug-in that does `kind` with `function`, for every series when `wanted`."""

    @hookimpl
    def jobs_for_series(series, settings):
        return [Work(kind, series.uid)] if wanted else None

    @hookimpl
    def job_functions():
        return {kind: function}

    module = ModuleType(kind)
    module.jobs_for_series, module.job_functions = jobs_for_series, job_functions
    return module


def managed(*modules: ModuleType) -> manager.Plugins:
    plugins = manager.Plugins()
    for number, module in enumerate(modules):
        plugins.register(module, f"plug-in {number}")
    plugins.check_pending()
    return plugins


def states(archive) -> dict[str, str]:
    return {job.kind: job.state for job in archive.jobs.recent()}


def test_each_answer_of_a_plug_in_becomes_a_job_that_is_done_once(archive, stored, settings):
    done = []
    plugins = managed(plugin("count", lambda task: done.append(task.job.subject)), plugin("never", None, wanted=False))
    Worker(archive, settings, "w", plugins).run_until_idle()
    assert done == [stored.series_instance_uid]
    assert states(archive) == {jobs.SERIES_STABLE: "done", "count": "done"}
    assert [change.kind for change in since(archive.database)] == [ChangeKind.STORED, ChangeKind.STABLE]


def test_a_plug_in_that_raises_fails_its_own_job_and_the_others_go_on(archive, stored, settings):
    done = []

    def broken(task):
        raise ZeroDivisionError("oops")

    plugins = managed(plugin("broken", broken), plugin("count", lambda task: done.append(1)))
    Worker(archive, settings, "w", plugins).run_until_idle()
    assert done == [1]
    (failed,) = archive.jobs.recent(states=("failed",))
    assert failed.attempts == settings.jobs.max_attempts
    assert failed.error == "plug-in plug-in 0: broken: ZeroDivisionError: oops"


def test_a_plug_in_that_raises_when_asked_is_named_and_the_others_are_asked(archive, stored, settings):
    done, rude = [], plugin("rude", print)

    @hookimpl
    def jobs_for_series(series, settings):
        raise RuntimeError("no")

    rude.jobs_for_series = jobs_for_series
    Worker(archive, settings, "w", managed(rude, plugin("count", lambda task: done.append(1)))).run_until_idle()
    assert done == [1]
    (failed,) = archive.jobs.recent(states=("failed",))
    assert failed.error == "plug-in plug-in 0: RuntimeError: no"


def test_a_heartbeat_that_cannot_write_for_a_while_keeps_the_claim(archive, stored, settings, monkeypatch, wait_until):
    tried = []

    def full(*_arguments, **_keywords):
        tried.append(1)
        raise sqlite3.OperationalError("database or disk is full")

    def patient(task):
        monkeypatch.setattr(archive.jobs, "renew", full)
        wait_until(lambda: len(tried) > 1)
        task.progress(1.0)

    Worker(archive, settings, "w", managed(plugin("patient", patient))).run_until_idle()
    assert states(archive)["patient"] == "done"


@pytest.mark.parametrize("fraction", [np.float32(0.5), float("nan")])
def test_progress_in_any_kind_of_number_keeps_the_claim(archive, fraction):
    archive.jobs.push("work", "1.2.3")
    job = archive.jobs.claim("w", claim_s=60, max_attempts=3)
    claim = Claim(archive, job, 60, threading.Event())
    claim.progress(0.5)
    claim.progress(fraction)
    assert archive.jobs.renew(job, claim_s=60, progress=claim._fraction)
    assert archive.jobs.get(job.id).progress == 0.5


def test_what_cannot_proceed_is_not_tried_again(archive, stored, settings):
    def hopeless(task):
        raise CannotProceed("2 of 5 instances are here")

    Worker(archive, settings, "w", managed(plugin("hopeless", hopeless))).run_until_idle()
    (failed,) = archive.jobs.recent(states=("failed",))
    assert (failed.attempts, failed.error) == (1, "2 of 5 instances are here")


def test_a_job_of_a_kind_that_nobody_does_says_so(archive, settings):
    archive.jobs.push("unheard-of", "1.2.3")
    Worker(archive, settings, "w", managed()).run_until_idle()
    (failed,) = archive.jobs.recent(states=("failed",))
    assert "unheard-of" in failed.error


def test_a_worker_that_is_told_to_stop_gives_its_job_back_untried(archive, stored, settings, wait_until):
    entered = threading.Event()

    def endless(task):
        entered.set()
        while True:
            task.progress(0.5)

    worker = Worker(archive, settings, "w", managed(plugin("endless", endless)))
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert entered.wait(120)
    worker.stop()
    thread.join(120)
    assert not thread.is_alive()
    (job,) = [job for job in archive.jobs.recent() if job.kind == "endless"]
    assert (job.state, job.attempts) == ("queued", 0)


def test_a_running_job_that_is_cancelled_stops_and_frees_its_series(archive, stored, settings, wait_until):
    entered, calls = threading.Event(), []

    def endless(task):
        calls.append(1)
        if len(calls) > 1:
            return
        entered.set()
        while True:
            task.progress(0.5)

    worker = Worker(archive, settings, "w", managed(plugin("endless", endless)))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert entered.wait(120)
        (job,) = archive.jobs.recent(states=("running",))
        archive.jobs.cancel(job.id)
        archive.jobs.push("endless", stored.series_instance_uid, {"again": True})
        wait_until(lambda: len(calls) == 2)
    finally:
        worker.stop()
        thread.join(120)
    assert archive.jobs.get(job.id).state == "cancelled"


def test_a_new_worker_of_the_same_name_takes_back_what_a_dead_one_had_claimed(archive, settings):
    archive.jobs.push("count", "1.2.3")
    assert archive.jobs.claim("w", claim_s=3600, max_attempts=2) is not None
    done = []
    worker = Worker(archive, settings, "w", managed(plugin("count", lambda task: done.append(task.job.attempts))))
    thread = threading.Thread(target=worker.run)
    thread.start()
    while not done and thread.is_alive():
        thread.join(0.05)
    worker.stop()
    thread.join(120)
    assert done == [2]


def test_a_series_that_was_deleted_meanwhile_fails_in_one_sentence(archive, stored, settings):
    from index.keys import Level

    archive.delete(Level.SERIES, stored.series_instance_uid)
    assert states(archive) == {jobs.SERIES_STABLE: "cancelled"}
    archive.jobs.push(jobs.SERIES_STABLE, stored.series_instance_uid)
    Worker(archive, settings, "w", managed()).run_until_idle()
    (failed,) = archive.jobs.recent(states=("failed",))
    assert failed.error == f"no series {stored.series_instance_uid}"


def test_of_two_plug_ins_with_one_kind_of_job_the_second_is_left_out(archive, stored, settings):
    done = []
    plugins = managed(plugin("count", lambda task: done.append("first")), plugin("count", done.append))
    Worker(archive, settings, "w", plugins).run_until_idle()
    assert done == ["first"]
    assert plugins.left_out == {
        "plug-in 1": "job_functions: jobs of kind 'count' are done by plug-in plug-in 0, which is asked before"
    }


def test_the_built_in_plug_ins_use_the_same_hooks():
    plugins = manager.load_plugins()
    assert {name for name, _ in plugins.list_name_plugin()} >= set(manager.BUILT_IN)
    kinds = {"reconstruct", "segment", "decompose", "embed", "adopt_encoder", "embed_asked", "scrub", "retention"}
    kinds |= {"index_vectors", "look_after_vectors", "measure", "picture", "scan_quality", "route", "confirm_route"}
    kinds |= {*jobs.ORTHANC_KINDS}
    assert set(manager.job_functions(plugins)) == kinds
