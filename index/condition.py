"""A condition on rows of the catalogue, as a piece of SQL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """A SQL condition with positional parameters."""

    sql: str
    parameters: tuple[str | int | float, ...] = ()


def any_of(conditions: list[Condition]) -> Condition:
    """The conditions joined by OR, as a balanced tree: SQLite limits the depth of an expression."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    left, right = any_of(conditions[:middle]), any_of(conditions[middle:])
    return Condition(f"({left.sql} OR {right.sql})", left.parameters + right.parameters)
