"""Tiny models, and the same network in float64 as the judge of float32 results."""

from __future__ import annotations

import copy

import torch
from tileproof.model.checkpoint import tiny_model
from torch.overrides import TorchFunctionMode

VOCABULARY = 256


class Wide(TorchFunctionMode):
    """Code that asks for float32 gets float64: transformers casts in many places of its own."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        kwargs = {k: wide(v) for k, v in (kwargs or {}).items()}
        return function(*map(wide, args), **kwargs)


def model(seed, **changes):
    """A float32 model of five layers, eval mode."""
    return tiny_model(seed, VOCABULARY, **changes)


def token_ids(seed, batch, length):
    return torch.randint(
        VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed + 1)
    )


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def exact_logits(model, ids):
    """Logits of transformers' own, unpatched code, computed in float64 with the same weights."""
    double = copy.deepcopy(model).double()
    double.config._experts_implementation = "eager"  # grouped_mm takes no float64
    with Wide():
        return logits(double, ids)


def error(got, exact):
    return (got.double() - exact).abs().max().item()


def generate(model, ids, tokens):
    """Greedy continuation with the model's cache; the new tokens only."""
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return out[:, ids.shape[1] :]
