"""The network composed from ops over paged caches, against the dense reference of the official
policy: bit for bit where sums of products are rounded once."""

import random

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.model import weights
from tileproof.model.cache import Chunk
from tileproof.model.checkpoint import (
    OFFICIAL,
    official_config,
    random_state,
    tiny_model,
    write_tiny_official_checkpoint,
)
from tileproof.model.deepseek_v4 import DeepseekV4
from tileproof.model.names import canonical

from .official import Official
from .rounded import Rounded
from .support import VOCABULARY, token_ids

LENGTH = 76
ENTRIES = 4  # of a page, 16 tokens: so that requests have several pages


@pytest.fixture(scope="module")
def made():
    config = official_config(VOCABULARY, compress_rate_hca=16)
    state = weights.official(config, random_state(config, 1))
    return DeepseekV4(config, state, Rounded()), Official(config, state, LENGTH + 1)


@pytest.fixture(scope="module")
def network(made):
    return made[0]


@pytest.fixture(scope="module")
def ids():
    return token_ids(2, 1, LENGTH)[0]


@pytest.fixture(scope="module")
def expected(made, ids):
    """Logits and streams of all tokens."""
    return made[1](ids)


def cache(network, slots=3, tokens=1 << 10):
    return network.cache(slots, tokens, scratch=128, entries=ENTRIES)


def test_a_prompt_at_once_has_the_bits_of_the_reference(network, ids, expected):
    logits, streams = network.forward([Chunk(0, 0, LENGTH)], ids, cache(network), every=True)
    assert torch.equal(streams, expected[1])
    assert torch.equal(logits, expected[0])


def feed(network, held, slot, ids, counts, every=True):
    """Logits of `ids` in pieces of `counts`; the last takes the rest."""
    found, start = [], held.length[slot]
    for part in ids.split([*counts, len(ids) - sum(counts)]):
        if len(part):
            chunk = Chunk(slot, held.length[slot], len(part))
            found.append(network.forward([chunk], part, held, every).logits)
    assert held.length[slot] == start + len(ids)
    return torch.cat(found)


def test_a_prompt_of_any_length_and_a_step_have_the_bits_of_the_whole(network, ids, expected):
    for n in range(2, LENGTH + 1):
        logits = feed(network, cache(network, slots=1), 0, ids[:n], [n - 1])
        assert torch.equal(logits, expected[0][:n]), n


def test_single_steps_have_the_bits_of_the_whole(network, ids, expected):
    assert torch.equal(feed(network, cache(network), 0, ids, [1] * LENGTH), expected[0])


@pytest.mark.parametrize("counts", [[5] * 15, [1, 2, 30, 3, 17], [40, 36]])
def test_pieces_of_a_prompt_have_the_bits_of_the_whole(network, ids, expected, counts):
    assert torch.equal(feed(network, cache(network), 1, ids, counts), expected[0])


@pytest.mark.parametrize("case", range(3))
def test_a_request_does_not_see_its_neighbours(network, ids, expected, case):
    """Three requests in random pieces, in batches of any of them; one ends, another begins."""
    draw = random.Random(case)
    held = cache(network)
    others = [token_ids(10 + i, 1, LENGTH)[0] for i in range(2)]
    texts = dict(zip(draw.sample(range(3), 3), [ids, *others], strict=True))
    mine = next(slot for slot, text in texts.items() if text is ids)
    found = []
    while held.length[mine] < LENGTH:
        parts = []
        for slot in draw.sample(range(3), draw.randint(1, 3)):
            if held.length[slot] == LENGTH and slot != mine:
                held.release(slot)  # and begins anew, in pages of others
            count = min(draw.choice([1, 1, 1, 2, 5, 17]), LENGTH - held.length[slot])
            if count:
                parts.append(Chunk(slot, held.length[slot], count))
        tokens = [texts[slot][start : start + count] for slot, start, count in parts]
        if parts:
            logits = network.forward(parts, torch.cat(tokens), held, every=True).logits
            pieces = logits.split([c.count for c in parts])
            found += [p for p, c in zip(pieces, parts, strict=True) if c.slot == mine]
    assert torch.equal(torch.cat(found), expected[0])


