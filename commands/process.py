"""One process of the node: ``python -m commands.process network`` or ``… worker``, started by the supervisor.

The settings come as one JSON line on standard input, which then stays open: when it closes, the supervisor is gone and
the process stops. The process tells that it is ready by one JSON line on standard output.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from config import logs
from config.settings import Settings
from index.archive import Archive

logger = logging.getLogger(__name__)


def main(role: str, name: str) -> None:
    """Run as `role` (``network`` or ``worker``) until told to stop."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    logs.configure(settings.logs.level, name)
    archive = Archive.from_settings(settings.archive)
    run = _network if role == "network" else _worker
    run(archive, settings, name)
    # Not through the interpreter's shutdown, which would wait for threads that are blocked in reading.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _network(archive: Archive, settings: Settings, _name: str) -> None:
    from scp.server import Server  # only in the network process

    archive.clear_incoming()
    server = Server(archive, settings)
    server.start()
    stop = threading.Event()
    _on_stop(stop.set)
    _ready({"port": server.port})
    stop.wait()
    server.stop(settings.scp.stop_grace_s)


def _worker(archive: Archive, settings: Settings, name: str) -> None:
    from plugins.worker import Worker  # numba, highdicom: never in the network process

    worker = Worker(archive, settings, name)
    _on_stop(worker.stop)
    _ready({})
    worker.run()


def _on_stop(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM and when the supervisor is gone; SIGINT reaches the whole group and is the supervisor's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop())

    def wait_for_supervisor() -> None:
        sys.stdin.read()
        logger.info("the supervisor is gone: stopping")
        stop()

    threading.Thread(target=wait_for_supervisor, name="lifeline", daemon=True).start()


def _ready(facts: dict[str, int]) -> None:
    sys.stdout.write(json.dumps({"ready": True, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3])
