"""What is stored as those see it who ask: as it is, or through a de-identification profile.

The network edge asks one of the two and need not know which. A view answers from the same catalogue and index. It tells
replaced UIDs and pseudonyms, understands those that it has told, and matches on nothing that its profile does not keep:
whether a name, a date or an accession number fits would tell it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from index import told
from index.answers import answers, with_edge
from index.archive import Archive, StoredInstance
from index.charset import Charset, charset_in, choose_charset, raw_element, vr_of
from index.condition import Condition
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.descriptors import may_identify
from index.errors import NotEmbedded, SimilarityError, UnknownQuery
from index.identifier import BASELINE, Model, Query, QueryOptions, parse_identifier
from index.items import SequenceRequest
from index.keys import KEYS, SEQUENCES, Key, Level, Matching
from index.matching import has_wild_card, uid_list, value_matches, wanted_values
from index.neighbours import Sent
from index.query import find, instances, texts_of
from index.references import Reference, find_uid, latest_study, parse_reference, resolve_reference
from index.values import values_of

_BATCH = 100
"""Answers whose UIDs are noted in one transaction."""

_MOST_REMEMBERED = 200_000
"""Pseudonyms that a view keeps in memory; a patient more starts anew."""

_WHOSE = ("PatientID", "IssuerOfPatientID")

_TOLD_KEYS = tuple(
    key.keyword for key in KEYS.values() if key.matching is Matching.UID and key.keyword != "SOPClassUID"
)
_KEYS = {Tag(keyword): key for keyword, key in KEYS.items()}
_SEQUENCES = {Tag(keyword): keyword for keyword in SEQUENCES}
_EVERYTHING, _NOTHING = Condition("1"), Condition("0")


_WITHOUT_IDENTITY: dict[type[SimilarityError], str] = {
    UnknownQuery: "what is asked about is not here any more",
    NotEmbedded: "what is asked about has no embedding, or not yet",
}


class Whole:
    """What is stored, as it is stored."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    def parse(
        self, identifier: Dataset, model: Model, *, retrieve: bool = False, options: QueryOptions = BASELINE
    ) -> Query:
        """Return the query that `identifier` is; as `index.identifier.parse_identifier`."""
        return parse_identifier(identifier, model, retrieve=retrieve, options=options)

    def find(self, query: Query) -> Iterator[Dataset]:
        """Yield one Identifier for each entity that matches."""
        return find(self.archive, query)

    def answers(self, query: Query, edge: Mapping[str, str], transfer_syntax_uid: str) -> Iterator[bytes | Dataset]:
        """Yield one Identifier for each entity that matches, encoded where it can be; as `index.answers.answers`."""
        return answers(self.archive, query, edge, transfer_syntax_uid)

    def instances(self, query: Query) -> list[StoredInstance]:
        """Return every instance below what matches."""
        return instances(self.archive, query)

    def tell(self, uid: str) -> str:
        """Return the UID that is told for the original `uid`."""
        return uid

    def note(self, uids: Iterable[str]) -> None:
        """Note original UIDs that are about to be told, and `note_studies` those of whole studies."""

    def note_studies(self, found: Iterable[StoredInstance]) -> None:
        """Note all UIDs of the studies that these instances, which are about to be sent, are of."""

    def original(self, uid: str) -> str | None:
        """Return what a UID that was told stands for; None for one that was not."""
        return uid

    def reference(self, text: str, issuer: str = "") -> Reference:
        """Return what a typed reference names; as `index.references.resolve_reference`."""
        return resolve_reference(self.archive, text, issuer)

    def sent(self, sent: Sent) -> Sent:
        """Return images that somebody sent to ask about them, bearing the UIDs that the archive knows them by."""
        return sent

    def without_identity(self, error: SimilarityError) -> SimilarityError:
        """Return `error`, which a search has raised, in words that may be told."""
        return error


