"""One process of the node, started by the supervisor: ``python -m commands.process network`` (or another role).

The settings come as one JSON line on standard input, and for a network process a second one: what it shares with its
like. Standard input then stays open: when it closes, the supervisor is gone and the process stops. It tells that it is
ready, or why it cannot start, by one JSON line on standard output. A process that follows one that died is told, as its
last argument, how that one ended.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from config import logs
from config import plugins as plugin_settings
from config.settings import Settings
from index.archive import Archive
from index.errors import ArchiveError
from plugins.watch import AGAIN, Note, Watch, end_process, note_path

if TYPE_CHECKING:
    from plugins.manager import Plugins

logger = logging.getLogger(__name__)


_MOST_FILES = 65536
_ORPHAN_GRACE_S = 5.0
"""A process whose supervisor is gone ends after this at the latest, seconds: the next start waits for it."""


def main(role: str, name: str, predecessor: str = "") -> None:
    """Run as `role` (``network``, ``worker``, ``encoder``, ``router`` or ``orthanc``) until told to stop.

    Parameters
    ----------
    predecessor
        How the process before it ended, as a clause; empty when the node has just been started.
    """
    settings = Settings.model_validate_json(sys.stdin.readline())
    supervisor = _take_standard_output()
    logs.configure(settings.logs.level, name)
    archive = Archive.from_settings(settings.archive, quota_gb=settings.retention.quota_gb)
    status = 0
    if role == "network":
        _network(archive, settings, name, supervisor)
    elif role == "encoder":
        _encoder(archive, settings, name, supervisor, predecessor)
    elif role == "router":
        _router(archive, settings, name, supervisor)
    elif role == "orthanc":
        _orthanc(archive, settings, name, supervisor, predecessor)
    else:
        status = _worker(archive, settings, name, supervisor, predecessor)
    # Not through the interpreter's shutdown, which would wait for threads that are blocked in reading.
    logging.shutdown()
    os._exit(status)


def _take_standard_output() -> TextIO:
    """Keep standard output for the supervisor, and let whatever else prints write to standard error.

    The supervisor reads one line. A plug-in that prints more than the pipe holds would wait for it for ever.
    """
    supervisor = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return supervisor


def _network(archive: Archive, settings: Settings, name: str, supervisor: TextIO) -> None:
    from index.bases.limits import IndexLimits
    from index.errors import CannotDeidentify
    from index.on_demand import OnDemand
    from index.similarity import Similarity
    from scp.server import Server
    from scp.sharing import Sharing
    from scp.tls import TlsError

    sharing = Sharing(**json.loads(sys.stdin.readline()))
    _raise_file_limit()
    wanted = settings.similarity
    on_demand = OnDemand(archive, timeout_s=wanted.embed_timeout_s)
    limits = IndexLimits.from_settings(wanted)
    search = Similarity(archive, on_demand, shortlist=wanted.shortlist, limits=limits) if wanted.enabled else None
    try:
        server = Server(archive, settings, search, name=name, sharing=sharing)
        server.start()
    except (OSError, TlsError, CannotDeidentify) as error:
        _cannot_start(supervisor, str(error))
    stop = threading.Event()
    _on_stop(stop.set)
    _tell(supervisor, {"ready": True})
    stop.wait()
    server.stop(settings.scp.stop_grace_s)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets this user have: each association needs a handful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _worker(archive: Archive, settings: Settings, name: str, supervisor: TextIO, predecessor: str) -> int:
    """Do jobs; return the exit status."""
    os.nice(settings.jobs.nice)  # loading its libraries, too, keeps nobody waiting who has been started
    from plugins.worker import Worker  # numba, highdicom: never in the network process

    data = settings.archive.data
    chosen_at = plugin_settings.mark(data)
    try:
        plugins = _plugins(archive, settings, name, predecessor)
    except plugin_settings.ChoiceError as error:
        _cannot_start(supervisor, str(error))
    _check_segmenters(plugins, settings, supervisor, first=not predecessor)

    def has_changed() -> bool:
        return plugin_settings.mark(data) != chosen_at and _is_readable(data)

    worker = Worker(archive, settings, name, plugins, is_over=has_changed)
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        worker.stop()

    _on_stop(stop)
    _tell(supervisor, {"ready": True})
    worker.run()
    if stopped.is_set():
        return 0
    logger.info("%s has changed: starting again with it", plugin_settings.CHOICE_FILE)
    return AGAIN


def _is_readable(data: Path) -> bool:
    try:
        plugin_settings.read_choice(data)
    except plugin_settings.ChoiceError:  # being edited: the next look, or the next start, is told
        return False
    return True


def _plugins(
    archive: Archive, settings: Settings, name: str, predecessor: str, only: Sequence[str] | None = None
) -> Plugins:
    """Settle what the process before this one left, and load the plug-ins under the eyes of a watch."""
    from plugins.aftermath import settle
    from plugins.found import found, versions
    from plugins.manager import load_plugins
    from plugins.troubles import Troubles

    faulthandler.enable()
    installed = versions(found())
    note = Note(note_path(archive.data, name))
    settle(archive, name, note.left, predecessor, settings.jobs, installed)
    note.write(None)
    troubles = Troubles(archive)
    watch = Watch(note, end_process, returned=troubles.came_back)
    watch.start()
    return load_plugins(only, settings=settings, watch=watch, troublesome=troubles.left_out(installed))


def _check_segmenters(plugins: Plugins, settings: Settings, supervisor: TextIO, *, first: bool) -> None:
    """Refuse to start with settings that name an unknown segmenter; not where a plug-in is missing that may have it."""
    from plugins.segmentation.offered import UnknownSegmenter, chosen

    if not plugins.has_plugin("segmentation"):
        return
    try:
        chosen(plugins, settings)
    except UnknownSegmenter as error:
        if first and not plugins.left_out and not plugins.disabled:
            _cannot_start(supervisor, str(error))
        logger.warning("%s", error)


def _cannot_start(supervisor: TextIO, sentence: str) -> NoReturn:
    _tell(supervisor, {"error": sentence})
    sys.exit(1)


def _encoder(archive: Archive, settings: Settings, name: str, supervisor: TextIO, predecessor: str) -> None:
    from index.jobs import EMBED_ASKED
    from plugins.asked import Attention, warm_up
    from plugins.worker import Worker

    attention = Attention(archive, settings)
    plugins = _plugins(archive, settings, name, predecessor, only=["asked"])
    worker = Worker(archive, settings, name, plugins, kinds=(EMBED_ASKED,), wait=attention.wait)

    def stop() -> None:
        worker.stop()
        attention.ring()

    _on_stop(stop)
    _tell(supervisor, {"ready": True})
    warm_up(archive)
    worker.run()


def _router(archive: Archive, settings: Settings, _name: str, supervisor: TextIO) -> None:
    from commands.routing import make_router
    from plugins.routing.rules import RouteError
    from scp.tls import TlsError

    os.nice(settings.jobs.nice)
    try:
        router = make_router(archive, settings)
    except (RouteError, TlsError, ArchiveError) as error:
        _cannot_start(supervisor, str(error))
    _on_stop(router.stop)
    _tell(supervisor, {"ready": True})
    router.run()


def _orthanc(archive: Archive, settings: Settings, name: str, supervisor: TextIO, predecessor: str) -> None:
    from index import jobs
    from index.bases.limits import IndexLimits
    from index.similarity import Similarity
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
        _cannot_start(supervisor, f"[orthanc]: the door cannot be opened: {error.strerror or error}")
    except ValueError as error:
        _cannot_start(supervisor, f"[orthanc]: {error}")
    archive.jobs.push(jobs.ORTHANC_COMPARE, comparing.SUBJECT)
    plugins = _plugins(archive, settings, name, predecessor, only=["orthanc"])
    worker = Worker(archive, settings, name, plugins, kinds=jobs.ORTHANC_KINDS)
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
    main(*sys.argv[1:4])
