"""Routing in plain torch, as specified (spec §5.1)."""

import torch

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


def permute(index: torch.Tensor, E: int, Q: int, B: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of pairs (token, slot) sorted by expert, each expert's at the first row of a tile.

    Args:
        index: [M, K] i64, expert of each pair; -1 is none. One expert in two slots has two rows.
        E: experts.
        Q: tiles there are, at least those in use.
        B: rows of a tile.

    Returns:
        place [M, K] i32, the row of each pair or -1; expert [Q] i32 of each tile, -1 behind the
        last in use.
    """
    flat = index.flatten()
    count = torch.bincount(flat[flat >= 0], minlength=E)
    used = (count + B - 1) // B
    expert = torch.full((Q,), -1)
    owners = torch.arange(E).repeat_interleave(used)[:Q]
    expert[: len(owners)] = owners
    place = torch.full_like(flat, -1)
    order = flat.sort(stable=True).indices[(flat < 0).sum() :]
    rank = torch.arange(len(order)) - (count.cumsum(0) - count).repeat_interleave(count)
    place[order] = ((used.cumsum(0) - used) * B)[flat[order]] + rank
    return place.view_as(index).int(), expert.int()


def source(place: torch.Tensor, source: torch.Tensor) -> None:
    """``source[place[m, k]] = m K + k``; -1 is no row.

    Args:
        place: [M, K] i32.
        source: [Q, B] i32, changed.
    """
    flat = place.flatten()
    pairs = torch.arange(len(flat), dtype=torch.int32)
    source.view(-1)[flat[flat >= 0].long()] = pairs[flat >= 0]
