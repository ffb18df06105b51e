"""RMSNorm in plain torch, as specified (spec §1.1): fp32 statistics, fp32 product, one cast."""

import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.quant.reference import fp8_cast


def _normalized(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps)`` over the last dim, in fp32 (fp64 for fp64 input)."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    mean = wide.square().mean(-1, keepdim=True)
    return wide * (1 / torch.sqrt(mean + eps))


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """``y = w * (x / sqrt(mean(x^2) + eps))``.

    Args:
        x: [M, D] bf16, f32 or f64.
        weight: [D] f32 or bf16, used in fp32.
        eps: added to the mean.

    Returns:
        [M, D] in the type of `x`, rounded once. HF's ``DeepseekV4RMSNorm`` rounds at this same
        single point.
    """
    normalized = _normalized(x, eps)
    return (weight.to(normalized.dtype) * normalized).to(x.dtype)


def rmsnorm_fp8(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rmsnorm`, and its result as the FP8 linears take it.

    Args:
        x: [M, D] bf16.
        weight, eps: as in :func:`rmsnorm`.

    Returns:
        y [M, D] bf16; its codes [M, D] e4m3 and scales [M, ceil(D / 128)] ue8m0, see
        :func:`tileproof.kernels.quant.reference.fp8_cast`.
    """
    y = rmsnorm(x, weight, eps)
    return (y, *fp8_cast(y, 128))


def rmsnorm_unweighted(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """``y = x / sqrt(mean(x^2) + eps)``.

    Args:
        x: [M, D] bf16, f32 or f64.
        eps: added to the mean.

    Returns:
        [M, D] in the type of `x`, rounded once, as every other norm (spec §1.1). In bf16 others
        round more often: HF's ``DeepseekV4UnweightedRMSNorm`` rounds the factor first, and the
        official code computes this norm in bf16 (spec §3.2).
    """
    return _normalized(x, eps).to(x.dtype)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """RoPE on the last 2 Q channels of each row: ``(x, y) -> (x cos - y sin, x sin + y cos)``.

    Args:
        x: [M, ..., D] bf16, f32 or f64; neighbours 2 k and 2 k + 1 are a pair.
        cos, sin: [X, Q] f32 by position.
        position: [M] integers 0..X-1.

    Returns:
        The shape and type of `x`, rounded once.
    """
    still, turning = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    a, b = turning.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    heads = [1] * (x.ndim - 2)
    c, s = (t[position.long()].to(wide).unflatten(0, (len(x), *heads)) for t in (cos, sin))
    turned = torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], -1)


def kv_row(x, weight, cos, sin, position, slot, rows, eps: float = 1e-6) -> None:
    """Entries of the window: ``rotate(rmsnorm(x))`` into `rows` [S, D] at `slot` [M].

    Args:
        x: [M, D] in the type of `rows`; both steps round to it.
        weight, cos, sin, position: as in :func:`rmsnorm` and :func:`rotate`.
        slot: [M] integers, all different; -1 is nowhere.
        rows: changed in place.
        eps: of the RMSNorm.
    """
    made = rotate(rmsnorm(x, weight, eps), cos, sin, position)
    rows[slot[slot >= 0].long()] = made[slot >= 0]


def kv_fp8(
    x, weight, cos, sin, position, slot, nope, rope, scale, eps: float = 1e-6
) -> None:  # fmt: skip
    """The same in bf16 into pages, see :func:`tileproof.kernels.kv_cache.write_kv`."""
    made = rotate(rmsnorm(x, weight, eps), cos, sin, position)
    kv_cache.write_kv(made, slot, nope, rope, scale)
