"""The experts of one layer, composed from ops over rows sorted by expert (spec §5)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tileproof.kernels.moe._lists import TILE, tiles

from .attention import NAMES, Run


class Sorted(NamedTuple):
    """Where the rows of a batch lie when they are sorted by expert.

    Attributes:
        place: [M, K] i32, row of each slot of a token.
        expert: [Q] i32 of each tile of rows.
        source: [Q, R] i32, pair m K + k of each row.
    """

    place: torch.Tensor
    expert: torch.Tensor
    source: torch.Tensor


def by_expert(run: Run, index: torch.Tensor, E: int) -> Sorted:
    """The rows of tokens whose experts are `index` [M, K] i64, -1 for none."""
    Q = tiles(*index.shape, E)
    place, expert = run("moe_permute", index, E=E, Q=Q)
    source = torch.full((Q, TILE), -1, dtype=torch.int32, device=index.device)
    run("moe_source", place, source)
    return Sorted(place, expert, source)


def experts(
    run: Run,
    x: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: torch.Tensor,
    limit: float = 10.0,
) -> torch.Tensor:
    """Routed experts in the type of the activations, and what is added to their sum.

    Args:
        run: runs an op.
        x: [M, D] bf16 or f32.
        index: [M, K] i64, -1 for none.
        weight: [M, K] f32.
        gate_up: [E, 2 I, D], the gate's rows first.
        down: [E, D, I].
        shared: [M, D], the shared expert's output, or zeros.
        limit: of SwiGLU.

    Returns:
        [M, D]: the weighted sum over a token's slots in their order in float32, then `shared`,
        rounded once.
    """
    rows = by_expert(run, index, len(down))

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """In the type of `x`, also where only references take it."""
        y: torch.Tensor = run("gemm_experts", x, rows.expert, w, out=NAMES.get(x.dtype, "f32"))
        return y.to(x.dtype)

    h = product(run("moe_dispatch", x, rows.source, K=index.shape[1]), gate_up)
    a = run("moe_swiglu", h.flatten(0, 1), limit=limit).unflatten(0, h.shape[:2])
    y = product(a, down)
    total: torch.Tensor = run("moe_combine", y, rows.place, weight, shared)
    return total
