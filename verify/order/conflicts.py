"""Accesses of shared memory that nothing in the order keeps apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .graph import Agent, Graph
from .trace import Access


@dataclass(frozen=True)
class Conflict:
    """Two accesses of one byte, at least one a write; `why` is "race", "copy" or "fence"."""

    why: str
    first: Access
    second: Access
    byte: int


@dataclass(eq=False)
class Group:
    """What the threads of one class do by one statement between two of their events."""

    cls: int
    start: int
    end: int | None
    mode: str
    arena: str
    load: int | None
    asynchronous: bool
    proxy: bool
    accesses: list[Access] = field(default_factory=list)

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return min(a.first for a in self.accesses), max(a.stop for a in self.accesses)

    @cached_property
    def owners(self) -> Any:
        """Per byte of the bounds the thread that touches it, -1 for none, -2 for several."""
        lo, hi = self.bounds
        owners = np.full(hi - lo, -1, np.int64)
        for a in self.accesses:
            part = owners[a.first - lo : a.stop - lo]
            part[:] = np.where((part == -1) | (part == a.thread), a.thread, -2)
        return owners


def conflicts(graph: Graph) -> Iterator[Conflict]:
    """Every pair of groups that may meet in a byte, once each."""
    groups = _groups(graph)
    for i, one in enumerate(groups):
        for two in groups[i:]:
            if one.arena != two.arena or "write" not in (one.mode, two.mode):
                continue
            if one.bounds[0] >= two.bounds[1] or two.bounds[0] >= one.bounds[1]:
                continue
            yield from _between(graph, one, two)
    yield from _own(graph)


def _groups(graph: Graph) -> list[Group]:
    groups: dict[tuple[Any, ...], Group] = {}
    for cls, threads in enumerate(graph.members):
        for thread in threads:
            for a in graph.traces[thread].accesses:
                key = (cls, a.start, a.end, a.mode, a.arena, a.load, a.node)
                made = (cls, a.start, a.end, a.mode, a.arena, a.load, a.asynchronous, a.proxy)
                groups.setdefault(key, Group(*made)).accesses.append(a)
    return list(groups.values())


def _between(graph: Graph, one: Group, two: Group) -> Iterator[Conflict]:
    pairs = []
    (a, other), (b, _) = graph.first[one.cls], graph.first[two.cls]
    if one.cls != two.cls:
        pairs.append((a, b))
    elif other is not None:
        pairs += [(a, other)] if one is two else [(a, other), (other, a)]
    for x, y in pairs:
        forward, back = _before(graph, one, x, two, y), _before(graph, two, y, one, x)
        fenced = (forward and _fenced(one, x, two, y)) or (back and _fenced(two, y, one, x))
        if fenced:
            continue
        met = _meeting(one, two)
        if met is None:
            return
        copies = one.asynchronous or two.asynchronous
        why = "fence" if forward or back else "copy" if copies else "race"
        yield Conflict(why, *met)
        return


def _before(graph: Graph, one: Group, x: Agent, two: Group, y: Agent) -> bool:
    """Whether the accesses of `one` by thread x are over when those of `two` by thread y begin."""
    begin = y.clocks[two.start]
    if one.load is not None:
        place, phases = graph.end_of_load(x, one.load)
        return bool(begin.known[place] >= phases)
    return one.end is not None and bool(begin.known[x.number] >= 2 * one.end)


def _fenced(one: Group, x: Agent, two: Group, y: Agent) -> bool:
    """What was written by ordinary stores, asynchronous copies see after a fence only."""
    if one.proxy or not two.proxy or one.mode != "write":
        return True
    begin = y.clocks[two.start]
    return one.end is not None and bool(begin.fenced[x.number] >= 2 * one.end)


def _meeting(one: Group, two: Group) -> tuple[Access, Access, int] | None:
    """Accesses of two threads that share a byte."""
    lo, hi = max(one.bounds[0], two.bounds[0]), min(one.bounds[1], two.bounds[1])
    a = one.owners[lo - one.bounds[0] : hi - one.bounds[0]]
    b = two.owners[lo - two.bounds[0] : hi - two.bounds[0]]
    met = (a != -1) & (b != -1) & ((a != b) | (a == -2))
    if one is two:
        met = a == -2
    if not met.any():
        return None
    byte = lo + int(np.argmax(met))
    ones = [a for a in one.accesses if a.first <= byte < a.stop]
    twos = [a for a in two.accesses if a.first <= byte < a.stop]
    return next((p, q, byte) for p in ones for q in twos if p.thread != q.thread)


def _own(graph: Graph) -> Iterator[Conflict]:
    """A copy under way and another access of the thread that issued it."""
    for cls, threads in enumerate(graph.members):
        agent = graph.first[cls][0]
        for thread in threads:
            accesses = graph.traces[thread].accesses
            writes = [a for a in accesses if a.mode == "write"]
            for copy in (a for a in accesses if a.asynchronous):
                for other in accesses if copy.mode == "write" else writes:
                    if other is copy or other.arena != copy.arena:
                        continue
                    byte = max(copy.first, other.first)
                    if byte >= min(copy.stop, other.stop):
                        continue
                    if (conflict := _of_one(graph, agent, copy, other)) is not None:
                        yield Conflict(conflict, copy, other, byte)
                        return


def _of_one(graph: Graph, agent: Agent, copy: Access, other: Access) -> str | None:
    if other.position > copy.position:
        if copy.load is not None:
            place, phases = graph.end_of_load(agent, copy.load)
            begin = agent.clocks[other.start]
            return None if begin.known[place] >= phases else "copy"
        # Multiplies of a warp follow each other.
        return None if copy.until <= other.position else "copy"
    if other.asynchronous or other.mode != "write":
        return None
    begin = agent.clocks[copy.start]
    fenced = not copy.proxy or begin.fenced[agent.number] >= 2 * (other.end or 0)
    return None if fenced else "fence"
