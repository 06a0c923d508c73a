"""What each process of the node does, once the supervisor has forked it (`commands.forked`).

It tells that it is ready, or raises `CannotStart`. A process that follows one that died is told how that one ended.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.forked import CannotStart, Ties
from config import logs
from config import plugins as plugin_settings
from config.settings import Settings
from index.archive import Archive
from index.errors import ArchiveError
from plugins.watch import AGAIN, Note, Watch, end_process, note_path
from scp.sharing import Sharing

if TYPE_CHECKING:
    from plugins.manager import Plugins

logger = logging.getLogger(__name__)


_MOST_FILES = 65536

_FOR_ALL = ("index.bases.limits", "index.errors", "index.on_demand", "index.similarity", "scp.server", "scp.tls")
"""What network processes need, and most of what others do. Each is imported again where it is used: this only says when
it happens. None may start a thread, or load a kernel, a model or a plug-in."""


def preload() -> None:
    """Import what the processes of a node have in common, before they are forked."""
    for name in _FOR_ALL:
        importlib.import_module(name)


def run_as(role: str, name: str, settings: Settings, ties: Ties, *, sharing: Sharing, predecessor: str = "") -> int:
    """Run as `role` (``network``, ``worker``, ``encoder``, ``router`` or ``orthanc``) until told to stop.

    Parameters
    ----------
    sharing
        What a network process shares with its like.
    predecessor
        How the process before it ended, as a clause; empty when the node has just been started.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    CannotStart
        The settings, or the system, do not let it.
    """
    logs.configure(settings.logs.level, name)
    if role != "network":  # loading libraries, too, keeps nobody waiting who sends
        os.nice(settings.jobs.nice)
    archive = Archive.from_settings(settings.archive, quota_gb=settings.retention.quota_gb)
    if role == "network":
        _network(archive, settings, name, ties, sharing)
    elif role == "encoder":
        _encoder(archive, settings, name, ties, predecessor)
    elif role == "router":
        _router(archive, settings, ties)
    elif role == "orthanc":
        _orthanc(archive, settings, name, ties, predecessor)
    else:
        return _worker(archive, settings, name, ties, predecessor)
    return 0


def _network(archive: Archive, settings: Settings, name: str, ties: Ties, sharing: Sharing) -> None:
    from index.bases.limits import IndexLimits
    from index.errors import CannotDeidentify
    from index.on_demand import OnDemand
    from index.similarity import Similarity
    from scp.server import Server
    from scp.tls import TlsError

    _raise_file_limit()
    wanted = settings.similarity
    on_demand = OnDemand(archive, timeout_s=wanted.embed_timeout_s)
    limits = IndexLimits.from_settings(wanted)
    search = Similarity(archive, on_demand, shortlist=wanted.shortlist, limits=limits) if wanted.enabled else None
    try:
        server = Server(archive, settings, search, name=name, sharing=sharing)
        server.start()
    except (OSError, TlsError, CannotDeidentify) as error:
        raise CannotStart(str(error)) from error
    stop = threading.Event()
    ties.on_stop(stop.set)
    ties.tell({"ready": True})
    stop.wait()
    server.stop(settings.scp.stop_grace_s)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets this user have: each association needs a handful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _worker(archive: Archive, settings: Settings, name: str, ties: Ties, predecessor: str) -> int:
    """Do jobs; return the exit status."""
    from plugins.worker import Worker  # numba, highdicom: never in the network process

    data = settings.archive.data
    chosen_at = plugin_settings.mark(data)
    try:
        plugins = _plugins(archive, settings, name, predecessor)
    except plugin_settings.ChoiceError as error:
        raise CannotStart(str(error)) from error
    _check_segmenters(plugins, settings, first=not predecessor)

    def has_changed() -> bool:
        return plugin_settings.mark(data) != chosen_at and _is_readable(data)

    worker = Worker(archive, settings, name, plugins, is_over=has_changed)
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        worker.stop()

    ties.on_stop(stop)
    ties.tell({"ready": True})
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


def _check_segmenters(plugins: Plugins, settings: Settings, *, first: bool) -> None:
    """Refuse to start with settings that name an unknown segmenter; not where a plug-in is missing that may have it."""
    from plugins.segmentation.offered import UnknownSegmenter, chosen

    if not plugins.has_plugin("segmentation"):
        return
    try:
        chosen(plugins, settings)
    except UnknownSegmenter as error:
        if first and not plugins.left_out and not plugins.disabled:
            raise CannotStart(str(error)) from error
        logger.warning("%s", error)


def _encoder(archive: Archive, settings: Settings, name: str, ties: Ties, predecessor: str) -> None:
    from index.jobs import EMBED_ASKED
    from plugins.asked import Attention, warm_up
    from plugins.worker import Worker

    attention = Attention(archive, settings)
    plugins = _plugins(archive, settings, name, predecessor, only=["asked"])
    worker = Worker(archive, settings, name, plugins, kinds=(EMBED_ASKED,), wait=attention.wait)

    def stop() -> None:
        worker.stop()
        attention.ring()

    ties.on_stop(stop)
    ties.tell({"ready": True})
    warm_up(archive)
    worker.run()


def _router(archive: Archive, settings: Settings, ties: Ties) -> None:
    from commands.routing import make_router
    from plugins.routing.rules import RouteError
    from scp.tls import TlsError

    try:
        router = make_router(archive, settings)
    except (RouteError, TlsError, ArchiveError) as error:
        raise CannotStart(str(error)) from error
    ties.on_stop(router.stop)
    ties.tell({"ready": True})
    router.run()


def _orthanc(archive: Archive, settings: Settings, name: str, ties: Ties, predecessor: str) -> None:
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
        raise CannotStart(f"[orthanc]: the door cannot be opened: {error.strerror or error}") from error
    except ValueError as error:
        raise CannotStart(f"[orthanc]: {error}") from error
    archive.jobs.push(jobs.ORTHANC_COMPARE, comparing.SUBJECT)
    plugins = _plugins(archive, settings, name, predecessor, only=["orthanc"])
    worker = Worker(archive, settings, name, plugins, kinds=jobs.ORTHANC_KINDS)
    ties.on_stop(worker.stop)
    ties.tell({"ready": True})
    worker.run()
    door.close()
