"""What a device call may do, and what the calls do that every architecture has.

Each entry states which memory the call touches, in what width, under which extra condition, and
whether threads must arrive together. The tables are put together in ``calls.py``. Sources: the PTX
ISA manual for ``ptx_*``; TileLang 0.1.15's ``tl_templates/cuda/reduce.h`` for AllReduce.
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
    the block comes right before it. `atomic` names the operation of an atomic access, "load" of one
    that reads; a read-modify-write has mode "write", and its name ends in "_ret" if the old value
    is used. `peer` is the rank of the block of the cluster whose shared memory it is, None for the
    thread's own. `lane_step` elements for each lane of the warp are added to the offset;
    `after_warp` says that a barrier of the warp comes right before.
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
    peer: Any = None
    lane_step: int = 0
    after_warp: bool = False


@dataclass(frozen=True)
class Columns:
    """An access to `count` columns of the tensor memory whose address lies in `holder`, a variable
    in shared memory, from column `first` of its allocation on. `use` says what for: "load" and
    "store" by a warp in its own lanes; "copy" of scales; "a" and "scale" are read by a multiply,
    whose result has its kind and shape instead; "take" and "free"."""

    holder: Any
    first: Any
    count: int
    mode: Mode
    use: str


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of a multiply that is read through a descriptor: its variable, an offset in units
    of so many bytes, and a shape of `lines` (rows of A or columns of B if K-major, values of k if
    MN-major) of `row` contiguous bytes."""

    descriptor: Any
    units: Any
    mn_major: bool
    lines: int
    row: int
    unit: int = 16


@dataclass(frozen=True)
class Tile:
    """A copy of boxes of a tensor map, one after the other, from or to `pointer` in shared memory.

    `boxes` are the coordinates of each, innermost first. `mode` is what it does to the tensor, and
    `atomic` as for a touch. An im2col copy has `offsets`, one for each spatial dimension.
    """

    tensor_map: Any
    boxes: tuple[tuple[Any, ...], ...]
    pointer: Any
    mode: Mode
    atomic: str = ""
    offsets: tuple[Any, ...] = ()

    @property
    def coordinates(self) -> list[Any]:
        """Every integer that says where."""
        return [*(c for box in self.boxes for c in box), *self.offsets]


@dataclass(frozen=True)
class Effect:
    """All that a call does. `collective` names the group whose threads must all make the call.

    A wait returns once at most `pending` of the thread's newest groups of copies are under way.
    `threads` is how many threads its barriers wait for, None for all of the block. `asserts` is a
    condition that ends the kernel where it fails. `unordered` names what orders threads or copies
    here in a way that is not modelled, "" if nothing does. `ranks` are blocks of the cluster that
    it writes to as it does to its own, `values` data that it stores.
    `columns` are accesses to tensor memory, of which `allocated` columns are taken, or given back
    if it is negative.
    """

    touches: tuple[Touch, ...] = ()
    sync: SyncKind | None = None
    collective: Literal["none", "warp", "block", "cluster", "grid"] = "none"
    pending: int = 0
    threads: int | None = None
    asserts: Any = None
    tile: Tile | None = None
    unordered: str = ""
    ranks: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()
    columns: tuple[Columns, ...] = ()
    allocated: int = 0


NOTHING = Effect()
BARRIER = Effect(sync="barrier", collective="block")
WARP_BARRIER = Effect(sync="warp", collective="warp")
GRID_BARRIER = Effect(sync="barrier", collective="grid")


def constant(expr: Any, what: str) -> int:
    value = getattr(expr, "value", expr)
    if not isinstance(value, int):
        raise UnmodelledError(f"{what} that is not a constant")
    return value


def elements(pointer: Any, size: int) -> int:
    """How many elements of a pointer's type `size` bytes are."""
    from .facts import scalar_bits

    if type(pointer).__name__ != "Call":
        raise UnmodelledError("a copy through a pointer without a type")
    bits = scalar_bits(pointer.args[0].dtype)
    if size * 8 % bits:
        raise UnmodelledError(f"{size} bytes of elements of {bits} bits")
    return size * 8 // bits


