"""attention/paged: the bits of attention/sparse on the entries that the pages hold."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.attention import reference, sparse
from tileproof.kernels.attention.paged import op
from tileproof.kernels.kv_cache import kv_pages, read_kv, write_kv

from ..support import ACT_UNIT, assert_archs_agree, assert_rows_alone, assert_within, run
from .support import bound, lists, wide

SIZES = {"H": 17, "V": 64, "R": 32, "E": 4, "F": 2}
EXACT = {"H": 17, "D": 96, "act": "bf16"}


def pool(pages, entries, apart, generator, sizes):
    """Views of a pool of random entries, its pages `apart` bytes further apart than they need."""
    layout = kv_pages(entries, sizes["V"], sizes["R"])
    memory = torch.full((pages, layout.page + apart), 0x7F, dtype=torch.uint8)
    views = layout.views(memory[:, : layout.page])
    D = sizes["V"] + sizes["R"]
    rows = torch.randn(pages * entries, D, generator=generator).bfloat16()
    rows[::3] *= 1000
    write_kv(rows, torch.arange(pages * entries), *views)
    return views


def draw(M, W=8, K=4, Z=5, Y=3, apart=48, seed=0, sizes=SIZES):
    """[q, three views, near, three views, chosen, sink]."""
    generator = torch.Generator().manual_seed(seed)
    H, D, E, F = sizes["H"], sizes["V"] + sizes["R"], sizes["E"], sizes["F"]
    q = torch.randn(M, H, D, generator=generator).bfloat16()
    window = pool(Z, E, apart, generator, sizes)
    rest = pool(Y, F, 0, generator, sizes)
    near, chosen = lists(M, W, Z * E, generator), lists(M, K, Y * F, generator)
    sink = torch.randn(H, generator=generator)
    return [q, *window, near, *rest, chosen, sink]


def exact(inputs):
    """The same for attention/sparse."""
    q, *window, near, a, b, c, chosen, sink = inputs
    every = [torch.arange(v.shape[0] * v.shape[1]) for v in (window[0], a)]
    return [q, read_kv(*window, every[0]), near, read_kv(a, b, c, every[1]), chosen, sink]


@pytest.mark.parametrize(("M", "W", "K"), [(0, 8, 4), (1, 1, 0), (3, 0, 5), (4, 33, 65), (2, 0, 0)])
def test_it_is_sparse_attention_over_the_entries(M, W, K, seed):
    inputs = draw(M, W, K, seed=seed)
    (out,) = run(op, inputs, **SIZES)
    (expected,) = run(sparse.op, exact(inputs), **EXACT)
    assert torch.equal(out, expected)
    assert_within(out, reference.sparse(*wide(exact(inputs))), bound(exact(inputs), "bf16"))


def test_reference_is_that_of_the_entries(seed):
    inputs = draw(5, seed=seed)
    expected = reference.sparse(*exact(inputs))
    ours = reference.paged(*inputs)
    assert_within(ours, expected, expected.abs() * 2 * ACT_UNIT["bf16"])


def test_empty_pools(seed):
    q, *window, near, a, b, c, chosen, sink = draw(2, Z=1, Y=1, seed=seed)
    window = [v[:0] for v in window]
    a, b, c = a[:0], b[:0], c[:0]
    (out,) = run(op, [q, *window, near * 0 - 1, a, b, c, chosen * 0 - 1, sink], **SIZES)
    assert (out == 0).all()


def test_a_nan_scale_stays_with_those_who_listed_it(seed):
    inputs = draw(3, seed=seed)
    near, chosen = inputs[4], inputs[8]
    near[near == 7], chosen[chosen == 3] = 6, 2
    near[1, 2] = 7
    (clean,) = run(op, inputs, **SIZES)
    inputs[3].view(torch.uint8)[1, 3] = 255
    inputs[7].view(torch.uint8)[1, 1] = 255
    (out,) = run(op, inputs, finite=False, **SIZES)
    assert out[1].isnan().any()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


def test_entries_of_odd_width_are_refused():
    with pytest.raises(ContractError, match="channels of an entry: got 72, expected a multiple"):
        op.specialize(**{**SIZES, "R": 8}).prim_func("sm_80")


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(5, 33, 20, seed=seed), (0, 4), **SIZES)


@pytest.mark.parametrize("spread", [2, 4])
def test_alone_on_many_blocks_a_token_has_its_bits_in_a_batch_of_64_on_one(spread, seed):
    """The two forms of decoding."""
    inputs = draw(64, 33, 20, seed=seed)
    (together,) = run(op, inputs, **SIZES)
    for m in (0, 37, 63):
        alone = [t[m : m + 1].contiguous() if len(t) == 64 else t for t in inputs]
        (out,) = run(op, alone, **SIZES, spread=spread)
        assert torch.equal(out, together[m : m + 1])


def test_architectures_agree(seed):
    """In the first, every access is checked, and a page of the window lies apart from the next."""
    assert_archs_agree(op, draw(2, 33, 20, seed=seed), **SIZES)
