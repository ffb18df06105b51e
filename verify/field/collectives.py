"""What threads do together: barriers, mbarriers, elections, reductions over threads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .arithmetic import arithmetic
from .fragments import WARP
from .machine import Machine
from .machine import Meeting as Waits
from .memory import UnmodelledError
from .schedule import Meetings

if TYPE_CHECKING:
    from .device import Warp


def barrier(meetings: Meetings, group: Machine, args: list[Any]) -> Waits:
    """(scope), of all threads of a block, or (scope, id, count)."""
    scope = str(args[0].value)
    if scope not in ("shared", "shared.dyn") or len(args) not in (1, 3):
        raise UnmodelledError(f"tvm_storage_sync({scope}, …)")
    name = int(args[1].value) if len(args) == 3 else 0
    count = int(args[2].value) if len(args) == 3 else meetings.threads
    yield meetings.of(name, count).arrive(group.lanes.block[group.active])


def everyone(warp: Warp, args: list[Any]) -> Waits:
    """All threads of the grid meet."""
    yield warp.launch.everyone.arrive(np.zeros(int(warp.active.sum()), np.int64))


def blocks_in_step(group: Machine, args: list[Any]) -> None:
    """The same where all blocks go in step anyway."""
    if not group.active.all():
        raise UnmodelledError("a barrier of the grid that some blocks do not come to")


def _mine(warp: Machine, load: Any) -> tuple[Any, Any]:
    """Block and slot of the mbarrier that each active lane means."""
    slot = warp.each(load.indices[0])[warp.active]
    return warp.lanes.block[warp.active], slot


def init(warp: Machine, args: list[Any]) -> None:
    warp.mbarriers(args[0]).init(*_mine(warp, args[0]), warp.each(args[1])[warp.active])


def expect(warp: Machine, args: list[Any]) -> None:
    size = warp.each(args[1])[warp.active]
    warp.mbarriers(args[0]).expect(*_mine(warp, args[0]), size)


def arrive(warp: Machine, args: list[Any]) -> Waits:
    warp.mbarriers(args[0]).arrive(*_mine(warp, args[0]))
    yield lambda: True  # who waited may go on first


def expect_and_arrive(warp: Machine, args: list[Any]) -> Waits:
    expect(warp, args)
    yield from arrive(warp, args)


def copies_arrive(warp: Warp, args: list[Any]) -> None:
    """The mbarrier is arrived at once all of a thread's copies so far are there."""
    mbarriers, mine = warp.mbarriers(args[0]), _mine(warp, args[0])
    copies = warp.copies.taken()

    def happens() -> None:
        for copy in copies:
            copy()
        mbarriers.arrive(*mine)

    warp.launch.start(happens)


def wait(warp: Machine, args: list[Any]) -> Waits:
    parity = warp.each(args[1])[warp.active]
    yield warp.mbarriers(args[0]).passed(*_mine(warp, args[0]), parity)


def fence(warp: Warp, args: list[Any]) -> None:
    """What threads of the block wrote is seen by asynchronous units."""
    blocks = np.unique(warp.lanes.block[warp.active])
    for place in warp.launch.shared.values():
        seen = place.memory.seen
        if seen is not None:
            seen.value[blocks] = place.memory.value[blocks]
            seen.code[blocks] = place.memory.code[blocks]


def elected(warp: Warp, extent: int) -> Any:
    """Of every `extent` threads one in their first warp; of all threads if it is 0."""
    active = warp.by_warp(warp.active)
    first = active.argmax(axis=1)[:, None] == np.arange(WARP)
    number = warp.by_warp(warp.lanes.thread) // WARP
    leads = number == 0 if extent == 0 else number % max(1, extent // WARP) == 0
    return (first & leads).reshape(-1)


_ALL_REDUCE = re.compile(
    r"tl::AllReduce<tl::(Sum|Max|Min)Op, (\d+), (\d+), (\d+), "
    r"tl::(?:NamedBarrier<(\d+)>|SyncThreadsBarrier)>::run"
)
_REDUCTIONS = {"Sum": "Add", "Max": "Max", "Min": "Min"}


def all_reduce(warp: Warp, call: Any) -> Waits:
    """tl::AllReduce<Op, threads, scale, first, …>: every thread gets the total of those threads
    whose numbers, counted from `first`, differ from its own only in bits from `scale` to `threads`.
    """
    match = _ALL_REDUCE.fullmatch(str(call.args[0].value))
    if match is None:
        raise UnmodelledError(str(call.args[0].value))
    threads, scale, first = (int(n) for n in match.groups()[1:4])
    count = int(match[5] or warp.launch.threads)
    if threads & (threads - 1) or scale & (scale - 1):
        raise UnmodelledError(str(call.args[0].value))
    value, result = warp.launch.exchange(str(call))
    lanes = warp.lanes
    mine = lanes.block[warp.active], lanes.thread[warp.active]
    value[mine] = warp.each(call.args[1])[warp.active]
    number = np.arange(value.shape[1]) - first

    def total(blocks: Any) -> None:
        found, half = value[blocks], threads // 2
        while half >= scale:
            partner = np.clip((number ^ half) + first, 0, len(number) - 1)
            kind = _REDUCTIONS[match[1]]
            found = arithmetic(kind, str(call.dtype), found, found[:, partner])
            half //= 2
        result[blocks] = found

    if threads > WARP:
        yield warp.launch.meetings.of(str(call), count).arrive(mine[0], total)
        warp.results[call] = result[lanes.block, lanes.thread]
        return
    # A warp needs no barrier, and has not to wait for others.
    blocks = np.unique(mine[0])
    kept = result.copy()
    total(blocks)
    warp.results[call] = result[lanes.block, lanes.thread]
    result[:] = kept


def reductions(value: Any) -> list[Any]:
    """The reductions over threads within an expression."""
    from tilelang import tvm

    found: list[Any] = []

    def visit(node: Any) -> None:
        is_extern = type(node).__name__ == "Call" and str(node.op.name) == "tirx.call_extern"
        if is_extern and str(node.args[0].value).startswith("tl::AllReduce"):
            found.append(node)

    tvm.tirx.stmt_functor.post_order_visit(tvm.tirx.Evaluate(value), visit)
    return found


CALLS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "tirx.tvm_storage_sync": lambda warp, args: barrier(warp.launch.meetings, warp, args),
    "tl.sync_grid": everyone,
    "tirx.ptx_init_barrier_thread_count": init,
    "tirx.ptx_arrive_barrier": arrive,
    "tirx.ptx_arrive_barrier_expect_tx": expect_and_arrive,
    "tl.mbarrier_expect_tx": expect,
    "tl.mbarrier_wait_parity": wait,
    "tl.ptx_cp_async_barrier_noinc": copies_arrive,
    "tl.fence_proxy_async": fence,
    "tl.sync_warp": lambda warp, args: None,
    "tl.ptx_fence_barrier_init": lambda warp, args: None,
    "tl.set_max_nreg": lambda warp, args: None,
}
WAITS = ("tirx.tvm_storage_sync", "tl.mbarrier_wait_parity", "tl.sync_grid")