def _cp_async(args: list[Any]) -> Effect:
    # Zero-fill: when the predicate is false the source is not read but the destination is written.
    count = constant(args[2], "cp.async size")
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
    num = constant(args[1], "ldmatrix count")
    if num not in (1, 2, 4) or len(args) != 4:
        raise UnmodelledError(f"ptx_ldmatrix of {num} matrices with {len(args)} arguments")
    return Effect(
        (
            Touch(args[2], "read", elements(args[2], 16), align=16, lane_below=8 * num),
            Touch(args[3], "write", elements(args[3], 4 * num)),
        ),
        collective="warp",
    )


def _stmatrix(args: list[Any]) -> Effect:
    # The way back: lane i of the first 8*num gives the address of one row of eight.
    num = constant(args[1], "stmatrix count")
    shape = str(getattr(args[-1], "value", args[-1]))
    if num not in (1, 2, 4) or len(args) != 4 + num or shape != "m8n8":
        raise UnmodelledError(f"ptx_stmatrix {shape} of {num} matrices")
    row = Touch(args[2], "write", elements(args[2], 16), align=16, lane_below=8 * num)
    return Effect((row,), collective="warp")


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


def _extern(args: list[Any]) -> Effect:
    name = str(args[0].value)
    if name.startswith("tl::AllReduce<"):
        return _all_reduce(name, args)
    raise UnmodelledError(name)


def _mbarrier(args: list[Any]) -> Effect:
    return Effect((Touch(args[0], "write"),), unordered="mbarriers")


def _shuffle(args: list[Any]) -> Effect:
    if constant(args[0], "shfl mask") & _LANES != _LANES:
        raise UnmodelledError("a shuffle of a part of the warp")
    return Effect(collective="warp")


def _shuffled(args: list[Any]) -> Effect:
    return Effect(collective="warp")


def scope_sync(args: list[Any]) -> Effect:
    scope = str(args[0].value)
    if scope in ("shared", "shared.dyn") and len(args) == 3:
        return Effect(unordered="named barriers")
    if scope not in ("shared", "shared.dyn") or len(args) != 1:
        raise UnmodelledError(f"tvm_storage_sync({scope}, …)")
    return BARRIER


