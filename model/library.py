"""Which library serves a model: a bundle given, one built on the spot, or torch references."""

from __future__ import annotations

import math
from typing import Any

import torch
from tileproof.dsl import Specialization, get


class References:
    """Every op as its torch reference."""

    def __getattr__(self, stem: str) -> Any:
        return lambda *tensors, **params: _specialization(stem, tensors, params).reference(*tensors)


class Virtual:
    """Every op compiled on the spot and run on the virtual GPU."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._compiled: dict[str, Any] = {}

    def __getattr__(self, stem: str) -> Any:
        from tileproof.codegen import virtual

        def call(*tensors: torch.Tensor, **params: Any) -> Any:
            spec = _specialization(stem, tensors, params)
            run = self._compiled.get(spec.symbol)
            if run is None:
                run = self._compiled[spec.symbol] = virtual.compile(spec, self.arch)
            M = tensors[0].shape[spec.op.inputs[0].shape.index("M")]
            shapes = spec.bind(M=M)
            outputs = [
                torch.empty(shapes[a.name], dtype=getattr(torch, a.dtype.torch))
                for a in spec.args
                if a.role == "out"
            ]
            run(*tensors, *outputs)
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        return call


def _specialization(stem: str, tensors: tuple[Any, ...], params: dict[str, Any]) -> Specialization:
    op = get(stem)
    types = {torch.float32: "f32", torch.bfloat16: "bf16"}
    sizes = dict(params)
    for a, t in zip(op.inputs, tensors, strict=True):
        sizes |= {k: n for k, n in zip(a.shape, t.shape, strict=True) if not k.isdigit()}
        if a.dtype in op.types:
            sizes[a.dtype] = types.get(t.dtype, "f32")
    if stem == "mhc_sinkhorn":
        sizes["N"] = math.isqrt(sizes["C"] + 1) - 1
    fixed = {k for k, d in op.dims.items() if d.static and d.derived is None}
    keep = fixed | set(op.types) | set(op.params)
    return op.specialize(**{k: v for k, v in sizes.items() if k in keep})
