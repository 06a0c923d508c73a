"""Mistakes in settings in words: which key, what was given, what is allowed. One place for every kind of mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_OWN_WORDS = ("value_error", "assertion_error")
"""Kinds of mistake that a validator of ours has put into words."""

_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_LISTS = (tuple, frozenset, set, list)
_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")


@dataclass(frozen=True)
class _Place:
    """Where a mistake is.

    Attributes
    ----------
    keys
        The way there from the top, as the file tells it.
    kind
        Annotation of what has its place there; None where that is not known.
    limits
        Of its values, by the names that pydantic has for them.
    description
        What is allowed, where the limits say that badly.
    owner
        The model that it is a key of, if it is one.
    is_secret
        Whether its values are told to nobody: a field with ``repr=False``.
    """

    keys: tuple[str, ...]
    kind: Any
    limits: Mapping[str, Any]
    description: str = ""
    owner: type[BaseModel] | None = None
    is_secret: bool = False


def one_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in one sentence what is wrong with settings, by the keys of the file; several mistakes by semicolons.

    Parameters
    ----------
    model
        What the settings should have been.
    """
    sentences = []
    mistakes = error.errors(include_url=False)
    for mistake in mistakes:
        if mistake["type"] == "too_short" and any(_is_inside(other["loc"], mistake["loc"]) for other in mistakes):
            continue  # an entry with a mistake was not counted
        place = _place(model, mistake["loc"])
        where, message = ".".join(place.keys), _message(mistake, place)
        sentences.append(f"{where}: {message}" if where else message)
    return "; ".join(dict.fromkeys(sentences))  # of each alternative that a value might have been there is one


def _is_inside(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


def _message(mistake: Mapping[str, Any], place: _Place) -> str:
    kind, said = mistake["type"], str(mistake["msg"])
    if kind in _OWN_WORDS:
        return said.partition(", ")[2] or said
    if kind == "extra_forbidden":
        keys = [] if place.owner is None else list(_keys(place.owner))
        near = difflib.get_close_matches(place.keys[-1], keys, n=1, cutoff=0.0)
        return "there is no such key" + (f"; the nearest is {near[0]!r}" if near else "")
    allowed = place.description or _allowed(place.kind, place.limits, place.keys)
    if kind == "missing" and isinstance(mistake["loc"][-1], str):
        return "the key is missing" + (f", expected {allowed}" if allowed else "")
    if kind == "finite_number":
        allowed = allowed.replace("a number", "a finite number")
    told = f"expected {allowed}" if allowed else said.replace("Input should be", "expected", 1)
    return told if place.is_secret else f"{told}, got {mistake['input']!r}"


def _place(model: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """Follow `location` through the models; a choice of several kinds is one place, whichever was tried."""
    place = _Place((), model, {})
    for number, part in enumerate(location):
        origin, arguments = get_origin(place.kind), get_args(place.kind)
        keys = (*place.keys, str(part))
        if isinstance(place.kind, type) and issubclass(place.kind, BaseModel):
            field = _keys(place.kind).get(str(part))
            if field is None:
                return _Place(keys, None, {}, owner=place.kind)
            place = _of(keys, _only(field.annotation), [field], owner=place.kind)
        elif origin in _LISTS and isinstance(part, int):
            if origin is tuple and arguments[-1] is not Ellipsis:
                if part >= len(arguments) or location[number:] == (part,):
                    return place  # too few: it is the whole that is told
                place = _of(keys, arguments[part], [])
            else:
                place = _of(keys, arguments[0], [])
        elif origin is dict:
            is_key = tuple(location[number + 1 :]) == ("[key]",)
            place = _of(keys, arguments[0 if is_key else 1], [])
        elif part == "[key]" or origin in (Union, UnionType):
            return place
        else:
            return _Place(keys, None, {})
    return place


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _of(keys: tuple[str, ...], kind: Any, metadata: Iterable[Any], owner: type[BaseModel] | None = None) -> _Place:
    """Return the place of an annotation, its limits taken from what annotates it."""
    told = list(metadata)
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        told += more
    limits: dict[str, Any] = {}
    description = ""
    for each in told:
        description = getattr(each, "description", None) or description
        for limit in each.metadata if isinstance(each, FieldInfo) else [each]:
            limits |= {name: getattr(limit, name) for name in _LIMITS if getattr(limit, name, None) is not None}
    is_secret = any(isinstance(each, FieldInfo) and not each.repr for each in told)
    return _Place(keys, _only(kind), limits, description, owner, is_secret)


def _only(kind: Any) -> Any:
    """Return what a kind that may be left out is, when it is there."""
    if get_origin(kind) in (Union, UnionType):
        there = [each for each in get_args(kind) if each is not NoneType]
        return there[0] if len(there) == 1 else kind
    return kind


def _allowed(kind: Any, limits: Mapping[str, Any], keys: tuple[str, ...] = ()) -> str:
    """Return what is allowed, for the middle of a sentence; empty for a kind that is not known here."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = _of((), kind, [])
        return inner.description or _allowed(inner.kind, inner.limits)
    if origin in (Union, UnionType):
        return " or ".join(filter(None, (_allowed(each, {}) for each in arguments if each is not NoneType)))
    if origin is Literal:
        return _one_of(arguments)
    if kind in (int, float):
        return _SCALARS[kind] + _in_range(limits)
    if kind is str:
        return "text" + _in_shape(limits)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if origin in _LISTS or kind in _LISTS:
        return _list(origin, arguments, limits, keys)
    if origin is dict or kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "a table"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of([member.value for member in kind])
    return ""


def _one_of(values: Sequence[Any]) -> str:
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last


def _in_range(limits: Mapping[str, Any]) -> str:
    if "ge" in limits and "le" in limits:
        return f" from {_number(limits['ge'])} to {_number(limits['le'])}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    told = " and ".join(f"{word} {_number(limits[name])}" for name, word in words.items() if name in limits)
    return "" if not told else f" of {told}" if told.startswith("at ") else f" {told}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _in_shape(limits: Mapping[str, Any]) -> str:
    if "pattern" in limits:
        return f" of the form {limits['pattern']}"
    least, most = limits.get("min_length", 0), limits.get("max_length")
    if most is not None:
        return f" of {least} to {most} characters" if least else f" of at most {most} characters"
    return "" if not least else " that is not empty" if least == 1 else f" of at least {least} characters"


def _list(origin: Any, arguments: Sequence[Any], limits: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    if arguments and isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel) and keys:
        return f"[[{keys[-1]}]], in double brackets"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} entries"
    least, most = limits.get("min_length", 0), limits.get("max_length")
    if most is not None:
        return f"a list of {least} to {most} entries"
    return f"a list of at least {least} entr{'y' if least == 1 else 'ies'}" if least else "a list"
