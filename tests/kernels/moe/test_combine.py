"""moe/combine against its reference, bit for bit: the order of a token's sum is its slots'."""

import pytest
import torch

from tileproof.kernels.moe import reference
from tileproof.kernels.moe.combine import op

from ..support import assert_archs_agree, draw, run

SIZES = {"R": 32, "D": 160, "K": 3, "act": "bf16"}


@pytest.mark.parametrize(("M", "Q"), [(0, 0), (1, 0), (1, 1), (13, 3), (130, 2)])
@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_is_the_sum_in_order(M, Q, act, seed):
    sizes = {**SIZES, "act": act}
    inputs = draw(op.specialize(**sizes), M, seed, Q=Q)
    (out,) = run(op, inputs, **sizes)
    assert torch.equal(out, reference.combine(*inputs))


@pytest.mark.parametrize("D", [32, 7168])
def test_narrow_and_wide_rows(D, seed):
    sizes = {**SIZES, "D": D, "K": 6}
    inputs = draw(op.specialize(**sizes), 5, seed, Q=1)
    assert torch.equal(run(op, inputs, **sizes)[0], reference.combine(*inputs))


def test_the_order_of_slots_shows():
    # 2^24 + 1 + 1 is 2^24 in this order and 2^24 + 2 in the other
    y = torch.tensor([2.0**24, 1.0, 1.0]).view(1, 3, 1).repeat(1, 6, 32)[:, :16].contiguous()
    place = torch.tensor([[0, 1, 2], [2, 1, 0], [0, -1, 1]], dtype=torch.int32)
    (out,) = run(op, [y, place, torch.ones(3, 3), torch.zeros(3, 32)], R=16, D=32, K=3, act="f32")
    assert out[:, 0].tolist() == [2.0**24, 2.0**24 + 2, 2.0**24]


def test_what_a_token_does_not_list_does_not_matter(seed):
    y, place, weight, shared = draw(op.specialize(**SIZES), 4, seed, Q=2)
    place[0], weight[1] = -1, 1.0
    (out,) = run(op, [y, place, weight, shared], **SIZES)
    assert torch.equal(out[0], shared[0])
    used = torch.zeros(64, dtype=torch.bool)
    used[place[place >= 0].long()] = True
    y.view(64, -1)[~used] = torch.nan
    assert torch.equal(run(op, [y, place, weight, shared], **SIZES)[0], out)


def test_a_token_has_its_bits_alone(seed):
    y, place, weight, shared = draw(op.specialize(**SIZES), 13, seed, Q=2)
    (together,) = run(op, [y, place, weight, shared], **SIZES)
    for m in (0, 5, 12):
        one = [t[m : m + 1].contiguous() for t in (place, weight, shared)]
        assert torch.equal(run(op, [y, *one], **SIZES)[0], together[m : m + 1])


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**SIZES), 13, seed, Q=2), **SIZES)
