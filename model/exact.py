"""The judge of every numerical claim: transformers' own network, computed in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Wide(TorchFunctionMode):
    """Code that asks for float32 gets float64: transformers casts in many places of its own."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


def exact_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, S, V] in float64 of the unpatched `model` with the weights it has now."""
    double = copy.deepcopy(model).double()
    double.config._experts_implementation = "eager"  # the default, grouped_mm, takes no float64
    with torch.no_grad(), _Wide():
        return double(ids).logits
