"""The properties, in the order they are proved. A later one adds its file and its line here."""

from . import (
    alignment,
    asserts,
    barriers,
    blocks,
    bounds,
    coverage,
    determinism,
    limits,
    maps,
    overflow,
    peers,
    races,
)
from ._run import Goal, Launch, Property

# Overflow first: the others reason over unbounded integers, which is sound only if nothing wraps.
PROPERTIES: tuple[Property, ...] = (
    Property("overflow", overflow.goals, ()),
    Property("asserts", asserts.goals),
    Property("limits", limits.goals),
    Property("maps", maps.goals),
    Property("bounds", bounds.goals),
    Property("alignment", alignment.goals),
    Property("blocks", blocks.goals),
    Property("coverage", coverage.goals),
    Property("barriers", barriers.goals, ordered="itself", beside=barriers.beside_order),
    # A race is judged between two barriers, which must be the same two for every thread.
    Property("races", races.races, ("overflow", "barriers"), ordered="itself", beside=peers.goals),
    Property("async", races.copies, ("overflow", "barriers"), ordered="itself"),
    Property(
        "determinism",
        determinism.goals,
        ("overflow", "blocks", "races", "async"),
        ordered="rests",
    ),
)

__all__ = ["PROPERTIES", "Goal", "Launch", "Property"]
