"""The state of patched attention inside transformers' cache objects.

A ``DynamicCache`` stays the caller's object: its layers are replaced by ones that hold the rings
and pools of :mod:`attention`, and what ``generate()`` does to a cache (asking for its length,
reordering beams, repeating and selecting rows, resetting) works on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from tileproof.dsl import ContractError, check

from .attention import Attention, Branch, Compressor, State
from .cache import Stripes


class StateLayer(DynamicSlidingWindowLayer):
    """A layer of a cache that patched attention reads and writes.

    Attributes:
        seen: tokens of each row of the batch so far, padding not counted.
        length: tokens whose compressed entries there is room for in each row.
        state: None before the first batch.
        cumulative_length: columns so far, padding included: what transformers calls the length.
    """

    is_croppable = False

    def __init__(self, width: int, unit: int) -> None:
        self.state: State | None = None
        self.seen: list[int] = []
        self.length = 0
        self.unit = unit
        super().__init__(sliding_window=width)

    def reserve(self, end: list[int]) -> Stripes:
        """Places for rows that become `end` tokens long; half as much again, as growing copies."""
        if (most := max(end, default=0)) > self.length:
            self.length = -(-(most + most // 2) // self.unit) * self.unit
        return Stripes(self.length)

    def opened(self, weights: Attention, places: Stripes) -> State:
        """The state, with room for `places`."""
        rows, self.length = len(self.seen), places.length
        if self.state is None:
            self.state = State.empty(weights, self.sliding_window, rows, rows * self.length)
            self.is_initialized = True
            self.dtype, self.device = self.state.window.dtype, self.state.window.device
        for branch, part in self._branches(weights):
            stripe = self.length // part.ratio
            entries = branch.entries.view(rows, -1, branch.entries.shape[1])
            if entries.shape[1] < stripe:
                wider = entries.new_zeros(rows, stripe, entries.shape[2])
                wider[:, : entries.shape[1]] = entries
                branch.entries = wider.flatten(0, 1)
        return self.state

    def _branches(self, weights: Attention) -> Iterator[tuple[Branch, Compressor]]:
        if self.state is not None and self.state.main is not None and weights.compressor:
            yield self.state.main, weights.compressor
        if self.state is not None and self.state.index is not None and weights.indexer:
            yield self.state.index, weights.indexer.keys

    @property
    def keys(self) -> torch.Tensor | None:
        """[B, 1, W, D], the rings: position p is in place p % W."""
        if self.state is None:
            return None
        window = self.state.window
        return window.view(len(self.seen), 1, self.sliding_window, window.shape[1])

    @keys.setter
    def keys(self, value: None) -> None:
        """What the base class says before anything is there."""

    values = keys

    def update(self, *_: Any, **__: Any) -> Any:
        """What unpatched attention calls."""
        raise ContractError(
            "past_key_values: got a cache that a patched model began, expected one of the model as"
            " it is now: patch and undo between two generations, not within one"
        )

    def _select(self, rows: list[int]) -> None:
        """Row r becomes what row ``rows[r]`` was."""
        if self.state is None:
            return
        had, at = len(self.seen), torch.tensor(rows, device=self.device)

        def chosen(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.view(had, -1, tensor.shape[1])[at].flatten(0, 1)

        def branch(kept: Branch | None) -> Branch | None:
            return kept and Branch(chosen(kept.state), chosen(kept.entries))

        state = self.state
        self.state = State(chosen(state.window), branch(state.main), branch(state.index))
        self.seen = [self.seen[r] for r in rows]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Beams in their new order."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self._select([r for r in range(len(self.seen)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Some of the rows, by number or by a mask."""
        self._select(torch.arange(len(self.seen))[indices.cpu()].tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was compressed cannot be taken apart."""
        check(tokens_to_remove == 0, "crop", got=tokens_to_remove, expected="0 tokens to remove")

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen, self.length = None, [], 0
        self.cumulative_length, self.is_initialized = 0, False


def layers(cache: Any, config: Any, rows: int) -> list[StateLayer]:
    """The layers of `cache`, which become ours if it is a new one; each has so many rows.

    Raises ContractError for a cache that is not a DynamicCache in memory, that unpatched attention
    began, or that has another number of rows.
    """
    got = type(cache).__name__
    plain = isinstance(cache, DynamicCache) and not getattr(cache, "offloading", False)
    ours = plain and all(isinstance(layer, StateLayer) for layer in cache.layers)
    if plain and cache.get_seq_length() == 0:
        if not ours or len(cache.layers) != config.num_hidden_layers:
            width, unit = config.sliding_window, math.lcm(*config.compress_rates.values())
            cache.layers = [StateLayer(width, unit) for _ in range(config.num_hidden_layers)]
        for layer in cache.layers:
            layer.reset()
            layer.seen = [0] * rows
        return list(cache.layers)
    if plain and not ours:
        got = "one that an unpatched model began"
    check(ours, "past_key_values", got=got, expected="a DynamicCache, new or of a patched model")
    had = len(cache.layers[0].seen)
    check(had == rows, "past_key_values", got=f"a cache of {had} rows", expected=f"{rows} rows")
    return list(cache.layers)
