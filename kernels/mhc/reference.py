"""mHC in plain torch, as specified (spec §4); fp32 throughout, fp64 for fp64 input.

Letters: M tokens, N residual streams, D hidden, C = N (N + 2) mixing coefficients, K = N D,
S splits of K.
"""

import torch

from ._prenorm import split_length


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


def prenorm_gemm(x: torch.Tensor, fn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Step 1: ``x fn^T`` and ``sum x^2`` over each of S splits of K.

    Args:
        x: [M, K] bf16 or f32, the streams of a token side by side.
        fn: [C, K] f32.

    Returns:
        partial [S, M, C] and sqrsum [S, M], f32; they are sums over ``split_length(K)`` columns.
    """
    length = split_length(x.shape[1])
    columns = [slice(k, k + length) for k in range(0, x.shape[1], length)]
    wide = _wide(x)
    partial = torch.stack([wide[:, c] @ fn[:, c].to(wide.dtype).T for c in columns])
    sqrsum = torch.stack([wide[:, c].square().sum(1) for c in columns])
    return partial, sqrsum
