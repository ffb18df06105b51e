"""What the tests of the gates share."""

import torch

from ..support import UNIT

EDGE = {"E": 130, "K": 7}

# Roundings by which a score may be off: exp and log1p err by two units each, log1p passes on at
# most the relative error of its argument, the root halves both and adds one.
SCORE = (2 + 2) / 2 + 1


def weight_bound(expected):
    """Bound on the error of weights [M, K].

    Scores as above in quotient and sum, K roundings of the sum, a quotient and a product.
    """
    return expected * 1.01 * (2 * SCORE + expected.shape[1] + 3) * UNIT


def listed(M, K, Q, R, seed):
    """source [Q, R] of some pairs of M tokens, each at most once, in no order; -1 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.full((Q * R,), -1, dtype=torch.int32)
    pairs = torch.randperm(M * K, generator=generator)[: Q * R].int()
    source[torch.randperm(Q * R, generator=generator)[: len(pairs)]] = pairs
    return source.view(Q, R)


def shuffled(tensor, order):
    """Rows [Q, R, ...] in another order."""
    return tensor.flatten(0, 1)[order].view_as(tensor)
