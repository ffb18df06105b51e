"""Bulk copies (TMA) and accesses to the shared memory of other blocks of a cluster.

Sources: PTX ISA, cp.async.bulk and cp.reduce.async.bulk, mapa; TileLang 0.1.15's
``tl_templates/cuda/copy_sm90.h`` and ``copy_sm100.h`` for the order of arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .intrinsics import (
    NOTHING,
    Effect,
    Mode,
    Tile,
    Touch,
    UnmodelledError,
    constant,
    elements,
    scope_sync,
)

_UNIT = 16  # bytes; of the size and of both addresses of a copy without a tensor map
_COORDINATES = range(3, 6)  # dimensions of an im2col copy, channels and images included
_STORES = "TMA stores"
_MBARRIERS = "mbarriers"
_PEERS = "accesses to another block's shared memory"


def _plain(pointer: Any, mode: Mode, size: Any, atomic: str = "", peer: Any = None) -> Touch:
    while type(size).__name__ == "Cast":
        size = size.value
    count = constant(size, "the size of a bulk copy")
    if count <= 0 or count % _UNIT:
        raise UnmodelledError(f"a bulk copy of {count} bytes, no multiple of {_UNIT}")
    return Touch(
        pointer,
        mode,
        elements(pointer, count),
        align=_UNIT,
        asynchronous=True,
        atomic=atomic,
        peer=peer,
    )


def _tiled(tensor_map: Any) -> bool:
    return type(tensor_map).__name__ == "Var"


def _load(args: list[Any]) -> Effect:
    # (map, mbarrier, shared, coordinates…, cache hint); the rank of the map is the coordinates'.
    if _tiled(args[0]):
        tile = Tile(args[0], (tuple(args[3:-1]),), args[2], "read")
        return Effect((Touch(args[1], "write"),), tile=tile, unordered=_MBARRIERS)
    # (shared, global, mbarrier, bytes, cache hint).
    if len(args) != 5:
        raise UnmodelledError(f"a bulk copy with {len(args)} arguments")
    copied = _plain(args[0], "write", args[3]), _plain(args[1], "read", args[3])
    return Effect((*copied, Touch(args[2], "write")), unordered=_MBARRIERS)


def _store(args: list[Any]) -> Effect:
    # (map, shared, coordinates…, reduction, cache hint); the only reduction is an addition.
    atomic = "add" if constant(args[-2], "tma_store reduction") else ""
    if _tiled(args[0]):
        tile = Tile(args[0], (tuple(args[2:-2]),), args[1], "write", atomic)
        return Effect(tile=tile, unordered=_STORES)
    # (global, shared, bytes, reduction, cache hint); the reduction has shared first.
    if len(args) != 5:
        raise UnmodelledError(f"a bulk copy with {len(args)} arguments")
    far, near = (args[1], args[0]) if atomic else (args[0], args[1])
    copied = _plain(far, "write", args[2], atomic), _plain(near, "read", args[2])
    return Effect(copied, unordered=_STORES)


def _rows(column: Any, rows: list[Any]) -> tuple[tuple[Any, ...], ...]:
    if len(rows) != 4:
        raise UnmodelledError(f"a copy of {len(rows)} rows by number")
    return tuple((column, row) for row in rows)


def _gather(args: list[Any]) -> Effect:
    # (map, mbarrier, shared, column, four rows, cache hint).
    tile = Tile(args[0], _rows(args[3], args[4:-1]), args[2], "read")
    return Effect((Touch(args[1], "write"),), tile=tile, unordered=_MBARRIERS)


def _scatter(args: list[Any]) -> Effect:
    # (map, shared, column, four rows, cache hint).
    tile = Tile(args[0], _rows(args[2], args[3:-1]), args[1], "write")
    return Effect(tile=tile, unordered=_STORES)


def _im2col(args: list[Any]) -> Effect:
    # (map, mbarrier, shared, coordinates…, an offset for each spatial dimension, cache hint).
    rest = args[3:-1]
    rank = len(rest) // 2 + 1
    if rank not in _COORDINATES or len(rest) != 2 * rank - 2:
        raise UnmodelledError(f"tma_load_im2col with {len(args)} arguments")
    tile = Tile(args[0], (tuple(rest[:rank]),), args[2], "read", offsets=tuple(rest[rank:]))
    return Effect((Touch(args[1], "write"),), tile=tile, unordered=_MBARRIERS)


def _multicast(args: list[Any]) -> Effect:
    # (map, mbarrier, shared, mask of blocks, coordinates…, cache hint): each block of the mask gets
    # the tile, and its mbarrier the bytes, at the places that the issuing block names.
    mask = constant(args[3], "mask of a multicast")
    if mask <= 0 or not _tiled(args[0]):
        raise UnmodelledError(f"tma_load_multicast to blocks of mask {mask}")
    tile = Tile(args[0], (tuple(args[4:-1]),), args[2], "read")
    ranks = tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
    return Effect((Touch(args[1], "write"),), tile=tile, ranks=ranks, unordered=_MBARRIERS)


def _store_to_peer(args: list[Any]) -> Effect:
    # (pointer, value, rank, index).
    pointer = args[0]
    if type(pointer).__name__ == "Call" and str(pointer.op.name) == "tirx.address_of":
        pointer = pointer.args[0]
    touch = Touch(pointer, "write", offset=args[3], peer=args[2])
    return Effect((touch,), values=(args[1],))


def _copy_to_peer(args: list[Any]) -> Effect:
    # (destination, source, rank, bytes, mbarrier of the destination's block).
    there = _plain(args[0], "write", args[3], peer=args[2])
    here = _plain(args[1], "read", args[3])
    return Effect((there, here, Touch(args[4], "write", peer=args[2])), unordered=_PEERS)


def _arrive_at_peer(args: list[Any]) -> Effect:
    return Effect((Touch(args[0], "write", peer=args[1]),), unordered=_MBARRIERS)


_CLUSTER = Effect(sync="barrier", collective="cluster")


def _storage_sync(args: list[Any]) -> Effect:
    if str(args[0].value) == "cluster" and len(args) == 1:
        return _CLUSTER
    return scope_sync(args)


def _st_bulk(args: list[Any]) -> Effect:
    # (shared, bytes, zero): PTX ISA, st.bulk.
    size = constant(args[1], "st.bulk size")
    if size % 8:
        raise UnmodelledError(f"st.bulk of {size} bytes, no multiple of 8")
    return Effect((Touch(args[0], "write", elements(args[0], size), align=8),))


TABLE: dict[str, Callable[[list[Any]], Effect]] = {
    "tl.tma_load": _load,
    "tl.tma_store": _store,
    "tl.tma_load_gather4": _gather,
    "tl.tma_store_scatter4": _scatter,
    "tl.tma_load_im2col": _im2col,
    "tl.tma_load_multicast": _multicast,
    "tl.tma_store_cluster": _copy_to_peer,
    "tl.ptx_cluster_store": _store_to_peer,
    "tl.ptx_arrive_cluster_barrier": _arrive_at_peer,
    "tl.tma_store_arrive": lambda _: Effect(unordered=_STORES),
    "tl.tma_store_wait": lambda _: Effect(unordered=_STORES),
    "tl.prefetch_tma_descriptor": lambda _: NOTHING,
    "tl.block_rank_in_cluster": lambda _: NOTHING,
    "tl.ptx_st_bulk_shared": _st_bulk,
    "tl.cluster_sync": lambda _: _CLUSTER,
    "tl.cluster_arrive": lambda _: Effect(collective="cluster", unordered="split cluster barriers"),
    "tl.cluster_arrive_relaxed": lambda _: Effect(
        collective="cluster", unordered="split cluster barriers"
    ),
    "tl.cluster_wait": lambda _: Effect(collective="cluster", unordered="split cluster barriers"),
    "tirx.tvm_storage_sync": _storage_sync,
}
