"""The network on the kernels, on the virtual GPU: bits that hang on a request alone, and numbers.

A kernel sums in float32 in its own order, so once in a while a rounding to bf16, FP8 or FP4 goes
the other way than in the reference, and an entry of nearly equal score is chosen. Each such turn
replaces a rounding error by another of its kind. If all did, the two would differ by the root of
two times the noise that roundings make, which is the reference's distance to the same network in
float64; they are held to that noise itself. A mistake (the wrong window, sums of another row) is
as large as the logits are, several times more, and single ops are held to single roundings.
"""

import copy
from collections import Counter

import pytest
import torch

from tileproof.model import official, weights
from tileproof.model.cache import Chunk
from tileproof.model.checkpoint import write_tiny_official_checkpoint
from tileproof.model.deepseek_v4 import OPS, DeepseekV4

from .official import Official, unrounded
from .rounded import Rounded, experts_in_steps
from .support import VOCABULARY, token_ids

LENGTH = 40
SIZES = {  # a layer of each kind, the first with hashed experts
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "compress_rate_hca": 16,
    "num_hash_layers": 1,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return write_tiny_official_checkpoint(folder, 1, VOCABULARY, **SIZES)


@pytest.fixture(scope="module")
def network(path):
    loaded = DeepseekV4.load(path, "virtual", arch="sm_80")
    loaded.run.add = None  # what a call now lacks would be missing in a bundle made beforehand
    return loaded


@pytest.fixture(scope="module")
def ids():
    return token_ids(2, 1, LENGTH)[0]


@pytest.fixture(scope="module")
def whole(network, ids):
    """Logits, streams and predictions of a prompt at once."""
    held, chunk = network.cache(1, 256, scratch=64), Chunk(0, 0, LENGTH)
    logits, streams = network.forward([chunk], ids, held, every=True)
    return logits, streams, network.predict([chunk], streams, ids.roll(-1), held)


def test_pieces_and_steps_beside_another_request_have_the_bits_of_a_prompt(network, ids, whole):
    held, start, other = network.cache(2, 512, scratch=64), 0, token_ids(3, 1, LENGTH)[0]
    for count, beside in ((19, 0), (1, 5), (1, 1), (12, 2), (7, 3)):
        ends = held.length[0] + beside
        chunks = [Chunk(1, start, count)]
        tokens = [ids[start : start + count]]
        following = [ids.roll(-1)[start : start + count]]
        if beside:
            chunks.insert(0, Chunk(0, held.length[0], beside))
            tokens.insert(0, other[held.length[0] : ends])
            following.insert(0, other[held.length[0] + 1 : ends + 1])
        logits, streams = network.forward(chunks, torch.cat(tokens), held, every=True)
        ahead = network.predict(chunks, streams, torch.cat(following), held)
        for got, expected in zip((logits, streams, ahead), whole, strict=True):
            assert torch.equal(got[beside:], expected[start : start + count]), (start, count)
        start += count
    assert start == LENGTH


def test_64_requests_at_once_have_the_bits_of_one_beside_nan(network, ids, whole):
    """Of 1 to 3 tokens, then a step of each; the embedding in the request of slot 5 is NaN."""
    held = network.cache(64, 64 * 256, scratch=192)
    poison = next(i for i in range(VOCABULARY) if i not in ids)
    kept = network.embed[poison].clone()
    network.embed[poison] = torch.nan
    start = [0] * 64
    try:
        for counts in ([1 + (5 * slot) % 3 for slot in range(64)], [1] * 64):
            chunks = [Chunk(slot, start[slot], counts[slot]) for slot in (*range(7, 64), *range(7))]
            tokens = [
                ids[first : first + count] if slot != 5 else torch.full((count,), poison)
                for slot, first, count in chunks
            ]
            logits = network.forward(chunks, torch.cat(tokens), held, every=True).logits
            pieces = logits.split([c.count for c in chunks])
            for (slot, first, count), got in zip(chunks, pieces, strict=True):
                if slot == 5:
                    assert got.isnan().all()
                else:
                    assert torch.equal(got, whole[0][first : first + count]), slot
                start[slot] += count
    finally:
        network.embed[poison] = kept


class Lockstep:
    """Runs every op on kernels and on :class:`Rounded` references, compares, and goes on with what
    the references gave; so no difference hides behind one before it. Of all routed experts in one
    launch, whose steps round on the way, it asks for the bits of the steps."""

    def __init__(self, ops):
        self.ops, self.rounded = ops, Rounded()
        self.differing, self.all = Counter(), Counter()

    def __call__(self, op, *tensors, **params):
        before, passed = copy.deepcopy(tensors), copy.deepcopy(tensors)  # views stay views
        made = [t.contiguous() for t in _listed(self.rounded(op, *tensors, **params))]
        if op == "moe_mega":
            self.all[op] += made[0].numel()
            expected = experts_in_steps(self.ops, *tensors, **params)
            assert torch.equal(self.ops(op, *passed, **params), expected)
            return made[0]
        got = _listed(self.ops(op, *passed, **params))
        for one, other in zip([*passed, *got], [*tensors, *made], strict=True):
            self.compare(op, one, other)
        written = sum(t.numel() for t in made) + sum(
            int((_bits(old) != _bits(new)).sum()) for old, new in zip(before, tensors, strict=True)
        )
        self.all[op] += written
        return made if len(made) > 1 else made[0] if made else None

    def compare(self, op, got, expected):
        kind = expected.dtype
        if kind == torch.uint8:  # two e2m1 a byte
            got, expected = (_fp4_steps(t) for t in (got, expected))
            assert ((got - expected).abs() <= 1).all(), op
        elif kind in (torch.float8_e8m0fnu, torch.int32, torch.int64):
            got, expected = (t.float() if kind.is_floating_point else t for t in (got, expected))
            assert torch.equal(got, expected), op
        else:
            got, expected = got.float(), expected.float()
            finite = expected.isfinite()
            assert torch.equal(got[~finite], expected[~finite]), op
            got, expected = (torch.where(finite, t, 0) for t in (got, expected))
            largest = expected.abs().amax(-1, keepdim=True) if expected.numel() else expected
            bound = STEP.get(kind, 0) * expected.abs() + LEAST.get(kind, 2.0**-14 * largest)
            assert ((got - expected).abs() <= bound).all(), op
        if kind != torch.float32:
            self.differing[op] += int((got != expected).sum())


# Two neighbouring roundings at most: of bf16 to bf16, or of one to a code. Below, sums of up to 512
# terms in float32, relative to the row's largest element.
STEP = {torch.bfloat16: 2.0**-6, torch.float8_e4m3fn: 2.0**-3}
LEAST = {torch.float8_e4m3fn: 2.0**-9}  # codes: half a step below normal numbers


def _listed(result):
    return [] if result is None else [result] if isinstance(result, torch.Tensor) else [*result]


def _bits(tensor):
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _fp4_steps(packed):
    """Places of e2m1 codes among the format's values."""
    codes = torch.stack((packed & 15, packed >> 4), -1).int()
    return torch.where(codes >= 8, 8 - codes, codes)


def test_every_op_of_the_network_is_within_a_rounding_of_its_reference(network, ids, monkeypatch):
    """Two batches: a prompt; then a step of it beside a piece of another. Attention takes the last
    three tokens by clusters."""
    monkeypatch.setattr(official, "clustered", lambda *load: 3)
    run, network.run = network.run, Lockstep(network.run)
    try:
        held = network.cache(2, 512, scratch=64)
        for chunks, tokens in (
            ([Chunk(1, 0, LENGTH)], ids),
            ([Chunk(1, LENGTH, 1), Chunk(0, 0, 9)], ids[:10]),
        ):
            streams = network.forward(chunks, tokens, held).streams
            network.predict(chunks, streams, tokens, held)
        seen, lock = set(network.run.all), network.run
    finally:
        network.run = run
    # a sum's float32 error is within a thousandth of a step of bf16, so few roundings turn
    shares = {op: lock.differing[op] / max(1, lock.all[op]) for op in seen}
    assert max(shares.values()) < 1e-3, shares
    assert seen == {op.replace("/", "_") for op in OPS}


def test_it_differs_from_the_reference_by_less_than_roundings_do(network, path, ids, whole):
    state = weights.read(path)
    reference = Official(network.config, state, LENGTH)
    expected, streams = reference(ids)
    noise = (expected - unrounded(network.config, state, ids)).square().mean().sqrt()
    assert noise < expected.std() / 3
    for got, wanted in (
        (whole[0], expected),
        (whole[2], reference.predict(streams, ids.roll(-1))),
    ):
        assert (got - wanted).square().mean().sqrt() < noise
