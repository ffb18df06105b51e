"""attention/q_prologue against float64, Hugging Face's layers, and itself."""

import pytest
import torch

from tileproof.kernels.attention import reference
from tileproof.kernels.attention.q_prologue import op

from ..support import (
    ACT_UNIT,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    assert_within,
    run,
)
from .rotary import EDGE, draw

F32 = {**EDGE, "act": "f32"}


@pytest.mark.parametrize("M", [0, 1, 5])
@pytest.mark.parametrize("sizes", [EDGE, F32, {"H": 8, "D": 32, "C": 4, "act": "bf16"}], ids=str)
def test_numbers(M, sizes, seed):
    x, cos, sin = draw(M, **sizes, seed=seed)
    (out,) = run(op, [x, cos, sin], **sizes)
    wide = x.double()
    expected = reference.q_prologue(wide, cos, sin)
    # a head's largest value bounds both values of a pair; the norm is off by half of what its sum
    # is, a root, a quotient and a product; then a rounding to act, the turn, a rounding to act
    largest = (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).abs().amax(-1)
    error = ((sizes["D"] + 2) / 2 + 8) * UNIT + 2 * ACT_UNIT[sizes["act"]]
    assert_within(out, expected, 1.5 * largest[..., None] * error)


def test_eps_is_added_to_the_mean_square(seed):
    x, cos, sin = draw(2, **F32, seed=seed)
    (out,) = run(op, [x * 0, cos, sin], **F32)
    assert (out == 0).all()
    sizes = {**F32, "eps": 3.0}
    (out,) = run(op, [x, cos, sin], **sizes)
    expected = reference.q_prologue(x, cos, sin, 3.0)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_head(seed):
    x, cos, sin = draw(2, **EDGE, seed=seed)
    x[1, 3, 0] = torch.nan
    (out,) = run(op, [x, cos, sin], finite=False, **EDGE)
    assert out[1, 3].isnan().all()
    assert out.isnan().sum() == 72


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(5, **EDGE, seed=seed), (0, 4), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(3, **EDGE, seed=seed), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(3, **EDGE, seed=seed), **EDGE)


def test_reference_is_hugging_faces(seed):
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

    x, cos, sin = draw(6, **F32, seed=seed)
    normed = hf.DeepseekV4UnweightedRMSNorm(1e-6)(x)
    theirs = hf.apply_rotary_pos_emb(normed.transpose(0, 1)[None], cos[None], sin[None])
    ours = reference.q_prologue(x, cos, sin)
    torch.testing.assert_close(ours, theirs[0].transpose(0, 1), rtol=1e-5, atol=1e-6)
