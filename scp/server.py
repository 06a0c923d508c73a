"""The network side of the node: start it, ask for its port, stop it."""

from __future__ import annotations

import logging

from config.network import Transport
from config.settings import Settings
from index.archive import Archive
from index.similarity import Similarity
from scp.acceptor import Acceptor
from scp.askers import Askers
from scp.courier import Courier, Ways
from scp.services import NodeServices
from scp.sharing import Sharing
from scp.wire.acceptor import WireAcceptor

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
    name
        Unique among the processes that serve this archive.
    sharing
        The ports that other such processes listen on as well, and how many they are; None: there is none.
    """

    def __init__(
        self,
        archive: Archive,
        settings: Settings,
        similarity: Similarity | None = None,
        *,
        name: str = "network",
        sharing: Sharing | None = None,
    ) -> None:
        self._archive = archive
        self._settings = settings
        askers = Askers(name)
        services = NodeServices(archive, settings, similarity, askers)
        make = WireAcceptor if settings.network.transport is Transport.OWN else Acceptor
        self._places = sharing.places(archive.data) if sharing is not None else None
        self._acceptor: WireAcceptor | Acceptor = make(services, settings.scp, settings.tls, sharing, self._places)
        ways = Ways(
            lambda: [each.carrier for each in self._acceptor.associations],
            settings.entity_table().get,
            services.open_link,
            services.replaced_uid,
        )
        self._courier = Courier(archive, settings, askers, ways, name=name)

    @property
    def port(self) -> int:
        """TCP port that the server listens on without TLS; 0 before `start`, and for none."""
        return self._acceptor.port

    @property
    def tls_port(self) -> int:
        """TCP port that the server listens on with TLS; 0 before `start`, and for none."""
        return self._acceptor.tls_port

    def start(self) -> None:
        """Begin to accept associations.

        Raises
        ------
        OSError
            A port cannot be had; `filename` of the error is its address.
        TlsError
            Certificate, key or authorities cannot be used.
        """
        self._acceptor.start()
        self._courier.start()
        self._archive.expect_arrivals()
        own = self._settings.scp
        titles = ", ".join(self._settings.own_titles())
        for port, how in ((self.port, ""), (self.tls_port, " with TLS")):
            if port:
                _LOG.info("%s listen on %s:%d%s", titles, own.host, port, how)

    def stop(self, grace_s: float | None = None) -> None:
        """Accept no more; open associations have `grace_s` seconds (None: the settings') until they are aborted."""
        self._courier.stop()
        self._acceptor.stop(self._settings.scp.stop_grace_s if grace_s is None else grace_s)
        if self._places is not None and not self._acceptor.associations:
            self._places.close()
