"""moe/swiglu_fp8 is moe/swiglu in float32, a product, a rounding and quant/fp8_cast."""

import pytest
import torch

from tileproof.kernels.moe import reference, swiglu
from tileproof.kernels.moe.swiglu_fp8 import op
from tileproof.kernels.quant import reference as quant

from ..support import as_bytes, assert_archs_agree, draw, run
from .support import listed, shuffled

SIZES = {"K": 3, "R": 32, "I": 160}


def inputs_of(M, Q, seed, **sizes):
    h, weight, _ = draw(op.specialize(**sizes), M, seed, Q=Q)
    return [h * 6, weight.abs(), listed(M, sizes["K"], Q, sizes["R"], seed)]


def steps(h, weight, source, I, **sizes):  # noqa: E741
    """The same in four steps."""
    used = source >= 0
    (gated,) = run(swiglu.op, [h.flatten(0, 1).float()], finite=False, I=I, act="f32")
    factor = torch.zeros(source.shape)
    factor[used] = weight.flatten()[source[used].long()]
    rows = torch.where(used.flatten()[:, None], gated * factor.flatten()[:, None], torch.zeros(()))
    return quant.fp8_cast(rows.bfloat16(), 128)


def check(inputs, **sizes):
    outputs = run(op, inputs, finite=False, **sizes)
    for got, expected in zip(outputs, steps(*inputs, **sizes), strict=True):
        assert torch.equal(as_bytes(got.flatten(0, 1)), as_bytes(expected))
    return outputs


@pytest.mark.parametrize(("M", "Q"), [(0, 0), (0, 2), (1, 1), (13, 2)])
@pytest.mark.parametrize("I", [160, 32])
def test_is_its_steps(M, Q, I, seed):  # noqa: E741
    sizes = {**SIZES, "I": I}
    check(inputs_of(M, Q, seed, **sizes), **sizes)


def test_a_wide_row_takes_more_blocks(seed):
    sizes = {"K": 6, "R": 16, "I": 3072}
    check(inputs_of(4, 1, seed, **sizes), **sizes)


def test_reference_says_the_same_but_for_the_last_bits_of_exp(seed):
    inputs = inputs_of(13, 2, seed, **SIZES)
    codes, scales = run(op, inputs, finite=False, **SIZES)
    expected, expected_scales = reference.swiglu_fp8(*inputs)
    got = quant.fp8_dequant(codes.flatten(0, 1), scales.flatten(0, 1), 128).double()
    same = quant.fp8_dequant(expected.flatten(0, 1), expected_scales.flatten(0, 1), 128).double()
    # a value at the edge of two codes may take either: they are 1/8 of the lower one apart at most
    assert ((got - same).abs() <= same.abs() / 8 + got.abs() / 8).all()
    assert (got == same).double().mean() > 0.99


def test_rows_without_a_pair_are_zero_whatever_they_hold(seed):
    h, weight, source = inputs_of(3, 2, seed, **SIZES)
    h[source < 0] = torch.nan
    codes, scales = check([h, weight, source], **SIZES)
    assert not as_bytes(codes[source < 0].contiguous()).any()
    assert (as_bytes(scales[source < 0].contiguous()) == 105).all()


def test_nan_and_infinity_stay_in_their_group(seed):
    h, weight, source = inputs_of(13, 2, seed, **SIZES)
    source[0, :3] = torch.tensor([0, 4, 8])
    h[0, 0, 5], h[0, 1, 5], weight[2, 2] = torch.nan, torch.inf, torch.inf
    _, scales = check([h, weight, source], **SIZES)
    assert as_bytes(scales)[0, 0].tolist()[0] == 255 != as_bytes(scales)[0, 0].tolist()[1]
    assert (as_bytes(scales)[0, 1] != 255).all()  # the gate is clamped


def test_a_row_has_its_bits_wherever_it_lies(seed):
    h, weight, source = inputs_of(13, 2, seed, **SIZES)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    there = run(op, [h, weight, source], finite=False, **SIZES)
    moved = [shuffled(h, order), weight, shuffled(source, order)]
    for got, expected in zip(run(op, moved, finite=False, **SIZES), there, strict=True):
        assert torch.equal(as_bytes(got), as_bytes(shuffled(as_bytes(expected), order)))


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(13, 2, seed, **SIZES), **SIZES)
