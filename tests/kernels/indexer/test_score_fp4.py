"""indexer/score_fp4: the bits of indexer/score on the bfloat16 that queries and keys stand for."""

import pytest
import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.compressor import pool_fp4
from tileproof.kernels.indexer import reference
from tileproof.kernels.indexer.score_fp4 import op
from tileproof.kernels.quant import reference as quant
from tileproof.kernels.rope import rotate_fp4

from ..support import (
    UNIT,
    as_bytes,
    assert_archs_agree,
    assert_schedules_agree,
    assert_within,
    run,
)
from .support import pages, scores_of_rows, tokens

SIZES = {"H": 5, "D": 96, "E": 16}


def draw(M, S, seed, H=5, D=96, E=16, R=3, L=9, apart=0):
    """[q, q_scale, codes, scale, table, request, count, weight]: tokens of some requests."""
    generator = torch.Generator().manual_seed(seed)
    table, request, count, weight = tokens(M, S, H, R, L, E, generator)
    q, q_scale = quant.fp4_cast(torch.randn(M * H, D, generator=generator).bfloat16())
    views = pages(kv_cache.key_pages(E, D), R * L + 1, apart)
    keys = torch.randn((R * L + 1) * E, D, generator=generator).bfloat16()
    keys[::3] *= 1000
    kv_cache.write_keys(keys, torch.arange(len(keys)), *views)
    return [q.unflatten(0, (M, H)), q_scale.unflatten(0, (M, H)), *views,
            table, request, count, weight]  # fmt: skip


def scores(inputs, S, finite=True, **how):
    H, E = inputs[0].shape[1], inputs[2].shape[1]
    (got,) = run(op, inputs, S=S, H=H, D=2 * inputs[0].shape[2], E=E, finite=finite, **how)
    return got


def exact(inputs, S, **how):
    """The same by indexer/score, over the keys of each token's request one after the other."""
    q, q_scale, codes, scale, *rest = inputs
    queries = quant.fp4_dequant(q.flatten(0, 1), q_scale.flatten(0, 1)).unflatten(0, q.shape[:2])
    read = lambda slot: kv_cache.read_keys(codes, scale, slot)  # noqa: E731
    return scores_of_rows(queries, read, codes.shape[1], *rest, S, **how)


@pytest.mark.parametrize(("M", "S"), [(5, 4), (3, 132), (2, 516)])
def test_it_is_the_score_of_the_keys_in_bfloat16(M, S, seed):
    inputs = draw(M, S, seed, L=40, apart=48)
    got = scores(inputs, S, checked=S == 132)
    assert torch.equal(got, exact(inputs, S))


@pytest.mark.parametrize(("H", "D", "E"), [(2, 128, 4), (64, 128, 64), (3, 32, 16)])
def test_sizes(H, D, E, seed):
    inputs = draw(3, 132, seed, H, D, E, L=40 if E == 4 else 9)
    assert torch.equal(scores(inputs, 132), exact(inputs, 132))


def test_every_code_and_scale_that_bfloat16_holds(seed):
    q, q_scale, codes, scale, *rest = draw(2, 132, seed)
    torch.manual_seed(seed)
    codes.copy_(torch.randint(0, 256, codes.shape, dtype=torch.uint8))
    scale.view(torch.uint8).copy_(torch.randint(60, 190, scale.shape, dtype=torch.uint8))
    q.copy_(torch.randint(0, 256, q.shape, dtype=torch.uint8))
    inputs = [q, q_scale, codes, scale, *rest]
    assert torch.equal(scores(inputs, 132), exact(inputs, 132))


def test_reference_is_the_formula(seed):
    inputs = draw(4, 40, seed)
    q, q_scale, codes, scale, *lists, weight = inputs
    got = reference.score_fp4(*inputs, 40)
    expected = reference.score_fp4(q, q_scale, codes, scale, *lists, weight.double(), 40)
    assert torch.equal(got.isneginf(), expected.isneginf())
    magnitude = reference.score_fp4(
        q & 0x77, q_scale, codes & 0x77, scale, *lists, weight.abs(), 40
    )
    seen = got.isfinite()
    bound = (96 + 5 + 4) * UNIT * magnitude.double()
    assert_within(got[seen], expected[seen], bound[seen])
    assert_within(scores(inputs, 40)[seen], expected[seen], bound[seen])


