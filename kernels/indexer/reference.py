"""The lightning indexer in plain torch, as specified (spec §3.1)."""

from collections.abc import Iterator

import torch

from tileproof.kernels import kv_cache

# Scores, and products of single heads, of so many elements are held at once.
_AT_ONCE = 1 << 20


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
    chosen = torch.full((M, K), -1, dtype=torch.int32, device=score.device)
    count = count.clamp(0, S)
    step = max(1, _AT_ONCE // max(1, S))
    for m in range(0, M, step):
        at = slice(m, m + step)
        column = torch.arange(int(count[at].max()), device=score.device)
        seen = score[at, : len(column)].masked_fill(column >= count[at, None], -torch.inf)
        row, index = _largest(seen, min(K, len(column))).nonzero(as_tuple=True)
        found = torch.bincount(row, minlength=len(seen))
        place = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
        chosen[m + row, place] = index.int()
    return chosen


def _largest(score: torch.Tensor, K: int) -> torch.Tensor:
    """Which of each row [M, S] are its K largest and not -inf, [M, S] bool; see :func:`topk`."""
    score = (score + 0).masked_fill(score.isnan(), torch.nan)  # one zero, one NaN
    kind = {4: torch.int32, 8: torch.int64}[score.itemsize]
    bits = score.view(kind)
    order = torch.where(bits < 0, bits ^ torch.iinfo(kind).max, bits)  # integers in floats' order
    if not K:
        return order > 0
    least = order.topk(K, sorted=False).values.amin(1, keepdim=True)
    above, level = order > least, order == least
    room = K - above.sum(1, keepdim=True)
    crowded = level.sum(1) > room[:, 0]
    level[crowded] &= level[crowded].cumsum(1) <= room[crowded]
    return (above | level) & (score != -torch.inf)


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
    out = torch.full((M, S), -torch.inf, dtype=weight.dtype, device=q.device)
    factor = weight * (D * H) ** -0.5
    count = count.clamp(0, S)
    for run in _runs(first):
        begin, longest = int(first[run][0].clamp(0, len(k))), int(count[run].max())
        keys = k[begin : begin + longest].to(weight.dtype)
        step = max(1, _AT_ONCE // max(1, H * len(keys)))
        for m in range(run.start, run.stop, step):
            at = slice(m, min(m + step, run.stop))
            most = keys[: int(count[at].max())]
            logits = (q[at].to(weight.dtype).flatten(0, 1) @ most.mT).relu()
            found = (factor[at, None] @ logits.unflatten(0, (-1, H)))[:, 0]
            unseen = torch.arange(len(most), device=q.device) >= count[at, None]
            out[at, : len(most)] = found.masked_fill(unseen, -torch.inf)
    return out


def _runs(values: torch.Tensor) -> Iterator[slice]:
    """Stretches of equal neighbours: tokens of a request mostly come one after the other."""
    begin = 0
    for length in torch.unique_consecutive(values, return_counts=True)[1].tolist():
        yield slice(begin, begin := begin + length)


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
    for at in _runs(request):
        seen = count[at].clamp(0, S)
        entry = torch.arange(int(seen.max()))
        slot = slots(entry[None], table, request[at][:1], pool_codes.shape[1])[0]
        keys = kv_cache.read_keys(pool_codes, pool_scale, slot).to(weight.dtype)
        codes, scale = (t[at].flatten(0, 1) for t in (q, q_scale))
        query = kv_cache.dequantised_keys(codes, scale).unflatten(0, (len(seen), -1))
        found = score(query, keys, weight[at], torch.zeros_like(seen), seen, len(entry))
        out[at, : len(entry)] = found.masked_fill(slot < 0, -torch.inf)
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
