"""Every `Op` by name. Importing a kernel family fills it; `load_library` imports them all."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .check import check

if TYPE_CHECKING:
    from .spec import Op

_OPS: dict[str, Op] = {}

FAMILIES = ("attention", "compressor", "gemm", "indexer", "mhc", "moe", "norm", "quant", "rope")


def add(op: Op) -> None:
    """Register `op`; a second op of the same name is an error."""
    check(op.name not in _OPS, "op name", got=f"{op.name} twice", expected="a new name")
    _OPS[op.name] = op


def load_library() -> dict[str, Op]:
    """All ops of the library by name, in a fixed order."""
    for family in FAMILIES:
        importlib.import_module(f"tileproof.kernels.{family}")
    return dict(sorted(_OPS.items()))


def get(name: str) -> Op:
    """The op called `name` (``family/stem`` or ``family_stem``). Errors list the known names."""
    ops = load_library()
    for op in ops.values():
        if name in (op.name, op.stem):
            return op
    check(False, "op", got=repr(name), expected=f"one of {', '.join(ops)}")
    raise AssertionError  # unreachable: check raised
