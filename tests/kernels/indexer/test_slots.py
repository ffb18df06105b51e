"""indexer/slots: where chosen entries lie; no request, no page, indices outside the lists."""

import pytest
import torch

from tileproof.kernels.indexer import reference
from tileproof.kernels.indexer.slots import op

from ..support import assert_archs_agree, assert_rows_alone, run

SIZES = {"K": 131, "E": 16}


def draw(M, L, seed, R=3, K=131):
    """[index, table, request]; some of each are none, and some indices lie outside the lists."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    index = integers(-1, 16 * L + 9, M, K)
    return [index, integers(-1, 1 << 20, R, L), integers(-1, R, M)]


@pytest.mark.parametrize(("M", "L"), [(0, 9), (1, 0), (33, 9)])
def test_it_is_the_reference(M, L, seed):
    inputs = draw(M, L, seed)
    (got,) = run(op, inputs, checked=True, finite=False, **SIZES)
    assert torch.equal(got, reference.slots(*inputs, 16))


def test_by_hand():
    index = torch.tensor([[0, 3, 4, 9, 12, -1], [5, 0, -1, -1, 8, 2147483647]], dtype=torch.int32)
    table = torch.tensor([[7, 2, -1], [0, 5, 16777215]], dtype=torch.int32)
    expected = [[28, 31, 8, -1, -1, -1], [21, 0, -1, -1, 16777215 * 4, -1]]
    request = torch.tensor([0, 1], dtype=torch.int32)
    (got,) = run(op, [index, table, request], finite=False, K=6, E=4)
    assert got.tolist() == reference.slots(index, table, request, 4).tolist() == expected
    (got,) = run(op, [index, table, request - 2], finite=False, K=6, E=4)
    assert got[1].eq(-1).all()


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = [t.clamp(min=0) for t in draw(5, 40, seed)]
    inputs[0] %= 16 * 40  # every output is then a slot, and none looks like poison
    assert_rows_alone(op, inputs, (0, 4), **SIZES)


def test_architectures_agree(seed):
    index, table, request = (t.clamp(min=0) for t in draw(3, 40, seed))
    assert_archs_agree(op, [index % (16 * 40), table, request], **SIZES)
