"""moe/mega is the ops one after the other, bit for bit."""

import pytest
import torch

from tileproof.kernels.gemm import fp4_experts
from tileproof.kernels.moe import combine, reference, swiglu_fp8
from tileproof.kernels.moe._lists import tiles
from tileproof.kernels.moe.mega import op
from tileproof.kernels.quant import reference as quant

from ..support import assert_archs_agree, assert_schedules_agree, results, run

SIZES = {"K": 2, "E": 3, "D": 64, "I": 64, "R": 16}
FEW = {"spread": 2, "wave": 2}  # blocks of a tile, tiles of a wave


def inputs_of(index, seed, spare=1, **sizes):
    """Tokens with these experts [M, K], weights of all experts, and room."""
    E, D, I, R = (sizes[letter] for letter in "EDIR")  # noqa: E741
    (M, K), generator = index.shape, torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def codes(N, width):
        made = quant.fp4_cast((normal(E * N, width) * 0.3).bfloat16())
        return [t.unflatten(0, (E, N)) for t in made]

    Q = tiles(M, K, E, R) + spare
    place, expert = reference.permute(index, E, Q, R)
    source = torch.full((Q, R), -1, dtype=torch.int32)
    reference.source(place, source)
    x = quant.fp8_cast(normal(M, D).bfloat16(), quant.TILE)
    room = [torch.zeros(Q, R, n, dtype=torch.uint8) for n in (I, -(-I // quant.TILE), 2 * D)]
    return [
        *(*x, source, expert, place, normal(M, K).abs()),
        *(*codes(2 * I, D), *codes(D, I), normal(M, D).bfloat16()),
        room[0].view(torch.float8_e4m3fn),
        room[1].view(torch.float8_e8m0fnu),
        room[2].view(torch.bfloat16),
    ]


def steps(x, xs, source, expert, place, weight, w13, s13, w2, s2, shared, *_, **sizes):
    """The same by one op after the other."""
    R, E, K, D, I = (sizes[letter] for letter in "REKDI")  # noqa: E741
    low = [reference.dispatch(t.view(torch.uint8), source, K) for t in (x, xs)]
    rows = [low[0].view(x.dtype), low[1].view(xs.dtype)]
    product = {"R": R, "E": E, "B": quant.TILE, "out": "bf16"}
    (h,) = run(fp4_experts.op, [*rows, expert, w13, s13], **product, N=2 * I, K=D)
    rows = run(swiglu_fp8.op, [h, weight, source], R=R, K=K, I=I)
    (y,) = run(fp4_experts.op, [*rows, expert, w2, s2], **product, N=D, K=I)
    inputs = [y, place, torch.ones_like(weight), shared]
    return run(combine.op, inputs, R=R, D=D, K=K, act="bf16")[0]


def choices(M, seed, E=3, K=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(M, E, generator=generator).argsort(1)[:, :K].contiguous()


def mega(inputs, **sizes):
    return results(op, inputs, **sizes)[-1]


@pytest.mark.parametrize(
    "index",
    [
        torch.zeros(0, 2, dtype=torch.int64),
        torch.tensor([[2, 0]]),
        choices(30, 1),
        torch.full((40, 2), 1),
        torch.full((5, 2), -1),
        torch.tensor([[0, -1], [-1, -1], [2, 2], [-1, 0]]),
    ],
    ids=["no token", "one", "many", "all to one expert", "no expert", "some slots"],
)
def test_is_the_ops_one_after_the_other(index, seed):
    inputs = inputs_of(index, seed, **SIZES)
    assert torch.equal(mega(inputs, **SIZES, **FEW), steps(*inputs, **SIZES))


def test_sizes_that_fill_no_tile(seed):
    sizes = {**SIZES, "K": 3, "D": 160, "I": 96}
    inputs = inputs_of(choices(9, seed, K=3), seed, **sizes)
    assert torch.equal(mega(inputs, **sizes, **FEW), steps(*inputs, **sizes))


def test_reference_says_the_same_but_for_roundings(seed):
    inputs = inputs_of(choices(9, seed), seed, **SIZES)
    got, expected = mega(inputs, **SIZES, **FEW).double(), reference.mega(*inputs).double()
    # a code of SwiGLU's may be the next one, 1/8 away: an error of a few products of 64
    assert (got - expected).abs().max() <= expected.abs().max() / 16


@pytest.mark.parametrize(("spread", "wave"), [(1, 8), (3, 1)])
def test_blocks_and_waves_change_no_bit(spread, wave, seed):
    inputs = inputs_of(choices(30, seed), seed, **SIZES)
    there = mega(inputs, **SIZES, **FEW)
    assert torch.equal(mega(inputs, **SIZES, spread=spread, wave=wave), there)


def test_a_token_has_its_bits_alone_and_in_any_batch(seed):
    index = choices(30, seed)
    inputs = inputs_of(index, seed, **SIZES)
    together = mega(inputs, **SIZES, **FEW)
    for picks in ([7], [29, 0, 13], [5, 5]):
        alone = inputs_of(index[picks].contiguous(), seed, **SIZES)
        alone[6:10] = inputs[6:10]
        for tensor in (0, 1, 5, 10):
            alone[tensor] = inputs[tensor][picks].contiguous()
        assert torch.equal(mega(alone, **SIZES, **FEW), together[picks])


def test_nan_stays_in_its_token(seed):
    inputs = inputs_of(choices(9, seed), seed, **SIZES)
    clean = mega(inputs, **SIZES, **FEW)
    inputs[1].view(torch.uint8)[4] = 255  # the scale NaN
    dirty = mega(inputs, **SIZES, **FEW)
    others = [m for m in range(9) if m != 4]
    assert dirty[4].isnan().all() and torch.equal(dirty[others], clean[others])


def test_schedules_agree(seed):
    assert_schedules_agree(op, inputs_of(choices(9, seed), seed, **SIZES), **SIZES, **FEW)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(choices(9, seed), seed, **SIZES), **SIZES, **FEW)
