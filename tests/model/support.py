"""Tiny models and what tests ask of them."""

from __future__ import annotations

import torch

from tileproof.model.checkpoint import tiny_model

VOCABULARY = 256


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


def error(got, exact):
    return (got.double() - exact).abs().max().item()


def generate(model, ids, tokens):
    """Greedy continuation with the model's cache; the new tokens only."""
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return out[:, ids.shape[1] :]
