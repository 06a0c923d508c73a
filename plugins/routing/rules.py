"""Rules: which series go where, and why one does or does not."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from config.routes import Commit, RouteSettings
from config.settings import Settings
from index.criteria import findings, require_criteria
from index.deliveries import Way
from index.errors import InvalidIdentifier


class RouteError(ValueError):
    """A rule that cannot be used; the message is one sentence for the person who wrote it."""


@dataclass(frozen=True)
class Subject:
    """What a rule looks at.

    Attributes
    ----------
    header
        Data set of the series' first instance, without pixels.
    sources
        AE titles that its instances came from; "" for what was imported or made here.
    is_derived
        Whether this node made it.
    """

    header: Dataset
    sources: frozenset[str]
    is_derived: bool


@dataclass(frozen=True)
class Check:
    """One condition of a rule.

    Attributes
    ----------
    what
        What the rule says.
    found
        What the series is.
    """

    what: str
    found: str
    holds: bool


def checks(rule: RouteSettings, subject: Subject) -> list[Check]:
    """Ask every condition of `rule`; the series is sent when all hold."""
    asked = []
    if rule.sources:
        holds = any(comes_from(rule, source) for source in subject.sources)
        asked.append(Check(f"from {_in_words(rule.sources)}", f"from {_in_words(sorted(subject.sources))}", holds))
    if rule.derived is not None:
        made = ("came from outside", "made by this node")
        asked.append(Check(made[rule.derived], made[subject.is_derived], rule.derived == subject.is_derived))
    criteria = ({"Modality": rule.modality} if rule.modality else {}) | wanted(rule)
    for finding in findings(subject.header, criteria):
        told = f"{finding.keyword} is {finding.value!r}" if finding.value else f"{finding.keyword} is absent or empty"
        asked.append(Check(f"{finding.keyword} = {_in_words(finding.wanted)}", told, finding.holds))
    return asked


def fits(rule: RouteSettings, subject: Subject) -> bool:
    """Whether every condition of `rule` holds."""
    return all(check.holds for check in checks(rule, subject))


def comes_from(rule: RouteSettings, source: str) -> bool:
    """Whether `rule` takes what the AE `source` has sent."""
    return not rule.sources or any(_wild_card(source, pattern) for pattern in rule.sources)


def destinations(rule: RouteSettings, subject: Subject) -> tuple[str, ...]:
    """Return where `rule` sends the series: never back to the AE that all of it came from."""
    return tuple(title for title in rule.to if subject.sources != {title})


def wanted(rule: RouteSettings) -> dict[str, tuple[str, ...]]:
    """Return the attributes that `rule` looks at, each with the values of which one has to match."""
    return {keyword: (value,) if isinstance(value, str) else value for keyword, value in rule.match.items()}


def require_rules(settings: Settings) -> None:
    """Raise `RouteError` unless every rule can be asked."""
    for rule in settings.routes:
        try:
            require_criteria(wanted(rule))
        except InvalidIdentifier as error:
            raise RouteError(f"routes: {rule.name!r}: {error}") from error


def by_hand(title: str) -> RouteSettings:
    """Return the rule by which a person has something sent: to one destination, now, whatever it is."""
    return RouteSettings(name="by hand", to=(title,), commit=Commit.OFFERED)


def rule_of(settings: Settings, name: str, title: str) -> RouteSettings | None:
    """Return the rule of that name ("": by hand); None when the settings have none that leads to `title`."""
    if not name:
        return by_hand(title)
    return next((rule for rule in settings.routes if rule.name == name and title in rule.to), None)


def way(settings: Settings, rule: RouteSettings, title: str) -> Way:
    """Return how `rule` sends to the destination `title`: through its own profile, else through the destination's."""
    entity = settings.entity_table().get(title)
    return Way(title, rule.profile or (entity.profile if entity is not None else ""))


def _wild_card(value: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _in_words(values: Sequence[str]) -> str:
    return " or ".join(value or '"" (imported or made here)' for value in values)
