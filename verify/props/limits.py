"""A block asks for no more than its architecture has: threads, shared memory, the grid's extents.

A launch beyond these fails whole. Registers are no such limit: what does not fit is spilled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from tileproof.codegen.hostir import Launch as HostLaunch
from tileproof.codegen.lower import Lowered
from tileproof.dsl import arch
from tileproof.verify import terms
from tileproof.verify.convert import Converter
from tileproof.verify.domain import Domain
from tileproof.verify.facts import Context, Facts, scalar_bits
from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.model import Counterexample
from tileproof.verify.terms import Term, const, evaluate

from . import tensor_memory
from ._run import PROVED, Goal, Launch, Resources, found, undecided

_MOST_BLOCK = (1024, 1024, 64)
_MOST_CLUSTER, _FIRST_WITH_CLUSTERS = 8, (9, 0)  # blocks; compute capability
_REGISTERS = 255  # of 4 bytes, the most one thread may have


def of(launch: HostLaunch, lowered: Lowered, domain: Domain) -> Resources | None:
    """What one launch asks for; None if an extent is not understood (then the host says so)."""
    functions = {g.name_hint: f for g, f in lowered.device_mod.functions_items()}
    shared, local = _allocated(functions[launch.kernel])
    card = arch(lowered.arch)
    converter = Converter(Facts("launch"), domain.dims)
    try:
        x, y, z, dynamic = (_term(converter, v) for v in (*launch.block, launch.smem))
    except UnmodelledError:
        return None
    total = terms.add(dynamic, const(shared))
    return Resources(card.name, total, card.smem, (x, y, z), card.max_threads, local)


def decisive(lowered: Lowered) -> list[int]:
    """What an architecture has where it may be too little: elsewhere architectures with equal code
    share one proof."""
    card = arch(lowered.arch)
    if any(tuple(map(str, launch.cluster)) != ("1",) * 3 for launch in lowered.launches):
        return [card.smem, _most_cluster(card.name)]
    functions = {g.name_hint: f for g, f in lowered.device_mod.functions_items()}
    try:
        sizes = [
            getattr(launch.smem, "value", launch.smem) + _allocated(functions[launch.kernel])[0]
            for launch in lowered.launches
        ]
    except (TypeError, ValueError):  # a size known only at launch, or a launch that is not plain
        return [card.smem]
    return [] if all(size <= card.smem for size in sizes) else [card.smem]


def warnings(launches: Iterable[Launch]) -> list[str]:
    """Kernels whose threads cannot keep their arrays in registers."""
    out = []
    for launch in launches:
        if launch.resources is not None and launch.resources.local > 4 * _REGISTERS:
            size = launch.resources.local
            out.append(
                f"{launch.facts.name}: a thread's arrays take {size} bytes, its {_REGISTERS} "
                f"registers hold {4 * _REGISTERS}: it will spill"
            )
    return out


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per resource of a block, and per extent of the grid."""
    if launch.host is not None:
        for limit in launch.host.limits:
            yield _holds(launch, limit.what, limit.term, limit.lo, limit.hi)
    yield from _clusters(launch)
    yield from tensor_memory.goals(launch)
    asked = launch.resources
    if asked is None:
        return
    where = f"of a block on {asked.arch}"
    yield _holds(launch, f"shared memory in bytes {where}", asked.shared, 0, asked.most_shared)
    for axis, extent, most in zip("xyz", asked.threads, _MOST_BLOCK, strict=True):
        yield _holds(launch, f"threads along {axis} {where}", extent, 1, most)
    threads = terms.product(asked.threads)
    yield _holds(launch, f"threads {where}", threads, 1, asked.most_threads)


def _clusters(launch: Launch) -> Iterator[Goal]:
    """Clusters fill the grid, and are no larger than every card of the architecture takes."""
    size = math.prod(launch.clusters)
    if size == 1 or launch.resources is None:
        return
    most = _most_cluster(launch.resources.arch)
    yield _holds(launch, f"blocks of a cluster on {launch.resources.arch}", const(size), 1, most)
    for axis, n in zip("xyz", launch.clusters, strict=True):
        extent = launch.extents.get(f"blockIdx.{axis}", const(1))
        rest = terms.apply("mod", extent, const(n))
        yield _holds(launch, f"blocks along {axis} beyond clusters of {n}", rest, 0, 0)


def _most_cluster(name: str) -> int:
    return _MOST_CLUSTER if arch(name).runs_on[0] >= _FIRST_WITH_CLUSTERS else 1


def _holds(launch: Launch, what: str, term: Term, lo: int, hi: int) -> Goal:
    answer = launch.engine.on_host(term, const(lo), const(hi), Context())
    if answer.proved:
        return PROVED
    if answer.point is None:
        return undecided(answer, what)
    point = answer.point.values
    value = int(evaluate(term, point))
    message = f"{what}: {value}, expected {lo} to {hi}"
    sizes = {s.name: v for s, v in point.items() if s.kind == "dim"}
    example = Counterexample(
        "limits", terms.show(term), message, sizes=sizes, confirmed=not lo <= value <= hi
    )
    return found(example, answer.point, False)


def _term(converter: Converter, value: Any) -> Term:
    return const(value) if isinstance(value, int) else converter.expr(value)


def _allocated(function: Any) -> tuple[int, int]:
    """Bytes of static shared memory of a block, and of a thread's arrays."""
    from tilelang import tvm

    found: dict[str, dict[Any, int]] = {"shared": {}, "local": {}}

    def visit(node: Any) -> None:
        if type(node).__name__ != "AllocBuffer":
            return
        scope = str(node.buffer.scope())
        kind = "shared" if scope == "shared" or scope.startswith("shared.") else "local"
        if scope == "shared.dyn" or not scope.startswith(kind):
            return
        bits = scalar_bits(node.buffer.dtype)
        for n in node.buffer.shape:
            bits *= int(getattr(n, "value", 0))
        found[kind][node.buffer.data] = bits // 8

    tvm.tirx.stmt_functor.post_order_visit(function.body, visit)
    return sum(found["shared"].values()), sum(found["local"].values())
