"""quant/fp8_tile_cast: bit for bit its reference, tile by tile fp8_cast's."""

import pytest
import torch

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp8_tile_cast import op

from ..support import assert_archs_agree, assert_rows_alone, run
from .checks import activations, assert_matches, assert_same

EDGE = {"N": 67, "K": 160, "act": "bf16"}


def weights(M, N, K, act, seed):
    return activations(M * N, K, act, seed).view(M, N, K)


@pytest.mark.parametrize("M", [0, 1, 3])
def test_numbers_of_strips(M, seed):
    assert_matches(op, [weights(M, 67, 160, "bf16", seed)], **EDGE)


@pytest.mark.parametrize(("N", "K", "act"), [(128, 512, "bf16"), (128, 128, "f32"), (1, 32, "f32")])
def test_shapes_and_types(N, K, act, seed):
    assert_matches(op, [weights(2, N, K, act, seed)], N=N, K=K, act=act)


def test_a_tile_is_one_group(seed):
    w = weights(2, 128, 256, "f32", seed)
    q, s = reference.fp8_tile_cast(w)
    for m in range(2):
        for g in range(2):
            tile = w[m, :, g * 128 : (g + 1) * 128]
            codes, scale = reference.fp8_cast(tile.reshape(1, -1), 128 * 128)
            assert_same(q[m, :, g * 128 : (g + 1) * 128], codes.view(128, 128))
            assert_same(s[m, g : g + 1], scale[0])


def test_what_is_not_finite_makes_its_tile_nan(seed):
    w = weights(3, 67, 160, "bf16", seed)
    w[0, 66, 127], w[1, 0, 128], w[2, 66, 159] = float("inf"), -float("inf"), -float("nan")
    q, s = run(op, [w], finite=False, **EDGE)
    expected = torch.tensor([[True, False], [False, True], [False, True]])
    assert torch.equal(s.view(torch.uint8) == 255, expected)
    nan = expected.repeat_interleave(128, -1)[:, None, :160].expand(3, 67, 160)
    assert torch.equal(q.view(torch.uint8) == 0x7F, nan)
    assert_matches(op, [w], **EDGE)


def test_a_strip_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [weights(3, 67, 160, "bf16", seed)], (0, 2), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [weights(2, 67, 160, "bf16", seed)], **EDGE)
