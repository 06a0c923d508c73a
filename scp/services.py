"""The services of the node behind any transport: who calls, and which service answers which request."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from ssl import SSLContext

from config.application_entities import ApplicationEntity, Right
from config.settings import Settings
from index import elsewhere
from index import query as catalogue_query
from index.archive import Archive, StoredInstance
from index.elsewhere import Held
from index.files import incoming_prefix
from index.on_demand import OnDemand
from index.questions import Questions
from index.similarity import Similarity
from scp import asking, commitment, query, retrieve, similarity, storage
from scp.askers import Askers
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE, Proposal
from scp.destination import Destination
from scp.errors import NotOffered, PeerError, UnknownDestination
from scp.hand_over import HandOver
from scp.link import Link
from scp.messages import ActionRequest, Answer, FindRequest, Originator, RetrieveRequest, StoreRequest
from scp.question import Question, question
from scp.requestor import Peer, Timeouts, connect
from scp.similarity import Desk
from scp.tls import client_context

_LOG = logging.getLogger(__name__)


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
    askers
        Is told who asks for storage commitment on which association.

    Raises
    ------
    TlsError
        What peers are to be reached with over TLS cannot be used.
    """

    def __init__(
        self, archive: Archive, settings: Settings, similarity_search: Similarity | None, askers: Askers
    ) -> None:
        self._archive = archive
        self._settings = settings
        self._entities = settings.entity_table()
        self._tls = _client_context(settings)
        self._similarity = similarity_search
        self._questions = _questions(archive, settings) if similarity_search is not None else None
        self._askers = askers

    def peer(self, entity: ApplicationEntity) -> Peer:
        """Return how to reach `entity`: where it listens, and with TLS where the settings say so."""
        return Peer(entity.host, entity.port, entity.title, self._tls if entity.tls else None)

    def is_called(self, called: str) -> bool:
        """Whether this node answers to the AE title `called`."""
        own = self._settings.scp
        return not own.check_called_aet or called in (own.aet, own.similarity_aet)

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return who calls, with its rights; None when the settings do not let it associate."""
        entity = self._entities.caller(calling)
        if entity is None or not entity.may_call_from(address):
            return None
        own = self._settings.scp
        title = called if called in (own.aet, own.similarity_aet) else own.aet
        return Caller(
            title=entity.title,
            called=title,
            address=address,
            rights=entity.rights,
            asks_similarity=title == own.similarity_aet,
            lenient=entity.lenient,
            private_sop_classes=entity.private_sop_classes,
        )

    def refusal(self, calling: str, address: str) -> str | None:
        """Return why that AE title may not associate from that IP address; None when it may."""
        return self._entities.refusal(calling, address)

    def new_file(self) -> Path:
        """Make the empty file for a data set to be received; raises `OutOfSpace` before anything is written."""
        self._archive.require_space()
        handle, name = tempfile.mkstemp(dir=self._archive.incoming, prefix=incoming_prefix(), suffix=".part")
        os.close(handle)
        return Path(name)

    def store(self, caller: Caller, request: StoreRequest) -> Answer:
        """Answer a C-STORE: an image to keep or, at the similarity AE, one to ask about."""
        if caller.asks_similarity:
            nesting = self._settings.archive.max_nesting
            return asking.receive(self._questions, caller, request, max_nesting=nesting)
        return storage.store(self._archive, caller, request)

    def find(self, caller: Caller, request: FindRequest) -> Iterator[Answer]:
        """Answer a C-FIND: the catalogue's rows, or similar cases where the request asks for them."""
        ask = self._question(caller, request)
        if ask is None:
            return query.find(self._archive, caller, request)
        return similarity.find(self._desk(), caller, request, ask)

    def retrieve(self, caller: Caller, request: RetrieveRequest, link: Link | None) -> Iterator[Answer]:
        """Answer a C-MOVE or, with the association to send on, a C-GET."""
        caller.require(Right.MOVE)
        send = partial(retrieve.send, new_file=self._archive.scratch_file, priority=request.priority)
        if link is not None:
            instances = self._matches(caller, request)
            outcomes = ((instance, send(link, instance)) for instance in instances)
            yield from retrieve.sub_operations(len(instances), outcomes, request.cancelled)
            return
        if not self._hands_over(caller):
            self._destination(request.destination)  # refused before anything is looked for
        instances = self._matches(caller, request)
        theirs = self._held_by_orthanc(caller, instances)
        own = [instance for instance in instances if instance.sop_instance_uid not in theirs]
        with ExitStack() as stack:
            senders: list[Destination | HandOver] = []
            if theirs:
                senders.append(stack.enter_context(self._hand_over(instances, theirs, request)))
            if own:
                destination = Destination(
                    own,
                    partial(self.open_link, self._destination(request.destination)),
                    partial(send, originator=Originator(caller.title, request.message_id)),
                    associations=self._settings.scp.retrieve_associations,
                )
                senders.append(stack.enter_context(destination))
            yield from retrieve.sub_operations(
                len(instances),
                chain.from_iterable(sender.outcomes() for sender in senders),
                request.cancelled,
                lambda: chain.from_iterable(sender.stop() for sender in senders),
            )

    def _hands_over(self, caller: Caller) -> bool:
        """Whether Orthanc sends what it holds: asked at the similarity AE, which answers over Orthanc's content."""
        return self._settings.orthanc.enabled and caller.asks_similarity

    def _held_by_orthanc(self, caller: Caller, instances: Sequence[StoredInstance]) -> Mapping[str, Held]:
        if not self._hands_over(caller):
            return {}
        return elsewhere.held(self._archive.database, [instance.sop_instance_uid for instance in instances])

    def _hand_over(
        self, instances: Sequence[StoredInstance], theirs: Mapping[str, Held], request: RetrieveRequest
    ) -> HandOver:
        orthanc = self._settings.orthanc.aet
        return HandOver(
            [instance for instance in instances if instance.sop_instance_uid in theirs],
            partial(self.open_link, self._destination(orthanc)),
            archive=orthanc,
            destination=request.destination,
        )

    def commit(self, caller: Caller, request: ActionRequest) -> Answer:
        """Answer an N-ACTION that asks for storage commitment."""
        return commitment.commit(self._archive, caller, request, self._askers)

    def _matches(self, caller: Caller, request: RetrieveRequest) -> list[StoredInstance]:
        sop_class = QUERY_RETRIEVE[request.sop_class_uid]
        ask = self._question(caller, request)
        if ask is not None:
            return similarity.matches(self._desk(), caller, request, ask)
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

    def open_link(self, entity: ApplicationEntity, proposals: list[Proposal]) -> Link:
        """Open an association with `entity`; raises `PeerError`."""
        own = self._settings.scp
        timeouts = Timeouts(
            acse=own.acse_timeout_s, dimse=own.dimse_timeout_s, network=own.network_timeout_s
        )
        try:
            return connect(
                self.peer(entity), proposals, calling=own.aet, timeouts=timeouts, max_pdu_bytes=own.max_pdu_bytes
            )
        except PeerError as error:
            _LOG.warning("%s", error)
            raise

    def _question(self, caller: Caller, request: FindRequest | RetrieveRequest) -> Question | None:
        questions = self._questions

        def has_sent() -> bool:
            may_ask = questions is not None and Right.SIMILAR in caller.rights
            return may_ask and questions is not None and questions.current(caller.title) is not None

        return question(request, caller, has_sent)

    def _desk(self) -> Desk:
        if self._similarity is None or self._questions is None:
            raise NotOffered("similarity is switched off in the settings of this node")
        return Desk(self._archive, self._similarity, self._questions, self._settings.similarity)


def _questions(archive: Archive, settings: Settings) -> Questions:
    own = settings.similarity
    return Questions(
        archive,
        OnDemand(archive, timeout_s=own.embed_timeout_s),
        kept_s=60.0 * own.question_minutes,
        most_images=own.question_images,
    )


def _client_context(settings: Settings) -> SSLContext | None:
    """The TLS context for the peers that the settings want reached with TLS; None when there are none."""
    if not any(entity.tls for entity in settings.application_entities):
        return None
    own = settings.tls
    return client_context(ca=own.ca, certificate=own.certificate, key=own.key, check_host=own.check_host)
