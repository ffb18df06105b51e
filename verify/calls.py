"""The prover's trusted core, put together: the effect of every device call that is known."""

from __future__ import annotations

from typing import Any

from . import atomics, bulk, intrinsics, tensor
from .intrinsics import NOTHING, Effect, UnmodelledError

_TABLE = {**intrinsics.TABLE, **atomics.TABLE, **bulk.TABLE, **tensor.TABLE}


def effect(name: str, args: list[Any]) -> Effect:
    """The effect of the call `name`. Raises UnmodelledError with the name to report."""
    if name in intrinsics.PURE:
        return NOTHING
    if name in _TABLE:
        return _TABLE[name](args)
    raise UnmodelledError(name)
