"""The services of the node behind any transport: who calls, and which service answers which request."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from config.application_entities import ApplicationEntity, Right
from config.settings import Settings
from index import query as catalogue_query
from index.archive import Archive, StoredInstance
from index.similarity import Similarity
from scp import query, retrieve, similarity, storage
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE, Proposal
from scp.errors import NotOffered, UnknownDestination
from scp.link import Link
from scp.messages import Answer, FindRequest, Originator, RetrieveRequest, StoreRequest
from scp.question import question
from scp.requestor import Peer, Timeouts, connect


class NodeServices:
    """Everything that the node answers.

    Parameters
    ----------
    archive
        What it answers from.
    settings
        AE titles, rights, destinations.
    similarity_search
        Finds similar cases; None where the settings turn that off.
    """

    def __init__(self, archive: Archive, settings: Settings, similarity_search: Similarity | None) -> None:
        self._archive = archive
        self._settings = settings
        self._entities = settings.entity_table()
        self._similarity = similarity_search

    def is_called(self, called: str) -> bool:
        """Whether this node answers to the AE title `called`."""
        own = self._settings.scp
        return not own.check_called_aet or called in (own.aet, own.similarity_aet)

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return who calls, with its rights; None when the settings do not let it associate."""
        entity = self._entities.caller(calling)
        if entity is None:
            return None
        own = self._settings.scp
        title = called if called in (own.aet, own.similarity_aet) else own.aet
        return Caller(entity.title, title, address, entity.rights, title == own.similarity_aet, entity.lenient)

    def new_file(self) -> Path:
        """Make the empty file for a data set to be received; raises `OutOfSpace` before anything is written."""
        self._archive.require_space()
        handle, name = tempfile.mkstemp(dir=self._archive.incoming, suffix=".part")
        os.close(handle)
        return Path(name)

    def store(self, caller: Caller, request: StoreRequest) -> Answer:
        """Answer a C-STORE."""
        return storage.store(self._archive, caller, request)

    def find(self, caller: Caller, request: FindRequest) -> Iterator[Answer]:
        """Answer a C-FIND: the catalogue's rows, or similar cases where the request asks for them."""
        ask = question(request, caller)
        if ask is None:
            return query.find(self._archive, caller, request)
        return similarity.find(self._searcher(), self._archive, self._settings.similarity, caller, request, ask)

    def retrieve(self, caller: Caller, request: RetrieveRequest, link: Link | None) -> Iterator[Answer]:
        """Answer a C-MOVE or, with the association to send on, a C-GET."""
        caller.require(Right.MOVE)
        if link is not None:
            instances = self._matches(caller, request)
            deliver = partial(retrieve.send, link, priority=request.priority)
            yield from retrieve.sub_operations(instances, deliver, request.cancelled, aside=False)
            return
        entity = self._destination(request.destination)
        instances = self._matches(caller, request)
        destination = retrieve.Destination(instances, partial(self._open, entity))
        originator = Originator(caller.title, request.message_id)
        try:
            yield from retrieve.sub_operations(
                destination.in_order(instances),
                partial(destination.deliver, priority=request.priority, originator=originator),
                request.cancelled,
                aside=True,
            )
        finally:
            destination.close()

    def _matches(self, caller: Caller, request: RetrieveRequest) -> list[StoredInstance]:
        sop_class = QUERY_RETRIEVE[request.sop_class_uid]
        ask = question(request, caller)
        if ask is not None:
            return similarity.matches(
                self._searcher(), self._archive, self._settings.similarity, caller, request, ask
            )
        options = replace(request.options, lenient=caller.lenient)
        parsed = catalogue_query.parse_identifier(
            request.identifier, sop_class.model, retrieve=True, options=options
        )
        return catalogue_query.instances(self._archive, parsed)

    def _destination(self, title: str) -> ApplicationEntity:
        entity = self._entities.get(title)
        if entity is None or not entity.is_destination:
            known = "has no host and port" if entity is not None else "is not known"
            raise UnknownDestination(f"move destination {title} {known}", element="MoveDestination")
        return entity

    def _open(self, entity: ApplicationEntity, proposals: list[Proposal]) -> Link:
        own = self._settings.scp
        timeouts = Timeouts(
            acse=own.acse_timeout_s, dimse=own.dimse_timeout_s, network=own.network_timeout_s
        )
        peer = Peer(entity.host, entity.port, entity.title)
        return connect(
            peer, proposals, calling=own.aet, timeouts=timeouts, max_pdu_bytes=own.max_pdu_bytes
        )

    def _searcher(self) -> Similarity:
        if self._similarity is None:
            raise NotOffered("similarity is switched off in the settings of this node")
        return self._similarity
