"""RoPE on heads in plain torch, as specified (spec §3.1)."""

import torch

from tileproof.kernels.norm import reference as norm
from tileproof.kernels.quant import reference as quant


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """RoPE on the last 2 Q channels of [M, H, D] `x`, see :func:`norm.reference.rotate`."""
    return norm.rotate(x, cos, sin, position)


def rotate_fp4(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`rotate`, Hadamard-128 and FP4 of [M, H, D] bf16 `x`, each rounded to bf16 before.

    Returns:
        [M, H, D / 2] u8 and [M, H, D / 32] ue8m0, see :func:`quant.reference.fp4_cast`.
    """
    return quant.fp4_rotate_cast(rotate(x, cos, sin, position))
