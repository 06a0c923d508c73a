"""The services of the node behind any transport: who calls, and which service answers which request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from config.ae_titles import Deidentify
from config.application_entities import ApplicationEntity, Right
from config.settings import Settings
from index import elsewhere
from index.archive import Archive, StoredInstance
from index.deidentification.deidentifier import Deidentifier
from index.elsewhere import Held
from index.on_demand import OnDemand
from index.questions import Questions
from index.read_ahead import read_ahead
from index.similarity import Similarity
from index.views import View, Whole
from scp import asking, commitment, query, retrieve, similarity, storage
from scp.ahead import Sender, in_order
from scp.askers import Askers
from scp.caller import Caller
from scp.contexts import QUERY_RETRIEVE, Proposal
from scp.deidentifying import deidentified
from scp.destination import Destination
from scp.errors import NotOffered, UnknownDestination
from scp.hand_over import HandOver
from scp.link import Link
from scp.messages import ActionRequest, Answer, EventReport, FindRequest, Originator, RetrieveRequest, StoreRequest
from scp.outbound import Outbound
from scp.question import Question, question
from scp.retrieve import Prepare
from scp.similarity import Desk


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
    CannotDeidentify
        The key file of de-identification is none.
    """

    def __init__(
        self, archive: Archive, settings: Settings, similarity_search: Similarity | None, askers: Askers
    ) -> None:
        self._archive = archive
        self._settings = settings
        self._entities = settings.entity_table()
        self._titles = settings.own_titles()
        self._whole = Whole(archive)
        self._views = _views(archive, settings)
        self._outbound = Outbound(settings)
        self._similarity = similarity_search
        self._questions = _questions(archive, settings) if similarity_search is not None else None
        self._askers = askers

    def is_called(self, called: str) -> bool:
        """Whether this node answers to the AE title `called`."""
        return not self._settings.scp.check_called_aet or called in self._titles

    def identify(self, calling: str, called: str, address: str) -> Caller | None:
        """Return who calls, with its rights; None when the settings do not let it associate."""
        entity = self._entities.caller(calling)
        if entity is None or not entity.may_call_from(address):
            return None
        own = self._titles.get(called) or self._titles[self._settings.scp.aet]
        return Caller(
            title=entity.title,
            called=own.title,
            address=address,
            rights=entity.rights,
            asks_similarity=own.asks_similarity,
            lenient=entity.lenient,
            private_sop_classes=entity.private_sop_classes,
            # What is sent to an AE goes through its own profile, so what it is told has to as well.
            profile=entity.profile or (own.profile if own.deidentify is Deidentify.VIEW else ""),
            deidentify=own.deidentify,
            inbox=own.profile if own.deidentify is Deidentify.INGEST else "",
        )

    def refusal(self, calling: str, address: str) -> str | None:
        """Return why that AE title may not associate from that IP address; None when it may."""
        return self._entities.refusal(calling, address)

    @property
    def past_cache(self) -> bool:
        """Whether large objects are written past the system's cache."""
        return self._settings.archive.direct_io

    def new_file(self, size: int) -> Path:
        """Return the path of the file for a received data set; raises `OutOfSpace` before anything is written."""
        return self._archive.new_file(size)

    def require_space(self, size: int) -> None:
        """Raise `OutOfSpace` when there is no room for `size` more bytes of a received data set."""
        self._archive.require_reserve(size)

    def store(self, caller: Caller, request: StoreRequest) -> Answer:
        """Answer a C-STORE: an image to keep, to de-identify and keep or, at a similarity AE, one to ask about."""
        nesting = self._settings.archive.max_nesting
        if caller.asks_similarity:
            return asking.receive(self._questions, caller, request, max_nesting=nesting)
        if caller.deidentify is Deidentify.VIEW:
            raise NotOffered(f"{caller.called} is a view of what is stored, and stores nothing")
        if caller.inbox:
            deidentifier = self._views[caller.inbox].deidentifier
            return storage.store_deidentified(self._archive, deidentifier, caller, request, max_nesting=nesting)
        return storage.store(self._archive, caller, request)

    def find(self, caller: Caller, request: FindRequest) -> Iterator[Answer]:
        """Answer a C-FIND: the catalogue's rows, or similar cases where the request asks for them."""
        caller.require_archive()
        ask = self._question(caller, request)
        if ask is None:
            return query.find(self._seen(caller), caller, request)
        return similarity.find(self._desk(caller), caller, request, ask)

    def retrieve(self, caller: Caller, request: RetrieveRequest, link: Link | None) -> Iterator[Answer]:
        """Answer a C-MOVE or, with the association to send on, a C-GET."""
        caller.require_archive()
        caller.require(Right.MOVE)
        tell = self._seen(caller).tell
        if link is not None:
            instances = self._matches(caller, request)
            sender = self._senders(request, self._seen(caller), instances)(link)
            with closing(in_order(read_ahead(instances), sender)) as outcomes:
                yield from retrieve.sub_operations(len(instances), outcomes, request.cancelled, tell=tell)
            return
        known = self._entities.get(request.destination)
        seen = self._views.get(known.profile if known is not None else "") or self._seen(caller)
        hands_over = self._hands_over(caller, seen)
        if not hands_over:
            self._destination(request.destination)  # refused before anything is looked for
        instances = self._matches(caller, request)
        theirs = self._held_by_orthanc(instances) if hands_over else {}
        own = [instance for instance in instances if instance.sop_instance_uid not in theirs]
        if own:
            self._destination(request.destination)  # refused before Orthanc begins
        with ExitStack() as stack:
            senders: list[Destination | HandOver] = []
            if theirs:
                senders.append(stack.enter_context(self._hand_over(instances, theirs, request)))
            if own:
                senders.append(stack.enter_context(self._sends(caller, request, seen, own)))
            yield from retrieve.sub_operations(
                len(instances),
                chain.from_iterable(sender.outcomes() for sender in senders),
                request.cancelled,
                lambda: chain.from_iterable(sender.stop() for sender in senders),
                tell=tell,
            )

    def _sends(
        self, caller: Caller, request: RetrieveRequest, seen: Whole, instances: list[StoredInstance]
    ) -> Destination:
        """Return what sends `instances`, as one who sees the archive as `seen` may have them, to the destination."""
        entity = self._destination(request.destination)
        originator = None
        if entity.title == caller.title or not isinstance(seen, View):  # nobody else learns who works with originals
            originator = Originator(caller.title, request.message_id)
        return Destination(
            instances,
            partial(self._outbound.open_sending, entity),
            self._senders(request, seen, instances, originator),
            associations=self._settings.scp.retrieve_associations,
        )

    def _senders(
        self,
        request: RetrieveRequest,
        seen: Whole,
        instances: list[StoredInstance],
        originator: Originator | None = None,
    ) -> Callable[[Link], Sender]:
        """Return what sends over an association to one who sees the archive as `seen`; what all tell is noted here."""
        seen.note_studies(instances)
        new_file, prepare = self._archive.scratch_file, self._prepare(seen)
        send = partial(
            retrieve.send, new_file=new_file, priority=request.priority, originator=originator, prepare=prepare
        )
        return lambda link: Sender(
            partial(send, link),
            partial(retrieve.ready, link, new_file=new_file, prepare=prepare),
            partial(retrieve.takes_time, link, is_changed=isinstance(seen, View)),
        )

    def _prepare(self, seen: Whole) -> Prepare:
        """Return what gives an instance as one who sees the archive as `seen` may have it."""
        return partial(deidentified, seen, self._archive.scratch_file) if isinstance(seen, View) else nullcontext

    def _hands_over(self, caller: Caller, seen: Whole) -> bool:
        """Whether Orthanc sends what it holds: asked at the similarity AE, which answers over Orthanc's content.

        Orthanc sends objects as they are: never where they have to be de-identified.
        """
        return self._settings.orthanc.enabled and caller.asks_similarity and not isinstance(seen, View)

    def _held_by_orthanc(self, instances: Sequence[StoredInstance]) -> Mapping[str, Held]:
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
        if caller.deidentify is Deidentify.VIEW:
            raise NotOffered(f"{caller.called} is a view of what is stored, and stores nothing")
        return commitment.commit(self._archive, caller, request, self._askers, self.replaced_uid)

    def replaced_uid(self, profile: str, uid: str) -> str:
        """Return the UID that an inbox with that profile has given to the object `uid`."""
        return self._views[profile].tell(uid)

    def _seen(self, caller: Caller) -> Whole:
        """Return what is stored, as `caller` sees it."""
        return self._views[caller.profile] if caller.profile else self._whole

    def take_report(self, caller: Caller, request: EventReport) -> Answer:
        """Answer an N-EVENT-REPORT of a peer that this node asked for storage commitment."""
        return commitment.take_report(self._archive, caller, request)

    def _matches(self, caller: Caller, request: RetrieveRequest) -> list[StoredInstance]:
        sop_class = QUERY_RETRIEVE[request.sop_class_uid]
        ask = self._question(caller, request)
        if ask is not None:
            return similarity.matches(self._desk(caller), caller, request, ask)
        seen = self._seen(caller)
        options = replace(request.options, lenient=caller.lenient)
        return seen.instances(seen.parse(request.identifier, sop_class.model, retrieve=True, options=options))

    def _destination(self, title: str) -> ApplicationEntity:
        entity = self._entities.get(title)
        if entity is None or not entity.is_destination:
            known = "has no host and port" if entity is not None else "is not known"
            raise UnknownDestination(f"move destination {title} {known}", element="MoveDestination")
        return entity

    def open_link(self, entity: ApplicationEntity, proposals: list[Proposal]) -> Link:
        """Open an association with `entity`; raises `PeerError`."""
        return self._outbound.open_link(entity, proposals)

    def _question(self, caller: Caller, request: FindRequest | RetrieveRequest) -> Question | None:
        questions = self._questions

        def has_sent() -> bool:
            may_ask = questions is not None and Right.SIMILAR in caller.rights
            return may_ask and questions is not None and questions.current(caller.title) is not None

        return question(request, caller, has_sent)

    def _desk(self, caller: Caller) -> Desk:
        if self._similarity is None or self._questions is None:
            raise NotOffered("similarity is switched off in the settings of this node")
        return Desk(self._seen(caller), self._similarity, self._questions, self._settings.similarity)


def _views(archive: Archive, settings: Settings) -> dict[str, View]:
    """Return a view of the archive for each profile that an AE or an AE title of this node has, by its name."""
    names = sorted({profile for _, profile in settings.titles_with_profiles()})
    return {name: View(archive, Deidentifier.from_settings(settings, archive.data, name), name) for name in names}


def _questions(archive: Archive, settings: Settings) -> Questions:
    own = settings.similarity
    return Questions(
        archive,
        OnDemand(archive, timeout_s=own.embed_timeout_s),
        kept_s=60.0 * own.question_minutes,
        most_images=own.question_images,
    )
