"""The classes of seeded bugs: what each changes at a node of the final IR.

``_of_values`` holds what computes and addresses, ``_of_threads`` what keeps threads apart,
``of_copies`` asynchronous copies and multiplies, their barriers and descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from tileproof.codegen.lower import Lowered
from tileproof.verify.operands import moved
from tileproof.verify.tensor import MULTIPLIES

Change = Callable[[Any], Any]  # a node → its replacement, or None to leave it
Class = tuple[str, list[str], Change]  # module, types of nodes, change

_ARRIVALS = ("tirx.ptx_arrive_barrier", "tirx.ptx_arrive_barrier_expect_tx")
_MBARRIER = {  # the argument that is an mbarrier
    "tl.mbarrier_wait_parity": 0,
    "tl.mbarrier_expect_tx": 0,
    "tl.tma_load": 1,
    "tl.ptx_cp_async_barrier_noinc": 0,
    **dict.fromkeys(_ARRIVALS, 0),
}

_MOVES = ("tl.tcgen05_ld", "tl.tcgen05_st")
_TENSOR_FENCES = ("tl.tcgen05_before_thread_sync", "tl.tcgen05_after_thread_sync")


def classes(lowered: Lowered) -> dict[str, Class]:
    return {**_of_values(), **_of_threads(lowered), **of_copies()}


def is_ordered(kind: str) -> bool:
    """Whether mutants of a class may show only when threads or copies run ahead of each other."""
    return kind in of_copies() or kind.startswith("barrier-") or kind in _CP_ASYNC


def is_of_numbers(kind: str) -> bool:
    """Whether a class changes what is computed and nothing else: no address, no order."""
    return kind in ("rounded", "cast-other", "difference")


_CP_ASYNC = ("wait-dropped", "wait+1", "commit-dropped", "slot+1")


def _tirx() -> Any:
    from tilelang import tvm

    return tvm.tirx


def _plus(e: Any, amount: int) -> Any:
    return _tirx().Add(e, _tirx().IntImm(str(e.dtype), amount))


def _with(call: Any, number: int, value: Any) -> Any:
    """The call with another argument."""
    args = [*call.args]
    args[number] = value
    return _tirx().Call(call.dtype, call.op, args)


def _moved(pointer: Any, amount: int) -> Any:
    """A tvm_access_ptr some elements on, or that beneath what moves it by bytes."""
    if moved(pointer):
        return _with(pointer, 0, _moved(pointer.args[0], amount))
    return _with(pointer, 2, _plus(pointer.args[2], amount))


def _named(names: Collection[str], change: Change) -> Change:
    return lambda n: change(n) if str(n.op.name) in names else None


def _dropped(*names: str) -> Change:
    """Of a statement that is one of these calls."""
    tirx = _tirx()

    def change(n: Any) -> Any:
        call = n.value
        found = type(call).__name__ == "Call" and str(call.op.name) in names
        return tirx.Evaluate(tirx.IntImm("int32", 0)) if found else None

    return change


def _of_values() -> dict[str, Class]:
    from tilelang import tvm

    tirx = tvm.tirx

    def guard_le(n: Any) -> Any:
        return tirx.LE(n.a, n.b)

    def guard_dropped(n: Any) -> Any:
        return n.then_case

    def shifted(index: Any, amount: int) -> Any:
        if type(index).__name__ == "Ramp":
            return tirx.Ramp(_plus(index.base, amount), index.stride, index.lanes)
        return _plus(index, amount)

    def load_shifted(n: Any) -> Any:
        if str(n.buffer.scope()) == "shared.barrier" or "descriptor" in str(n.buffer.scope()):
            return None
        return tirx.BufferLoad(n.buffer, [shifted(n.indices[0], 1)])

    def store_shifted(n: Any) -> Any:
        return tirx.BufferStore(n.buffer, n.value, [shifted(n.indices[0], 1)])

    def stride_wrong(n: Any) -> Any:
        of_block = any(part in str(n.a) for part in ("bx", "by", "bz"))
        if type(n.b).__name__ != "IntImm" or not of_block:
            return None
        return tirx.Mul(n.a, tirx.IntImm(str(n.b.dtype), int(n.b.value) + 1))

    def grid_floor(n: Any) -> Any:
        rounding = type(n.a).__name__ == "Add" and type(n.a.b).__name__ == "IntImm"
        return tirx.FloorDiv(n.a.a, n.b) if rounding else None

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

    def other_cast(n: Any) -> Any:
        dtype = str(n.dtype)
        other = {"float16": "bfloat16", "bfloat16": "float16"}.get(dtype.split("x")[0])
        if other is None or not str(n.value.dtype).startswith("float32"):
            return None
        return tirx.Cast(dtype, tirx.Cast(dtype.replace(dtype.split("x")[0], other), n.value))

    def difference(n: Any) -> Any:
        return tirx.Sub(n.a, n.b) if str(n.dtype).startswith("float") else None

    def atomic(n: Any) -> Any:
        dtype, at = str(n.value.dtype), n.indices[0]
        width = {"float32": "", "int32": "", "float32x2": "x2", "float32x4": "x4"}.get(dtype)
        if str(n.buffer.scope()) != "global" or width is None:
            return None
        at = at.base if width else at
        kind = tirx.type_annotation(n.buffer.dtype)
        to = tirx.call_intrin("handle", "tirx.tvm_access_ptr", kind, n.buffer.data, at, 1, 3)
        add = tvm.ir.Op.get(f"tl.atomic_add{width}_elem_op")
        return tirx.Evaluate(tirx.call_intrin("handle", add, to, n.value))

    def stored(n: Any) -> Any:
        call = n.value
        name = str(call.op.name) if type(call).__name__ == "Call" else ""
        if name not in ("tl.atomic_add_elem_op", "tl.atomic_addx2_elem_op"):
            return None
        kind, data, at = call.args[0].args[:3]
        if name != "tl.atomic_add_elem_op":
            at = tirx.Ramp(at, tirx.IntImm(str(at.dtype), 1), 2)
        shape = (tirx.IntImm("int32", 2**31 - 1),)
        buffer = tirx.decl_buffer(shape, kind.dtype, "stored", data=data)
        return tirx.BufferStore(buffer, call.args[1], [at])

    return {
        "guard-le": ("device", ["tirx.LT"], guard_le),
        "guard-dropped": ("device", ["tirx.IfThenElse"], guard_dropped),
        "load+1": ("device", ["tirx.BufferLoad"], load_shifted),
        "store+1": ("device", ["tirx.BufferStore"], store_shifted),
        "stride+1": ("device", ["tirx.Mul"], stride_wrong),
        "grid-floor": ("host", ["tirx.FloorDiv"], grid_floor),
        "trips-1": ("device", ["tirx.For"], one_trip_less),
        "rounded": ("device", ["tirx.BufferStore"], rounded),
        "cast-other": ("device", ["tirx.Cast"], other_cast),
        "difference": ("device", ["tirx.Add"], difference),
        "store-atomic": ("device", ["tirx.BufferStore"], atomic),
        "atomic-store": ("device", ["tirx.Evaluate"], stored),
    }


def _of_threads(lowered: Lowered) -> dict[str, Class]:
    tirx = _tirx()
    thread, rings = _variables(lowered)

    def wait_less(n: Any) -> Any:
        pending = int(n.args[0].value)
        return _with(n, 0, tirx.IntImm("int32", pending + 1))

    def slot_next(n: Any) -> Any:
        """``k % stages`` of a pipeline's ring → ``(k + 1) % stages``."""
        turning = any(n.a.same_as(v) for v in rings)
        return tirx.FloorMod(_plus(n.a, 1), n.b) if turning else None

    def own_barrier(n: Any) -> Any:
        if _dropped("tirx.tvm_storage_sync")(n) is None:
            return None
        return tirx.IfThenElse(tirx.LT(thread, tirx.IntImm("int32", 32)), n, None)

    def more_threads(n: Any) -> Any:
        if len(n.args) != 3:
            return None
        return _with(n, 2, tirx.IntImm("int32", int(n.args[2].value) + 32))

    def copy_shifted(n: Any) -> Any:
        return _with(n, 1, _moved(n.args[1], 8))

    calls, evaluated = ["tirx.Call"], ["tirx.Evaluate"]
    return {
        "barrier-dropped": ("device", evaluated, _dropped("tirx.tvm_storage_sync")),
        "barrier-guarded": ("device", evaluated, own_barrier),
        "barrier-threads": ("device", calls, _named(["tirx.tvm_storage_sync"], more_threads)),
        "wait-dropped": ("device", evaluated, _dropped("tirx.ptx_wait_group")),
        "wait+1": ("device", calls, _named(["tirx.ptx_wait_group"], wait_less)),
        "commit-dropped": ("device", evaluated, _dropped("tirx.ptx_commit_group")),
        "cp.async+8": ("device", calls, _named(["tl.ptx_cp_async"], copy_shifted)),
        "slot+1": ("device", ["tirx.FloorMod"], slot_next),
    }


