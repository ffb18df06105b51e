"""attention/out_rope: the bits of float32 arithmetic; it undoes what the prologue turned."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.attention import reference
from tileproof.kernels.attention.out_rope import op

from ..support import as_bytes, assert_archs_agree, assert_rows_alone, run
from .rotary import EDGE, draw


@pytest.mark.parametrize("M", [0, 1, 5])
@pytest.mark.parametrize(
    "sizes", [EDGE, {**EDGE, "act": "f32"}, {"H": 8, "D": 32, "C": 4, "act": "bf16"}], ids=str
)
def test_bits(M, sizes, seed):
    inputs = draw(M, **sizes, seed=seed)
    (out,) = run(op, inputs, **sizes)
    assert torch.equal(as_bytes(out), as_bytes(reference.out_rope(*inputs)))


def test_it_turns_back(seed):
    x, cos, sin = draw(3, **{**EDGE, "act": "f32"}, seed=seed)
    there = reference.out_rope(x, cos, -sin)
    assert not torch.equal(there, x)
    (back,) = run(op, [there, cos, sin], **{**EDGE, "act": "f32"})
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    assert torch.equal(back[..., :-10], x[..., :-10])


def test_nan_stays_in_its_pair(seed):
    x, cos, sin = draw(2, **EDGE, seed=seed)
    x[0, 3, 70], x[1, 2, 61] = torch.nan, torch.nan
    (out,) = run(op, [x, cos, sin], finite=False, **EDGE)
    assert out.isnan().nonzero().tolist() == [[0, 3, 70], [0, 3, 71], [1, 2, 61]]


def test_more_pairs_than_channels_are_refused():
    with pytest.raises(ContractError, match="RoPE channels of a head: got 34, expected at most"):
        op.specialize(**{**EDGE, "D": 32, "C": 17}).prim_func("sm_80")


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(5, **EDGE, seed=seed), (0, 4), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(3, **EDGE, seed=seed), **EDGE)