def test_pages_and_rings_of_a_former_request_leave_nothing(network, ids, expected):
    held = network.cache(1, LENGTH, scratch=128, entries=ENTRIES)
    for other in (token_ids(20, 1, LENGTH)[0], ids):
        logits = feed(network, held, 0, other, [LENGTH])
        held.release(0)
    assert torch.equal(logits, expected[0])


def test_nan_stays_with_its_request(network, ids, expected):
    """A token whose embedding is NaN, beside a request without it."""
    poison = next(i for i in range(VOCABULARY) if i not in ids)
    kept = network.embed[poison].clone()
    text = ids[:30].clone()
    text[11] = poison
    network.embed[poison] = torch.nan
    try:
        parts, tokens = [Chunk(0, 0, 30), Chunk(1, 0, 30)], torch.cat([text, ids[:30]])
        logits = network.forward(parts, tokens, cache(network), every=True).logits
    finally:
        network.embed[poison] = kept
    assert torch.equal(logits[30:], expected[0][:30])
    assert torch.equal(logits[:11], expected[0][:11])
    assert logits[11:13].isnan().all()


def test_logits_are_of_the_last_tokens_unless_asked(network, ids, expected):
    held = cache(network)
    parts, tokens = [Chunk(2, 0, 9), Chunk(0, 0, 5)], torch.cat([ids[:9], ids[:5]])
    logits, streams = network.forward(parts, tokens, held)
    assert torch.equal(logits, expected[0][[8, 4]])
    assert torch.equal(streams, expected[1][[*range(9), *range(5)]])


def test_an_empty_batch(network):
    held = cache(network)
    logits, streams = network.forward([], torch.empty(0, dtype=torch.int64), held)
    assert logits.shape == (0, VOCABULARY)
    assert streams.shape == (0, 4, 128)
    assert network.predict([], streams, torch.empty(0).long(), held).shape == (0, VOCABULARY)


def test_multi_token_prediction_has_the_bits_of_the_reference(made, ids, expected):
    network, reference = made
    following = ids.roll(-1)
    wanted = reference.predict(expected[1], following)
    held = cache(network)
    found, start = [], 0
    for count in (20, 1, 1, 9, LENGTH - 31):
        at, chunks = slice(start, start + count), [Chunk(1, start, count)]
        streams = network.forward(chunks, ids[at], held).streams
        found.append(network.predict(chunks, streams, following[at], held))
        start += count
    assert torch.equal(torch.cat(found), wanted)


def test_greedy_text_is_that_of_the_reference(made, ids):
    network, reference = made
    prompts = [ids[:21].tolist(), ids[30:33].tolist()]
    wanted = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(8):
            text.append(int(reference(torch.tensor(text))[0][-1].argmax()))
        wanted.append(text[len(prompt) :])
    assert network.generate(prompts, 8) == wanted
    assert network.generate(prompts, 8, chunk=4) == wanted
    stop = wanted[0][3]
    first = wanted[0][: wanted[0].index(stop) + 1]
    assert network.generate(prompts[:1], 8, stop=stop) == [first]
    assert network.generate(prompts, 0) == [[], []]


