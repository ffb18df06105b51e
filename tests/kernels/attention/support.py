"""Inputs of attention in shapes of one's choice, and what its results may be off by."""

import torch

from ..support import ACT_UNIT, UNIT

DTYPE = {"bf16": torch.bfloat16, "f32": torch.float32}


def lists(M, length, entries, generator, none=0.2):
    """Index lists [M, length] i32 with duplicates, the ends of the pool, and -1."""
    if not entries:
        return torch.full((M, length), -1, dtype=torch.int32)
    index = torch.randint(0, entries, (M, length), generator=generator, dtype=torch.int32)
    index[torch.rand(M, length, generator=generator) < none] = -1
    if M and length > 1:
        index[0, 0], index[-1, -1] = 0, entries - 1
    return index


def draw(M, H, D, act, S=40, W=8, T=10, K=4, seed=0):
    """Inputs of attention/sparse: [q, window, near, pool, chosen, sink]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DTYPE[act])

    q, window, pool = normal(M, H, D), normal(S, D), normal(T, D)
    near, chosen = lists(M, W, S, generator), lists(M, K, T, generator)
    return [q, window, near, pool, chosen, torch.randn(H, generator=generator)]


def wide(inputs):
    """The inputs in float64."""
    return [x.double() if x.is_floating_point() else x for x in inputs]


def bound(inputs, act):
    """Bound [M, 1, 1] on the error of outputs, from the number formats.

    A logit is a sum of D products; each is added with an error below two roundings to float32 of
    the magnitudes summed (hardware truncates), and f32 brings six times as many products. An error
    e of all logits changes a softmax weight by a factor within exp(2 e). Weights and output round
    to `act`; sums over L entries are off as those over D channels are.
    """
    q, window, near, pool, chosen, _ = wide(inputs)
    M, _, D = q.shape
    products = 6 if act == "f32" else 1
    entries = torch.cat([window, pool]).abs()
    if not M or not len(entries):
        return torch.zeros(M, 1, 1, dtype=torch.float64)
    terms = (q.abs() @ entries.T).amax((1, 2)) * D**-0.5
    logit = 2 * (products * D + 2) * UNIT * terms
    slots = products * (near.shape[1] + chosen.shape[1])
    weight = torch.expm1(2 * logit) + 2 * ACT_UNIT[act] + 2 * (slots + 16) * UNIT
    return (weight * entries.amax())[:, None, None]
