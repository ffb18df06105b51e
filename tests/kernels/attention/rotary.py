"""Inputs of the ops that turn heads."""

import torch

from .support import DTYPE

EDGE = {"H": 17, "D": 72, "C": 5, "act": "bf16"}


def draw(M, H, D, C, act, seed):
    """[x, cos, sin]."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(M, C, generator=generator) * 100
    x = torch.randn(M, H, D, generator=generator).to(DTYPE[act])
    return [x, angle.cos(), angle.sin()]
