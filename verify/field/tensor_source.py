"""What a source program does with tensor memory, beyond tile operations: scales and mbarriers.

A tile in tensor memory is an array like any other here, scales are words in lanes and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from . import scales
from .fragments import WARP
from .memory import UnmodelledError

if TYPE_CHECKING:
    from .tiles import Source


def factors(source: Source, args: list[Any], notes: Mapping[str, Any]) -> list[Any]:
    """The scales (blocks, rows) of A and of B as functions of k, where a product has any:
    (13 arguments of ``Source.gemm``, scales of A, of B, the k of theirs that is the first)."""
    if len(args) < 16:
        return []
    start = np.unique(source.value(args[15]))
    if len(start) > 1:
        raise UnmodelledError("scales that begin elsewhere in another block")

    def of(side: str, region: Any, count: int) -> Callable[[int], Any]:
        buffer, first, _ = source.region(region)
        if str(buffer.scope()) != "shared.tmem":
            raise UnmodelledError(f"scales in memory of scope {buffer.scope()}")
        memory, each = source.place(buffer).memory, int(notes[f"sf_{side}_granularity_k"])
        blocks = np.unique(source.lanes.block[source.active])  # others hold none
        column = np.full(len(blocks), int(source.value(first[-1])))

        @lru_cache(maxsize=1)
        def known(number: int) -> Any:
            pitch = memory.size // scales.LANES
            own = scales.factors(memory, pitch, blocks, column, count, number)
            every = np.ones((len(memory.value), count), own.dtype)
            every[blocks] = own
            return every

        return lambda k: known((int(start[0]) + k) // each % 4)

    m, n = (int(source.value(e)) for e in args[5:7])
    return [of("a", args[13], m), of("b", args[14], n)]


def over(source: Source, mbarrier: Any) -> None:
    """A product of a block is over, and says so at its mbarrier, if it has one."""
    if not hasattr(mbarrier, "buffer"):
        return
    mbarriers = source.mbarriers(mbarrier)
    with source.once_per_block():
        slot = source.each(mbarrier.indices[0])[source.active]
        mbarriers.arrive(source.lanes.block[source.active], slot)


def _leaders(source: Source) -> Any:
    """A lane of every warp that is here."""
    if source.lanes.thread is None:
        raise UnmodelledError("what a warp does, in a parallel loop")
    lanes = np.flatnonzero(source.active)
    warps = np.stack([source.lanes.block[lanes], source.lanes.thread[lanes] // WARP])
    return lanes[np.unique(warps, axis=1, return_index=True)[1]]


def _commit(source: Source, args: list[Any]) -> None:
    """(mbarrier): what was issued before is over."""
    mbarriers, lanes = source.mbarriers(args[0]), _leaders(source)
    mbarriers.arrive(source.lanes.block[lanes], source.each(args[0].indices[0])[lanes])


def _copy_scales(source: Source, args: list[Any]) -> None:
    """(shared, tensor memory, first column)"""
    place, at, _ = source.pointer(args[0])
    target, lanes = source.places[args[1]].memory, _leaders(source)
    pitch, blocks = target.size // scales.LANES, source.lanes.block[lanes]
    column, start = source.each(args[2])[lanes], source.spread(at)[lanes]
    scales.copy(target, pitch, blocks, column, place.memory, start)


CALLS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "tl.tcgen05_mma_arrive": _commit,
    "tl.ptx_tcgen05_cp_warpx4": _copy_scales,
    "tl.ptx_tcgen05_sf_warp_transpose": scales.transpose,
}
