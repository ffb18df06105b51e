"""The driver accepts every tensor map that the host encodes, at every size.

The rules are those of cuTensorMapEncodeTiled; a map that breaks one makes the call fail before
anything is launched.
"""

from __future__ import annotations

from collections.abc import Iterator

from tileproof.codegen.hostir import evaluate
from tileproof.verify.model import Counterexample
from tileproof.verify.tma import Limit, Map

from ._run import PROVED, Goal, Launch, found, undecided


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per rule and tensor map."""
    for name, tensor_map in launch.maps.items():
        for limit in tensor_map.limits:
            yield _kept(launch, name, tensor_map, limit)


def _kept(launch: Launch, name: str, tensor_map: Map, limit: Limit) -> Goal:
    answer = launch.engine.on_sizes(limit.broken(), launch.domain.dims.values())
    if answer.proved:
        return PROVED
    if answer.point is None:
        return undecided(answer, f"{name}: {limit.what}")
    place = launch.describe(answer.point.values)
    value = evaluate(limit.source, place["sizes"])
    rule = f"{limit.lo}..{limit.hi}"
    if limit.multiple > 1:
        rule += f", a multiple of {limit.multiple}"
    message = f"host: {limit.what} of tensor map {name} is {value}, the driver takes {rule}"
    example = Counterexample(
        "maps",
        f"{name}: {limit.what}",
        message,
        buffer=tensor_map.tensor,
        confirmed=not limit.holds(value),
        **place,
    )
    return found(example, answer.point, answer.loads)
