"""Core attention in plain torch, as specified (spec §3.2)."""

import torch

from tileproof.kernels.kv_cache import read_kv

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


def paged(
    q: torch.Tensor,
    window_nope: torch.Tensor,
    window_rope: torch.Tensor,
    window_scale: torch.Tensor,
    near: torch.Tensor,
    pool_nope: torch.Tensor,
    pool_rope: torch.Tensor,
    pool_scale: torch.Tensor,
    chosen: torch.Tensor,
    sink: torch.Tensor,
) -> torch.Tensor:
    """As :func:`sparse`, over entries as `kernels/kv_cache.py` stores them in pages.

    Args:
        q: [M, H, V + R] bf16, normed and rotated.
        window_nope, window_rope, window_scale: views [Z, E, V], [Z, E, R], [Z, E, V / 64].
        near: [M, W] i32 slots of the window pool, oldest first; -1 is none.
        pool_nope, pool_rope, pool_scale: the same of the compressed pool, [Y, F, ...].
        chosen: [M, K] i32 slots of it; -1 is none.
        sink: [H] f32.

    Returns:
        [M, H, V + R] bf16.
    """
    out = torch.empty_like(q)
    step = max(1, _AT_ONCE // max(1, (near.shape[1] + chosen.shape[1]) * q.shape[-1]))
    for m in range(0, len(q), step):
        at = slice(m, m + step)
        entries = torch.cat(
            [
                read_kv(window_nope, window_rope, window_scale, near[at]),
                read_kv(pool_nope, pool_rope, pool_scale, chosen[at]),
            ],
            1,
        )
        valid = torch.cat([near[at], chosen[at]], 1) >= 0
        out[at] = _attend(q[at].float(), entries.float(), valid, sink)
    return out


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The last 2 C channels of x [M, H, D] as C pairs, turned by cos and sin [M, C]."""
    C = cos.shape[-1]
    a, b = x[..., -2 * C :].unflatten(-1, (C, 2)).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    pairs = torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
    return torch.cat([x[..., : -2 * C], pairs], -1)


def q_prologue(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """``RoPE(x / sqrt(mean(x^2) + eps))`` of every head, rounded to the type of `x` between.

    Args:
        x: [M, H, D] queries.
        cos, sin: [M, C] f32, of each token's position; the last 2 C channels turn, in pairs.
        eps: added to the mean square.

    Returns:
        [M, H, D] in the type of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
    return _turn(normed.to(wide.dtype), cos, sin).to(x.dtype)


def out_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Inverse RoPE of the last 2 C channels of every head.

    Args:
        x: [M, H, D] outputs of the core attention.
        cos, sin: [M, C] f32, as for the queries.

    Returns:
        [M, H, D] in the type of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _turn(wide, cos, -sin).to(x.dtype)
