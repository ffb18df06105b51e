"""Blocks of a cluster: their ranks, and accesses to the shared memory of one by its rank.

The same offsets mean the same memory in every block of a launch, so an access to a peer's shared
memory must lie in the buffer it names, and the rank among those of the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .facts import Buffer
from .intrinsics import UnmodelledError, constant
from .terms import Symbol, Term, add, apply, const, mul, var

PEERS = "blocks of the cluster"
AXES = "xyz"


def peers(size: tuple[int, int, int]) -> Buffer:
    """The blocks of a cluster as memory whose elements are addressed by rank."""
    return Buffer(PEERS, "cluster", 8, (const(math.prod(size)),))


def rank(symbols: Mapping[str, Symbol], size: tuple[int, int, int]) -> Term:
    """The rank of a block in its cluster: x, then y, then z."""
    total, stride = const(0), 1
    for axis, n in zip(AXES, size, strict=True):
        index = symbols.get(f"blockIdx.{axis}")
        if n > 1:
            if index is None:
                raise UnmodelledError(f"a rank before blockIdx.{axis} is bound")
            own = apply("mod", var(index), const(n))
            total = add(total, mul(own, const(stride)))
        stride *= n
    return total


def number(indices: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """The same, for one block with numbers; `sizes` holds the cluster's by ``cluster.x``."""
    total, stride = 0, 1
    for axis in AXES:
        n = sizes.get(f"cluster.{axis}", 1)
        total += indices.get(f"blockIdx.{axis}", 0) % n * stride
        stride *= n
    return total


def same(first: Mapping[Symbol, Term], size: tuple[int, int, int]) -> Term:
    """Whether the blocks that a renaming relates lie in one cluster."""
    together = const(1)
    for symbol, other in first.items():
        if symbol.kind == "block":
            n = const(size[AXES.index(symbol.name[-1])])
            equal = apply("eq", apply("div", var(symbol), n), apply("div", other, n))
            together = apply("and", together, equal)
    return together


def extents(launch: Any) -> tuple[int, int, int]:
    """The blocks of a launch's clusters along each axis, which must be constants."""
    x, y, z = (constant(n, "the size of a cluster") for n in launch.cluster)
    return x, y, z
