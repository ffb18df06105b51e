"""Tensor memory is taken by amounts the hardware has, never more than there is, and given back.

A block that asks for more than is left waits for ever, and one that ends without giving back what
it took leaves less to every block after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tileproof.verify.facts import Allocation
from tileproof.verify.model import Counterexample, Verdict
from tileproof.verify.replay import Trace
from tileproof.verify.terms import Symbol, evaluate

from ._run import PROVED, Goal, Launch

_AMOUNTS = (32, 64, 128, 256, 512)
_ALL = 512
_WARP = 32


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per amount, one for the most that is held at once, one per holder."""
    calls = launch.facts.allocations
    if not calls:
        return
    for call in calls:
        if abs(call.columns) not in _AMOUNTS:
            message = f"{abs(call.columns)} columns of tensor memory, expected one of {_AMOUNTS}"
            yield _refuted(launch, call.site, message, True)
    takers: dict[Allocation, int] = {}
    for call in calls:
        warps = _warps(launch, call)
        if warps is None:
            reason = f"{call.site} in a loop, or under a condition not on threads alone"
            yield Goal(Verdict.UNKNOWN, reason)
            return
        takers[call] = warps
    held = most = 0
    left: dict[str, list[int]] = {}
    for call, warps in takers.items():
        held += call.columns * warps
        most = max(most, held)
        left.setdefault(call.holder, []).extend([call.columns] * warps)
    if most > _ALL:
        message = f"a block takes {most} columns of tensor memory, of which there are {_ALL}"
        yield _refuted(launch, calls[0].site, message, _most(launch) > _ALL)
    else:
        yield PROVED
    for holder, columns in left.items():
        kept = sum(columns)
        if kept == 0 and sorted(map(abs, columns))[::2] == sorted(c for c in columns if c > 0):
            yield PROVED
        else:
            message = f"{kept} columns of tensor memory at {holder} are not given back"
            if kept <= 0:
                message = f"{holder} gives back other columns of tensor memory than it took"
            seen = sum(n for trace in _traces(launch) for h, n in trace.allocated if h == holder)
            yield _refuted(launch, holder, message, seen == kept)


def _warps(launch: Launch, call: Allocation) -> int | None:
    """How many warps make a call; None if anything but their number decides."""
    threads = launch.facts.threads
    path = call.context.path
    constant = all(s.lo.is_const and s.hi.is_const for s in threads)
    if call.context.loops or not constant or not {s for c in path for s in c.symbols} <= {*threads}:
        return None
    grid = np.meshgrid(*(np.arange(s.hi.value + 1) for s in threads), indexing="ij")
    point: dict[Any, Any] = dict(zip(threads, grid, strict=True))
    taken = np.ones(grid[0].shape if grid else (), bool)
    for c in path:
        taken = taken & np.asarray(evaluate(c, point)).astype(bool)
    numbers = np.broadcast_to(evaluate(launch.facts.linear_thread, point), taken.shape)
    return len(np.unique(numbers[taken] // _WARP))


def _traces(launch: Launch) -> Iterator[Trace]:
    """What the first thread of each warp of the first block does."""
    point = _point(launch)
    threads = launch.facts.threads
    shape = [int(s.hi.value) + 1 for s in threads]
    for number in range(0, int(np.prod(shape)), _WARP):
        place = np.unravel_index(number, shape[::-1])[::-1]
        yield launch.replay({**point, **{s: int(v) for s, v in zip(threads, place, strict=True)}})


def _point(launch: Launch) -> dict[Symbol, int]:
    """The first block at the least sizes, or at the greatest if those launch none."""
    greatest = {s: int(s.hi.value) for s in launch.domain.dims.values()}
    first = dict.fromkeys(launch.facts.blocks, 0)
    point = launch.domain.complete({}) | first
    if all(int(evaluate(n, point)) > 0 for n in launch.extents.values()):
        return point
    return launch.domain.complete(greatest) | first


def _most(launch: Launch) -> int:
    """The columns a run of the first block takes, had it not to wait for them."""
    return sum(max(n, 0) for trace in _traces(launch) for _, n in trace.allocated)


def _refuted(launch: Launch, site: str, message: str, confirmed: bool) -> Goal:
    place = launch.describe(_point(launch))
    example = Counterexample("limits", site, message, confirmed=confirmed, **place)
    return Goal(Verdict.REFUTED if confirmed else Verdict.ALARM, message, example)
