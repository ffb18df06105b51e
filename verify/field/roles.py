"""Roles that the author of a source program gives to threads of a block.

Threads part at a branch that their number decides and that holds more than one thread's work. Each
part then runs the branches that follow one another by itself, waits included, and they are one
group again behind the last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .machine import Lanes, Meeting
from .memory import UnmodelledError

if TYPE_CHECKING:
    from .tiles import Source

_PARALLEL = 1  # tvm.tirx.ForKind
_OWN = ("local", "local.var")
_GROUP = ("tl.tileop.", "tl.mbarrier_wait", "tirx.tvm_storage_sync")


def branches(source: Source, statements: list[Any]) -> tuple[list[Any], Any]:
    """The first `statements`, as many as part the threads of a block, and who takes which."""
    found, ways = [], []
    for s in statements:
        if type(s).__name__ != "IfThenElse" or _reads(s.condition) or not _for_many(s):
            break
        taken = np.broadcast_to(source.value(s.condition), source.active.shape) != 0
        by_block = taken.reshape(-1, source.threads)
        if (by_block.any(axis=1) == by_block.all(axis=1)).all():
            break
        if (by_block != by_block[:1]).any():
            raise UnmodelledError("roles that differ between blocks")
        found.append(s)
        ways.append(by_block[0])
    return found, np.array(ways)


def part(source: Source, statements: list[Any], ways: Any) -> Meeting:
    """Runs `statements`, each role by itself. `ways`: whether a thread takes each branch."""
    programs = []
    for way in np.unique(ways, axis=1).T:
        threads = np.flatnonzero((ways == way[:, None]).all(axis=0))
        programs.append(_role(source, statements, way, threads))
    yield from _side_by_side(programs)


def _role(source: Source, statements: list[Any], way: Any, threads: Any) -> Meeting:
    count = len(source.active)
    rows = np.arange(count).reshape(-1, source.threads)[:, threads].reshape(-1)
    lanes = source.lanes
    env = {
        v: value[..., rows] if np.ndim(value) and np.shape(value)[-1] == count else value
        for v, value in lanes.env.items()
    }
    own = {
        data: replace(place, memory=place.memory.repeated(1, rows), offset=_of(place.offset, rows))
        for data, place in source.places.items()
        if place.owner == "lane"
    }
    role = source.role(Lanes(lanes.block[rows], lanes.thread[rows], env), len(threads), own)
    role.active = source.active[rows]
    for s, taken in zip(statements, way, strict=True):
        body = s.then_case if taken else s.else_case
        if body is not None and role.active.any():
            yield from role.run(body)
    for data, place in own.items():
        kept = source.places[data].memory
        kept.value[rows], kept.code[rows] = place.memory.value, place.memory.code


def _of(offset: Any, rows: Any) -> Any:
    return offset[rows] if np.ndim(offset) else offset


def _side_by_side(programs: list[Meeting]) -> Meeting:
    """Programs in turns. Waits where none can go on."""
    waits = dict.fromkeys(programs, lambda: True)
    while waits:
        ready = [program for program, goes_on in waits.items() if goes_on()]
        if not ready:
            yield lambda: any(goes_on() for goes_on in waits.values())
        for program in ready:
            found = next(program, None)
            if found is None:
                del waits[program]
            else:
                waits[program] = found


def _reads(condition: Any) -> bool:
    """Whether it hangs on memory, which other branches may change."""
    return bool(_nodes(condition, lambda n: type(n).__name__ == "BufferLoad"))


def _for_many(branch: Any) -> bool:
    """Whether it holds what threads do together: tile operations, parallel loops, waits.

    A thread fills and copies what is in its own variables by itself.
    """

    def is_group(n: Any) -> bool:
        if type(n).__name__ == "For":
            return int(n.kind) == _PARALLEL
        if type(n).__name__ != "Call" or not str(n.op.name).startswith(_GROUP):
            return False
        return not any(scope in _OWN for scope in _scopes(n))

    return bool(_nodes(branch, is_group))


def _scopes(call: Any) -> list[str]:
    """Of the memory that the tiles of an operation lie in."""
    tiles = [a for a in call.args if type(a).__name__ == "Call" and str(a.op.name) == "tl.region"]
    return [str(tile.args[0].buffer.scope()) for tile in tiles]


def _nodes(of: Any, wanted: Any) -> list[Any]:
    from tilelang import tvm

    found: list[Any] = []
    root = of if hasattr(of, "then_case") else tvm.tirx.Evaluate(of)
    tvm.tirx.stmt_functor.post_order_visit(root, lambda n: found.append(n) if wanted(n) else None)
    return found
