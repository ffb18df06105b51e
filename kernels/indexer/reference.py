"""The lightning indexer in plain torch, as specified (spec §3.1)."""

import torch

from tileproof.kernels import kv_cache


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


def score_paged(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    pool_codes: torch.Tensor,
    pool_scale: torch.Tensor,
    table: torch.Tensor,
    request: torch.Tensor,
    count: torch.Tensor,
    weight: torch.Tensor,
    S: int,
) -> torch.Tensor:
    """As :func:`score`, of quantised queries and keys; keys of a request lie in its pages.

    Args:
        q: [M, H, D / 2] u8, e2m1 codes as ``rope/rotate_fp4`` makes them, or [M, H, D] e4m3.
        q_scale: [M, H, D / 32] ue8m0, or [M, H, ceil(D / 128)] of e4m3.
        pool_codes, pool_scale: views [Z, E, ...] of pages of keys, stored alike.
        table: [R, L] i32, the pages of each request in order, -1 where there is none.
        request: [M] i32, the row of `table` a token reads; -1 is none.
        count: [M] i32, how many keys it sees; at most S.
        weight: [M, H] f32.
        S: columns of the output.

    Returns:
        [M, S] f32; -inf from `count` on, and for a key without a page.
    """
    out = torch.full((len(q), S), -torch.inf, dtype=weight.dtype)
    for m in range(len(q)):
        one, none = slice(m, m + 1), torch.zeros(1, dtype=torch.int32)
        entry = torch.arange(int(count[m].clamp(0, S)))
        slot = slots(entry[None], table, request[one], pool_codes.shape[1])[0]
        keys = kv_cache.read_keys(pool_codes, pool_scale, slot).to(weight.dtype)
        query = kv_cache.dequantised_keys(q[m], q_scale[m])[None]
        found = score(query, keys, weight[one], none, none + len(entry), len(entry))[0]
        out[m, : len(entry)] = found.masked_fill(slot < 0, -torch.inf)
    return out


def slots(index: torch.Tensor, table: torch.Tensor, request: torch.Tensor, E: int) -> torch.Tensor:
    """Where entries lie in a pool of pages.

    Args:
        index: [M, K] i32, numbers of entries in their request; negative is none.
        table: [R, L] i32, the pages of each request in order, -1 where there is none.
        request: [M] i32, the row of `table` of each token; -1 is none.
        E: entries of a page.

    Returns:
        [M, K] i32, -1 for an entry without a page.
    """
    rows = torch.nn.functional.pad(table, (0, 1), value=-1)  # an entry beyond the list
    rows = torch.nn.functional.pad(rows, (0, 0, 0, 1), value=-1)  # no request
    column = (index.clamp(min=0) // E).clamp(max=table.shape[1]).long()
    page = rows[request.long()[:, None], column]
    return torch.where((index >= 0) & (page >= 0), page * E + index % E, -1).int()
