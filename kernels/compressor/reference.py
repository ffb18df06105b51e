"""The KV compressor in plain torch, as specified (spec §2.1)."""

import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.quant import reference as quant

_KINDS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}


def pool(
    kept: torch.Tensor,
    fresh: torch.Tensor,
    source: torch.Tensor,
    ape: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    act: str,
) -> torch.Tensor:
    """One compressed entry from each list of projected tokens.

    A row of `kept` or `fresh` is a token's ``[kv | z]``, two halves of C columns each. Where
    windows overlap, C = 2 D: the next entry takes columns 0..D-1 of it, its own D..2D-1.

    Args:
        kept: [R, 2 C] f32 rows of earlier batches.
        fresh: [M, 2 C] f32 rows of this one.
        source: [N, L] i32: r >= 0 is row r of `kept`, -2 - i is row i of `fresh`, -1 is none. L = A
            where C = D; otherwise L = 2 A and the first A slots belong to the window before.
        ape: [A, C] f32, added to z of the token at place a of its window.
        weight: [D] of the RMSNorm.
        cos, sin: [N, Q] f32 of the entry's position; the last 2 Q channels are rotated in pairs.
        eps: of the RMSNorm.
        act: type of the entries; pooled values are rounded to it before the norm, normed ones
            before the rotation.

    Returns:
        [N, D] in `act`; 0 for an entry whose slots are all empty.
    """
    L, (A, C) = source.shape[1], ape.shape
    D = len(weight)
    kind = _KINDS[act]
    place = torch.where(source < -1, len(kept) - 2 - source, source.clamp(min=0))
    rows = torch.cat([kept, fresh])[place.long()]
    kv, z = rows.split(C, dim=-1)
    z = z + ape.repeat(L // A, 1)
    if C != D:
        own = (torch.arange(L) >= A)[:, None]
        kv, z = (torch.where(own, x[..., D:], x[..., :D]) for x in (kv, z))
    none = (source == -1)[..., None]
    z = z.masked_fill(none, -torch.inf)
    peak = z.amax(1, keepdim=True)
    p = torch.exp(z - torch.where(peak == -torch.inf, 0, peak))
    total = p.sum(1)
    pooled = (p * kv.masked_fill(none, 0)).sum(1) / torch.where(total == 0, 1, total)
    x = pooled.to(kind).to(pooled.dtype)
    x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    x = x.to(kind)
    nope, rope = x.split([D - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    even, odd = rope.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    return torch.cat([nope, turned.to(kind)], -1)


def _entries(
    kept, fresh, source, position, ape, weight, cos, sin, eps, act="bf16"
) -> torch.Tensor:  # fmt: skip
    """:func:`pool` with tables of cos and sin [X, Q], by position [N] of the first own token."""
    at = position.long()
    return pool(kept, fresh, source, ape, weight, cos[at], sin[at], eps, act)


def pool_row(
    kept, fresh, source, position, ape, weight, cos, sin, slot, rows, eps=1e-6
):  # fmt: skip
    """:func:`pool` into `rows` [S, D] at `slot` [N]; -1 is nowhere."""
    kind = next(name for name, dtype in _KINDS.items() if dtype == rows.dtype)
    made = _entries(kept, fresh, source, position, ape, weight, cos, sin, eps, kind)
    rows[slot[slot >= 0].long()] = made[slot >= 0]


def pool_fp8(
    kept, fresh, source, position, ape, weight, cos, sin, slot, nope, rope, scale, eps=1e-6
):  # fmt: skip
    """:func:`pool` in bf16 into pages, see :func:`tileproof.kernels.kv_cache.write_kv`."""
    made = _entries(kept, fresh, source, position, ape, weight, cos, sin, eps)
    kv_cache.write_kv(made, slot, nope, rope, scale)


def pool_fp4(
    kept, fresh, source, position, ape, weight, cos, sin, slot, codes, scale, eps=1e-6
):  # fmt: skip
    """The same with keys of the indexer: rotated by Hadamard-128, then FP4."""
    made = _entries(kept, fresh, source, position, ape, weight, cos, sin, eps)
    kv_cache.write_keys(quant.rotate(made), slot, codes, scale)


def keep(fresh, row, kept):
    """``kept[row[m]] = fresh[m]``, [MK, 2 C] f32, where row[m] is not -1."""
    kept[row[row >= 0].long()] = fresh[row >= 0]