class View(Whole):
    """What is stored, through a de-identification profile. Safe to share between threads.

    Parameters
    ----------
    profile
        Its name, under which what is told is noted.
    """

    def __init__(self, archive: Archive, deidentifier: Deidentifier, profile: str) -> None:
        super().__init__(archive)
        self.deidentifier = deidentifier
        self.profile = profile
        self._pseudonyms: dict[tuple[str, str], str] = {}

    def parse(
        self, identifier: Dataset, model: Model, *, retrieve: bool = False, options: QueryOptions = BASELINE
    ) -> Query:
        """Return the query that `identifier` is, as far as the profile keeps what it asks.

        UIDs and pseudonyms that were told select what they stand for, and others nothing. Any other key that has a
        value and is not kept is treated as one that is not supported (FF01).
        """
        kept_zone = self._keeps("TimezoneOffsetFromUTC")
        instead = self._conditions(identifier)
        if retrieve:  # a lenient AE may select by these alone: by nothing, where they are not matched
            identifier = _without(identifier, [each for each, told in instead.items() if told is _EVERYTHING])
        query = parse_identifier(
            identifier,
            model,
            retrieve=retrieve,
            options=replace(options, timezone=options.timezone and kept_zone),
            instead=instead,
        )
        return replace(
            query,
            all_supported=query.all_supported and _EVERYTHING not in instead.values(),
            sequences=tuple(
                _unfiltered(each) if each.key.keyword in instead else each for each in query.sequences
            ),
        )

    def _conditions(self, identifier: Dataset) -> dict[str, Condition]:
        """Return what the values of keys stand for that cannot be matched as they are."""
        charset = charset_in(identifier)
        found: dict[str, Condition] = {}
        for tag in list(identifier.keys()):
            element = raw_element(identifier, tag)
            if vr_of(element) == "SQ":
                if tag in _SEQUENCES and not self._keeps_items(identifier, tag):
                    found[_SEQUENCES[tag]] = _EVERYTHING
                continue
            key = _KEYS.get(tag)
            values = wanted_values(key, values_of(element, charset)) if key is not None else []
            if key is None or not values:
                continue
            if key.keyword in _TOLD_KEYS:
                if not any(map(has_wild_card, values)):  # else it is refused
                    found[key.keyword] = self._uids(key, values)
            elif self._keeps(key.keyword):
                continue
            elif key.keyword == "PatientID":
                found[key.keyword] = _one_of(self._patients(values))
            else:
                found[key.keyword] = _EVERYTHING
        return found

    def _keeps(self, keyword: str) -> bool:
        return self.deidentifier.keeps(int(Tag(keyword)))

    def _keeps_items(self, dataset: Dataset, tag: BaseTag) -> bool:
        """Whether the profile keeps all that the items of a sequence have a value for."""
        items = [item for item in dataset[tag].value or [] if _has_value(item)]
        return not items or (self.deidentifier.keeps(int(tag)) and all(map(self._keeps_item, items)))

    def _keeps_item(self, item: Dataset) -> bool:
        return all(
            self._keeps_items(item, element.tag) if element.VR == "SQ"
            else element.is_empty or self.deidentifier.keeps(int(element.tag))
            for element in item
        )  # fmt: skip

    def _uids(self, key: Key, values: list[str]) -> Condition:
        known = self._originals(values)
        return uid_list(key.column, list(known.values()), key) if known else _NOTHING

    def _patients(self, values: list[str]) -> list[tuple[int, str]]:
        """Return row and ID of the patients whose pseudonym matches one of `values`."""
        rows = self.archive.database.execute("SELECT id, issuer_of_patient_id, patient_id FROM patient")
        return [
            (row, patient_id) for row, issuer, patient_id in rows
            if any(value_matches(self._pseudonym(issuer, patient_id), value) for value in values)
        ]  # fmt: skip

    def _pseudonym(self, issuer: str, patient_id: str) -> str:
        whose = (issuer, patient_id)
        known = self._pseudonyms.get(whose)
        if known is None:
            if len(self._pseudonyms) >= _MOST_REMEMBERED:
                self._pseudonyms = {}
            known = self._pseudonyms[whose] = self.deidentifier.pseudonym(issuer, patient_id)
        return known

    def find(self, query: Query) -> Iterator[Dataset]:
        """Yield one de-identified Identifier for each entity that matches; its UIDs are noted before."""
        seen = _seen_at(query.level)
        wider = replace(query, keywords=tuple(dict.fromkeys([*query.keywords, *seen])))
        unasked = [keyword for keyword in seen if keyword not in query.keywords]
        rows = find(self.archive, wider)
        while batch := list(islice(rows, _BATCH)):
            self.note(uid for answer in batch for uid in _uids_of(answer))
            for answer in batch:
                yield self._seen(answer, unasked, query.charset)

    def answers(self, query: Query, edge: Mapping[str, str], transfer_syntax_uid: str) -> Iterator[bytes | Dataset]:  # noqa: ARG002
        """Yield one de-identified Identifier for each entity that matches, to be encoded."""
        return (with_edge(answer, edge) for answer in self.find(query))

    def _seen(self, answer: Dataset, unasked: list[str], charset: Charset) -> Dataset:
        """Return the answer through the profile, with every key that was asked for, if only to say nothing.

        Its Specific Character Set is for what is left in it: a wider one would tell what letters a name has.
        """
        seen = self.deidentifier.deidentify_answer(answer)
        for element in answer:
            if element.tag not in seen and element.keyword != "SpecificCharacterSet":
                seen.add_new(element.tag, element.VR, [] if element.VR == "SQ" else None)
        for keyword in unasked:
            del seen[keyword]
        chosen = choose_charset(texts_of(seen), [charset, charset_in(answer)])
        seen.pop("SpecificCharacterSet", None)
        if chosen.terms:
            seen.SpecificCharacterSet = list(chosen.terms) if len(chosen.terms) > 1 else chosen.terms[0]
        return seen

    def note(self, uids: Iterable[str]) -> None:
        """Note original UIDs that are about to be told."""
        told.note(self.archive, self.profile, {self.tell(uid): uid for uid in uids})

    def note_studies(self, found: Iterable[StoredInstance]) -> None:
        """Note all UIDs of the studies of what is about to be sent: objects of one refer to each other."""
        told.note_studies(self.archive, self.profile, (each.study_instance_uid for each in found), self.tell)

    def tell(self, uid: str) -> str:
        """Return the UID that stands for `uid`; not noted by this."""
        return self.deidentifier.uid(uid)

    def original(self, uid: str) -> str | None:
        """Return what `uid` stands for, None when it was never told under this profile."""
        return self._originals([uid]).get(uid)

    def _originals(self, uids: list[str]) -> dict[str, str]:
        found = told.originals(self.archive, self.profile, uids)
        # A profile that retains UIDs gives each its own.
        return {**found, **{uid: uid for uid in uids if uid not in found and self.tell(uid) == uid}}

    def reference(self, text: str, issuer: str = "") -> Reference:  # noqa: ARG002  (a pseudonym stands for both)
        """Return what a typed reference names: a UID that was told, or a pseudonym (the patient's latest study)."""
        return parse_reference(text, self._named)

    def _named(self, name: str) -> Reference | None:
        original = self.original(name)
        if original is not None:
            return find_uid(self.archive.database, original)
        patients = [] if has_wild_card(name) else self._patients([name])
        return latest_study(self.archive.database, _one_of(patients)) if patients else None

    def sent(self, sent: Sent) -> Sent:
        """Return what was sent with the originals of what was told: others may not tell by what is left out."""
        known = self._originals([sent.study_instance_uid, sent.series_instance_uid, *sent.sop_instance_uids])
        patients = self._patients([sent.patient_id]) if sent.patient_id and not has_wild_card(sent.patient_id) else []
        return replace(
            sent,
            patient_id=patients[0][1] if patients else "",
            study_instance_uid=known.get(sent.study_instance_uid, ""),
            series_instance_uid=known.get(sent.series_instance_uid, ""),
            sop_instance_uids=tuple(known[uid] for uid in sent.sop_instance_uids if uid in known),
        )

    def without_identity(self, error: SimilarityError) -> SimilarityError:
        """Return `error`, which a search has raised, without what it says of the original."""
        words = _WITHOUT_IDENTITY.get(type(error))
        return error if words is None else type(error)(words, element=error.element)


