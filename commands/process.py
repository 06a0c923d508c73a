"""One process of the node, started by the supervisor: ``python -m commands.process network`` (or another role).

The settings come as one JSON line on standard input, which then stays open: when it closes, the supervisor is gone and
the process stops. It tells that it is ready, or why it cannot start, by one JSON line on standard output.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from config import logs
from config.settings import Settings
from index.archive import Archive

logger = logging.getLogger(__name__)


_MOST_FILES = 65536
_ORPHAN_GRACE_S = 5.0
"""A process whose supervisor is gone ends after this at the latest, seconds: the next start waits for it."""


def main(role: str, name: str) -> None:
    """Run as `role` (``network``, ``worker``, ``encoder`` or ``orthanc``) until told to stop."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    supervisor = _take_standard_output()
    logs.configure(settings.logs.level, name)
    archive = Archive.from_settings(settings.archive, quota_gb=settings.retention.quota_gb)
    run = {"network": _network, "worker": _worker, "encoder": _encoder, "orthanc": _orthanc}[role]
    run(archive, settings, name, supervisor)
    # Not through the interpreter's shutdown, which would wait for threads that are blocked in reading.
    logging.shutdown()
    os._exit(0)


def _take_standard_output() -> TextIO:
    """Keep standard output for the supervisor, and let whatever else prints write to standard error.

    The supervisor reads one line. A plug-in that prints more than the pipe holds would wait for it for ever.
    """
    supervisor = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return supervisor


def _network(archive: Archive, settings: Settings, name: str, supervisor: TextIO) -> None:
    from index.bases.limits import IndexLimits
    from index.on_demand import OnDemand
    from index.similarity import Similarity
    from scp.listener import CannotListen
    from scp.server import Server
    from scp.tls import TlsError

    _raise_file_limit()
    wanted = settings.similarity
    on_demand = OnDemand(archive, timeout_s=wanted.embed_timeout_s)
    limits = IndexLimits.from_settings(wanted)
    search = Similarity(archive, on_demand, shortlist=wanted.shortlist, limits=limits) if wanted.enabled else None
    try:
        server = Server(archive, settings, search, name=name)
        server.start()
    except CannotListen as error:
        _tell(supervisor, {"error": f"cannot listen on {error.filename}: {error.strerror}"})
        sys.exit(1)
    except (OSError, TlsError) as error:
        _tell(supervisor, {"error": str(error)})
        sys.exit(1)
    stop = threading.Event()
    _on_stop(stop.set)
    _tell(supervisor, {"ready": True, "port": server.port, "tls_port": server.tls_port})
    stop.wait()
    server.stop(settings.scp.stop_grace_s)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets this user have: each association needs a handful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _worker(archive: Archive, settings: Settings, name: str, supervisor: TextIO) -> None:
    from plugins.manager import load_plugins
    from plugins.segmentation.offered import UnknownSegmenter, chosen
    from plugins.worker import Worker  # numba, highdicom: never in the network process

    os.nice(settings.jobs.nice)
    plugins = load_plugins()
    try:
        chosen(plugins, settings)
    except UnknownSegmenter as error:
        _tell(supervisor, {"error": str(error)})
        sys.exit(1)
    worker = Worker(archive, settings, name, plugins)
    _on_stop(worker.stop)
    _tell(supervisor, {"ready": True})
    worker.run()


def _encoder(archive: Archive, settings: Settings, name: str, supervisor: TextIO) -> None:
    from index.jobs import EMBED_ASKED
    from plugins.asked import Attention, warm_up
    from plugins.manager import load_plugins
    from plugins.worker import Worker

    attention = Attention(archive, settings)
    worker = Worker(
        archive, settings, name, load_plugins(only=["asked"]), kinds=(EMBED_ASKED,), wait=attention.wait
    )

    def stop() -> None:
        worker.stop()
        attention.ring()

    _on_stop(stop)
    _tell(supervisor, {"ready": True})
    warm_up(archive)
    worker.run()


def _orthanc(archive: Archive, settings: Settings, name: str, supervisor: TextIO) -> None:
    from index import jobs
    from index.bases.limits import IndexLimits
    from index.similarity import Similarity
    from plugins.manager import load_plugins
    from plugins.orthanc import comparing
    from plugins.orthanc.answers import Answers
    from plugins.orthanc.door import Door
    from plugins.worker import Worker

    own, wanted = settings.orthanc, settings.similarity
    search = Similarity(archive, shortlist=wanted.shortlist, limits=IndexLimits.from_settings(wanted))
    try:
        door = Door(
            archive, Answers(archive, settings, search), host=own.door_host, port=own.door_port, key=own.secret("key")
        )
    except OSError as error:
        _tell(supervisor, {"error": f"[orthanc]: the door cannot be opened: {error.strerror or error}"})
        sys.exit(1)
    archive.jobs.push(jobs.ORTHANC_COMPARE, comparing.SUBJECT)
    worker = Worker(archive, settings, name, load_plugins(only=["orthanc"]), kinds=jobs.ORTHANC_KINDS)
    _on_stop(worker.stop)
    _tell(supervisor, {"ready": True})
    worker.run()
    door.close()


def _on_stop(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM and when the supervisor is gone. SIGINT, which a whole group gets, is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop())

    def wait_for_supervisor() -> None:
        sys.stdin.read()
        logger.info("the supervisor is gone: stopping")
        stop()
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=wait_for_supervisor, name="lifeline", daemon=True).start()


def _tell(supervisor: TextIO, facts: dict[str, Any]) -> None:
    """Tell the supervisor that this process is ready, or why it cannot be."""
    supervisor.write(json.dumps(facts) + "\n")
    supervisor.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3])
