"""mhc/post: bit for bit the sequential formula, at every number of tokens and streams."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.mhc import reference
from tileproof.kernels.mhc.post import op

from ..support import (
    ACT_UNIT,
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_within,
    draw,
    run,
    seeds,
    tokens,
)

EDGE = {"N": 3, "D": 96, "act": "bf16"}


def sequential(x, y, post, comb):
    """out_k = post_k y + sum_j comb_{jk} X_j, each product and each sum rounded to fp32."""
    total = post[:, :, None] * y.float()[:, None, :]
    for j in range(x.shape[1]):
        total = total + comb[:, j, :, None] * x[:, j, None, :].float()
    return total.to(x.dtype)


@FEW
@given(M=tokens(op), seed=seeds())
def test_every_number_of_tokens(M, seed):
    inputs = draw(op.specialize(**EDGE), M, seed)
    assert torch.equal(run(op, inputs, **EDGE)[0], sequential(*inputs))


@pytest.mark.parametrize(
    ("N", "D", "act"), [(2, 32, "f32"), (4, 64, "bf16"), (8, 160, "f32"), (4, 4096, "bf16")]
)
def test_streams_and_widths(N, D, act, seed):
    sizes = {"N": N, "D": D, "act": act}
    inputs = draw(op.specialize(**sizes), 9, seed)
    assert torch.equal(run(op, inputs, **sizes)[0], sequential(*inputs))


def test_reference_sums_over_the_first_index_of_comb(seed):
    x, y, post, comb = inputs = draw(op.specialize(**EDGE), 33, seed)
    expected = torch.einsum("mk,md->mkd", post.double(), y.double())
    expected += torch.einsum("mjk,mjd->mkd", comb.double(), x.double())
    terms = reference.post(*(t.double().abs() for t in inputs))
    # N + 1 products and N sums, relative to the sum of magnitudes; then the cast
    limit = 2 * 4 * UNIT * terms + 1.01 * ACT_UNIT["bf16"] * expected.abs()
    assert_within(reference.post(*inputs), expected, limit)
    assert_within(run(op, inputs, **EDGE)[0], expected, limit)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = draw(op.specialize(**EDGE), 67, seed)
    assert_rows_alone(op, inputs, (0, 7, 8, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 13, seed), **EDGE)
