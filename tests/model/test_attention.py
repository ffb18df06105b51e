"""The attention engine: against transformers' attention in float64, and against itself cut up.

float32 attention rounds as often as transformers' own float32 does, so its largest error over all
outputs is within a factor of two of theirs. Cutting a prompt up, or other requests beside it, must
change no bit on kernels; torch references sum as torch's matrix products do, whose order hangs on
the number of rows, so they are held to float32 rounding only.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers.masking_utils import create_sliding_window_causal_mask

from tileproof.dsl import get
from tileproof.model.attention import Batch, State, attention
from tileproof.model.cache import Chunk, Pages, Stripes
from tileproof.model.dispatch import Kernels
from tileproof.model.exact import _Wide
from tileproof.model.hf_attention import rope_of, weights_of
from tileproof.model.library import References, built
from tileproof.runtime import Library
from tileproof.runtime.backends import choose
from tileproof.runtime.bundle import Bundle

from .support import model

KINDS = {"sliding": 1, "csa": 2, "hca": 3}  # layer of the tiny model
WIDTH, PAGE = 8, 128
KERNELS = ("gemm/dense", "gemm/grouped", "norm/rmsnorm", "norm/kv_row", "attention/q_prologue",
           "attention/sparse", "attention/out_rope", "compressor/pool_row", "compressor/keep",
           "indexer/score", "indexer/topk", "rope/rotate")  # fmt: skip


def engine(library):
    return Kernels(library, None, library if library.backend == "reference" else None)


@pytest.fixture(scope="module")
def virtual():
    config = model(0).config.to_dict()
    specs = [s for name in KERNELS for s in get(name).for_model(config, "f32")]
    specs = [s for s in specs if s.types.get("weight") != "bf16" and s.types.get("out") != "bf16"]
    bundle = Bundle(built(specs, ["sm_80"]))
    library = Library(choose("virtual", "sm_80", bundle))
    library.add(bundle)
    return engine(library)


@pytest.fixture
def run(request):
    name = getattr(request, "param", "reference")
    return request.getfixturevalue("virtual") if name == "virtual" else engine(References())


def layer(kind, seed, run):
    """transformers' module with its rotations, and the same weights for the engine."""
    m = model(seed)
    module, rotary = m.model.layers[KINDS[kind]].self_attn, m.model.rotary_emb
    rope = rope_of(rotary, module.rope_layer_type)
    return m, module, weights_of(run, module, rope, torch.float32)


def theirs(m, module, x, kind):
    """transformers' attention of one request [S, D] in the type `kind`."""
    module, rotary = copy.deepcopy((module, m.model.rotary_emb))
    module, x = module.to(kind), x[None].to(kind)
    position = torch.arange(x.shape[1])[None]
    with torch.no_grad(), _Wide() if kind == torch.float64 else torch.no_grad():
        mask = create_sliding_window_causal_mask(m.config, x, None, None, position)
        turned = {k: rotary(x, position_ids=position, layer_type=k) for k in ("main", "compress")}
        return module(x, turned, position, mask, None)[0][0]


def ours(run, weights, batches, places, requests, inputs):
    """The engine's outputs by request, of inputs by request, in the given batches of chunks."""
    state = State.empty(weights, WIDTH, requests, 8 * PAGE)
    out = {slot: [] for slot in inputs}
    for chunks in batches:
        if isinstance(places, Pages):
            places.reserve(chunks)
        batch = Batch(chunks, requests, WIDTH, places)
        x = torch.cat([inputs[c.slot][c.start : c.start + c.count] for c in chunks])
        with torch.no_grad():
            y = attention(run, weights, state, batch, x)
        for c, part in zip(chunks, y.split([c.count for c in chunks]), strict=True):
            out[c.slot].append(part)
    return {slot: torch.cat(parts) for slot, parts in out.items()}


def hidden(seed, length):
    return torch.randn(length, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["reference", "virtual"], indirect=True)
def test_it_errs_as_little_as_transformers_does(run, kind, seed):
    m, module, weights = layer(kind, seed, run)
    x = hidden(seed, 150)
    exact = theirs(m, module, x, torch.float64)
    bound = 2 * (theirs(m, module, x, torch.float32) - exact).abs().max()
    got = ours(run, weights, [[Chunk(0, 0, 150)]], Stripes(256), 1, {0: x})[0]
    assert (got - exact).abs().max() <= bound


def cut(draw, lengths):
    """Batches of chunks that take every request to its length, in a random order."""
    at = dict.fromkeys(lengths, 0)
    while left := [s for s in lengths if at[s] < lengths[s]]:
        chunks = []
        for slot in draw.sample(left, draw.randint(1, len(left))):
            count = min(draw.choice([1, 1, 2, 3, 5, 9, 40]), lengths[slot] - at[slot])
            chunks.append(Chunk(slot, at[slot], count))
            at[slot] += count
        yield chunks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["reference", "virtual"], indirect=True)
def test_no_bit_hangs_on_the_batch_or_on_chunks_or_on_places(run, kind, seed):
    """Three requests in random chunks, their entries in pages, against each alone at once."""
    _, _, weights = layer(kind, seed, run)
    lengths = {0: 139, 1: 5, 2: 37}
    inputs = {slot: hidden(seed + slot, n) for slot, n in lengths.items()}
    batches = list(cut(random.Random(seed), lengths))
    assert any(len(chunks) > 1 for chunks in batches)
    together = ours(run, weights, batches, Pages(3, 8, PAGE), 3, inputs)
    for slot, x in inputs.items():
        whole = [Chunk(0, 0, len(x))]
        alone = ours(run, weights, [whole], Stripes(256), 1, {0: x})[0]
        if run.library.backend == "virtual":
            assert torch.equal(together[slot], alone)
        else:
            torch.testing.assert_close(together[slot], alone, rtol=2**-18, atol=2**-18)


@pytest.mark.parametrize(("which", "row"), [("near", 3), ("near", -2), ("chosen", 2)])
def test_rows_that_no_pool_has_are_refused(virtual, which, row):
    lists = {"near": torch.tensor([[0, 1]]), "chosen": torch.tensor([[1, -1]])}
    lists[which][0, 1] = row
    near, chosen = (t.int() for t in lists.values())
    window, pool, sink = torch.zeros(3, 32), torch.zeros(2, 32), torch.zeros(8)
    with pytest.raises(RuntimeError, match=f"{which}: got an element outside its contract"):
        virtual("attention_sparse", torch.zeros(1, 8, 32), window, near, pool, chosen, sink)


def test_long_prompts_go_through_lists_in_blocks(seed, monkeypatch):
    run = engine(References())
    for kind in ("csa", "hca"):
        _, _, weights = layer(kind, seed, run)
        x = hidden(seed, 140)
        whole = ours(run, weights, [[Chunk(0, 0, 140)]], Stripes(256), 1, {0: x})[0]
        monkeypatch.setattr("tileproof.model.attention.AT_ONCE", 64)
        blocks = ours(run, weights, [[Chunk(0, 0, 140)]], Stripes(256), 1, {0: x})[0]
        monkeypatch.undo()
        torch.testing.assert_close(blocks, whole, rtol=2**-18, atol=2**-18)
