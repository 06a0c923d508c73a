"""The table of application entities: who may talk to this node, and where C-MOVE sends.

Rights are what an AE may ask of the node: ``store`` (C-STORE), ``find`` (C-FIND), ``move`` (C-MOVE and C-GET),
``similar`` (the similarity query, which reveals that other patients exist). C-ECHO needs no right.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network


class Right(StrEnum):
    """What an application entity may ask of the node."""

    STORE = "store"
    FIND = "find"
    MOVE = "move"
    SIMILAR = "similar"


@dataclass(frozen=True)
class ApplicationEntity:
    """A peer: its AE title, where it listens (for C-MOVE), and its rights.

    Attributes
    ----------
    addresses
        IP addresses or networks that it may call from; any when empty.
    lenient
        Whether what it asks is understood where the standard would refuse it.
    private_sop_classes
        Whether it may store objects of SOP classes that no dictionary knows.
    tls
        Whether it is reached with TLS.
    profile
        Name of the de-identification profile through which it sees what is stored; empty: as it is stored.
    """

    title: str
    rights: frozenset[Right]
    host: str = ""
    port: int = 0
    addresses: tuple[str, ...] = ()
    lenient: bool = False
    private_sop_classes: bool = False
    tls: bool = False
    profile: str = ""

    @property
    def is_destination(self) -> bool:
        """Whether C-MOVE can send to it: only when a host and a port are known."""
        return bool(self.host and self.port)

    def may_call_from(self, address: str) -> bool:
        """Whether `addresses` allow a connection from the IP address `address`."""
        if not self.addresses:
            return True
        caller = ip_address(address.partition("%")[0])  # a link-local IPv6 address comes with its interface
        mapped = caller.ipv4_mapped if caller.version == 6 else None
        return any((mapped or caller) in network(allowed) for allowed in self.addresses)


def network(text: str) -> IPv4Network | IPv6Network:
    """Return the network that `text` names, an address alone being one of its own; else raises `ValueError`."""
    return ip_network(text)


@dataclass(frozen=True)
class ApplicationEntityTable:
    """Every peer that the settings name, and what an unknown one may do."""

    entities: tuple[ApplicationEntity, ...]
    accept_unknown: bool
    unknown_rights: frozenset[Right]

    def get(self, title: str) -> ApplicationEntity | None:
        """Return the entity named `title` (padding ignored, case kept: PS3.5 AE), or None."""
        wanted = title.strip()
        return next((ae for ae in self.entities if ae.title == wanted), None)

    def caller(self, title: str) -> ApplicationEntity | None:
        """Return who calls as `title`: the known peer, or an unknown one if those are accepted, else None."""
        known = self.get(title)
        if known is not None:
            return known
        if not self.accept_unknown:
            return None
        return ApplicationEntity(title.strip(), self.unknown_rights)

    def refusal(self, title: str, address: str) -> str | None:
        """Return why nobody may associate as `title` from the IP address `address`; None when he may."""
        entity = self.caller(title)
        if entity is None:
            return f"calling AE title {title.strip()!r} is not known"
        if not entity.may_call_from(address):
            return f"calling AE title {entity.title!r} may not call from {address}"
        return None