def test_no_request_no_pages_no_tokens(seed):
    q, q_scale, codes, scale, table, request, count, weight = draw(4, 132, seed, L=9)
    request[:] = torch.tensor([-1, 0, 1, 2])
    table[1], count[:] = -1, 132
    table[2, 3] = -1
    got = scores([q, q_scale, codes, scale, table, request, count, weight], 132)
    assert (got[[0, 2]] == -torch.inf).all()
    assert got[1].isfinite().all()
    gap = torch.arange(132) // 16 == 3
    assert torch.equal(got[3].isneginf(), gap)
    none = torch.zeros(0, 9, dtype=torch.int32)
    nobody = [q, q_scale, codes, scale, none, request * 0 - 1, count, weight]
    assert (scores(nobody, 132) == -torch.inf).all()
    short = [q, q_scale, codes[:0], scale[:0], table[:, :0], request, count, weight]
    assert (scores(short, 132) == -torch.inf).all()
    empty = [q[:0], q_scale[:0], codes, scale, table, request[:0], count[:0], weight[:0]]
    assert scores(empty, 132).shape == (0, 132)
    assert scores([q, q_scale, codes, scale, table, request, count, weight], 0).shape == (4, 0)


def test_counts_outside_the_pages_are_cut(seed):
    inputs = draw(4, 164, seed, L=9)
    inputs[5][:] = 0
    inputs[6][:] = torch.tensor([1 << 30, -(1 << 31), 7, 144])
    got = scores(inputs, 164)
    assert got.isfinite().sum(1).tolist() == [144, 0, 7, 144]
    assert torch.equal(got, exact(inputs, 164))


def test_nan_stays_with_its_key(seed):
    inputs = draw(2, 132, seed)
    inputs[5][:], inputs[6][:] = 1, 132
    clean = scores(inputs, 132)
    page = inputs[4][1, 2]
    inputs[3].view(torch.uint8)[page, 5, 1] = 255
    got = scores(inputs, 132, finite=False)
    bad = torch.arange(132) == 2 * 16 + 5
    assert got[:, bad].isnan().all()
    assert torch.equal(got[:, ~bad], clean[:, ~bad])


def test_a_score_does_not_depend_on_batch_or_pages(seed):
    """Alone, with fewer columns, and with the request's pages elsewhere in the pool."""
    inputs = draw(4, 132, seed)
    together = scores(inputs, 132)
    q, q_scale, codes, scale, table, request, count, weight = inputs
    moved = torch.randperm(len(codes))
    place = moved.argsort().int()
    views = pages(kv_cache.key_pages(16, 96), len(codes), 0)
    for view, part in zip(views, (codes, scale), strict=True):
        as_bytes(view).copy_(as_bytes(part)[moved])
    for m in range(4):
        one = slice(m, m + 1)
        row = table[request[one].long()]
        S = int(count[m] + 3) // 4 * 4
        alone = [q[one], q_scale[one], *views, torch.where(row < 0, row, place[row.long()]),
                 request[one] * 0, count[one], weight[one]]  # fmt: skip
        assert torch.equal(scores(alone, S)[0], together[m, :S])
        assert (together[m, S:] == -torch.inf).all()


def test_it_reads_what_the_network_writes(seed):
    """Queries of rope/rotate_fp4 over keys of compressor/pool_fp4."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    X, E = 16, 4
    angle = normal(X, 32)
    cos, sin = angle.cos(), angle.sin()
    views = kv_cache.key_pages(E).views(kv_cache.key_pages(E).pool(4))
    source = torch.cat([torch.full((1, 4), -1), torch.arange(-2, -42, -1).reshape(10, 4)])
    source = torch.cat([source[:-1], source[1:]], 1).int()
    slot = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3, 12, 13], dtype=torch.int32)
    position = torch.arange(0, 40, 4, dtype=torch.int32) % X
    made = [normal(0, 512), normal(40, 512), source, position, normal(4, 256), normal(128), cos,
            sin, slot, *views]  # fmt: skip
    run(pool_fp4.op, made, finite=False, A=4, C=256, D=128, Q=32, E=E, weight="f32")
    x, where = normal(2, 3, 128).bfloat16(), torch.tensor([7, 9], dtype=torch.int32)
    q, q_scale = run(rotate_fp4.op, [x, cos, sin, where], H=3, D=128, Q=32, finite=False)
    table = torch.tensor([[2, 0, 3]], dtype=torch.int32)
    request, count = torch.zeros(2, dtype=torch.int32), torch.tensor([2, 10], dtype=torch.int32)
    inputs = [q, q_scale, *views, table, request, count, normal(2, 3)]
    got = scores(inputs, 12)
    keys = kv_cache.read_keys(*views, slot)
    queries = quant.fp4_dequant(q.flatten(0, 1), q_scale.flatten(0, 1)).unflatten(0, (2, 3))
    expected = reference.score(queries, keys, inputs[-1], request, count, 12)
    seen = expected.isfinite()
    assert torch.equal(got.isfinite(), seen)
    sums = reference.score(queries.abs(), keys.abs(), inputs[-1].abs(), request, count, 12)
    assert_within(got[seen], expected[seen], 2 * (128 + 3 + 4) * UNIT * sums[seen])


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(3, 132, seed), S=132, **SIZES)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(2, 132, seed, apart=16), S=132, **SIZES)
