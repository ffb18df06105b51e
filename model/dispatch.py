"""What a patched module calls: one op of the library, or what `on_missing` says instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tileproof.dsl import ContractError
from tileproof.runtime import MissingKernel

ACTIVATIONS = (torch.bfloat16, torch.float32)
ALIGNMENT = 16  # bytes; weights in a memory-mapped safetensors file start where they happen to
ROWS = 8  # of a matrix product's weight come in multiples of this
_DENSE = {"memory_format": torch.contiguous_format}

# A launch of the fused kernel costs a third of three launches, but its blocks take all of K, so
# beyond two of them (16 tokens each) more multiprocessors idle than launches are saved. Bits are
# equal on both sides.
FUSED_TOKENS = 32


class Kernels:
    """The ops of one patched model; calling it runs one of them.

    Args:
        library: has one method per op stem, ``library.mhc_post(x, y, post, comb)``.
        add: makes `library` able to serve a call it refused with MissingKernel, None if it cannot.
        fallback: a library of the same shape for calls no kernel can serve, None to raise instead.
    """

    def __init__(
        self, library: Any, add: Callable[[MissingKernel], None] | None, fallback: Any | None
    ) -> None:
        self.library = library
        self.add = add
        self.fallback = fallback
        self._copies = WeakTensorKeyDictionary()  # parameter → kind → (its state, its copy)

    @torch.compiler.disable  # a launch is nothing to trace: compiled code goes on around it
    def __call__(self, op: str, *tensors: torch.Tensor, **params: float) -> Any:
        """Run `op` (``mhc_post``). Raises ContractError when nothing can serve the call."""
        reason = _unsupported(tensors)
        if reason is None:
            run = getattr(self.library, op)
            tensors = tuple(t if _is_ready(t) else t.clone(**_DENSE) for t in tensors)
            try:
                return run(*tensors, **params)
            except MissingKernel as missing:
                if self.add is not None:
                    self.add(missing)
                    return run(*tensors, **params)
                reason = str(missing)
        if self.fallback is None:
            raise ContractError(f'{op}: {reason}, or patch with on_missing="reference"')
        return getattr(self.fallback, op)(*tensors, **params)

    def weight(self, parameter: torch.Tensor, keep: torch.dtype = torch.float32) -> torch.Tensor:
        """`parameter` as kernels take weights: float32 (or `keep`), contiguous and aligned.

        It is the parameter itself where possible, else a copy kept until the values change.
        """
        if parameter.dtype in (torch.float32, keep) and _is_ready(parameter):
            return parameter
        return self._copy((parameter,), keep, lambda p: _copied(p, keep))

    def matrix(self, *parameters: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Matrices [N, K] one above the other as ``gemm/dense`` takes them: in `dtype`, contiguous
        and aligned, with zero rows up to a multiple of 8. Copied as by :meth:`weight`."""
        count = sum(len(p) for p in parameters)
        only = parameters[0]
        if len(parameters) == 1 and only.dtype == dtype and _is_ready(only) and not count % ROWS:
            return only

        def make(*parts: torch.Tensor) -> torch.Tensor:
            zeros = only.new_zeros(-count % ROWS, *only.shape[1:])
            return torch.cat([*parts, zeros]).to(dtype)

        return self._copy(parameters, dtype, make)

    def stack(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Matrices [E, N, K] in `dtype`, contiguous and aligned; copied as by :meth:`weight`."""
        if parameter.dtype == dtype and _is_ready(parameter):
            return parameter
        return self._copy((parameter,), dtype, lambda p: p.to(dtype).clone(**_DENSE))

    def _copy(
        self, parameters: tuple[torch.Tensor, ...], kind: object, make: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """``make(*parameters)``, of the last call if no value has changed since."""
        if any(
            p.is_inference() or (torch.is_grad_enabled() and p.requires_grad) for p in parameters
        ):
            return make(*parameters)  # no version counter, or a gradient to carry
        state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
        kinds = self._copies.setdefault(parameters[0], {})
        if kind not in kinds or kinds[kind][0] != state:
            kinds[kind] = (state, make(*(p.detach() for p in parameters)))
        made: torch.Tensor = kinds[kind][1]
        return made


def _is_ready(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


def _copied(tensor: torch.Tensor, keep: torch.dtype) -> torch.Tensor:
    dtype = keep if tensor.dtype == keep else torch.float32
    return tensor.to(dtype, memory_format=torch.contiguous_format, copy=True)


def _unsupported(tensors: tuple[torch.Tensor, ...]) -> str | None:
    """Why no kernel can take `tensors`, as got/expected; None if one may."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return (
            "got tensors that require grad, expected inference: the kernels have no backward, so"
            " call the model under torch.no_grad()"
        )
    kind = tensors[0].dtype
    if kind.is_floating_point and kind.itemsize > 1 and kind not in ACTIVATIONS:
        got = str(kind).removeprefix("torch.")
        return f"got {got} activations, expected bfloat16 or float32"
    return None


@torch.compiler.disable  # sorts by strides, which may be symbols
def by_rows(x: torch.Tensor, apply: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`apply`, a function of independent rows [M, D], over the last dim of `x` [..., D].

    The result has the strides of `x`. Rows are taken in memory order, so a transposed tensor (the
    query heads) is not copied.
    """
    order = sorted(range(x.ndim - 1), key=x.stride, reverse=True)
    ordered = x.permute(*order, x.ndim - 1).contiguous()
    y = apply(ordered.view(-1, x.shape[-1])).view(ordered.shape)
    inverse = sorted(range(x.ndim - 1), key=order.__getitem__)
    return y.permute(*inverse, x.ndim - 1)
