"""Seeded bugs, made mechanically at every site of a lowered kernel.

A prover that has never failed has shown nothing. Each mutant changes one node of the final IR in a
way a programmer or a compiler could get wrong; the prover should refute it, unless the change means
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tileproof.codegen.lower import Lowered
from tileproof.dsl import check

from .changes import Change, classes


@dataclass(frozen=True, eq=False)
class Mutant:
    """`name` is ``<class>#<site number>``, stable for a given kernel."""

    name: str
    kind: str
    site: str
    lowered: Lowered


def mutants(
    lowered: Lowered, kinds: Collection[str] = (), most: int | None = None
) -> Iterator[Mutant]:
    """Mutants of every class (or of `kinds` alone), one changed site each: of all sites, or of
    `most` of a class, spread evenly over the program. Raises ContractError for other `kinds`."""
    known = classes(lowered)
    unknown = sorted(set(kinds) - set(known))
    check(not unknown, "classes of bugs", got=unknown, expected=f"among {', '.join(known)}")
    for kind, (where, keys, change) in known.items():
        if kinds and kind not in kinds:
            continue
        yield from _each_site(lowered, f"{where}_mod", kind, keys, change, most)


def without_int64(lowered: Lowered) -> Lowered:
    """The kernel with every 64-bit index computed in 32 bits."""
    from tilelang import tvm

    tirx = tvm.tirx
    binary = ("Add", "Sub", "Mul", "FloorDiv", "FloorMod", "LT", "LE", "GT", "GE", "EQ", "NE")

    def change(n: Any) -> Any:
        kind = type(n).__name__
        if kind == "IntImm":
            return tirx.IntImm("int32", int(n.value)) if str(n.dtype) == "int64" else None
        if kind == "Cast":
            return n.value if str(n.dtype) == "int64" else None
        if kind == "Ramp":
            return tirx.Ramp(n.base, n.stride, n.lanes)
        if kind in binary:
            return getattr(tirx, kind)(n.a, n.b)
        return None

    keys = ["ir.IntImm", "tirx.Cast", "tirx.Ramp", *(f"tirx.{k}" for k in binary)]
    return replace(lowered, device_mod=_rewrite(lowered.device_mod, keys, change))


def _each_site(
    lowered: Lowered, field: str, kind: str, keys: list[str], change: Change, most: int | None
) -> Iterator[Mutant]:
    mod = getattr(lowered, field)
    sites: list[str] = []

    def count(n: Any) -> None:
        if change(n) is not None:
            sites.append(_place(n))

    _rewrite(mod, keys, count)
    chosen = len(sites) if most is None else min(most, len(sites))
    for i in (number * len(sites) // chosen for number in range(chosen)):
        seen = iter(range(len(sites)))

        def once(n: Any, target: int = i, seen: Iterator[int] = seen) -> Any:
            new = change(n)
            return new if new is not None and next(seen) == target else None

        mutated = replace(lowered, **{field: _rewrite(mod, keys, once)})
        yield Mutant(f"{kind}#{i}", kind, sites[i], mutated)


def _place(n: Any) -> str:
    kind = type(n).__name__
    if kind == "BufferStore":
        text = f"{n.buffer.name}[{n.indices[0]}] ="
    elif kind == "Evaluate":
        text = str(n.value)
    elif kind == "For":
        text = f"for {n.loop_var} in {n.extent}"
    else:
        text = str(n.condition if kind == "IfThenElse" else n)
    return " ".join(text.split())  # one line, of Python's own string type


def _rewrite(mod: Any, keys: list[str], change: Change) -> Any:
    from tilelang import tvm

    transform = tvm.tirx.stmt_functor.ir_transform
    functions = {
        g: f.with_body(transform(f.body, None, change, keys)) for g, f in mod.functions_items()
    }
    return tvm.IRModule(functions)
