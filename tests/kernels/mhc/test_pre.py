"""mhc/pre: bit for bit the three kernels it fuses; the three against HF's module."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import ALL
from tileproof.kernels.mhc import collapse, prenorm_gemm, reference, sinkhorn
from tileproof.kernels.mhc.pre import op

from ..support import FEW, assert_rows_alone, assert_schedules_agree, draw, run, seeds, tokens

EDGE = {"N": 3, "D": 96, "act": "bf16"}


def hf_config():
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    return DeepseekV4Config(hidden_size=64, hc_mult=4, hc_sinkhorn_iters=20, num_hidden_layers=2)


def inputs_of(spec, M, seed):
    """Weights of the size the checkpoint has: coefficients of order one after the norm."""
    x, fn, scale, base = draw(spec, M, seed)
    return [x, fn / fn.shape[1] ** 0.5, scale, base]


def three_kernels(inputs, N, D, act, arch):
    x, fn, scale, base = inputs
    sizes = {"N": N, "D": D, "C": len(base), "act": act}
    partial, sqrsum = run(prenorm_gemm.op, [x, fn], arch, **sizes)
    pre, post, comb = run(sinkhorn.op, [partial, sqrsum, scale, base], arch, N=N, D=D)
    return [post, comb, run(collapse.op, [x, pre], arch, N=N, D=D, act=act)[0]]


def check(inputs, arch="sm_80", **sizes):
    fused = run(op, inputs, arch, **sizes)
    for got, expected in zip(fused, three_kernels(inputs, arch=arch, **sizes), strict=True):
        assert torch.equal(got, expected)


@FEW
@given(M=tokens(op, tile=16), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(inputs_of(op.specialize(**EDGE), M, seed), **EDGE)


@pytest.mark.parametrize(("N", "D", "act"), [(5, 224, "f32"), (4, 4096, "bf16")])
def test_streams_splits_and_types(N, D, act, seed):
    sizes = {"N": N, "D": D, "act": act}
    check(inputs_of(op.specialize(**sizes), 18, seed), **sizes)


def test_architectures_agree_and_equal_the_three_kernels(seed):
    inputs = inputs_of(op.specialize(**EDGE), 19, seed)
    first = three_kernels(inputs, arch="sm_80", **EDGE)
    for arch in ALL:
        outputs = run(op, inputs, arch, checked=arch == ALL[0], **EDGE)
        for got, expected in zip(outputs, first, strict=True):
            assert torch.equal(got, expected), arch


def test_schedules_agree(seed):
    assert_schedules_agree(op, inputs_of(op.specialize(**EDGE), 19, seed), **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = inputs_of(op.specialize(**EDGE), 35, seed)
    assert_rows_alone(op, inputs, (0, 15, 16, 34), **EDGE)


def test_kernel_against_reference(seed):
    inputs = inputs_of(op.specialize(**EDGE), 33, seed)
    wide = reference.pre(*(t.double() for t in inputs))
    post, comb, collapsed = run(op, inputs, **EDGE)
    # Coefficients are of order one and carry at most K/8 + 8 units of rounding each (see the tests
    # of the parts); the exponential passes that on as a relative error, twice through balancing.
    relative = 4 * (288 + 8) * 2.0**-24
    torch.testing.assert_close(post.double(), wide[0], rtol=relative, atol=0)
    torch.testing.assert_close(comb.double(), wide[1], rtol=relative, atol=0)
    torch.testing.assert_close(collapsed.double(), wide[2], rtol=2.0**-8, atol=4 * relative)


def test_reference_is_the_formula_of_hugging_face(seed):
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    torch.manual_seed(seed)
    module = DeepseekV4HyperConnection(hf_config())
    for parameter in module.parameters():
        parameter.data.normal_()
    module.fn.data /= 16
    x = torch.randn(2, 5, 4, 64)
    got = reference.pre(x.flatten(0, 1), module.fn, module.scale, module.base)
    for ours, theirs in zip(got, module(x), strict=True):
        # both in fp32: 256 columns and forty normalizations, each a few units of rounding
        torch.testing.assert_close(ours.view(theirs.shape), theirs, rtol=2e-5, atol=2e-6)
