"""The network side of the node: start it, ask for its port, stop it."""

from __future__ import annotations

import logging

from config.settings import Settings
from index.archive import Archive
from index.similarity import Similarity
from scp.acceptor import Acceptor
from scp.services import NodeServices

_LOG = logging.getLogger(__name__)


class Server:
    """Serves DICOM from an archive, in threads of this process.

    Parameters
    ----------
    archive
        What is served.
    settings
        Where to listen, who may do what.
    similarity
        Finds similar cases; None leaves both similarity doors closed.
    """

    def __init__(self, archive: Archive, settings: Settings, similarity: Similarity | None = None) -> None:
        self._settings = settings
        self._acceptor = Acceptor(NodeServices(archive, settings, similarity), settings.scp)
        self._port = 0

    @property
    def port(self) -> int:
        """TCP port that the server listens on; 0 before `start`."""
        return self._port

    def start(self) -> None:
        """Begin to accept associations.

        Raises
        ------
        OSError
            The port cannot be had.
        """
        self._port = self._acceptor.start()
        own = self._settings.scp
        _LOG.info("%s and %s listen on %s:%d", own.aet, own.similarity_aet, own.host, self._port)

    def stop(self, grace_s: float | None = None) -> None:
        """Accept no more; open associations have `grace_s` seconds (None: the settings') until they are aborted."""
        self._acceptor.stop(self._settings.scp.stop_grace_s if grace_s is None else grace_s)
        self._port = 0
