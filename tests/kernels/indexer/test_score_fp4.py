"""indexer/score_fp4: the bits of indexer/score on the bfloat16 that queries and keys stand for."""

import pytest
import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.compressor import pool_fp4
from tileproof.kernels.indexer import reference
from tileproof.kernels.indexer.score_fp4 import op
from tileproof.kernels.rope import rotate_fp4

from ..support import UNIT, assert_archs_agree, assert_schedules_agree, assert_within, run
from . import support

SIZES = {"H": 5, "D": 96, "E": 16}


@pytest.mark.parametrize(("M", "S"), [(5, 4), (3, 132), (2, 516)])
def test_it_is_the_score_of_the_keys_in_bfloat16(M, S, seed):
    inputs = support.draw(op, M, S, seed, L=40, apart=48)
    support.assert_score_of_rows(op, inputs, S, checked=S == 132)


@pytest.mark.parametrize(("H", "D", "E"), [(2, 128, 4), (64, 128, 64), (3, 32, 16)])
def test_sizes(H, D, E, seed):
    inputs = support.draw(op, 3, 132, seed, H, D, E, L=40 if E == 4 else 9)
    support.assert_score_of_rows(op, inputs, 132)


def test_every_code_and_many_scales(seed):
    inputs = support.draw(op, 2, 132, seed)
    torch.manual_seed(seed)
    for codes, scale in (inputs[:2], inputs[2:4]):
        codes.copy_(torch.randint(0, 256, codes.shape, dtype=torch.uint8))
        scale.view(torch.uint8).copy_(torch.randint(60, 190, scale.shape, dtype=torch.uint8))
    support.assert_score_of_rows(op, inputs, 132)


def test_formula(seed):
    support.assert_formula(op, seed)


def test_nothing(seed):
    support.assert_nothing(op, seed)


def test_counts_outside_the_pages_are_cut(seed):
    support.assert_counts_are_cut(op, seed)


def test_nan_stays_with_its_key(seed):
    support.assert_nan_stays(op, seed)


def test_a_score_does_not_depend_on_batch_or_pages(seed):
    support.assert_alone(op, seed)


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
    got = support.scores(op, inputs, 12)
    keys, queries = kv_cache.read_keys(*views, slot), support.queries(q, q_scale)
    expected = reference.score(queries, keys, inputs[-1], request, count, 12)
    seen = expected.isfinite()
    assert torch.equal(got.isfinite(), seen)
    sums = reference.score(queries.abs(), keys.abs(), inputs[-1].abs(), request, count, 12)
    assert_within(got[seen], expected[seen], 2 * (128 + 3 + 4) * UNIT * sums[seen])


def test_schedules_agree(seed):
    assert_schedules_agree(op, support.draw(op, 3, 132, seed), S=132, **SIZES)


def test_architectures_agree(seed):
    assert_archs_agree(op, support.draw(op, 2, 132, seed, apart=16), S=132, **SIZES)
