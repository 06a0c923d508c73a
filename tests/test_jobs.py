"""The job queue: what is due is done once, by one worker, however workers die."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from index import job_rows, jobs
from index.archive import Archive
from index.errors import NotFound, WrongState

ROOT = Path(__file__).resolve().parents[1]
CLAIM = {"claim_s": 60.0, "max_attempts": 3}
FAIL = {"max_attempts": 3, "retry_delay_s": 10.0}


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self):
        self.now = 1_000_000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (jobs, job_rows):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=clock.time))
    return clock


@pytest.fixture
def queue(archive, clock):
    return archive.jobs


def states(queue):
    return [(job.kind, job.subject, job.state) for job in reversed(queue.recent())]


def test_a_job_is_claimed_run_and_done(queue, clock):
    queue.push("fdk", "1.2", {"bin": 3})
    assert queue.pending() == 1
    job = queue.claim("w1", **CLAIM)
    assert (job.kind, job.subject, job.parameters, job.attempts, job.worker) == ("fdk", "1.2", {"bin": 3}, 1, "w1")
    assert job.started == clock.now
    assert queue.claim("w2", **CLAIM) is None
    queue.done(job)
    done = queue.get(job.id)
    assert (done.state, done.progress, done.finished) == ("done", 1.0, clock.now)
    assert queue.pending() == 0
    assert queue.claim("w1", **CLAIM) is None


def test_what_only_reads_a_series_runs_beside_other_work_on_it_and_each_destination_has_its_own(queue):
    queue.push("segment", "1.2")
    for destination in ("A", "B"):
        queue.push(jobs.ROUTE, "1.2", {"destination": destination, "rule": "r"})
    assert queue.is_due(jobs.ROUTING_KINDS, "A")
    assert not queue.is_due(jobs.ROUTING_KINDS, "C")
    assert queue.claim("w", excluding=jobs.NOT_FOR_WORKERS, **CLAIM).kind == "segment"
    first = queue.claim("r", kinds=jobs.ROUTING_KINDS, destination="B", **CLAIM)
    assert first.parameters["destination"] == "B"
    queue.push(jobs.ROUTE, "1.2", first.parameters)  # the series has grown: once more, when this one is done
    assert queue.claim("r", kinds=jobs.ROUTING_KINDS, destination="B", **CLAIM) is None
    assert queue.claim("r", kinds=jobs.ROUTING_KINDS, destination="A", **CLAIM).parameters["destination"] == "A"
    queue.done(first)
    assert queue.claim("r", kinds=jobs.ROUTING_KINDS, destination="B", **CLAIM) is not None


def test_a_job_is_given_back_until_a_date_with_the_reason(queue, clock):
    queue.push("route", "1.2")
    job = queue.claim("w", **CLAIM)
    queue.release(job, not_before=clock.now + 60, error="closed")
    assert queue.claim("w", **CLAIM) is None
    waiting = queue.get(job.id)
    assert (waiting.state, waiting.attempts, waiting.error) == ("queued", 0, "closed")
    clock.now += 60
    assert queue.claim("w", **CLAIM) is not None


def test_success_settles_earlier_failures_of_the_same_work(queue):
    queue.push("embed", "1.2.3")
    job = queue.claim("w", **CLAIM)
    queue.fail(job, "no", permanent=True, **FAIL)
    again = queue.retry(job.id)
    assert queue.get(job.id).state == "failed"
    queue.done(queue.claim("w", **CLAIM))
    settled = queue.get(job.id)
    assert (settled.state, settled.error) == ("cancelled", f"no (done since by job {again})")


def test_the_job_that_has_been_due_longest_comes_first_and_none_before_its_time(queue, clock):
    queue.push("a", "1", not_before=clock.now + 5)
    queue.push("b", "2", not_before=clock.now + 3)
    queue.push("c", "3")
    assert queue.claim("w", **CLAIM).kind == "c"
    assert queue.claim("w", **CLAIM) is None
    clock.now += 5
    assert [queue.claim("w", **CLAIM).kind for _ in range(2)] == ["b", "a"]


def test_pushing_again_moves_the_date_and_adds_no_second_job(queue, clock):
    for _ in range(3):
        queue.push("series_stable", "1.2", not_before=clock.now + 10)
        clock.now += 9
        assert queue.claim("w", **CLAIM) is None
    assert len(queue.recent()) == 1
    clock.now += 1
    assert queue.claim("w", **CLAIM).subject == "1.2"


def test_other_parameters_are_another_job_in_whichever_order_they_are_written(queue):
    queue.push("fdk", "1.2", {"a": 1, "b": 2})
    queue.push("fdk", "1.2", {"b": 2, "a": 1})
    queue.push("fdk", "1.2", {"a": 1})
    assert queue.pending() == 2


def test_pushing_while_the_same_job_runs_queues_one_more_run(queue):
    queue.push("a", "1")
    running = queue.claim("w1", **CLAIM)
    queue.push("a", "1")
    assert queue.claim("w2", **CLAIM) is None  # never two at once on one subject
    queue.done(running)
    assert queue.claim("w2", **CLAIM).id != running.id


def test_two_jobs_on_one_subject_never_run_at_once(queue):
    queue.push("a", "1")
    queue.push("b", "1")
    queue.push("c", "2")
    first, other = queue.claim("w1", **CLAIM), queue.claim("w2", **CLAIM)
    assert (first.kind, other.kind) == ("a", "c")
    assert queue.claim("w3", **CLAIM) is None
    queue.done(first)
    assert queue.claim("w3", **CLAIM).kind == "b"


def test_a_claim_that_is_renewed_is_kept_and_one_that_is_not_expires(queue, clock):
    queue.push("a", "1")
    first = queue.claim("w1", **CLAIM)
    clock.now += 50
    assert queue.renew(first, claim_s=60.0, progress=0.5)
    assert queue.get(first.id).progress == 0.5
    clock.now += 50
    assert queue.claim("w2", **CLAIM) is None
    clock.now += 11
    second = queue.claim("w2", **CLAIM)
    assert (second.id, second.attempts, second.progress) == (first.id, 2, 0.0)
    assert not queue.renew(first, claim_s=60.0, progress=0.9)


@pytest.mark.parametrize("act", ["done", "fail", "fail for good", "release", "renew"])
@pytest.mark.parametrize("successor", ["w2", "w1"])
def test_a_worker_that_lost_its_claim_and_comes_back_changes_nothing(act, successor, queue, clock):
    queue.push("a", "1")
    lost = queue.claim("w1", **CLAIM)
    clock.now += 61
    held = queue.claim(successor, **CLAIM)
    before = queue.get(held.id)
    {
        "done": lambda: queue.done(lost),
        "fail": lambda: queue.fail(lost, "late", **FAIL),
        "fail for good": lambda: queue.fail(lost, "late", **FAIL, permanent=True),
        "release": lambda: queue.release(lost),
        "renew": lambda: queue.renew(lost, claim_s=600.0, progress=0.7),
    }[act]()
    assert queue.get(held.id) == before
    assert queue.claim("w3", **CLAIM) is None
    queue.done(held)
    assert queue.get(held.id).state == "done"


def test_a_job_whose_worker_died_too_often_fails(queue, clock):
    queue.push("a", "1")
    for attempt in (1, 2, 3):
        assert queue.claim("w", **CLAIM).attempts == attempt
        clock.now += 61
    assert queue.claim("w", **CLAIM) is None
    (job,) = queue.recent()
    assert job.state == "failed"
    assert "3 times" in job.error


def test_claims_of_a_worker_known_to_be_dead_are_free_at_once(queue):
    for subject in "123":
        queue.push("a", subject)
    mine, other = queue.claim("w1", **CLAIM), queue.claim("w2", **CLAIM)
    assert queue.free_claims_of("w1", max_attempts=3) == 1
    assert queue.get(mine.id).state == "queued"
    assert queue.get(other.id).state == "running"


def test_failures_wait_longer_each_time_and_then_stay(queue, clock):
    queue.push("a", "1")
    for delay in (10.0, 20.0):
        queue.fail(queue.claim("w", **CLAIM), "no luck", **FAIL)
        (job,) = queue.recent()
        assert (job.state, job.error, job.not_before) == ("queued", "no luck", clock.now + delay)
        clock.now += delay - 0.1
        assert queue.claim("w", **CLAIM) is None
        clock.now += 0.1
    queue.fail(queue.claim("w", **CLAIM), "no luck at all", **FAIL)
    (job,) = queue.recent()
    assert (job.state, job.error, job.attempts) == ("failed", "no luck at all", 3)
    assert queue.pending() == 0


def test_the_delay_has_a_limit(queue, clock):
    queue.push("a", "1")
    for _ in range(1100):  # 2 ** 1100 is no float
        queue.fail(queue.claim("w", claim_s=60.0, max_attempts=9999), "x", max_attempts=9999, retry_delay_s=10.0)
        (job,) = queue.recent()
        assert job.not_before <= clock.now + 3600
        clock.now = job.not_before


def test_a_permanent_failure_is_not_tried_again(queue):
    queue.push("a", "1")
    queue.fail(queue.claim("w", **CLAIM), "not a projection", **FAIL, permanent=True)
    assert states(queue) == [("a", "1", "failed")]


def test_new_input_gives_a_failing_job_a_fresh_start(queue, clock):
    queue.push("a", "1")
    queue.fail(queue.claim("w", **CLAIM), "no luck", **FAIL)
    queue.push("a", "1")
    job = queue.claim("w", **CLAIM)
    assert (job.attempts, job.error) == (1, "")


@pytest.mark.parametrize("end", ["fail", "release", "expire"])
def test_a_job_queued_anew_meanwhile_stands_for_both(end, queue, clock):
    queue.push("a", "1")
    running = queue.claim("w", **CLAIM)
    queue.push("a", "1", not_before=clock.now + 5)
    if end == "fail":
        queue.fail(running, "no luck", **FAIL)
    elif end == "release":
        queue.release(running)
    else:
        clock.now += 61
        queue.claim("other", **CLAIM)
    assert states(queue)[0] == ("a", "1", "cancelled")
    assert queue.pending() == 1


def test_a_released_job_is_due_at_once_and_has_not_been_tried(queue):
    queue.push("a", "1", {"x": 1})
    for _ in range(10):
        job = queue.claim("w", **CLAIM)
        assert job.attempts == 1
        queue.release(job)
    assert queue.get(job.id).attempts == 0


def test_cancelling_a_queued_job(queue):
    queue.push("a", "1")
    (job,) = queue.recent()
    queue.cancel(job.id)
    assert queue.claim("w", **CLAIM) is None
    with pytest.raises(WrongState, match="cancelled"):
        queue.cancel(job.id)


@pytest.mark.parametrize("worker_says", ["release", "done", "fail", "nothing"])
def test_cancelling_a_running_job_stops_it_before_anything_else_starts(worker_says, queue, clock):
    queue.push("a", "1")
    job = queue.claim("w1", **CLAIM)
    queue.cancel(job.id)
    queue.push("b", "1")
    assert not queue.renew(job, claim_s=60.0, progress=0.5)
    assert queue.claim("w2", **CLAIM) is None  # the worker has not stopped yet
    if worker_says == "nothing":
        clock.now += 61
    elif worker_says == "fail":
        queue.fail(job, "x", **FAIL)
    else:
        getattr(queue, worker_says)(job)
    assert queue.get(job.id).state == "cancelled"
    assert queue.claim("w2", **CLAIM).kind == "b"


def test_only_a_job_that_has_ended_can_be_retried(queue):
    queue.push("a", "1", {"x": 1})
    running = queue.claim("w", **CLAIM)
    with pytest.raises(WrongState, match="running"):
        queue.retry(running.id)
    queue.fail(running, "no", **FAIL, permanent=True)
    queue.retry(running.id)
    again = queue.claim("w", **CLAIM)
    assert (again.kind, again.subject, again.parameters, again.attempts) == ("a", "1", {"x": 1}, 1)
    with pytest.raises(NotFound, match="no job 99"):
        queue.retry(99)


def test_recent_jobs_newest_first_by_state(queue):
    for subject in "123":
        queue.push("a", subject)
    queue.done(queue.claim("w", **CLAIM))
    assert [job.subject for job in queue.recent()] == ["3", "2", "1"]
    assert [job.subject for job in queue.recent(states=("done",))] == ["1"]
    assert [job.subject for job in queue.recent(states=("queued", "running"), limit=1)] == ["3"]


def test_jobs_survive_a_restart_and_a_rolled_back_push_does_not(archive):
    def push_and_fail():
        with archive.transaction() as database:
            jobs.push(database, "b", "1")
            raise KeyError

    archive.jobs.push("a", "1")
    with pytest.raises(KeyError):
        push_and_fail()
    assert [job.kind for job in Archive(archive.data).jobs.recent()] == ["a"]


def test_threads_claim_each_job_once_and_never_two_of_a_subject(archive):
    for number in range(30):
        archive.jobs.push("a", str(number % 6), {"number": number})
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def work(name):
        claimed = []
        while archive.jobs.pending():
            job = archive.jobs.claim(name, **CLAIM)
            if job is None:
                continue
            with lock:
                running[job.subject] += 1
                most[job.subject] = max(most[job.subject], running[job.subject])
            claimed.append(job.id)
            with lock:
                running[job.subject] -= 1
            archive.jobs.done(job)
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claimed = [number for each in pool.map(work, "abcd") for number in each]
    assert sorted(claimed) == sorted(set(claimed))
    assert len(claimed) == 30
    assert set(most.values()) == {1}


WORK = """
import sys
from pathlib import Path
from index.archive import Archive

