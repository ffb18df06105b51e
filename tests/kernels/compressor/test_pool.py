"""compressor/pool against float64, Hugging Face's compressors, and itself elsewhere in a batch."""

import pytest
import torch

from tileproof.kernels.compressor import reference
from tileproof.kernels.compressor.pool import op

from ..support import (
    ACT_UNIT,
    UNIT,
    as_bytes,
    assert_archs_agree,
    assert_schedules_agree,
    assert_within,
    run,
)

EDGE = {"D": 48, "A": 10, "C": 48, "Q": 24, "act": "bf16", "weight": "f32"}
CSA = {"D": 32, "A": 4, "C": 64, "Q": 4, "act": "f32", "weight": "f32"}
WIDTHS = [
    EDGE,
    CSA,
    {"D": 512, "A": 4, "C": 1024, "Q": 32, "act": "bf16", "weight": "bf16"},
    {"D": 512, "A": 128, "C": 512, "Q": 32, "act": "f32", "weight": "f32"},
    {"D": 16, "A": 4, "C": 32, "Q": 4, "act": "f32", "weight": "bf16"},
]


def draw(N, R, M, seed, D, A, C, Q, act, weight):
    """Normal rows; a list may name any of them, or none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    source = torch.randint(-1 - M, R, (N, A * (C // D)), generator=generator, dtype=torch.int32)
    angle = 3 * normal(N, Q)
    gain = normal(D).to(torch.bfloat16 if weight == "bf16" else torch.float32)
    return [
        normal(R, 2 * C),
        normal(M, 2 * C),
        source,
        normal(A, C),
        gain,
        angle.cos(),
        angle.sin(),
    ]


def exact(inputs, eps=1e-6):
    wide = [t.double() if t.dtype == torch.float32 else t for t in inputs]
    return reference.pool(*wide, eps=eps, act="f64")


@pytest.mark.parametrize("sizes", WIDTHS, ids=lambda s: f"D{s['D']}-A{s['A']}-{s['act']}")
@pytest.mark.parametrize(("N", "R", "M"), [(0, 3, 2), (5, 24, 9), (2, 0, 65), (1, 7, 0)])
def test_against_float64(N, R, M, sizes, seed):
    """The parts of the bound, in units of a float32's rounding u and of the entries' e.

    A weight exp(z - peak) is off by the rounding of z + ape and of the difference, each relative to
    values up to |z| + |peak|, and by 2 u of exp itself; rescaling adds 4 u per group of eight. That
    holds for numerator and denominator, whose sums add L u each. Rounding to the entries' type
    happens before the norm, before the rotation and at the end. The norm's factor depends on all
    channels, off by their worst relative error.
    """
    inputs = draw(N, R, M, seed, **sizes)
    (y,) = run(op, inputs, **sizes)
    expected = exact(inputs)
    if not N:
        return
    kept, fresh, source, ape, weight = inputs[:5]
    L = source.shape[1]
    rows = torch.cat([kept, fresh]).double()
    z = (rows[:, sizes["C"] :].abs().max() if len(rows) else 0) + ape.abs().max()
    relative = 2 * (4 * z + 2 + L + L / 2) * UNIT
    # of what is pooled: a convex combination of kv, so relative to the largest
    size = rows[:, : sizes["C"]].abs().max() * weight.double().abs().max()
    pooled = exact(
        [*inputs[:4], torch.ones_like(weight), torch.ones_like(inputs[5]), 0 * inputs[6]]
    )
    largest = size * pooled.abs().amax(-1, keepdim=True).clamp(min=1)
    e = ACT_UNIT[sizes["act"]]
    assert_within(y, expected, (4 * relative + 5 * e + 8 * UNIT) * largest * 2)


def test_an_entry_does_not_see_its_neighbours_or_its_place(seed):
    inputs = draw(6, 24, 9, seed, **EDGE)
    (together,) = run(op, inputs, **EDGE)
    for n in range(6):
        alone = [t[n : n + 1] if i in (2, 5, 6) else t for i, t in enumerate(inputs)]
        (entry,) = run(op, alone, **EDGE)
        assert torch.equal(as_bytes(entry[0]), as_bytes(together[n]))
    # a row may come from this batch or from an earlier one
    kept, fresh, source, *rest = inputs
    (swapped,) = run(op, [fresh, kept, torch.where(source == -1, -1, -2 - source), *rest], **EDGE)
    assert torch.equal(as_bytes(swapped), as_bytes(together))


def test_empty_slots_have_no_weight(seed):
    inputs = draw(3, 24, 9, seed, **CSA)
    inputs[2][:, :4] = -1  # the first window has none before it
    inputs[2][0] = -1
    (y,) = run(op, inputs, **CSA)
    assert not y[0].any()
    inputs[0][:, :32], inputs[1][:, :32] = 1e30, 1e30  # what only the window before would read
    (same,) = run(op, inputs, **CSA)
    assert torch.equal(y[1:], same[1:])


def test_nan_stays_in_its_channel_until_the_norm(seed):
    inputs = draw(3, 24, 9, seed, **EDGE)
    inputs[2][0] = 1
    inputs[2][1:] = 2
    inputs[0][1, 3] = torch.nan
    (y,) = run(op, inputs, finite=False, **EDGE)
    assert y[0].isnan().all() and not y[1:].isnan().any()


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(5, 24, 9, seed, **EDGE), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(5, 24, 9, seed, **EDGE), **EDGE)


@pytest.mark.parametrize("kind", ["compressed_sparse_attention", "heavily_compressed_attention"])
def test_hugging_faces_compressor_pools_the_same(kind, seed):
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

    from tileproof.model.checkpoint import tiny_config

    config = tiny_config(64, compress_rate_hca=12)
    torch.manual_seed(seed % 2**31)
    module = hf.COMPRESSOR_CLASSES[kind](config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, D = torch.randn(1, 26, 64), config.head_dim
    A = config.compress_rates[kind]
    twice = kind.startswith("compressed")
    with torch.no_grad():
        expected = module(x, torch.randn(1, 26, 32), torch.arange(26)[None], None, 0)[0][0, 0]
        fresh = torch.cat([module.kv_proj(x), module.gate_proj(x)], -1)[0]
        at = torch.arange(26 // A) * A
        cos, sin = module.rotary_emb(x, at[None], "compress")
        token = at[:, None] + torch.arange(-A if twice else 0, A)
        source = torch.where(token < 0, -1, -2 - token).int()
        weight = module.kv_norm.weight.detach()
        inputs = [fresh[:0], fresh, source, module.position_bias.detach(), weight, cos[0], sin[0]]
    sizes = {"D": D, "A": A, "C": fresh.shape[1] // 2, "Q": cos.shape[-1]}
    (y,) = run(op, inputs, act="f32", weight="f32", **sizes)
    # both round some hundred times
    assert_within(y, expected, 300 * UNIT * expected.abs().max())
