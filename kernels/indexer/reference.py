"""The lightning indexer in plain torch, as specified (spec §3.1)."""

import torch


def topk(score: torch.Tensor, count: torch.Tensor, K: int) -> torch.Tensor:
    """Indices of the K largest of each row's first `count` scores.

    Args:
        score: [M, S] f32. NaN is larger than all, the two zeros are equal, -inf is never chosen.
        count: [M] i32, clamped to 0..S.
        K: indices of a row.

    Returns:
        [M, K] i32, ascending; of equal scores the lower indices. -1 follows the last one.
    """
    M, S = score.shape
    column = torch.arange(S, device=score.device)
    score = score.masked_fill(column >= count[:, None], -torch.inf)
    # a stable sort keeps the lower index first; torch sorts NaN to the top of a descending order
    best, index = (t[:, :K] for t in score.sort(dim=1, descending=True, stable=True))
    index = index.masked_fill(best == -torch.inf, S).sort(dim=1).values
    chosen = torch.full((M, K), -1, dtype=torch.int32, device=score.device)
    chosen[:, : index.shape[1]] = index.masked_fill(index == S, -1)
    return chosen


def visible(position: torch.Tensor, ratio: int) -> torch.Tensor:
    """How many compressed entries a query at `position` (from 0) sees: those that are complete."""
    return (position + 1) // ratio


def score(
    q: torch.Tensor,
    k: torch.Tensor,
    weight: torch.Tensor,
    first: torch.Tensor,
    count: torch.Tensor,
    S: int,
) -> torch.Tensor:
    """``sum_h weight_h relu(q_h . k_s) / sqrt(D H)``, accumulated in f32 or f64.

    Args:
        q: [M, H, D] bf16, f32 or f64.
        k: [L, D], keys of all requests one after the other.
        weight: [M, H] f32 or f64.
        first: [M] i32, where the keys of a token's request begin.
        count: [M] i32, how many of them it sees, see :func:`visible`; at most S.
        S: columns of the output.

    Returns:
        [M, S], the score of key ``first + s`` in column s; -inf from `count` on.
    """
    M, H, D = q.shape
    out = torch.full((M, S), -torch.inf, dtype=weight.dtype)
    for m in range(M):
        keys = k[int(first[m].clamp(0, len(k))) :][: int(count[m].clamp(0, S))].to(weight.dtype)
        logits = (keys @ q[m].to(weight.dtype).T).relu()
        out[m, : len(keys)] = (logits * (weight[m] * (D * H) ** -0.5)).sum(dim=1)
    return out
