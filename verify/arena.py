"""Sizes of buffers, and of the shared ones before TileLang lays them into one arena."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .facts import scalar_bits


def bytes_of(buffer: Any) -> int:
    """Size of a declared buffer, or -1 when it depends on a run-time size."""
    total = scalar_bits(buffer.dtype)
    for n in buffer.shape:
        if type(n).__name__ != "IntImm":
            return -1
        total *= int(n.value)
    return -(-total // 8)


def shared_sizes(stages: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each shared buffer by name, as allocated before all were merged into one arena.

    A name that two buffers of different sizes share is left out.
    """
    from tilelang import tvm

    before: Any = None
    for stage, mod in stages.items():
        if stage.endswith(":tl.MergeSharedMemoryAllocations"):
            break
        before = mod
    else:
        return {}
    found: dict[str, set[int]] = {}

    def visit(node: Any) -> None:
        if type(node).__name__ == "AllocBuffer" and str(node.buffer.scope()) == "shared.dyn":
            found.setdefault(str(node.buffer.data.name), set()).add(bytes_of(node.buffer))

    for _, function in before.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            tvm.tirx.stmt_functor.post_order_visit(function.body, visit)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}
