"""The nodes that are measured: those of the scoreboard, and DCMTK's storescp, which only stores."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.conformance.node import CannotStart, Node, Peer, Setup, free_port
from benchmarks.conformance.nodes import Dcmqrscp, Orthanc, Tharsis
from benchmarks.network import client

MOVERS = 4


class MeasuredTharsis(Tharsis):
    """The node of this checkout with the settings that it comes with; nothing becomes stable while it is measured."""

    durability: ClassVar[str] = "file and catalogue on disk, SHA-256 recorded, before 0000"
    services: ClassVar[frozenset[str]] = frozenset({"store", "find", "move", "get"})

    def sections(self) -> dict[str, dict[str, Any]]:  # noqa: D102
        told = super().sections()
        told["archive"]["settle_time_s"] = 86400
        return told


class MeasuredOrthanc(Orthanc):
    """Orthanc with the settings that it comes with."""

    durability: ClassVar[str] = "file on disk before 0000, its row in the index may be lost"
    services: ClassVar[frozenset[str]] = frozenset({"store", "find", "move", "get"})


class MeasuredDcmqrscp(Dcmqrscp):
    """DCMTK's image archive; it keeps at most so many studies."""

    durability: ClassVar[str] = "none: neither file nor index is flushed"
    services: ClassVar[frozenset[str]] = frozenset({"store", "move", "get"})
    most_studies: ClassVar[int] = 500


class Storescp(Node):
    """DCMTK's storage SCP: no index, nothing can be asked of it."""

    key, name, title = "storescp", "storescp", "STORESCP"
    durability: ClassVar[str] = "none: files are not flushed, there is no index"
    services: ClassVar[frozenset[str]] = frozenset({"store"})
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def version(cls, options: Mapping[str, str]) -> str:  # noqa: D102, ARG003
        if not shutil.which("storescp"):
            raise CannotStart("storescp is not installed")
        told = subprocess.run(["storescp", "--version"], capture_output=True, text=True, check=False).stdout
        return "DCMTK storescp " + told.partition(" v")[2].split()[0]

    def command(self) -> list[str]:  # noqa: D102
        return [
            "storescp", "--fork", "-pdu", "131072", "-aet", self.title, "-od", str(self.data), *self.options,
            str(self.port),
        ]  # fmt: skip


class Sink(Storescp):
    """Where C-MOVE sends: a storescp that writes nothing, so that it is not what is measured."""

    key, name, title = "sink", "sink", "SINK"
    options = ("--ignore", "+xa")


PEERS: dict[str, type[Node]] = {
    "tharsis": MeasuredTharsis, "orthanc": MeasuredOrthanc, "storescp": Storescp, "dcmqrscp": MeasuredDcmqrscp,
}  # fmt: skip


@contextmanager
def running(names: Sequence[str], folder: Path) -> Iterator[tuple[dict[str, Node], dict[str, float]]]:
    """Start the nodes, each in a folder of its own, and a sink that all of them know; tell how long each took, seconds.

    They are started one after the other; a node has started when it has accepted an association.
    """
    known = (Peer("SINK", free_port()), Peer("BENCHMARK", free_port()))
    with ExitStack() as stack:

        def start(kind: type[Node], port: int = 0) -> Any:
            place = folder / kind.key
            place.mkdir(parents=True)
            node = kind(Setup(place, known))
            node.port = port or node.port
            stack.callback(node.stop)
            node.start()
            return node

        start(Sink, known[0].port)
        nodes, seconds = {}, {}
        for name in names:
            began = time.perf_counter()
            nodes[name] = node = start(PEERS[name])
            client.associate(node.port, node.title)
            seconds[name] = time.perf_counter() - began
        yield nodes, seconds
