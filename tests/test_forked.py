"""Forked processes: what they have of their parent, what they do not have, and how each learns of the other's end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index.archive import Archive

PRELUDE = """
import json, os, signal, sys, time
from commands.forked import CannotStart, Bell, fork, prepare_to_fork, wait_for_any
def run(*children):
    while any(child.poll() is None for child in children):
        wait_for_any(children, 60.0)
    return [child.told for child in children]
"""


def told_by(program, **options):
    """Run a program in a process of its own, which has one thread and may fork; return what it prints."""
    command = [sys.executable, "-P", "-c", PRELUDE + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def standing(serve_all):
    """A node whose processes the tests look at, and kill."""
    return serve_all(acceptors=2)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def open_files(pid):
    """What a process has open: paths, and ``socket:[number]`` or ``pipe:[number]``."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(entry.readlink()))
    return found


def listening(port):
    """The sockets of 127.0.0.1 that listen on a port, as `open_files` names them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_what_follows_one_that_died_is_forked_too_and_ps_tells_its_name(standing, wait_until):
    processes = standing.processes()
    dead = processes["network-2"]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: standing.processes()["network-2"] != dead)
    processes = standing.processes()
    for name in ("network", "network-2", "worker-1", "encoder"):
        assert parent(processes[name]) == processes["supervisor"]
        wait_until(lambda name=name: command_line(processes[name]) == f"tharsis {name}")


def test_the_supervisor_has_one_thread_and_no_catalogue_open(standing, wait_until):
    supervisor = standing.processes()["supervisor"]
    os.kill(standing.processes()["worker-1"], signal.SIGKILL)
    wait_until(lambda: "files without a row: none" in standing.log())
    assert "Threads:\t1\n" in Path(f"/proc/{supervisor}/status").read_text(encoding="utf-8")
    assert not [path for path in open_files(supervisor) if "sqlite" in path]


def test_only_network_processes_have_the_port_and_no_process_has_the_ties_of_others(standing, wait_until):
    (port,) = listening(standing.port)

    def keeps_to_its_own():
        """Waited for: a process that an earlier test had killed is there again, and may not have come to it yet."""
        processes = standing.processes()
        try:
            have = {name: open_files(pid) for name, pid in processes.items()}
        except FileNotFoundError:
            return False
        accept = {name for name, files in have.items() if port in files}
        pipes = [
            path for name, files in have.items() if name != "supervisor" for path in files if path.startswith("pipe:")
        ]
        return (
            accept == {"supervisor", "network", "network-2"}
            and len(pipes) >= 2 * (len(processes) - 1)  # its lifeline, and what it has to say
            and len(pipes) == len(set(pipes))  # a lifeline that another process holds as well would not end
        )

    wait_until(keeps_to_its_own)


def test_a_node_that_dies_in_the_middle_of_tidying_up_leaves_no_process(serve, wait_until):
    node = serve()
    for number in range(300):
        orphan = node.data / "files" / "1" / str(number) / "3-0.dcm"
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"no DICOM")
    processes = node.processes()

    def children():
        told = Path(f"/proc/{processes['supervisor']}/task/{processes['supervisor']}/children")
        return set(map(int, told.read_text(encoding="utf-8").split()))

    def is_tidying():
        with contextlib.suppress(FileNotFoundError):  # one has just ended
            return any(command_line(pid) == "tharsis tidy" for pid in children())
        return False

    with Archive(node.data).transaction():  # while another one writes, the tidying does not come to its end
        os.kill(processes["worker-1"], signal.SIGKILL)
        wait_until(is_tidying)
        family = children()
        os.kill(processes["supervisor"], signal.SIGKILL)
        wait_until(lambda: not node.alive(family))
    node.wait()
    node.start()


def test_random_values_differ_between_processes(tmp_path):
    program = f"catalogue = {str(tmp_path / 'catalogue.sqlite')!r}\n" + """
import random, secrets, sqlite3, tempfile, uuid
from commands.process import preload
preload()
from pydicom.uid import generate_uid
random.random(), secrets.token_hex(), uuid.uuid4(), sqlite3.connect(catalogue).execute("SELECT random()").fetchone()
next(tempfile._get_candidate_names())
assert "numpy.random" not in sys.modules, "its generator would be the same in all"
def dice(ties):
    ties.tell({
        "random": random.random(), "secrets": secrets.token_hex(), "uuid": str(uuid.uuid4()), "uid": generate_uid(),
        "own": generate_uid(prefix="1.2.3."), "file": next(tempfile._get_candidate_names()),
        "sqlite": sqlite3.connect(catalogue).execute("SELECT random()").fetchone()[0],
    })
    return 0
prepare_to_fork()
first = fork(dice, "first", [])
print(json.dumps(run(first, fork(dice, "second", [first]))))
"""
    first, second = json.loads(told_by(program)[0])
    assert len(first) == 7
    for name in first:
        assert first[name] != second[name], name


def test_preloading_starts_no_thread_and_loads_nothing_that_computes():
    program = """
from commands.process import preload
import commands.supervisor
preload()
import threading
heavy = "numba", "torch", "faiss", "scipy", "skimage", "highdicom", "matplotlib", "plugins.manager"
libraries = [name for name in heavy if name in sys.modules]
print(threading.active_count(), libraries)
"""
    assert told_by(program)[0].split() == ["1", "[]"]


def test_a_process_with_threads_is_not_forked():
    program = """
import threading
threading.Thread(target=threading.Event().wait, name="waits", daemon=True).start()
try:
    prepare_to_fork()
except RuntimeError as error:
    print(error)
"""
    assert told_by(program)[0].strip() == "a process with several threads (MainThread, waits) cannot be forked"


def test_a_child_has_no_handler_of_its_parent():
    program = """
