"""A plug-in that raises, hangs, kills its process or talks nonsense is told by its name, and the others go on."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from conftest import ServedNode
from packages import install, job
from pydicom.data import get_testdata_file

from index.archive import Archive

pytestmark = pytest.mark.slow

BUILT_IN = ["reconstruction", "segmentation", "materials", "measurement", "embedding", "indexing"]
SETTINGS = f"""
[scp]
host = "127.0.0.1"
port = 0
stop_grace_s = 2
[archive]
data = "DATA"
settle_time_s = 0.2
reserve_mb = 0
[jobs]
max_attempts = 2
retry_delay_s = 0
stalled_s = 4
[similarity]
enabled = false
[plugins]
disabled = {json.dumps(BUILT_IN)}
hook_s = 5
"""
PACKAGES = {
    "stuck_at_import": "for_ever()",
    "fails_at_import": "raise SystemExit('no licence')",
    "dies_at_import": "os._exit(5)",
    "stuck_when_asked": "@hookimpl\ndef jobs_for_series():\n    for_ever()\n",
    "stuck_job": job("wait", "for_ever()"),
    "spinning_job": job("spin", "__import__('ctypes').PyDLL(None).sleep(600)"),  # lets no other thread run
    "deadly_job": job("die", "os.kill(os.getpid(), 11)"),
    "leaving_job": job("leave", "sys.exit('I am leaving')"),
    "raising_job": job("raise", "raise ValueError('oops')"),
    "refusing_job": job("refuse", "raise CannotProceed('series too short')"),
    "lying": "@hookimpl\ndef jobs_for_series(series):\n    return ['segment']\n",
    "raising_when_asked": "@hookimpl\ndef jobs_for_series(series):\n    raise KeyboardInterrupt\n",
    "thieving": "@hookimpl\ndef job_functions():\n    return {'scrub': print}\n",
    "good": job("work", "task.progress(0.5)"),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node with a package for each way to misbehave, and one that does its work; a CT series has been worked on."""
    folder = tmp_path_factory.mktemp("rowdy")
    for name, code in PACKAGES.items():
        install(folder / "site", name, code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
        served = ServedNode(folder / "node", SETTINGS)
        try:
            served.start()
            yield served
        finally:
            served.end()


@pytest.fixture(scope="module")
def jobs(node):
    """The jobs of a series, by kind, when nothing is left to be done."""
    archive = Archive(node.data, settle_time_s=0.0)
    archive.ingest(Path(get_testdata_file("CT_small.dcm")))
    pause = threading.Event()
    while archive.jobs.pending():  # the limits of the jobs end this
        pause.wait(0.1)
    return {each.kind: each for each in archive.jobs.recent()}


def test_the_good_one_has_done_its_work(jobs):
    assert jobs["work"].state == "done"


@pytest.mark.parametrize(
    ("kind", "attempts", "error"),
    [
        ("wait", 2, "plug-in stuck_job reported no progress on wait for 4 s"),
        ("die", 2, "its worker died 2 times while plug-in deadly_job was at work on job die"),
        ("spin", 2, "its worker died 2 times while plug-in spinning_job was at work on job spin"),
        ("leave", 2, "plug-in leaving_job: leave: SystemExit: I am leaving"),
        ("raise", 2, "plug-in raising_job: raise: ValueError: oops"),
        ("refuse", 1, "series too short"),
    ],
)
def test_a_job_fails_with_the_name_of_its_plug_in(jobs, kind, attempts, error):
    assert (jobs[kind].state, jobs[kind].attempts, jobs[kind].error) == ("failed", attempts, error)


def test_the_others_are_asked_and_those_who_failed_are_named(jobs):
    told = jobs["series_stable"]
    assert (told.state, told.attempts) == ("failed", 1)
    assert sorted(told.error.split("; ")) == [
        "plug-in lying: jobs_for_series: expected Work of a kind and a subject, got 'segment'",
        "plug-in raising_when_asked: raised KeyboardInterrupt: ",
        "plug-in stuck_when_asked did not return from jobs_for_series within 5 s",
    ]


def test_who_hangs_or_dies_at_the_start_is_left_out_and_the_node_is_up(node, jobs, tharsis):
    told = json.loads(tharsis("status", "--data", node.data, "--json").stdout)
    assert told["plugins_left_out"] == {
        "stuck_at_import": "did not return from import within 5 s",
        "dies_at_import": "was at work on import when its worker ended with status 5",
    }
    assert "plug-in fails_at_import is left out: cannot be imported: SystemExit: no licence" in node.log()
    assert "plug-in thieving is left out: job_functions: jobs of kind 'scrub' are done by plug-in scrub" in node.log()
    assert "stuck_when_asked did not return from jobs_for_series within 5 s: this process ends" in node.log()


def test_the_list_says_what_is_wrong_with_each(node, jobs, tharsis):
    listed = tharsis("plugins", "list", "--config", node.config, "--json")
    assert listed.returncode == 1
    plugins = {each["name"]: each for each in json.loads(listed.stdout)}
    assert set(plugins) >= {*PACKAGES, *BUILT_IN, "scrubber", "asked"}
    assert {name for name, each in plugins.items() if each["state"] == "disabled"} == set(BUILT_IN)
    assert plugins["good"]["hooks"] == ["job_functions", "jobs_for_series"]
    assert (plugins["good"]["kinds"], plugins["good"]["version"], plugins["good"]["built_in"]) == (["work"], "1", False)
    wrong = {name: each["problem"] for name, each in plugins.items() if each["problem"]}
    assert set(wrong) == {"stuck_at_import", "dies_at_import", "fails_at_import", "thieving"}
    assert wrong["fails_at_import"] == "cannot be imported: SystemExit: no licence"
    assert wrong["thieving"] == "jobs of kind 'scrub' are done by plug-in scrubber"
    assert "tharsis plugins enable stuck_at_import" in wrong["stuck_at_import"]


def test_a_running_node_takes_over_what_is_disabled_and_enabled(node, jobs, tharsis, wait_until):
    archive = Archive(node.data)

    def outcome(verb):
        before = node.processes()["worker-1"]
        told = tharsis("plugins", verb, "good", "--data", node.data)
        assert told.returncode == 0, told.stderr
        assert f"good is {verb}d: the running node takes it over" in told.stdout
        wait_until(lambda: node.processes()["worker-1"] != before)
        number = archive.jobs.push("work", "1.2.3")
        wait_until(lambda: archive.jobs.get(number).state in ("done", "failed"))
        return archive.jobs.get(number)

    disabled = outcome("disable")
    assert disabled.state == "failed"
    assert re.match(r"no plug-in does jobs of kind 'work' \(disabled or left out: .*good", disabled.error)
    assert outcome("enable").state == "done"
