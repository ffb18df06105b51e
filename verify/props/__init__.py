"""The properties, in the order they are proved. A later one adds its file and its line here."""

from . import alignment, blocks, bounds, coverage, overflow
from ._run import Goal, Launch, Property

# Overflow first: the others reason over unbounded integers, which is sound only if nothing wraps.
PROPERTIES: tuple[Property, ...] = (
    Property("overflow", overflow.goals),
    Property("bounds", bounds.goals),
    Property("alignment", alignment.goals),
    Property("blocks", blocks.goals),
    Property("coverage", coverage.goals),
)

__all__ = ["PROPERTIES", "Goal", "Launch", "Property"]
