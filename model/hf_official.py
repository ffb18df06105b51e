"""transformers' DeepSeek-V4 in the official precision: its forward is :mod:`deepseek_v4`'s network.

The modules within do not run. Weights are quantised once, when the model is patched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

from tileproof.dsl import ContractError, check

from .cache import Chunk
from .deepseek_v4 import Cache, DeepseekV4, specializations
from .hf_attention import real_columns
from .layers import Patched
from .library import Ops, opened
from .names import canonical


class PagedLayer(DynamicSlidingWindowLayer):
    """One layer of a caller's cache. All share `held`, the network's, with a slot for each row."""

    is_croppable = False

    def __init__(self, width: int, held: Cache) -> None:
        self.held = held
        super().__init__(sliding_window=width)

    def update(self, *_: Any, **__: Any) -> Any:
        """What unpatched attention calls."""
        raise ContractError(
            "past_key_values: got a cache that a model in official precision began, expected one of"
            " the model as it is now: patch and undo between two generations, not within one"
        )

    def _refused(self, *_: Any, **__: Any) -> None:
        raise ContractError(
            "past_key_values: got a change of a paged cache's rows, expected none, as for greedy"
            ' text or samples; precision="exact" has beams'
        )

    reorder_cache = batch_repeat_interleave = batch_select_indices = crop = _refused

    def reset(self) -> None:
        """Forget everything."""
        for slot in range(self.held.slots):
            self.held.release(slot)
        self.cumulative_length = 0


def held_by(cache: Any, network: DeepseekV4, rows: int) -> Cache:
    """The network's cache within a caller's, which becomes ours if it is a new one.

    Raises ContractError for a cache that is not a DynamicCache in memory, that another model began,
    or that has another number of rows.
    """
    got = type(cache).__name__
    plain = isinstance(cache, DynamicCache) and not getattr(cache, "offloading", False)
    if plain and cache.get_seq_length() == 0:
        held = network.cache(rows, 1, 1)
        width = network.config.sliding_window
        cache.layers = [PagedLayer(width, held) for _ in network.blocks]
    ours = plain and all(isinstance(layer, PagedLayer) for layer in cache.layers)
    if plain and not ours:
        got = "one that another model began"
    expected = "a DynamicCache, new or of a model in official precision"
    check(ours, "past_key_values", got=got, expected=expected)
    held = cache.layers[0].held
    got = f"a cache of {held.slots} rows"
    check(held.slots == rows, "past_key_values", got=got, expected=f"{rows} rows")
    return held


class DeepseekV4Model(Patched, hf.DeepseekV4Model):
    __module__ = hf.__name__  # what transformers finds the outputs to record by

    @torch.compiler.disable
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> MoeModelOutputWithPast:
        """ids [B, S] → normed hidden states [B, S, D] bf16, zeros for padding, and the cache."""
        network: DeepseekV4 = self._tileproof
        given = input_ids is not None and inputs_embeds is None
        check(given, "inputs_embeds", got="embeddings", expected="input_ids, which route tokens")
        assert input_ids is not None
        B, S = input_ids.shape
        columns = real_columns(input_ids.shape, attention_mask, position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache
        cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        held = held_by(cache, network, B)
        real = torch.ones(B, S, dtype=torch.bool) if columns is None else columns
        counts = real.sum(1).tolist()
        chunks = [Chunk(r, held.length[r], n) for r, n in enumerate(counts) if n]
        network.make_room(chunks, held)
        hidden = network.hidden(chunks, input_ids[real.to(input_ids.device)], held)
        for layer in cache.layers:
            layer.cumulative_length += S
        out = hidden.new_zeros(B, S, hidden.shape[1])
        out[real.to(out.device)] = hidden
        return MoeModelOutputWithPast(
            last_hidden_state=out, past_key_values=cache if use_cache else None
        )


class Linear(Patched, torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normed hidden states [B, S, D] bf16 → logits [B, S, V] f32."""
        network: DeepseekV4 = self._tileproof
        return network.logits(input.flatten(0, -2)).unflatten(0, input.shape[:-1])


def network_in(
    model: Any, backend: str, bundle: str | Path | None, arch: str | None, on_missing: str
) -> tuple[list[Any], DeepseekV4]:
    """Give `model` a network of its weights to run; the modules whose class changed, and it.

    Raises ContractError, and changes nothing, for a model that is no DeepseekV4ForCausalLM, that
    the official formats have no blocks for.
    """
    got = type(model).__name__
    check(type(model) is hf.DeepseekV4ForCausalLM, "model of precision='official'", got=got,
          expected="DeepseekV4ForCausalLM")  # fmt: skip
    check(on_missing != "reference", "on_missing of precision='official'", got=repr(on_missing),
          expected="'compile' or 'error'")  # fmt: skip
    config, device = model.config, model.model.embed_tokens.weight.device
    for kind, rope in config.rope_parameters.items():
        turned = rope.get("rope_type", "default")
        expected = "default or yarn, as official models"
        check(turned in ("default", "yarn"), f"rope_type of {kind}", got=turned, expected=expected)
    needed = specializations(config) if backend != "reference" else []
    run = Ops(*opened(needed, device, backend, bundle, arch, on_missing))
    network = DeepseekV4(config, canonical(model.state_dict()), run, device)
    swapped = [(model.model, DeepseekV4Model), (model.lm_head, Linear)]
    for module, replacement in swapped:
        module._tileproof = network
        module.__class__ = replacement
    return [module for module, _ in swapped], network
