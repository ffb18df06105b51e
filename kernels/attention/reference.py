"""Core attention in plain torch, as specified (spec §3.2)."""

import torch

# Gathered entries of so many elements are held at once.
_AT_ONCE = 1 << 24


def _attend(q, entries, valid, sink):
    """softmax over valid entries and the sink.

    Args:
        q: [M, H, D].
        entries: [M, L, D], key and value.
        valid: [M, L] bool.
        sink: [H], a logit without a value.

    Returns:
        [M, H, D]; 0 for a token without entries.
    """
    s = torch.einsum("mhd,mld->mhl", q, entries) * q.shape[-1] ** -0.5
    s = s.masked_fill(~valid[:, None, :], -torch.inf)
    if not s.shape[-1]:
        return torch.zeros_like(q)
    peak = s.amax(-1, keepdim=True)
    peak = torch.where(peak == -torch.inf, 0, peak)
    p = torch.exp(s - peak)
    total = p.sum(-1, keepdim=True) + torch.exp(sink[:, None] - peak)
    return torch.einsum("mhl,mld->mhd", p, entries) / torch.where(total == 0, 1, total)


def _rows(pool, index):
    """Entries [M, L, D] of `index` [M, L]; -1 gives zeros."""
    if not len(pool):
        return pool.new_zeros(*index.shape, pool.shape[-1])
    rows = pool[index.clamp(min=0).long()]
    return rows.masked_fill((index < 0)[..., None], 0)


def sparse(
    q: torch.Tensor,
    window: torch.Tensor,
    near: torch.Tensor,
    pool: torch.Tensor,
    chosen: torch.Tensor,
    sink: torch.Tensor,
) -> torch.Tensor:
    """Attention of M tokens, each over its own entries; key and value are one and the same.

    Args:
        q: [M, H, D], normed and rotated.
        window: [S, D] recent entries.
        near: [M, W] i32 rows of `window`, oldest first; -1 is none.
        pool: [T, D] compressed entries.
        chosen: [M, K] i32 rows of `pool`; -1 is none.
        sink: [H] f32.

    Returns:
        [M, H, D] in the type of `q`, computed in f32 (in f64 for f64): memory does not grow with M.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty_like(q)
    step = max(1, _AT_ONCE // max(1, (near.shape[1] + chosen.shape[1]) * q.shape[-1]))
    for m in range(0, len(q), step):
        at = slice(m, m + step)
        entries = torch.cat([_rows(window, near[at]), _rows(pool, chosen[at])], 1).to(wide)
        valid = torch.cat([near[at], chosen[at]], 1) >= 0
        out[at] = _attend(q[at].to(wide), entries, valid, sink.to(wide))
    return out
