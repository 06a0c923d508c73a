"""What nodes of the tests answer, held against the Conformance Statement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from config.ae_titles import Deidentify
from config.settings import Settings
from scp.conformance import answered
from scp.exchange import Exchange
from scp.messages import Answer
from scp.wire.exchange import StoreExchange

SERVICES = {
    "C-ECHO": ("echo",),
    "C-FIND": ("query", "similarity"),
    "C-MOVE": ("retrieve", "similarity"),
    "C-GET": ("retrieve", "similarity"),
    "N-ACTION": ("commitment",),
    "N-EVENT-REPORT": ("commitment",),
}


class Answered:
    """Each Status that is answered, by the request and the AE title that was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._codes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for kind in (Exchange, StoreExchange):
            self._listen(kind, monkeypatch)

    def _listen(self, kind: type[Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
        respond = kind.respond

        def listening(exchange: Exchange, answer: Answer) -> None:
            self._codes[exchange.name, exchange.carrier.called].add(answer.status.code)
            respond(exchange, answer)

        monkeypatch.setattr(kind, "respond", listening)

    def undeclared(self, nodes: list[Settings]) -> dict[tuple[str, str], list[str]]:
        """Return what no table of the statement has of these nodes."""
        found = {}
        for (request, called), codes in self._codes.items():
            services = SERVICES.get(request) or {_storage(settings, called) for settings in nodes}
            if missing := codes - {code for service in services for code in _declared(service)}:
                found[request, called] = [f"{code:04X}" for code in sorted(missing)]
        return found


def _declared(service: str) -> set[int]:
    # C-ECHO has no table: what it may be answered besides 0000 is what any request may.
    if service == "echo":
        return {0x0000} | _declared("query") & _declared("commitment")
    return {code for code, _ in answered(service)}


def _storage(settings: Settings, called: str) -> str:
    titles: dict[str, Any] = settings.own_titles()
    own = titles.get(called) or titles[settings.scp.aet]
    if own.asks_similarity:
        return "asking"
    return "inbox" if own.deidentify is Deidentify.INGEST else "storage"