queue = Archive(Path(sys.argv[1])).jobs
while queue.pending():
    job = queue.claim(sys.argv[2], claim_s=60.0, max_attempts=3)
    if job is not None:
        print(job.id, job.attempts)
        queue.done(job)
"""


def test_processes_claim_each_job_once(archive):
    for number in range(40):
        archive.jobs.push("a", str(number % 20), {"number": number})
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK, str(archive.data), name], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for name in ("w1", "w2")
    ]
    lines = []
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        lines += output.splitlines()
    assert sorted(lines) == sorted(f"{number} 1" for number in range(1, 41))
    assert {job.state for job in archive.jobs.recent()} == {"done"}


def test_a_job_is_left_to_the_process_that_should_take_it_for_a_moment(queue, clock):
    claim = {**CLAIM, "kinds": ("report",)}
    with queue._transaction() as database:
        jobs.push(database, "report", "1.2", {"requestor": "CT"}, preferred="network-2")
    assert queue.claim("network/courier-1", **claim, process="network") is None
    clock.now += 3.0
    assert queue.claim("network/courier-1", **claim, process="network") is not None, "nobody took it"


def test_what_was_tried_in_vain_by_another_process_is_known(queue):
    claim = {**CLAIM, "kinds": ("report",)}
    queue.push("report", "1.2", {"requestor": "CT"})
    job = queue.claim("network/courier-1", **claim, process="network")
    queue.fail(job, "no association is open", **FAIL)
    assert [each.id for each in queue.failed_elsewhere("report", process="network-2")] == [job.id]
    assert queue.failed_elsewhere("report", process="network") == []
    assert queue.hasten("report", {"requestor": "CT"}, preferred="network-2") == 1
    assert queue.claim("network/courier-1", **claim, process="network") is None
    assert queue.claim("network-2/courier-1", **claim, process="network-2").id == job.id
