"""mHC in plain torch, as specified (spec §4); fp32 throughout, fp64 for fp64 input.

Letters: M tokens, N residual streams, D hidden, C = N (N + 2) mixing coefficients, K = N D,
S splits of K.
"""

import math

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
    """Step 1: ``x fn^T`` and ``sum x^2`` over each of S splits of the channels.

    Args:
        x: [M, N, D] bf16 or f32, the streams.
        fn: [C, K] f32, K = N D.

    Returns:
        partial [S, M, C] and sqrsum [S, M], f32: sums over ``split_length(N, D)`` channels of all
        streams.
    """
    N, D = x.shape[1:]
    length = split_length(N, D)
    wide = _wide(x).split(length, 2)
    columns = fn.to(wide[0].dtype).view(-1, N, D).split(length, 2)
    partial = [a.flatten(1) @ w.flatten(1).T for a, w in zip(wide, columns, strict=True)]
    return torch.stack(partial), torch.stack([a.square().sum((1, 2)) for a in wide])


def post_prenorm_gemm(
    x: torch.Tensor, y: torch.Tensor, gain: torch.Tensor, comb: torch.Tensor, fn: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`post` [M, N, D], and :func:`prenorm_gemm` of that with `fn` [C, K], the next one's."""
    out = post(x, y, gain, comb)
    return out, *prenorm_gemm(out, fn)


def _coefficients(partial, sqrsum, scale, base, K, norm_eps):
    """Step 1: ``(x fn^T) r * scale + base``, r = 1 / sqrt(mean(x^2) + eps); scale per column."""
    factor = 1 / torch.sqrt(sqrsum.sum(0) / K + norm_eps)
    return partial.sum(0) * factor[:, None] * scale + base


def _balanced(logits: torch.Tensor, iters: int, eps: float) -> torch.Tensor:
    """Step 3: Sinkhorn on [M, N, N]; `iters` row and column normalizations, ending on columns."""
    comb = torch.softmax(logits, dim=-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def sinkhorn(
    partial: torch.Tensor,
    sqrsum: torch.Tensor,
    scale: torch.Tensor,
    base: torch.Tensor,
    D: int,
    iters: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps 1–3 from the projection's partial sums.

    Args:
        partial: [S, M, C] f32, C = N (N + 2).
        sqrsum: [S, M] f32.
        scale: [3] f32, of pre, post and comb.
        base: [C] f32.
        D: hidden size; the mean square is over K = N D.

    Returns:
        pre [M, N], post [M, N], comb [M, N, N], f32.
    """
    C = base.shape[0]
    N = math.isqrt(C + 1) - 1
    wide = scale.repeat_interleave(torch.tensor([N, N, N * N]))
    z = _coefficients(partial, sqrsum, wide, base, N * D, norm_eps)
    pre = torch.sigmoid(z[:, :N]) + eps
    post = 2 * torch.sigmoid(z[:, N : 2 * N])
    comb = _balanced(z[:, 2 * N :].reshape(-1, N, N), iters, eps)
    return pre, post, comb


def pre(
    x: torch.Tensor,
    fn: torch.Tensor,
    scale: torch.Tensor,
    base: torch.Tensor,
    iters: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps 1–4: what precedes a sublayer.

    Args:
        x: [M, N, D] bf16 or f32.
        fn: [C, N D] f32.
        scale: [3] f32.
        base: [C] f32.

    Returns:
        post [M, N], comb [M, N, N] f32 and the sublayer's input [M, D] in the type of `x`.
    """
    partial, sqrsum = prenorm_gemm(x, fn)
    gate, post, comb = sinkhorn(partial, sqrsum, scale, base, x.shape[2], iters, eps, norm_eps)
    return post, comb, collapse(x, gate)


def head(
    x: torch.Tensor,
    partial: torch.Tensor,
    sqrsum: torch.Tensor,
    scale: torch.Tensor,
    base: torch.Tensor,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> torch.Tensor:
    """hc_head: ``y = sum_j (sigmoid(z_j) + eps) X_j``.

    Args:
        x: [M, N, D] bf16 or f32.
        partial: [S, M, N] f32, the projection by the head's fn.
        sqrsum: [S, M] f32.
        scale: [1] f32.
        base: [N] f32.

    Returns:
        [M, D] in the type of `x`, rounded once.
    """
    K = x.shape[1] * x.shape[2]
    z = _coefficients(partial, sqrsum, scale, base, K, norm_eps)
    return collapse(x, torch.sigmoid(z) + eps)
