"""Routing in plain torch, as specified (spec §5.1)."""

import torch

from tileproof.kernels.gemm import reference as gemm
from tileproof.kernels.quant import reference as quant

# Softplus is x itself from here on: exp(-20) is below half a unit of 20 in float32.
LINEAR = 20.0
# Added to the sum of the chosen scores, which may all be zero. Hugging Face adds the same.
GUARD = 1e-20


def scores(logits: torch.Tensor) -> torch.Tensor:
    """``s = sqrt(softplus(logits))``, elementwise, in the type of `logits`."""
    return torch.where(logits > LINEAR, logits, torch.log1p(torch.exp(logits))).sqrt()


def _weights(chosen: torch.Tensor, scale: float) -> torch.Tensor:
    """Chosen scores [M, K] over their sum, slot after slot, times `scale`."""
    total = torch.zeros_like(chosen[:, 0])
    for k in range(chosen.shape[1]):
        total = total + chosen[:, k]
    return chosen / (total + GUARD)[:, None] * scale


def topk_gate(
    logits: torch.Tensor, bias: torch.Tensor, K: int, scale: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K experts of largest ``s + bias``, and their share of the routing weight.

    Args:
        logits: [M, E] f32 or f64.
        bias: [E] f32, which selects and does not weigh.
        K: experts of a token.
        scale: what the weights of a token sum to.

    Returns:
        index [M, K] i64, largest first, of equal ones the lower index; NaN is larger than all.
        weight [M, K]: ``s_k / (sum_k s_k + 1e-20) * scale``, summed in that order.
    """
    s = scores(logits)
    biased = s + bias.to(s.dtype)
    # a stable sort keeps the lower index first; torch sorts NaN to the top of a descending order
    index = biased.sort(dim=-1, descending=True, stable=True).indices[:, :K]
    return index, _weights(s.gather(1, index), scale)


def given_gate(logits: torch.Tensor, index: torch.Tensor, scale: float = 1.5) -> torch.Tensor:
    """Weights [M, K] of experts chosen elsewhere.

    Args:
        logits: [M, E] f32 or f64.
        index: [M, K] i64; -1 is no expert, whose weight is 0.
        scale: what the weights of a token sum to.
    """
    s = scores(logits).gather(1, index.clamp(min=0))
    return _weights(torch.where(index < 0, torch.zeros_like(s), s), scale)


def hash_gate(
    logits: torch.Tensor, token: torch.Tensor, table: torch.Tensor, scale: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts by token id: ``index = table[token]``, weights as in :func:`given_gate`.

    Args:
        logits: [M, E] f32 or f64.
        token: [M] i64 ids.
        table: [V, K] i64 experts of each id.
        scale: what the weights of a token sum to.

    Returns:
        index [M, K] i64 and weight [M, K].
    """
    index = table[token]
    return index, given_gate(logits, index, scale)


def permute(index: torch.Tensor, E: int, Q: int, R: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of pairs (token, slot) sorted by expert, each expert's at the first row of a tile.

    Args:
        index: [M, K] i64, expert of each pair; -1 is none. One expert in two slots has two rows.
        E: experts.
        Q: tiles there are, at least those in use.
        R: rows of a tile.

    Returns:
        place [M, K] i32, the row of each pair or -1; expert [Q] i32 of each tile, -1 behind the
        last in use.
    """
    flat = index.flatten()
    count = torch.bincount(flat[flat >= 0], minlength=E)
    used = (count + R - 1) // R
    expert = torch.full((Q,), -1)
    owners = torch.arange(E).repeat_interleave(used)[:Q]
    expert[: len(owners)] = owners
    place = torch.full_like(flat, -1)
    order = flat.sort(stable=True).indices[(flat < 0).sum() :]
    rank = torch.arange(len(order)) - (count.cumsum(0) - count).repeat_interleave(count)
    place[order] = ((used.cumsum(0) - used) * R)[flat[order]] + rank
    return place.view_as(index).int(), expert.int()


def source(place: torch.Tensor, source: torch.Tensor) -> None:
    """``source[place[m, k]] = m K + k``; -1 is no row.

    Args:
        place: [M, K] i32.
        source: [Q, R] i32, changed.
    """
    flat = place.flatten()
    pairs = torch.arange(len(flat), dtype=torch.int32)
    source.view(-1)[flat[flat >= 0].long()] = pairs[flat >= 0]


def _listed(x: torch.Tensor, source: torch.Tensor, K: int) -> torch.Tensor:
    """``x[source // K]`` [Q, R, D], zeros where source is -1."""
    if not len(x):
        return x.new_zeros(*source.shape, x.shape[1])
    rows = x[(source.clamp(min=0) // K).long()]
    return torch.where((source >= 0)[..., None], rows, torch.zeros_like(rows))


def dispatch(x: torch.Tensor, source: torch.Tensor, K: int) -> torch.Tensor:
    """Rows of tokens where their experts find them.

    Args:
        x: [M, D].
        source: [Q, R] i32, pair m K + k of each row; -1 is none.
        K: slots of a token.

    Returns:
        [Q, R, D], zeros where there is no pair.
    """
    return _listed(x, source, K)


def dispatch_fp8(
    x: torch.Tensor, source: torch.Tensor, K: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`dispatch` of bf16 as [Q, R, D] e4m3 and [Q, R, ceil(D / 128)] ue8m0."""
    return _cast(_listed(x, source, K))


def _cast(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = quant.fp8_cast(rows.flatten(0, 1), quant.TILE)
    return codes.unflatten(0, rows.shape[:2]), scales.unflatten(0, rows.shape[:2])


def _gated(h: torch.Tensor, limit: float) -> torch.Tensor:
    """silu(min(g, limit)) * clamp(u, -limit, limit) of h = [g | u], in float32 at least."""
    wide = h.double() if h.dtype == torch.float64 else h.float()
    gate, up = wide.chunk(2, -1)
    gate = gate.clamp(max=limit)
    return gate / (1 + torch.exp(-gate)) * up.clamp(-limit, limit)


def swiglu(h: torch.Tensor, limit: float = 10.0) -> torch.Tensor:
    """The gated half of an MLP.

    Args:
        h: [M, 2 I], the gate's columns first.
        limit: what the gate is at most and the other half at most in magnitude.

    Returns:
        [M, I] in h's type, rounded once.
    """
    return _gated(h, limit).to(h.dtype)


def swiglu_fp8(
    h: torch.Tensor, weight: torch.Tensor, source: torch.Tensor, limit: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the second product of the experts takes.

    Args:
        h: [Q, R, 2 I] bf16.
        weight: [M, K] f32, routing weights.
        source: [Q, R] i32, pair m K + k of each row; -1 is none.
        limit: as in :func:`swiglu`.

    Returns:
        [Q, R, I] e4m3 and [Q, R, ceil(I / 128)] ue8m0 of the gated rows times their weight,
        rounded to bf16 between; zeros where there is no pair.
    """
    factor = _listed(weight.reshape(-1, 1), source, 1)
    used = (source >= 0)[..., None]
    gated = _gated(torch.where(used, h, torch.zeros_like(h)), limit) * factor
    return _cast(gated.bfloat16())


def combine(
    y: torch.Tensor, place: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor
) -> torch.Tensor:
    """What a token's experts made, times their weights, slot after slot, and the shared expert's.

    Args:
        y: [Q, R, D].
        place: [M, K] i32, row of each pair; -1 is none.
        weight: [M, K] f32; ones if the rows have their weights in them.
        shared: [M, D], added last.

    Returns:
        [M, D] in y's type, summed in float32 (in float64 of float64) and rounded once.
    """
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    rows = y.flatten(0, 1)
    total = torch.zeros(shared.shape, dtype=wide)
    for k in range(place.shape[1]):
        used = place[:, k] >= 0
        term = weight[used, k, None].to(wide) * rows[place[used, k].long()].to(wide)
        total[used] = total[used] + term
    return (total + shared.to(wide)).to(y.dtype)


def mega(
    x, xs, source, expert, place, weight, w13, s13, w2, s2, shared, a, s, y, limit: float = 10.0
) -> torch.Tensor:
    """The routed experts of a layer, from tokens to their sum.

    Args:
        x: [M, D] e4m3 and
        xs: [M, ceil(D / 128)] ue8m0, as from :func:`quant.fp8_cast`.
        source, expert, place: lists of :func:`permute` and :func:`source`.
        weight: [M, K] f32.
        w13, s13: [E, 2 I, D / 2] u8 and [E, 2 I, D / 32] ue8m0, gate above up.
        w2, s2: [E, D, I / 2] and [E, D, I / 32].
        shared: [M, D] bf16.
        a, s, y: room for what lies between, [Q, R, I] e4m3, [Q, R, ceil(I / 128)] ue8m0 and
            [Q, R, D] bf16; changed in the tiles that have an expert.
        limit: as in :func:`swiglu`.

    Returns:
        [M, D] bf16.
    """
    K, used = place.shape[1], expert >= 0
    rows = _listed(x.view(torch.uint8), source, K).view(x.dtype)
    scales = _listed(xs.view(torch.uint8), source, K).view(xs.dtype)
    h = gemm.fp4_experts(rows, scales, expert, w13, s13, quant.TILE, "bf16")
    made, made_scales = swiglu_fp8(h, weight, source, limit)
    a.view(torch.uint8)[used] = made.view(torch.uint8)[used]
    s.view(torch.uint8)[used] = made_scales.view(torch.uint8)[used]
    y[used] = gemm.fp4_experts(made, made_scales, expert, w2, s2, quant.TILE, "bf16")[used]
    return combine(y, place, torch.ones_like(weight), shared)
