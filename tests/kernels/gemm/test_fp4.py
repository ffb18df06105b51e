"""gemm/fp4 against its reference in the order of the virtual GPU, bit for bit; rows alone."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.gemm import reference
from tileproof.kernels.gemm.fp4 import op
from tileproof.kernels.quant.reference import e2m1_values

from ..quant.checks import assert_same
from ..support import UNIT, assert_archs_agree, assert_rows_alone, assert_schedules_agree, run
from .codes import e2m1, e4m3, generator, ordered, truncated, ue8m0

EDGE = {"K": 160, "B": 128, "out": "f32"}
# float16 by mma.sync, e4m3 by wgmma and by tcgen05; test_architectures_agree has all
ARCHS = ("sm_80", "sm_90a", "sm_100a")


def inputs(M, N, K, B, seed, **scales):
    draw = generator(seed)
    return [
        e4m3((M, K), draw),
        ue8m0((M, -(-K // B)), draw, **scales),
        e2m1((N, K), draw),
        ue8m0((N, K // 32), draw, **scales),
    ]


def check(operands, arch, **sizes):
    (y,) = run(op, operands, arch, finite=False, **sizes)
    once = arch == "sm_100a"
    assert_same(y, reference.fp4(*operands, sizes["B"], sizes["out"], product=ordered, once=once))
    return y


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("M", [0, 1, 63, 64, 65, 129])
def test_numbers_of_tokens(M, arch, seed):
    check(inputs(M, 136, 160, 128, seed), arch, **EDGE)


@pytest.mark.parametrize(
    ("N", "K", "B", "out", "arch"),
    [
        (8, 32, 128, "bf16", "sm_90a"),
        (64, 128, 32, "f32", "sm_89"),
        (136, 1024, 32, "bf16", "sm_80"),
        (24, 4096, 128, "f32", "sm_90a"),
        (8, 8224, 32, "f32", "sm_90a"),  # more scales than shared memory holds at once
    ],
)
def test_sizes_and_types(N, K, B, out, arch, seed):
    check(inputs(5, N, K, B, seed), arch, K=K, B=B, out=out)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("lo", "hi"), [(0, 2), (60, 70), (190, 254), (0, 254)])
def test_scales_beyond_float32(lo, hi, arch, seed):
    """Scales that make subnormal, zero or infinite what they scale."""
    check(inputs(33, 136, 160, 128, seed, lo=lo, hi=hi), arch, **EDGE)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("B", [32, 128])
def test_every_code_of_the_weight(B, arch):
    """16 rows of one code each, against the codes of e4m3."""
    codes = torch.arange(16, dtype=torch.uint8)[:, None]
    w = (codes | codes << 4).repeat(1, 64)
    x = torch.arange(256, dtype=torch.uint8).repeat(1, 128).view(-1, 128)
    x = x.view(torch.float8_e4m3fn)
    ones = torch.full((256, 128 // B), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    scales = torch.full((16, 4), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    check([x, ones, w, scales], arch, K=128, B=B, out="f32")


@pytest.mark.parametrize("arch", ARCHS)
def test_nan_stays_in_its_row_and_column(arch, seed):
    operands = inputs(9, 136, 160, 128, seed)
    clean = check(operands, arch, **EDGE)
    operands[0].view(torch.uint8)[3, 5] = 0x7F  # a code of x
    operands[1].view(torch.uint8)[6, 1] = 255  # a scale of x
    operands[3].view(torch.uint8)[7, 4] = 255  # a scale of w
    y = check(operands, arch, **EDGE)
    assert y[[3, 6]].isnan().all() and y[:, 7].isnan().all()
    rows = [m for m in range(9) if m not in (3, 6)]
    columns = [n for n in range(136) if n != 7]
    assert torch.equal(y[rows][:, columns], clean[rows][:, columns])


def test_errs_as_float32_sums_may(seed):
    """Against float64: any order of K sums errs by at most K units of what is summed."""
    operands = inputs(5, 64, 1024, 128, seed, lo=120, hi=130)
    x = operands[0].double() * operands[1].double().repeat_interleave(128, 1)
    w = e2m1_values(operands[2]).double() * operands[3].double().repeat_interleave(32, 1)
    (y,) = run(op, operands, N=64, K=1024, B=128, out="f32")
    bound = (x.abs() @ w.abs().mT) * 1024 * UNIT
    assert ((y - x @ w.mT).abs() <= bound).all()


def test_bound_where_tensor_cores_cut_sums_off(seed):
    """The bound that docs/gemm.md states for sm_89 and sm_90a; the virtual GPU does not model it:
    32 products lose less than 2^-13 of the largest each, in the one instruction of a block.
    """
    operands = inputs(33, 64, 1024, 128, seed, lo=127, hi=127)
    x, packed = operands[::2]
    x[0], packed[0] = 0.029296875, 0x22  # 15/16 of 2^-13 of what leads a block, times one
    x[0, ::32] = 256
    got = reference.fp4(*operands, 128, "f32", product=truncated)
    w = e2m1_values(packed).double()
    error = (got - x.double() @ w.mT).abs()
    share = error / (x.double().abs() @ w.abs().mT)
    bound = 32 * 2.0**-13
    assert bound / 2 < share[0, 0] and share.max() < bound


@pytest.mark.parametrize("B", [32, 128])
def test_a_token_does_not_see_its_neighbours(B, seed):
    sizes = EDGE | {"B": B}
    assert_rows_alone(op, inputs(67, 136, 160, B, seed), (0, 63, 64, 66), arch="sm_90a", **sizes)


def test_schedules_agree(seed):
    """Copies and multiplies that come as early and as late as they may."""
    for arch in ARCHS:
        operands = inputs(9, 136, 672, 128, seed)
        assert_schedules_agree(op, operands, arch=arch, **EDGE | {"K": 672})


@pytest.mark.parametrize("B", [32, 128])
def test_architectures_agree(B, seed):
    assert_archs_agree(op, inputs(66, 136, 160, B, seed), **EDGE | {"B": B})


def test_what_no_format_has_is_refused():
    with pytest.raises(ContractError, match="activations of a scale: got 64, expected 32 or 128"):
        op.specialize(**EDGE | {"B": 64})
    with pytest.raises(ContractError, match="dim K: got 48, expected a multiple of 32"):
        op.specialize(**EDGE | {"K": 48})
