"""mHC in plain torch, as specified (spec §4); fp32 throughout, fp64 for fp64 input.

Letters: M tokens, N residual streams, D hidden, C = N (N + 2) mixing coefficients, K = N D,
S splits of K.
"""

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    """`x` in the type the sums are formed in."""
    return x if x.dtype == torch.float64 else x.float()


def collapse(x: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    """Step 4: ``y = sum_j pre_j X_j``.

    Args:
        x: [M, N, D] bf16 or f32.
        pre: [M, N] f32.

    Returns:
        [M, D] in the type of `x`, rounded once.
    """
    return (pre[:, :, None] * _wide(x)).sum(1).to(x.dtype)


def post(x: torch.Tensor, y: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    """Step 5: ``out_k = post_k y + sum_j comb_{jk} X_j`` (the first index of comb is summed).

    Args:
        x: [M, N, D] bf16 or f32, the residual streams.
        y: [M, D] in the type of `x`, the sublayer's output.
        post: [M, N] f32.
        comb: [M, N, N] f32.

    Returns:
        [M, N, D] in the type of `x`, rounded once.
    """
    mixed = comb.transpose(1, 2) @ _wide(x)
    return (post[:, :, None] * _wide(y)[:, None, :] + mixed).to(x.dtype)
