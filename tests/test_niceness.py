"""What works on stored objects leaves the processor to what receives them."""

from __future__ import annotations

import os

NICE = 7

SETTINGS = f"""
[jobs]
workers = 2
nice = {NICE}
[orthanc]
enabled = true
url = "http://127.0.0.1:9"
key = "a key of enough characters"
door_port = PORT
[[application_entities]]
title = "ORTHANC"
host = "127.0.0.1"
port = 9
[[routes]]
name = "all"
to = ["ORTHANC"]
commit = "never"
"""


def _priority(process: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, process)


def test_all_processes_but_those_of_the_network_are_as_nice_as_the_settings_say(serve, reserved_port):
    node = serve(acceptors=2, more=SETTINGS.replace("PORT", str(reserved_port)))

    own = _priority(0)
    found = {name: _priority(process) - own for name, process in node.processes().items()}
    assert found == {
        "supervisor": 0, "network": 0, "network-2": 0,
        "worker-1": NICE, "worker-2": NICE, "encoder": NICE, "router": NICE, "orthanc": NICE,
    }  # fmt: skip