def _global_load(bits: int) -> Callable[[list[Any]], Effect]:
    # ld.global of that many bits; the predicate, if there is one, comes last.
    def read(args: list[Any]) -> Effect:
        when = args[1] if len(args) > 1 else None
        return Effect(
            (Touch(args[0], "read", elements(args[0], bits // 8), align=bits // 8, when=when),)
        )

    return read


def _global_store(bits: int) -> Callable[[list[Any]], Effect]:
    def write(args: list[Any]) -> Effect:
        when = args[2] if len(args) > 2 else None
        place = Touch(args[0], "write", elements(args[0], bits // 8), align=bits // 8, when=when)
        return Effect((place,), values=(args[1],))

    return write


def _sync_warp(args: list[Any]) -> Effect:
    if args and constant(args[0], "sync_warp mask") & _LANES != _LANES:
        raise UnmodelledError("sync_warp of a part of the warp")
    return WARP_BARRIER


TABLE: dict[str, Callable[[list[Any]], Effect]] = {
    "tl.ptx_cp_async": _cp_async,
    "tirx.ptx_commit_group": lambda _: Effect(sync="commit"),
    "tirx.ptx_wait_group": lambda args: Effect(
        sync="wait", pending=constant(args[0], "wait_group")
    ),
    "tl.ptx_ldmatrix": _ldmatrix,
    "tl.ptx_stmatrix": _stmatrix,
    "tirx.ptx_init_barrier_thread_count": _mbarrier,
    "tirx.ptx_arrive_barrier": _mbarrier,
    "tirx.ptx_arrive_barrier_expect_tx": _mbarrier,
    "tl.mbarrier_expect_tx": _mbarrier,
    "tl.mbarrier_wait_parity": _mbarrier,
    "tl.ptx_cp_async_barrier_noinc": _mbarrier,
    # These move no bytes, and order nothing that the other properties rest on.
    "tl.ptx_fence_barrier_init": lambda _: NOTHING,
    "tl.fence_proxy_async": lambda _: NOTHING,
    "tl.set_max_nreg": lambda _: NOTHING,
    "tl.warpgroup_fence_operand": lambda _: NOTHING,
    "tl.warpgroup_arrive": lambda _: Effect(unordered="wgmma"),
    "tl.warpgroup_commit_batch": lambda _: Effect(unordered="wgmma"),
    "tl.warpgroup_wait": lambda _: Effect(unordered="wgmma"),
    "tirx.ptx_mma": _mma,
    "tirx.call_extern": _extern,
    "tl.sync_warp": _sync_warp,
    "tl.sync_grid": lambda _: GRID_BARRIER,
    # Every lane gets another's value, or the reduction of the whole warp.
    **{f"tl.shfl_{name}sync": _shuffle for name in ("", "xor_", "up_", "down_")},
    **{f"tl.warp_reduce_{name}": _shuffled for name in ("sum", "max", "min", "bitand", "bitor")},
    **{f"tl.ldg{bits}": _global_load(bits) for bits in (32, 64, 128, 256)},
    **{f"tl.stg{bits}": _global_store(bits) for bits in (32, 64, 128, 256)},
    # The order of two grids, not of threads of one.
    "tl.pdl_sync": lambda _: NOTHING,
    "tl.pdl_trigger": lambda _: NOTHING,
    "tl.device_assert": lambda args: Effect(asserts=args[0]),
    "tl.device_assert_with_msg": lambda args: Effect(asserts=args[0]),
}

# Numbers of a thread's warp or warpgroup, or of its lane; the sizes of the two by default.
GROUPS = {
    "tl.get_lane_idx": (_WARP, 1),
    "tl.get_warp_idx": (_WARP, 1),
    "tl.get_warp_idx_sync": (_WARP, 1),
    "tl.get_warp_group_idx": (_WARP, 4),
}


def group_size(name: str, args: list[Any]) -> int:
    """How many threads make up what a call of :data:`GROUPS` counts."""
    sizes = [constant(a, "warp size") for a in args]
    warp, warps = (*sizes, *GROUPS[name][len(sizes) :])
    if warp < 1 or warps < 1:
        raise UnmodelledError(f"{name} of groups of {warp * warps} threads")
    return warp * warps


# Functions of their arguments and of the thread's number alone.
PURE = {
    *GROUPS,
    *(f"tirx.{n}" for n in ("exp", "exp2", "log", "log2", "log1p", "sqrt", "rsqrt", "pow", "tanh")),
    *(
        f"tirx.{n}"
        for n in ("copysign", "fabs", "floor", "ceil", "round", "trunc", "sigmoid", "fma", "isnan")
    ),
    *(f"tirx.{n}" for n in ("reinterpret", "likely", "type_annotation", "popcount", "clz")),
    *(f"tirx.{n}" for n in ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")),
    *(f"tirx.{n}" for n in ("shift_left", "shift_right", "isinf", "isfinite", "nearbyint")),
    *(f"tl.{n}" for n in ("add2", "sub2", "mul2", "fma2", "max2", "min2", "abs2")),
    *(f"tl.{n}" for n in ("ieee_add", "ieee_sub", "ieee_mul", "ieee_fmaf", "ieee_frcp")),
    *(f"tl.{n}" for n in ("ieee_fsqrt", "ieee_frsqrt", "ieee_fdiv", "__exp", "__log")),
    "tl.pow_of_int",
    "tl.clamp",
    "tl.pack_b16",
    "tl.infinity",
}
