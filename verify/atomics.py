"""Atomic operations (TileLang 0.1.15's ``tl_templates/cuda/atomic.h``).

Every element is read, changed and written in one step; elements of a vector are so one by one. A
memory order orders other accesses, which no property here relies on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .intrinsics import Effect, Touch

# A value is an expression, or a pointer to as many elements as the operation takes.
_VALUE = 1


def _atomic(operation: str, count: int) -> Callable[[list[Any]], Effect]:
    # A vector is moved at once, so it is aligned to its width. Before sm_90 floats go one by one
    # and need less, which no kernel for several architectures can use.
    def read(args: list[Any]) -> Effect:
        touched = Touch(args[0], "write", count, atomic=operation)
        if len(args) > _VALUE and str(args[_VALUE].dtype) == "handle":
            return Effect((touched, Touch(args[_VALUE], "read", count)))
        return Effect((touched,))

    return read


TABLE: dict[str, Callable[[list[Any]], Effect]] = {
    **{
        f"tl.atomic_{name}_elem_op": _atomic(name, 1)
        for name in ("add", "max", "min", "or", "add_ret", "max_ret", "min_ret", "store")
    },
    **{
        f"tl.atomic_addx{count}{form}_elem_op": _atomic(f"add{form}", count)
        for count in (2, 4)
        for form in ("", "_ret")
    },
    "tl.atomic_load_elem_op": lambda args: Effect((Touch(args[0], "read", atomic="load"),)),
}
