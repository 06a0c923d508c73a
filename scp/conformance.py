"""The DICOM Conformance Statement of this node (PS3.2), written from the tables that the code itself works with.

What the node accepts, matches and answers stands in `scp.contexts`, `index.keys`, `scp.status`, `scp.private_elements`
and the settings; nothing of that is said a second time here. The sentences between the tables: ``conformance.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from string import Template

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID

from config.identity import IMPLEMENTATION_CLASS_UID, MANUFACTURER, MODEL_NAME, UID_ROOT, implementation_version_name
from config.settings import Settings
from index.commitments import FailureReason
from index.decoding import Undecodable, decoder
from index.errors import (
    CannotDeidentify,
    CatalogueBusy,
    DiskFailed,
    InstanceConflict,
    InvalidIdentifier,
    InvalidInstance,
    NotEmbedded,
    NotFound,
    OutOfSpace,
    PatientMismatch,
    QueryCancelled,
    SimilarityError,
    UnknownModel,
    UnknownQuery,
    WrongDimension,
)
from index.keys import SEQUENCES, UNIQUE_KEYS, Key, Level, Matching, SequenceKey, keys_of
from index.matching import takes_wild_cards
from scp import extended_negotiation, private_elements
from scp.contexts import (
    QUERY_RETRIEVE,
    STORAGE,
    STORAGE_COMMITMENT,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    VERIFICATION,
)
from scp.errors import (
    ConversionError,
    InvalidArgument,
    NotAuthorized,
    NotOffered,
    PeerError,
    ResourceLimitation,
    UnknownAction,
    UnknownDestination,
    UnrecognizedOperation,
)
from scp.similarity import MOST_RETRIEVED
from scp.status import (
    CANCELLED,
    CANNOT_UNDERSTAND,
    CODES,
    MISTYPED_ARGUMENT,
    PENDING,
    PENDING_WARNING,
    PROCESSING_FAILURE,
    STORED_WITH_A_WARNING,
    SUB_OPERATIONS_FAILED,
    SUB_OPERATIONS_WARNING,
    SUCCESS,
    Status,
)

_MATCHING = {
    Matching.UID: "list of UID",
    Matching.TEXT: "single value{}",
    Matching.PERSON_NAME: "single value{}; any component group, without case and accents",
    Matching.DATE: "single value, range",
    Matching.TIME: "single value, range",
    Matching.NUMBER: "single value, numeric",
    Matching.MODALITIES: "any value; single value{}",
}
"""With room for what `takes_wild_cards` says of the key."""


_ANYWHERE: tuple[type[Exception], ...] = (OutOfSpace, CatalogueBusy, NotAuthorized, NotOffered, UnrecognizedOperation)
_QUERY: tuple[type[Exception], ...] = (InvalidIdentifier,)
_SIMILAR: tuple[type[Exception], ...] = (
    SimilarityError,
    UnknownQuery,
    NotEmbedded,
    UnknownModel,
    WrongDimension,
    QueryCancelled,
)

_BEHAVIOURS = {
    "relational": "relational queries and retrieval",
    "combined_date_time": "combined date-time matching",
    "fuzzy": "fuzzy semantic matching of person names",
    "timezone": "time zone query adjustment",
}

RAISED: dict[str, tuple[type[Exception], ...]] = {
    "storage": (InvalidInstance, InstanceConflict, PatientMismatch, DiskFailed, *_ANYWHERE),
    "inbox": (InvalidInstance, InstanceConflict, PatientMismatch, CannotDeidentify, *_ANYWHERE),
    "commitment": (NotFound, UnknownAction, InvalidArgument, ResourceLimitation, *_ANYWHERE),
    "query": (*_QUERY, *_ANYWHERE),
    "retrieve": (*_QUERY, UnknownDestination, ConversionError, PeerError, *_ANYWHERE),
    "similarity": (*_QUERY, *_SIMILAR, *_ANYWHERE),
    "asking": (InvalidInstance, NotEmbedded, UnknownModel, *_ANYWHERE),
}
"""What each service refuses; `scp.status` has the codes."""

_ANSWERED_ANYWHERE = (
    (PROCESSING_FAILURE, "anything else that goes wrong in the node"),
    (MISTYPED_ARGUMENT, "a mandatory parameter of the request is missing or empty"),
)
_ANSWERS: dict[str, tuple[tuple[int, str], ...]] = {
    "storage": (
        (SUCCESS.code, "the object and its catalogue rows are on disk"),
        (STORED_WITH_A_WARNING, "as for 0000, but the data set is cut off: it is stored as it came"),
        (CANNOT_UNDERSTAND, "the data set cannot be read"),
    ),
    "inbox": (
        (SUCCESS.code, "the de-identified object and its catalogue rows are on disk"),
        (CANNOT_UNDERSTAND, "the data set cannot be read"),
    ),
    "commitment": ((SUCCESS.code, "the request is on disk; the report follows"),),
    "query": (
        (SUCCESS.code, "no more matches"),
        (PENDING.code, "a match; every key is supported"),
        (PENDING_WARNING.code, "a match; a key that was asked for is not supported"),
        (CANCELLED.code, "stopped by C-CANCEL"),
    ),
    "retrieve": (
        (SUCCESS.code, "every sub-operation succeeded, or nothing matched"),
        (PENDING.code, "sub-operations continue"),
        (CANCELLED.code, "stopped by C-CANCEL"),
        (SUB_OPERATIONS_WARNING, "some sub-operations failed or were answered with a warning"),
        (SUB_OPERATIONS_FAILED, "all sub-operations failed"),
    ),
    "similarity": (
        (SUCCESS.code, "no more neighbours, or all were sent"),
        (PENDING.code, "a neighbour; every key is supported"),
        (PENDING_WARNING.code, "a neighbour; a key that was asked for is not supported"),
    ),
    "asking": (
        (SUCCESS.code, "the image is embedded: the next query can ask about it"),
        (CANNOT_UNDERSTAND, "the data set cannot be read"),
    ),
}


_OVERWRITE = {
    "never": "the stored object is kept and the answer is the warning B006",
    "same_source": "it replaces the stored object when the same AE sent both, else the answer is the warning B006",
    "always": "it replaces the stored object",
}
_CLIENT_CERTIFICATES = {
    "none": "client certificates are not asked for",
    "optional": "a client certificate is checked when there is one",
    "required": "a client certificate is required",
}


def statement(settings: Settings) -> str:
    """Return the Conformance Statement of a node with these settings as Markdown."""
    template = Template(resources.files("scp").joinpath("conformance.md").read_text(encoding="utf-8"))
    return template.substitute(
        {
            "model": MODEL_NAME,
            "manufacturer": MANUFACTURER,
            "aet": settings.scp.aet,
            "similarity_aet": settings.scp.similarity_aet,
            "services": _services(),
            "identity": _identity(),
            "reconstruct": str(settings.reconstruct.enabled).lower(),
            "segmentation": str(settings.segmentation.enabled).lower(),
            "report": str(settings.report.enabled).lower(),
            "picture": str(settings.report.picture).lower(),
            "scan_quality": str(settings.scan_quality.enabled).lower(),
            "uncompressed": ", ".join(map(_name, UNCOMPRESSED)),
            "policies": _policies(settings),
            "overwrite": _OVERWRITE[settings.archive.overwrite],
            "commitment_hours": f"{settings.commitment.retry_hours:g}",
            "failure_reasons": ", ".join(map(_failure_reason, FailureReason)),
            "find_behaviours": _behaviours(extended_negotiation.FIND),
            "retrieve_behaviours": _behaviours(extended_negotiation.RETRIEVE),
            "keys": "\n\n".join(_keys(level) for level in Level),
            "retrieve_associations": settings.scp.retrieve_associations,
            "creator": private_elements.CREATOR,
            "similarity_classes": _table(
                ("SOP Class", "UID"),
                [(_class_name(uid), uid) for uid, kind in QUERY_RETRIEVE.items() if kind.similarity],
            ),
            "private_elements": _private_block(),
            "most_retrieved": MOST_RETRIEVED,
            "embed_timeout": f"{settings.similarity.embed_timeout_s:g}",
            "decorate": str(settings.similarity.decorate).lower(),
            "question_minutes": f"{settings.similarity.question_minutes:g}",
            "question_images": settings.similarity.question_images,
            "titles": _titles(),
            "view_keys": _view_keys(),
            "configuration": _configuration(settings),
            "client_certificates": _CLIENT_CERTIFICATES[settings.tls.client_certificates],
            "storage_classes": _table(("SOP Class", "UID"), sorted((_name(uid), uid) for uid in STORAGE)),
            "transfer_syntaxes": _transfer_syntaxes(),
            **{f"{service}_status": _statuses(service) for service in RAISED},
        }
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def tag(keyword: str) -> str:
    """``(gggg,eeee)`` of the attribute."""
    number = Tag(tag_for_keyword(keyword) or 0)
    return f"({number.group:04X},{number.element:04X})"


def _name(uid: str) -> str:
    name = UID(uid).name
    return name if name != uid else "(retired, without a name)"


def _class_name(uid: str) -> str:
    kind = QUERY_RETRIEVE.get(uid)
    if kind is None or not kind.similarity:
        return _name(uid)
    return f"{MANUFACTURER} Similarity Query/Retrieve - {kind.operation.removeprefix('C-')} (private)"


def _services() -> str:
    names = [
        _name(VERIFICATION),
        f"Storage: {len(STORAGE)} SOP Classes (annex A)",
        _name(STORAGE_COMMITMENT),
        *map(_class_name, QUERY_RETRIEVE),
    ]
    return _table(("Network service", "user (SCU)", "provider (SCP)"), [(name, "yes", "yes") for name in names])


def _identity() -> str:
    rows = [
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", implementation_version_name()),
        ("UID root of everything that this product names", UID_ROOT),
        ("Manufacturer, in derived objects", MANUFACTURER),
    ]
    return _table(("Identity", "value"), rows)


def _policies(settings: Settings) -> str:
    own = settings.scp
    rows = [
        ("Application context", "1.2.840.10008.3.1.1.1"),
        ("Associations at the same time, at most", f"{own.max_associations}; more are rejected (local limit exceeded)"),
        ("Maximum PDU size received", f"{own.max_pdu_bytes} bytes"),
        ("Maximum PDU size sent", "what the peer allows"),
        ("Asynchronous operations", "not negotiated: one operation at a time"),
        (
            "SCP/SCU role selection",
            "accepted for Storage (C-GET), proposed for Storage as SCU of C-GET, and for Storage Commitment reports",
        ),
        ("User identity", "not negotiated"),
        ("Wait for an association request or release", f"{own.acse_timeout_s:g} s"),
        ("Wait for a DIMSE answer", f"{own.dimse_timeout_s:g} s"),
        ("An association without traffic is aborted after", f"{own.network_timeout_s:g} s"),
    ]
    return _table(("Policy", "value"), rows)


def answered(service: str) -> list[tuple[int, str]]:
    """Return each Status code that a service of `RAISED` answers, with when that is; some codes more than once."""
    refused = ((CODES[error], _meaning(error)) for error in RAISED[service])
    return sorted([*_ANSWERS[service], *_ANSWERED_ANYWHERE, *refused])


def _statuses(service: str) -> str:
    return _table(("Status", "type", "when"), [(f"{code:04X}", _kind(code), why) for code, why in answered(service)])


def _kind(code: int) -> str:
    status = Status(code)
    kinds = (
        ("success", status.is_success),
        ("pending", status.is_pending),
        ("cancel", status.is_cancel),
        ("warning", status.is_warning),
    )
    return next((kind for kind, holds in kinds if holds), "failure")


def _meaning(error: type[Exception]) -> str:
    """What the error means, from its docstring."""
    first = (error.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("``", "`")
    return first[:1].lower() + first[1:]


def _failure_reason(reason: FailureReason) -> str:
    return f"{reason:04X} ({reason.words})"


def _behaviours(names: Iterable[str]) -> str:
    return ", ".join(_BEHAVIOURS[name] for name in names)


def _keys(level: Level) -> str:
    rows = [_key_row(key, "") for key in keys_of(level)]
    rows += [row for sequence in SEQUENCES.values() if sequence.level is level for row in _item_rows(sequence, "")]
    return f"### {level.value}\n\n" + _table(("Tag", "key", "VR", "type", "matching"), rows)


_Row = tuple[str, str, str, str, str]


def _key_row(key: Key, depth: str) -> _Row:
    kind = "U" if UNIQUE_KEYS[key.level] == key.keyword and not depth else "O"
    wild_card = ", wild card" if takes_wild_cards(key) else ""
    matching = _MATCHING[key.matching].format(wild_card) + (" (kept by the node)" if key.counted else "")
    return tag(key.keyword), depth + dictionary_description(key.keyword), dictionary_VR(key.keyword), kind, matching


def _item_rows(sequence: SequenceKey, depth: str) -> Iterator[_Row]:
    """The sequence and the attributes of its items, with ``>`` for each level of nesting as in PS3.3."""
    yield tag(sequence.keyword), depth + dictionary_description(sequence.keyword), "SQ", "O", "all keys in one item"
    inside = depth + "\\>"
    for key in sequence.keys:
        yield _key_row(key, inside)
    for inner in sequence.sequences:
        yield from _item_rows(inner, inside)


def _private_block() -> str:
    rows = [
        (f"({private_elements.GROUP:04X},xx{element.number:02X})", element.keyword, element.vr, element.vm)
        for element in private_elements.ELEMENTS.values()
    ]
    return _table(("Tag", "element", "VR", "VM"), rows)


def _configuration(settings: Settings) -> str:
    own, tls = settings.scp, settings.tls
    unknown = f"accepted with the rights {', '.join(sorted(own.unknown_rights))}" if own.accept_unknown else "rejected"
    rows = [
        ("AE titles", ", ".join(f"`{title}`" for title in settings.own_titles())),
        ("Port", own.port if tls.plain else "closed"),
        ("Port for TLS", tls.port if tls.enabled else "closed"),
        ("Unknown callers", unknown),
        ("Named peers", len(settings.application_entities)),
        ("Of these, with a de-identification profile", sum(bool(ae.profile) for ae in settings.application_entities)),
    ]
    return _table(("Setting", "value"), rows)


def _titles() -> str:
    """What each kind of title, and an AE with a profile, is answered."""
    through = "through the profile"
    rows = [
        ("Verification", "yes", "yes", "yes", "yes"),
        ("Storage", "as sent", "de-identified, then stored", "0122", "as sent"),
        ("Storage Commitment", "yes", "of the UIDs that were sent", "0122", "of what this AE has sent"),
        ("Query, C-FIND", "yes", "0122", through, through),
        ("Retrieve, C-MOVE and C-GET", "yes", "0122", through, through),
        ("Similarity query", "yes", "0122", through, through),
        ("Similarity title (title and `_SIM`)", "yes", "none", "yes", "yes"),
    ]
    return _table(("Service", "the node's title", "`ingest`", "`view`", "AE with a profile, any title"), rows)


def _view_keys() -> str:
    """How a view matches what its profile does not keep."""
    rows = [
        ("Study, Series, SOP Instance, Frame of Reference UID", "replaced UIDs that were told; others match nothing"),
        ("Patient ID", "the pseudonym: single value, wild card"),
        ("a key that the profile keeps", "as in section 8"),
        ("any other key with a value, inside sequences as well", "not matched: FF01"),
    ]
    return _table(("Key", "matching"), rows)


def _transfer_syntaxes() -> str:
    rows = [(_name(uid), uid, _how_it_is_converted(uid)) for uid in TRANSFER_SYNTAXES]
    return _table(("Transfer syntax", "UID", "for a receiver that takes only another one"), rows)


def _how_it_is_converted(uid: str) -> str:
    if uid in UNCOMPRESSED:
        return "encoded anew"
    try:
        return "decoded" if decoder(uid).is_available else "not sent"
    except Undecodable:
        return "not sent"