BAD = {
    "a vocabulary of 256": (
        [Chunk(0, 0, 2)], [5, 256], r"tokens: got \[256\], expected ids 0\.\.255"),
    "negative ids": ([Chunk(0, 0, 1)], [-1], r"tokens: got \[-1\], expected ids"),
    "too few ids": ([Chunk(0, 0, 2)], [5], r"tokens: got int64 \[1\], expected integers \[2\]"),
    "a gap": ([Chunk(0, 3, 1)], [5], "chunk of slot 0: got tokens from position 3 on, expected at"
              " 0, behind what"),
    "no tokens": ([Chunk(0, 0, 0)], [], "chunk of slot 0: got 0 tokens, expected at least 1"),
    "a request twice": ([Chunk(1, 0, 1), Chunk(1, 1, 1)], [5, 6], r"got \[1, 1\], expected one"),
    "no such slot": ([Chunk(3, 0, 1)], [5], r"slots: got \[3\], expected one chunk for each of"),
    "too long a batch": ([Chunk(0, 0, 129)], [5] * 129, "got 129, expected at most 128, the"),
    "too few pages": ([Chunk(0, 0, 65)], [5] * 65, "cache: got 4 free pages of 16 tokens, expected"
                      " at least 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_refused_batch_changes_nothing(network, ids, expected, case):
    chunks, tokens, message = BAD[case]
    held = cache(network, tokens=64)
    with pytest.raises(ContractError, match=message):
        network.forward(chunks, torch.tensor(tokens, dtype=torch.int64), held)
    assert torch.equal(feed(network, held, 0, ids[:20], [7]), expected[0][:20])


def test_more_positions_than_the_model_has(network):
    held = network.cache(1, 5000, scratch=5000)
    with pytest.raises(ContractError, match="got 4097 tokens, expected at most 4096"):
        network.forward([Chunk(0, 0, 4097)], torch.zeros(4097, dtype=torch.int64), held)


def test_a_page_table_that_leaves_the_pool(network, ids):
    held = cache(network, tokens=64)
    held.pages.table[1] = [4]
    with pytest.raises(ContractError, match=r"page table: got \[4\], expected pages 0\.\.3"):
        network.forward([Chunk(1, 0, 5)], ids[:5], held)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_rope_head_dim": 8}, "head_dim - qk_rope_head_dim of an official model: got 120"),
        ({"index_head_dim": 64}, "index_head_dim of an official model: got 64, expected a mult"),
        ({"moe_intermediate_size": 64}, "moe_intermediate_size of an official model: got 64"),
    ],
)
def test_sizes_without_official_formats(changes, message):
    config = official_config(VOCABULARY, **changes)
    with pytest.raises(ContractError, match=message):
        DeepseekV4(config, random_state(config, 1), Rounded())


def test_pages_that_hold_no_whole_entry(network):
    with pytest.raises(ContractError, match="got 2, 8 tokens, expected pages of a multiple of 16"):
        network.cache(1, 64, entries=2)


def test_a_checkpoint_is_loaded_as_it_was_written(tmp_path, network, ids, expected):
    """Official, with scales as stored; and of transformers, whose matrices are quantised."""
    changes = {"compress_rate_hca": 16}
    path = write_tiny_official_checkpoint(tmp_path / "official", 1, VOCABULARY, **changes)
    model = tiny_model(7, VOCABULARY, **OFFICIAL, **changes)
    model.save_pretrained(tmp_path / "theirs")
    for folder, wanted in (
        (path, expected[0]),
        (tmp_path / "theirs", Official(
            model.config, weights.official(model.config, canonical(model.state_dict())), LENGTH
        )(ids)[0]),
    ):  # fmt: skip
        loaded = DeepseekV4.load(folder, "reference")
        assert (loaded.predictor is None) == (folder != path)
        assert loaded.run.library.backend == "reference"
        loaded.run = network.run
        logits = loaded.forward([Chunk(0, 0, LENGTH)], ids, cache(loaded), every=True).logits
        assert torch.equal(logits, wanted)


def test_a_model_without_mtp_says_so(network, made):
    state = {k: t for k, t in made[1].state.items() if not k.startswith("mtp.")}
    model = DeepseekV4(network.config, state, network.run)
    with pytest.raises(ContractError, match="got a checkpoint without MTP, expected one with"):
        model.predict([Chunk(0, 0, 1)], torch.zeros(1, 4, 128), torch.zeros(1).long(), cache(model))


@pytest.mark.parametrize("name", ["layers.2.attn.indexer.wq_b.scale", "layers.0.ffn.gate.tid2eid"])
def test_a_checkpoint_without_a_tensor(network, made, name):
    state = {k: t for k, t in made[1].state.items() if k != name}
    with pytest.raises(ContractError, match=f"checkpoint: {name.removesuffix('.scale')}"):
        DeepseekV4(network.config, state, network.run)
    state = made[1].state | {name: made[1].state[name][:1]}
    with pytest.raises(ContractError, match=f"checkpoint: {name}: got .*, expected"):
        DeepseekV4(network.config, state, network.run)
