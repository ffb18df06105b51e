"""What every device call does: the trusted core of the prover.

A call that is not listed here makes the kernel UNKNOWN by name. Each entry states which memory the
call touches, in what width, under which extra condition, and whether threads must arrive together.
Sources: the PTX ISA manual for ``ptx_*``; TileLang 0.1.15's ``tl_templates/cuda/reduce.h`` for
AllReduce.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

Mode = Literal["read", "write"]
SyncKind = Literal["barrier", "warp", "commit", "wait"]


class UnmodelledError(Exception):
    """A construct whose meaning is not in the table; its text is the name reported."""


@dataclass(frozen=True)
class Touch:
    """One memory access of a call.

    `pointer` is the TIR pointer argument and `offset` (elements) is added to it. The access covers
    `count` elements of the pointer's type in one piece of machine width; `align` overrides the byte
    alignment the width implies. `lane_below` says that only lanes below it take part; `when` is a
    TIR condition. `slot` is ``(first thread, half)`` of a reduction workspace: this thread's
    element, or its butterfly partner's when half is not 0. `after_barrier` says that a barrier of
    the block comes right before it. `atomic` names the operation of an atomic read-modify-write,
    whose mode is "write"; it ends in "_ret" if the old value is used.
    """

    pointer: Any
    mode: Mode
    count: int = 1
    offset: Any = 0
    align: int | None = None
    lane_below: int | None = None
    when: Any = None
    asynchronous: bool = False
    slot: tuple[int, int] | None = None
    after_barrier: bool = False
    atomic: str = ""


@dataclass(frozen=True)
class Tile:
    """A copy of the box of a tensor map at `coordinates`, innermost first, from or to `pointer` in
    shared memory. `mode` is what it does to the tensor."""

    tensor_map: Any
    coordinates: tuple[Any, ...]
    pointer: Any
    mode: Mode


@dataclass(frozen=True)
class Effect:
    """All that a call does. `collective` names the group whose threads must all make the call.

    A wait returns once at most `pending` of the thread's newest groups of copies are under way.
    `threads` is how many threads its barriers wait for, None for all of the block. `asserts` is a
    condition that ends the kernel where it fails. `unordered` names what orders threads or copies
    here in a way that is not modelled, "" if nothing does.
    """

    touches: tuple[Touch, ...] = ()
    sync: SyncKind | None = None
    collective: Literal["none", "warp", "block"] = "none"
    pending: int = 0
    threads: int | None = None
    asserts: Any = None
    tile: Tile | None = None
    unordered: str = ""


NOTHING = Effect()
BARRIER = Effect(sync="barrier", collective="block")


def _int(expr: Any, what: str) -> int:
    value = getattr(expr, "value", expr)
    if not isinstance(value, int):
        raise UnmodelledError(f"{what} that is not a constant")
    return value


def _cp_async(args: list[Any]) -> Effect:
    # Zero-fill: when the predicate is false the source is not read but the destination is written.
    count = _int(args[2], "cp.async size")
    when = args[3] if len(args) > 3 else None
    return Effect(
        (
            Touch(args[0], "write", count, asynchronous=True),
            Touch(args[1], "read", count, when=when, asynchronous=True),
        )
    )


def _ldmatrix(args: list[Any]) -> Effect:
    # Lane i of the first 8*num lanes supplies the address of one row of eight 16-bit elements;
    # every lane receives two elements of each of the num matrices.
    num = _int(args[1], "ldmatrix count")
    if num not in (1, 2, 4) or len(args) != 4:
        raise UnmodelledError(f"ptx_ldmatrix of {num} matrices with {len(args)} arguments")
    return Effect(
        (
            Touch(args[2], "read", 8, align=16, lane_below=8 * num),
            Touch(args[3], "write", 2 * num),
        ),
        collective="warp",
    )


def _stmatrix(args: list[Any]) -> Effect:
    # The way back: lane i of the first 8*num gives the address of one row of eight.
    num = _int(args[1], "stmatrix count")
    shape = str(getattr(args[-1], "value", args[-1]))
    if num not in (1, 2, 4) or len(args) != 4 + num or shape != "m8n8":
        raise UnmodelledError(f"ptx_stmatrix {shape} of {num} matrices")
    return Effect((Touch(args[2], "write", 8, align=16, lane_below=8 * num),), collective="warp")


# PTX ISA, "Matrix fragments for mma": a warp holds each of A (m*k), B (k*n) and C (m*n) once.
_MMA = {
    "m16n8k4": (16, 8, 4),
    "m16n8k8": (16, 8, 8),
    "m16n8k16": (16, 8, 16),
    "m16n8k32": (16, 8, 32),
}


def _mma(args: list[Any]) -> Effect:
    shape = str(args[0].value)
    if shape not in _MMA or len(args) != 13:
        raise UnmodelledError(f"ptx_mma {shape} with {len(args)} arguments")
    m, n, k = _MMA[shape]
    a, b, c = (
        Touch(args[i], "read", size // _WARP, args[i + 1])
        for i, size in ((6, m * k), (8, k * n), (10, m * n))
    )
    return Effect((a, b, c, replace(c, mode="write")), collective="warp")


_WARP = 32
_LANES = (1 << _WARP) - 1
_ALL_REDUCE = re.compile(
    r"tl::AllReduce<tl::\w+, (\d+), (\d+), (\d+), "
    r"(?:tl::NamedBarrier<(\d+)>|tl::SyncThreadsBarrier)>::run"
)


def _all_reduce(name: str, args: list[Any]) -> Effect:
    match = _ALL_REDUCE.fullmatch(name)
    if match is None:
        raise UnmodelledError(name)
    threads, scale, first = map(int, match.groups()[:3])
    touches: list[Touch] = []
    half = threads // 2
    while half >= max(_WARP, scale):
        # Each level of the butterfly above warp width: barrier, the thread writes its slot of the
        # workspace, barrier, it reads its partner's.
        if len(args) < 3:
            raise UnmodelledError(f"{name} without a workspace")
        touches.append(Touch(args[2], "write", slot=(first, 0), after_barrier=True))
        touches.append(Touch(args[2], "read", slot=(first, half), after_barrier=True))
        half //= 2
    if not touches:
        return Effect(collective="warp")
    named = match.group(4)
    return Effect(tuple(touches), collective="block", threads=int(named) if named else None)


def _atomic(operation: str) -> Callable[[list[Any]], Effect]:
    return lambda args: Effect((Touch(args[0], "write", atomic=operation),))


def _atomic_vector(count: int) -> Callable[[list[Any]], Effect]:
    def read(args: list[Any]) -> Effect:
        # Each element is added atomically; the vector as a whole is not.
        return Effect((Touch(args[0], "write", count, atomic="add"), Touch(args[1], "read", count)))

    return read


def _extern(args: list[Any]) -> Effect:
    name = str(args[0].value)
    if name.startswith("tl::AllReduce<"):
        return _all_reduce(name, args)
    raise UnmodelledError(name)


def _mbarrier(args: list[Any]) -> Effect:
    return Effect((Touch(args[0], "write"),), unordered="mbarriers")


def _tma_load(args: list[Any]) -> Effect:
    # (map, mbarrier, shared, coordinates…, cache hint); the rank of the map is the coordinates'.
    if type(args[0]).__name__ != "Var":
        raise UnmodelledError("a bulk copy without a tensor map")
    tile = Tile(args[0], tuple(args[3:-1]), args[2], "read")
    return Effect((Touch(args[1], "write"),), tile=tile, unordered="mbarriers")


def _tma_store(args: list[Any]) -> Effect:
    # (map, shared, coordinates…, reduction, cache hint).
    if type(args[0]).__name__ != "Var":
        raise UnmodelledError("a bulk copy without a tensor map")
    if _int(args[-2], "tma_store reduction"):
        raise UnmodelledError("tma_store with a reduction")
    return Effect(tile=Tile(args[0], tuple(args[2:-2]), args[1], "write"), unordered="TMA stores")


def _storage_sync(args: list[Any]) -> Effect:
    scope = str(args[0].value)
    if scope in ("shared", "shared.dyn") and len(args) == 3:
        return Effect(unordered="named barriers")
    if scope not in ("shared", "shared.dyn") or len(args) != 1:
        raise UnmodelledError(f"tvm_storage_sync({scope}, …)")
    return BARRIER


def _sync_warp(args: list[Any]) -> Effect:
    if args and _int(args[0], "sync_warp mask") & _LANES != _LANES:
        raise UnmodelledError("sync_warp of a part of the warp")
    return Effect(sync="warp", collective="warp")


_TABLE: dict[str, Callable[[list[Any]], Effect]] = {
    "tl.ptx_cp_async": _cp_async,
    "tirx.ptx_commit_group": lambda _: Effect(sync="commit"),
    "tirx.ptx_wait_group": lambda args: Effect(sync="wait", pending=_int(args[0], "wait_group")),
    "tl.ptx_ldmatrix": _ldmatrix,
    "tl.ptx_stmatrix": _stmatrix,
    "tl.tma_load": _tma_load,
    "tl.tma_store": _tma_store,
    "tl.tma_store_arrive": lambda _: Effect(unordered="TMA stores"),
    "tl.tma_store_wait": lambda _: Effect(unordered="TMA stores"),
    "tirx.ptx_init_barrier_thread_count": _mbarrier,
    "tirx.ptx_arrive_barrier": _mbarrier,
    "tirx.ptx_arrive_barrier_expect_tx": _mbarrier,
    "tl.mbarrier_expect_tx": _mbarrier,
    "tl.mbarrier_wait_parity": _mbarrier,
    "tl.ptx_cp_async_barrier_noinc": _mbarrier,
    # These move no bytes, and order nothing that the other properties rest on.
    "tl.ptx_fence_barrier_init": lambda _: NOTHING,
    "tl.fence_proxy_async": lambda _: NOTHING,
    "tl.prefetch_tma_descriptor": lambda _: NOTHING,
    "tl.set_max_nreg": lambda _: NOTHING,
    "tl.warpgroup_fence_operand": lambda _: NOTHING,
    "tl.warpgroup_arrive": lambda _: Effect(unordered="wgmma"),
    "tl.warpgroup_commit_batch": lambda _: Effect(unordered="wgmma"),
    "tl.warpgroup_wait": lambda _: Effect(unordered="wgmma"),
    "tirx.ptx_mma": _mma,
    "tirx.tvm_storage_sync": _storage_sync,
    "tirx.call_extern": _extern,
    "tl.sync_warp": _sync_warp,
    "tl.device_assert": lambda args: Effect(asserts=args[0]),
    "tl.device_assert_with_msg": lambda args: Effect(asserts=args[0]),
    **{
        f"tl.atomic_{name}_elem_op": _atomic(name)
        for name in ("add", "max", "min", "or", "add_ret", "max_ret", "min_ret")
    },
    "tl.atomic_addx2_elem_op": _atomic_vector(2),
    "tl.atomic_addx4_elem_op": _atomic_vector(4),
}

# Functions of their arguments alone.
_PURE = {
    *(f"tirx.{n}" for n in ("exp", "exp2", "log", "log2", "log1p", "sqrt", "rsqrt", "pow", "tanh")),
    *(f"tirx.{n}" for n in ("fabs", "floor", "ceil", "round", "trunc", "sigmoid", "fma", "isnan")),
    *(f"tirx.{n}" for n in ("reinterpret", "likely", "type_annotation", "popcount", "clz")),
    *(f"tirx.{n}" for n in ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")),
    *(f"tirx.{n}" for n in ("shift_left", "shift_right", "isinf", "isfinite", "nearbyint")),
    *(f"tl.{n}" for n in ("add2", "sub2", "mul2", "fma2", "max2", "min2", "abs2")),
    *(f"tl.{n}" for n in ("ieee_add", "ieee_sub", "ieee_mul", "ieee_fmaf", "ieee_frcp")),
    *(f"tl.{n}" for n in ("ieee_fsqrt", "ieee_frsqrt", "ieee_fdiv", "__exp", "__log")),
    "tl.pow_of_int",
    "tl.pack_b16",
    "tl.infinity",
}


def effect(name: str, args: list[Any]) -> Effect:
    """The effect of the call `name`. Raises UnmodelledError with the name to report."""
    if name in _PURE:
        return NOTHING
    if name in _TABLE:
        return _TABLE[name](args)
    raise UnmodelledError(name)