@cache
def _seen_at(level: Level) -> tuple[str, ...]:
    """Return the keys that a profile has to see at a level, whatever is asked for.

    Whose it is, for the pseudonym of the objects and dates that move as theirs do; and what identifies somebody, else
    free text could tell a name as long as nobody asks for the name itself.
    """
    identifying = (
        key.keyword
        for key in KEYS.values()
        if not key.counted
        and key.level.depth <= level.depth
        and may_identify(int(Tag(key.keyword)), dictionary_VR(key.keyword))
    )
    return tuple(dict.fromkeys([*_WHOSE, *identifying]))


def _one_of(patients: list[tuple[int, str]]) -> Condition:
    return Condition("patient.id IN (SELECT value FROM json_each(?))", (json.dumps([row for row, _ in patients]),))


def _uids_of(answer: Dataset) -> Iterator[str]:
    """Yield the UIDs that an answer tells, and that can be asked for."""
    for keyword in _TOLD_KEYS:
        value = answer.get(keyword)
        if value:
            yield str(value)


def _without(identifier: Dataset, keywords: Iterable[str]) -> Dataset:
    left_out = {Tag(keyword) for keyword in keywords}
    return Dataset({tag: raw_element(identifier, tag) for tag in list(identifier.keys()) if tag not in left_out})


def _has_value(item: Dataset) -> bool:
    return any(
        any(map(_has_value, element.value)) if element.VR == "SQ" else not element.is_empty for element in item
    )


def _unfiltered(request: SequenceRequest) -> SequenceRequest:
    """Return the request for the same attributes of all items."""
    return replace(request, conditions=(), sequences=tuple(map(_unfiltered, request.sequences)))
