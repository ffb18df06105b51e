"""Which library serves a model: a bundle given, one built on the spot, or torch references."""

from __future__ import annotations

import inspect
from typing import Any

from tileproof.dsl import get


class References:
    """Every op as its torch reference."""

    def __getattr__(self, stem: str) -> Any:
        op = get(stem)
        accepted = inspect.signature(op.reference).parameters

        def call(*tensors: Any, **params: float) -> Any:
            return op.reference(*tensors, **{k: v for k, v in params.items() if k in accepted})

        return call
