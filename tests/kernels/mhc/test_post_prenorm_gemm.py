"""mhc/post_prenorm_gemm: bit for bit mhc/post and mhc/prenorm_gemm, one after the other."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import ALL
from tileproof.kernels.mhc import post, prenorm_gemm, reference
from tileproof.kernels.mhc.post_prenorm_gemm import op

from ..support import FEW, assert_rows_alone, assert_schedules_agree, draw, run, seeds, tokens

EDGE = {"N": 3, "D": 96, "C": 15, "act": "bf16"}


def two_kernels(inputs, arch="sm_80", **sizes):
    *streams, fn = inputs
    (out,) = run(post.op, streams, arch, N=sizes["N"], D=sizes["D"], act=sizes["act"])
    return [out, *run(prenorm_gemm.op, [out, fn], arch, **sizes)]


def check(inputs, **sizes):
    for got, expected in zip(run(op, inputs, **sizes), two_kernels(inputs, **sizes), strict=True):
        assert torch.equal(got, expected)


@FEW
@given(M=tokens(op, tile=64), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(draw(op.specialize(**EDGE), M, seed), **EDGE)


@pytest.mark.parametrize(
    ("N", "D", "C", "act"),
    [(4, 288, 24, "f32"), (2, 544, 8, "f32"), (4, 4096, 4, "bf16"), (8, 32, 80, "f32")],
)
def test_streams_splits_and_types(N, D, C, act, seed):
    sizes = {"N": N, "D": D, "C": C, "act": act}
    check(draw(op.specialize(**sizes), 67, seed), **sizes)


def test_architectures_agree_and_equal_the_two_kernels(seed):
    inputs = draw(op.specialize(**EDGE), 67, seed)
    first = two_kernels(inputs, **EDGE)
    for arch in ALL:
        outputs = run(op, inputs, arch, checked=arch == ALL[0], **EDGE)
        for got, expected in zip(outputs, first, strict=True):
            assert torch.equal(got, expected), arch


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 67, seed), **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = draw(op.specialize(**EDGE), 131, seed)
    assert_rows_alone(op, inputs, (0, 63, 64, 130), **EDGE)


def test_the_reference_is_those_of_the_two(seed):
    inputs = draw(op.specialize(**EDGE), 5, seed)
    out = reference.post(*inputs[:-1])
    expected = [out, *reference.prenorm_gemm(out, inputs[-1])]
    for got, one in zip(op.reference(*inputs), expected, strict=True):
        assert torch.equal(got, one)
