"""RMSNorm in plain torch, as specified (spec §1.1): fp32 statistics, fp32 product, one cast."""

import torch


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