def of_copies() -> dict[str, Class]:
    tirx = _tirx()

    def flipped(n: Any) -> Any:
        one = tirx.IntImm(str(n.args[1].dtype), 1)
        return _with(n, 1, tirx.bitwise_xor(n.args[1], one))

    def fewer_arrivals(n: Any) -> Any:
        count = int(n.args[1].value)
        return _with(n, 1, tirx.IntImm("int32", count // 2)) if count > 1 else None

    def halved(n: Any) -> Any:
        return _with(n, 1, tirx.IntImm("int32", int(n.args[1].value) // 2))

    def other_mbarrier(n: Any) -> Any:
        number = _MBARRIER[str(n.op.name)]
        load = n.args[number]
        size = load.buffer.shape[0]
        at = tirx.FloorMod(_plus(load.indices[0], 1), size)
        return _with(n, number, tirx.BufferLoad(load.buffer, [at])) if int(size) > 1 else None

    def coordinate(number: int, amount: int) -> Change:
        def change(n: Any) -> Any:
            at = number + (3 if str(n.op.name) == "tl.tma_load" else 2)
            last = len(n.args) - (1 if str(n.op.name) == "tl.tma_load" else 2)
            return _with(n, at, _plus(n.args[at], amount)) if at < last else None

        return _named(("tl.tma_load", "tl.tma_store"), change)

    def tile_moved(n: Any) -> Any:
        at = 2 if str(n.op.name) == "tl.tma_load" else 1
        return _with(n, at, _moved(n.args[at], 64))

    def start_moved(n: Any) -> Any:
        return _with(n, 1, _moved(n.args[1], 8))

    def offset_moved(n: Any) -> Any:
        return _with(n, 1, _plus(n.args[1], 32))

    def stride_doubled(n: Any) -> Any:
        return _with(n, 4, tirx.IntImm("int32", 2 * int(n.args[4].value)))

    def operand_moved(n: Any) -> Any:
        at = 9 if str(n.op.name) == "tl.ptx_wgmma_ss" else 8
        return _with(n, at, _plus(n.args[at], 2))

    def major_changed(n: Any) -> Any:
        at = 2 if str(n.op.name) == "tl.ptx_wgmma_ss" else 1
        return _with(n, at, tirx.IntImm("bool", 1 - int(n.args[at].value)))

    def columns_moved(n: Any) -> Any:
        at = 4 if str(n.op.name) in _MOVES else 6
        return _with(n, at, _plus(n.args[at], 8))

    calls, evaluated = ["tirx.Call"], ["tirx.Evaluate"]
    expects = ("tl.mbarrier_expect_tx", "tirx.ptx_arrive_barrier_expect_tx")
    multiplies = ("tl.ptx_wgmma_ss", "tl.ptx_wgmma_rs")
    init, wait = "tirx.ptx_init_barrier_thread_count", "tl.mbarrier_wait_parity"
    start, increase = "tl.initialize_wgmma_descriptor", "tl.increase_descriptor_offset"
    changes = {
        "parity-flipped": _named([wait], flipped),
        "arrivals-halved": _named([init], fewer_arrivals),
        "arrivals+1": _named([init], lambda n: _with(n, 1, _plus(n.args[1], 1))),
        "bytes-halved": _named(expects, halved),
        "mbarrier+1": _named(_MBARRIER, other_mbarrier),
        "column+8": coordinate(0, 8),
        "row+1": coordinate(1, 1),
        "tile+64": _named(("tl.tma_load", "tl.tma_store"), tile_moved),
        "descriptor+8": _named([start], start_moved),
        "descriptor-stride": _named([start], stride_doubled),
        "descriptor-offset": _named([increase], offset_moved),
        "operand+2": _named(multiplies, operand_moved),
        "operand-major": _named(multiplies, major_changed),
        "tensor-column+8": _named((*_MOVES, *MULTIPLIES), columns_moved),
    }
    drops = {
        "mbarrier-wait-dropped": (wait,),
        "arrive-dropped": (*_ARRIVALS, "tl.ptx_cp_async_barrier_noinc"),
        "expect-dropped": ("tl.mbarrier_expect_tx",),
        "fence-dropped": ("tl.fence_proxy_async",),
        "multiply-wait-dropped": ("tl.warpgroup_wait",),
        "multiply-commit-dropped": ("tl.tcgen05_mma_arrive",),
        "tensor-fence-dropped": _TENSOR_FENCES,
        "store-wait-dropped": ("tl.tma_store_wait",),
        "store-commit-dropped": ("tl.tma_store_arrive",),
    }
    return {
        **{kind: ("device", calls, change) for kind, change in changes.items()},
        **{kind: ("device", evaluated, _dropped(*names)) for kind, names in drops.items()},
    }


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
            if any(name.endswith(("storage_sync", "wait_group", "wait_parity")) for name in calls):
                rings.append(n.loop_var)

    for _, function in lowered.device_mod.functions_items():
        visit(function.body, look)
    return threads[0], rings
