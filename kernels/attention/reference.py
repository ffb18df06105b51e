"""Core attention in plain torch, as specified (spec §3.2)."""

import torch

from tileproof.kernels.kv_cache import read_kv

# Gathered entries of so many elements are held at once: they stay in a processor's cache.
_AT_ONCE = 1 << 20


def _attend(q, scopes, sink):
    """softmax over the valid entries of all scopes and the sink.

    Args:
        q: [M, H, D].
        scopes: (entries [M, L, D], key and value; valid [M, L] bool), for each of some pools.
        sink: [H], a logit without a value.

    Returns:
        [M, H, D]; 0 for a token without entries.
    """
    q = q * q.shape[-1] ** -0.5
    s = torch.cat([(q @ e.mT).masked_fill(~v[:, None], -torch.inf) for e, v in scopes], -1)
    if not s.shape[-1]:
        return torch.zeros_like(q)
    peak = s.amax(-1, keepdim=True)
    peak = torch.where(peak == -torch.inf, 0, peak)
    p = torch.exp(s - peak)
    total = p.sum(-1, keepdim=True) + torch.exp(sink[:, None] - peak)
    parts = p.split([e.shape[1] for e, _ in scopes], -1)
    made = sum(part @ e for part, (e, _) in zip(parts, scopes, strict=True))
    return made / torch.where(total == 0, 1, total)


def _steps(q, near, chosen):
    """Slices of tokens, so many at once as :data:`_AT_ONCE` says."""
    step = max(1, _AT_ONCE // max(1, (near.shape[1] + chosen.shape[1]) * q.shape[-1]))
    return (slice(m, m + step) for m in range(0, len(q), step))


def _full(index):
    """`index` [M, L] without the last columns that are -1 in every row."""
    used = (index >= 0).any(0).nonzero()
    return index[:, : int(used[-1]) + 1 if len(used) else 0]


def _rows(pool, index):
    """Entries [M, L, D] of `index` [M, L].

    For -1 another entry of the same token, so that what is not finite reaches no other token; zeros
    for a token without entries.
    """
    if not index.shape[1]:
        return pool.new_zeros(*index.shape, pool.shape[-1])
    some = index.amax(1, keepdim=True)
    index = torch.where(index < 0, some, index).clamp(min=0)
    rows = pool.index_select(0, index.flatten()).unflatten(0, index.shape)
    none = some[..., None] < 0
    return rows.masked_fill(none, 0) if none.any() else rows


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
    for at in _steps(q, near, chosen):
        pools = ((window, _full(near[at])), (pool, _full(chosen[at])))
        scopes = [(_rows(rows, index).to(wide), index >= 0) for rows, index in pools]
        out[at] = _attend(q[at].to(wide), scopes, sink.to(wide))
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
    for at in _steps(q, near, chosen):
        pools = (
            (window_nope, window_rope, window_scale, _full(near[at])),
            (pool_nope, pool_rope, pool_scale, _full(chosen[at])),
        )
        scopes = [(read_kv(*views, index).float(), index >= 0) for *views, index in pools]
        out[at] = _attend(q[at].float(), scopes, sink)
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
