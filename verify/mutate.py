"""Seeded bugs, made mechanically at every site of a lowered kernel.

A prover that has never failed has shown nothing. Each mutant changes one node of the final IR in a
way a programmer or a compiler could get wrong; the prover should refute it, unless the change means
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tileproof.codegen.lower import Lowered

Change = Callable[[Any], Any]  # a node → its replacement, or None to leave it


# Classes whose mutants show only when threads or copies run ahead of each other.
ORDERED = ("barrier-dropped", "wait-dropped", "wait+1", "commit-dropped")


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
    `most` of a class, spread evenly over the program."""
    for kind, (where, keys, change) in _classes(lowered).items():
        if kinds and kind not in kinds:
            continue
        yield from _each_site(lowered, f"{where}_mod", kind, keys, change, most)


def _classes(lowered: Lowered) -> dict[str, tuple[str, list[str], Change]]:
    from tilelang import tvm

    tirx = tvm.tirx
    thread, rings = _variables(lowered)

    def plus(e: Any, amount: int) -> Any:
        return tirx.Add(e, tirx.IntImm(str(e.dtype), amount))

    def guard_le(n: Any) -> Any:
        return tirx.LE(n.a, n.b)

    def guard_dropped(n: Any) -> Any:
        return n.then_case

    def shifted(index: Any, amount: int) -> Any:
        if type(index).__name__ == "Ramp":
            return tirx.Ramp(plus(index.base, amount), index.stride, index.lanes)
        return plus(index, amount)

    def load_shifted(n: Any) -> Any:
        return tirx.BufferLoad(n.buffer, [shifted(n.indices[0], 1)])

    def store_shifted(n: Any) -> Any:
        return tirx.BufferStore(n.buffer, n.value, [shifted(n.indices[0], 1)])

    def stride_wrong(n: Any) -> Any:
        of_block = any(part in str(n.a) for part in ("bx", "by", "bz"))
        if type(n.b).__name__ != "IntImm" or not of_block:
            return None
        return tirx.Mul(n.a, tirx.IntImm(str(n.b.dtype), int(n.b.value) + 1))

    def copy_shifted(n: Any) -> Any:
        if str(n.op.name) != "tl.ptx_cp_async":
            return None
        pointer = n.args[1]
        args = [*pointer.args[:2], plus(pointer.args[2], 8), *pointer.args[3:]]
        source = tirx.Call(pointer.dtype, pointer.op, args)
        return tirx.Call(n.dtype, n.op, [n.args[0], source, *n.args[2:]])

    def grid_floor(n: Any) -> Any:
        rounding = type(n.a).__name__ == "Add" and type(n.a.b).__name__ == "IntImm"
        return tirx.FloorDiv(n.a.a, n.b) if rounding else None

    def called(n: Any, name: str) -> bool:
        call = n.value
        return type(call).__name__ == "Call" and str(call.op.name) == name

    nothing = tirx.Evaluate(tirx.IntImm("int32", 0))

    def dropped(name: str) -> Change:
        return lambda n: nothing if called(n, name) else None

    def wait_less(n: Any) -> Any:
        if not called(n, "tirx.ptx_wait_group"):
            return None
        more = tirx.IntImm("int32", int(n.value.args[0].value) + 1)
        return tirx.Evaluate(tirx.Call(n.value.dtype, n.value.op, [more]))

    def slot_next(n: Any) -> Any:
        """``k % stages`` of a pipeline's ring → ``(k + 1) % stages``."""
        turning = any(n.a.same_as(v) for v in rings)
        return tirx.FloorMod(plus(n.a, 1), n.b) if turning else None

    def own_barrier(n: Any) -> Any:
        if not called(n, "tirx.tvm_storage_sync"):
            return None
        return tirx.IfThenElse(tirx.LT(thread, tirx.IntImm("int32", 32)), n, None)

    def one_trip_less(n: Any) -> Any:
        extent = n.extent
        if type(extent).__name__ != "IntImm" or int(extent.value) < 2 or n.thread_binding:
            return None
        fewer = tirx.IntImm(str(extent.dtype), int(extent.value) - 1)
        return tirx.For(n.loop_var, n.min, fewer, n.kind, n.body, None, n.annotations)

    def rounded(n: Any) -> Any:
        dtype = str(n.value.dtype)
        if not dtype.startswith("float32"):
            return None
        half = tirx.Cast(dtype.replace("float32", "float16"), n.value)
        return tirx.BufferStore(n.buffer, tirx.Cast(dtype, half), n.indices)

    def difference(n: Any) -> Any:
        return tirx.Sub(n.a, n.b) if str(n.dtype).startswith("float") else None

    return {
        "barrier-dropped": ("device", ["tirx.Evaluate"], dropped("tirx.tvm_storage_sync")),
        "barrier-guarded": ("device", ["tirx.Evaluate"], own_barrier),
        "wait-dropped": ("device", ["tirx.Evaluate"], dropped("tirx.ptx_wait_group")),
        "wait+1": ("device", ["tirx.Evaluate"], wait_less),
        "commit-dropped": ("device", ["tirx.Evaluate"], dropped("tirx.ptx_commit_group")),
        "slot+1": ("device", ["tirx.FloorMod"], slot_next),
        "guard-le": ("device", ["tirx.LT"], guard_le),
        "guard-dropped": ("device", ["tirx.IfThenElse"], guard_dropped),
        "load+1": ("device", ["tirx.BufferLoad"], load_shifted),
        "store+1": ("device", ["tirx.BufferStore"], store_shifted),
        "stride+1": ("device", ["tirx.Mul"], stride_wrong),
        "cp.async+8": ("device", ["tirx.Call"], copy_shifted),
        "grid-floor": ("host", ["tirx.FloorDiv"], grid_floor),
        "trips-1": ("device", ["tirx.For"], one_trip_less),
        "rounded": ("device", ["tirx.BufferStore"], rounded),
        "difference": ("device", ["tirx.Add"], difference),
    }


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


def _variables(lowered: Lowered) -> tuple[Any, list[Any]]:
    """The thread index, and the variables of the loops that synchronise."""
    from tilelang import tvm

    visit = tvm.tirx.stmt_functor.post_order_visit
    threads: list[Any] = []
    rings: list[Any] = []

    def look(n: Any) -> None:
        kind = type(n).__name__
        if kind == "AttrStmt" and str(n.attr_key) == "thread_extent":
            if str(n.node.thread_tag) == "threadIdx.x":
                threads.append(n.node.var)
        elif kind == "For":
            calls: list[str] = []
            visit(n.body, lambda c: calls.append(str(c.op.name)) if hasattr(c, "op") else None)
            if any(name.endswith(("storage_sync", "wait_group")) for name in calls):
                rings.append(n.loop_var)

    for _, function in lowered.device_mod.functions_items():
        visit(function.body, look)
    return threads[0], rings


def _place(n: Any) -> str:
    kind = type(n).__name__
    if kind == "BufferStore":
        text = f"{n.buffer.name}[{n.indices[0]}] ="
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