signal.signal(signal.SIGTERM, lambda *_: print("the parent's", flush=True))
def wait(ties):
    while True:
        time.sleep(60.0)
children = [fork(wait, "waits", []) for _ in range(20)]
for child in children:
    child.terminate()  # some have not come to run at all
run(*children)
print([child.returncode for child in children] == [-signal.SIGTERM] * 20, signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    assert told_by(program)[0].split() == ["True", "set()"]


def test_what_goes_wrong_in_a_child_ends_the_child():
    program = """
import logging
logging.basicConfig()
def fail(ties):
    raise ZeroDivisionError("by zero")
def refuse(ties):
    raise CannotStart("no such thing")
def leave(ties):
    sys.exit(7)
try:
    print("once", end=" ")
    children = [fork(run, "tharsis test", []) for run in (fail, refuse, leave)]
    told = run(*children)
finally:
    print("parent", [child.returncode for child in children], told)
"""
    out, err = told_by(program)
    assert out.strip() == "once parent [1, 1, 7] [{}, {'error': 'no such thing'}, {}]"
    assert "ZeroDivisionError: by zero" in err


def test_what_a_child_prints_is_not_for_the_user_and_what_it_reads_is_empty():
    program = """
def chat(ties):
    print("printed", flush=True)
    os.system("echo echoed")
    ties.tell({"read": sys.stdin.read(), "long": "x" * 200_000})
    return 0
(told,) = run(fork(chat, "chats", []))
print(repr(told["read"]), len(told["long"]))
"""
    out, err = told_by(program, input="for the parent")
    assert out.split() == ["''", "200000"]
    assert err.split() == ["printed", "echoed"]


def test_a_parent_whose_children_nobody_waits_for_and_whose_streams_are_closed_learns_how_they_end():
    program = """
report = os.dup(1)
os.close(0)
os.close(1)
prepare_to_fork()
bell = Bell()
child = fork(lambda ties: ties.tell({"said": 1}) or 3, "test", [bell])
run(child)
bell.ring()
wait_for_any([child], 60.0, bell.listener)
os.write(report, f"{child.returncode} {child.told}".encode())
"""
    out, _ = told_by("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + program)
    assert out == "3 {'said': 1}"


def test_a_child_learns_that_its_parent_was_killed(wait_until):
    program = """
def wait(ties):
    ties.on_stop(lambda: None)  # it does not want to hear: it ends all the same
    ties.tell({"ready": True})
    while True:
        time.sleep(60.0)
first = fork(wait, "first", [])
second = fork(wait, "second", [first])
while not (first.told and second.told):
    wait_for_any([first, second], 60.0)
print(first.pid, second.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-P", "-c", PRELUDE + program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as popen:
        pids = [int(pid) for pid in popen.stdout.readline().split()]
        assert len(pids) == 2
        assert popen.wait() == -signal.SIGKILL
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_what_stops_a_child_may_hold_a_lock_when_the_next_signal_comes():
    program = """
import threading
def serve(ties):
    lock, stopped = threading.Lock(), threading.Event()
    def stop():
        with lock:
            os.kill(os.getpid(), signal.SIGTERM)
            stopped.set()
    ties.on_stop(stop)
    ties.tell({"ready": True})
    stopped.wait()
    return 0
child = fork(serve, "serves", [])
while not child.told:
    wait_for_any([child], 60.0)
child.terminate()
print(child.wait(200.0))
child.kill()
"""
    assert told_by(program)[0].split() == ["0"]


def test_a_network_process_that_is_told_to_stop_many_times_within_a_moment_stops(tmp_path):
    """As when a whole process group is signalled; a handler that takes a lock waits for itself when the next comes."""
    program = f"folder = {str(tmp_path)!r}\n" + """
from pathlib import Path
from commands.process import preload, run_as
from config.settings import load_settings
from scp.sharing import Sharing
preload()
prepare_to_fork()
def serve(number):
    overrides = {"scp": {"host": "127.0.0.1", "port": 0}, "archive": {"data": Path(folder, str(number))}}
    settings = load_settings(environment={}, overrides=overrides)
    return lambda ties: run_as("network", "network", settings, ties, sharing=Sharing())
children = []
for number in range(10):
    children.append(fork(serve(number), "network", children[:]))
while not all(child.told.get("ready") or child.poll() is not None for child in children):
    wait_for_any(children, 60.0)
for child in children:
    for _ in range(200):
        child.terminate()
        due = time.perf_counter() + 20e-6
        while time.perf_counter() < due:
            pass
deadline = time.monotonic() + 200.0
ended = [child.wait(deadline - time.monotonic()) for child in children]
for child in children:
    child.kill()
print(ended)
"""
    out, err = told_by(program)
    assert out.strip() == str([0] * 10), err


def test_a_node_beside_a_command_ends_with_it(tmp_path, wait_until):
    config = tmp_path / "tharsis.toml"
    config.write_text(
        f'[scp]\nhost = "127.0.0.1"\nport = 0\n[archive]\ndata = "{tmp_path / "data"}"\n', encoding="utf-8"
    )
    program = (
        "import signal\nfrom pathlib import Path\nfrom commands.beside import node_beside\n"
        f"with node_beside(Path({str(config)!r})) as port:\n    print(port, flush=True)\n    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as popen:
        assert int(popen.stdout.readline()) > 0
        state = json.loads((tmp_path / "data" / "node.json").read_text(encoding="utf-8"))
        popen.kill()
    for pid in (state["pid"], *state["processes"].values()):
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
    assert not (tmp_path / "data" / "node.json").exists(), "it stopped as if told to"
