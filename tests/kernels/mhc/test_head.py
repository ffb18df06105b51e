"""mhc/head against fp64, HF's module, itself alone, and other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.mhc import reference
from tileproof.kernels.mhc.head import op

from ..support import (
    ACT_UNIT,
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    assert_within,
    draw,
    run,
    seeds,
    tokens,
)

EDGE = {"N": 3, "D": 96, "act": "bf16"}


def inputs_of(spec, M, seed):
    """Sums as the projection leaves them: coefficients of a few units after the norm."""
    x, partial, sqrsum, scale, base = draw(spec, M, seed)
    K = spec.dims["N"] * spec.dims["D"]
    return [x, 3 * partial / len(partial) ** 0.5, sqrsum.abs() * K / len(partial), scale, base]


def check(inputs, N, D, act):
    (y,) = run(op, inputs, N=N, D=D, act=act)
    x, partial, sqrsum, scale, base = (t.double() for t in inputs)
    expected = reference.head(x, partial, sqrsum, scale, base)
    S = len(partial)
    # z = (sum partial) r scale + base: S sums, and about six more roundings, of these magnitudes
    factor = 1 / torch.sqrt(sqrsum.sum(0) / (N * D) + 1e-6)
    size = partial.abs().sum(0) * factor[:, None] * scale.abs() + base.abs()
    z = (2 * S + 8) * UNIT * size.amax(1) if len(size) else size.sum(1)
    # a sigmoid carries an absolute error of z as a relative one; then N products and N - 1 sums
    terms = reference.head(x.abs(), partial, sqrsum, scale, base)
    relative = (z + (8 + 2 * N) * UNIT)[:, None]
    assert_within(y, expected, 1.01 * (relative * terms + ACT_UNIT[act] * expected.abs()))


@FEW
@given(M=tokens(op), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(inputs_of(op.specialize(**EDGE), M, seed), **EDGE)


@pytest.mark.parametrize(("N", "D", "act"), [(2, 32, "f32"), (4, 64, "bf16"), (8, 160, "f32")])
def test_streams_and_widths(N, D, act, seed):
    check(inputs_of(op.specialize(N=N, D=D, act=act), 35, seed), N, D, act)


def test_schedules_agree(seed):
    assert_schedules_agree(op, inputs_of(op.specialize(**EDGE), 35, seed), **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = inputs_of(op.specialize(**EDGE), 67, seed)
    assert_rows_alone(op, inputs, (0, 7, 8, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(op.specialize(**EDGE), 13, seed), **EDGE)


def test_reference_is_the_formula_of_hugging_face(seed):
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

    from tileproof.kernels.mhc.prenorm_gemm import op as prenorm_gemm

    from .test_pre import hf_config

    torch.manual_seed(seed)
    module = DeepseekV4HyperHead(hf_config()).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    module.hc_fn.data /= 16
    x = torch.randn(2, 5, 4, 64, dtype=torch.float64)
    sums = prenorm_gemm.reference(x.flatten(0, 1), module.hc_fn)
    y = reference.head(x.flatten(0, 1), *sums, module.hc_scale, module.hc_base)
    # HF computes the norm in fp32 even in an fp64 model
    torch.testing.assert_close(y.view(2, 5, 64), module(x), rtol=1e-4, atol=1e-5)
