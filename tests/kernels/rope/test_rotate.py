"""rope/rotate: bit for bit its reference, which is complex multiplication."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.rope import reference
from tileproof.kernels.rope.rotate import op

from ..support import assert_archs_agree, assert_rows_alone, assert_schedules_agree, run

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
TINY = {"H": 2, "D": 16, "Q": 4}


def call(M, H, D, Q, seed, act="bf16"):
    """Heads, tables, and falling positions."""
    draw = torch.Generator().manual_seed(seed)
    angle = torch.rand(M + 1, Q, generator=draw) * 6
    x = torch.randn(M, H, D, generator=draw).to(TYPES[act])
    return [x, angle.cos(), angle.sin(), torch.arange(M, 0, -1).int()]


@pytest.mark.parametrize("act", ["bf16", "f32"])
@pytest.mark.parametrize(
    ("M", "H", "D", "Q"),
    [
        (0, 2, 16, 4),
        (7, 2, 16, 4),
        (3, 64, 128, 32),
        (65, 3, 24, 12),
        (2, 128, 24, 4),  # threads are no power of two, heads no multiple of those at once
        (2, 3, 1024, 32),
    ],
)
def test_it_is_the_reference(M, H, D, Q, act, seed):
    inputs = call(M, H, D, Q, seed, act)
    (y,) = run(op, inputs, H=H, D=D, Q=Q, act=act)
    assert torch.equal(y, reference.rotate(*inputs))


def test_the_reference_multiplies_complex_numbers(seed):
    x, cos, sin, position = call(5, 3, 24, 4, seed, "f32")
    y = reference.rotate(x.double(), cos, sin, position)
    turning = torch.view_as_complex(x[..., 16:].double().unflatten(-1, (4, 2)))
    turned = turning * torch.complex(cos, sin).to(torch.complex128)[position.long()][:, None]
    assert torch.equal(y[..., :16], x[..., :16].double())
    assert torch.allclose(y[..., 16:], torch.view_as_real(turned).flatten(-2), rtol=0, atol=1e-14)


def test_nan_stays_in_its_pair(seed):
    inputs = call(3, 2, 16, 4, seed)
    inputs[0][1, 1, 10] = float("nan")
    (y,) = run(op, inputs, finite=False, **TINY)
    assert y.isnan().nonzero().tolist() == [[1, 1, 10], [1, 1, 11]]


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = call(33, 2, 16, 4, seed)
    assert_rows_alone(op, inputs, (0, 7, 32), **TINY)


def test_schedules_and_architectures_agree(seed):
    assert_schedules_agree(op, call(9, 2, 16, 4, seed), **TINY)
    assert_archs_agree(op, call(9, 2, 16, 4, seed), **TINY)


def test_more_rotated_channels_than_there_are():
    with pytest.raises(ContractError, match="RoPE channels: got 24, expected up to D = 16"):
        op.specialize(H=2, D=16, Q=12).prim_func("sm_80")
