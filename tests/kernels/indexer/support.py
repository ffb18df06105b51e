"""Tokens of requests whose keys lie in pages, and what every op that scores them must do."""

import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.indexer import reference, score
from tileproof.kernels.quant import reference as quant

from ..support import UNIT, as_bytes, assert_within, run


def is_fp8(op):
    return op.name.endswith("fp8")


def pages(op, D, E, count, apart=0):
    """Views of a pool whose pages lie `apart` bytes further apart than they are long."""
    layout = kv_cache.key_pages(E, D, is_fp8(op))
    memory = torch.full((count, layout.page + apart), 0x7F, dtype=torch.uint8)
    return layout.views(memory[:, : layout.page])


def draw(op, M, S, seed, H=5, D=96, E=16, R=3, L=9, apart=0):
    """[q, q_scale, codes, scale, table, request, count, weight]: R requests of L pages each, which
    lie anywhere among R L + 1."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    table = torch.randperm(R * L + 1, generator=generator)[: R * L].reshape(R, L).int()
    count = integers(0, min(S, L * E) + 1, M)
    count[:1] = min(S, L * E)
    x = normal(M * H, D).bfloat16()
    q, q_scale = quant.fp8_cast(x, kv_cache.KEY_GROUP) if is_fp8(op) else quant.fp4_cast(x)
    views = pages(op, D, E, R * L + 1, apart)
    keys = normal((R * L + 1) * E, D).bfloat16()
    keys[::3] *= 1000
    kv_cache.write_keys(keys, torch.arange(len(keys)), *views)
    return [q.unflatten(0, (M, H)), q_scale.unflatten(0, (M, H)), *views,
            table, integers(0, R, M), count, normal(M, H)]  # fmt: skip


def queries(q, q_scale):
    """The bfloat16 that queries stand for."""
    rows = kv_cache.dequantised_keys(q.flatten(0, 1), q_scale.flatten(0, 1))
    return rows.unflatten(0, q.shape[:2])


def scores(op, inputs, S, finite=True, **how):
    """[M, S] of the op, whose sizes follow from the inputs."""
    H, columns = inputs[0].shape[1:]
    D = columns if is_fp8(op) else 2 * columns
    (got,) = run(op, inputs, S=S, H=H, D=D, E=inputs[2].shape[1], finite=finite, **how)
    return got


def assert_score_of_rows(op, inputs, S, **how):
    """The bits of indexer/score in bfloat16, over the requests' keys one after the other."""
    q, q_scale, codes, scale, table, request, count, weight = inputs
    (_, L), E = table.shape, codes.shape[1]
    slot = table[:, :, None] * E + torch.arange(E)
    rows = [queries(q, q_scale), kv_cache.read_keys(codes, scale, slot.reshape(-1))]
    lists = [weight, request * (L * E), count.clamp(max=L * E)]
    H, D = rows[0].shape[1:]
    (expected,) = run(score.op, [*rows, *lists], S=S, H=H, D=D, act="bf16")
    got = scores(op, inputs, S, **how)
    assert torch.equal(got, expected)
    return got


def assert_formula(op, seed):
    """Op and reference lie within the rounding of float32 sums around the formula in float64."""
    inputs, S = draw(op, 4, 40, seed), 40
    q, q_scale, codes, scale, *lists, weight = inputs
    rows = [q, q_scale, codes, scale, *lists]
    expected = reference.score_paged(*rows, weight.double(), S)
    mask = 0x7F if is_fp8(op) else 0x77  # signs off
    sizes = [(t.view(torch.uint8) & mask).view(t.dtype) for t in (q, codes)]
    positive = [sizes[0], q_scale, sizes[1], scale, *lists, weight.double().abs()]
    bound = (96 + 5 + 4) * UNIT * reference.score_paged(*positive, S)
    for got in (reference.score_paged(*inputs, S), scores(op, inputs, S)):
        assert torch.equal(got.isneginf(), expected.isneginf())
        seen = got.isfinite()
        assert_within(got[seen], expected[seen], bound[seen])


def assert_nothing(op, seed):
    """No request, no page, no table, no pool, no token, no column."""
    q, q_scale, codes, scale, table, request, count, weight = draw(op, 4, 132, seed, L=9)
    request[:] = torch.tensor([-1, 0, 1, 2])
    table[1], count[:] = -1, 132
    table[2, 3] = -1
    got = scores(op, [q, q_scale, codes, scale, table, request, count, weight], 132)
    assert (got[[0, 2]] == -torch.inf).all()
    assert got[1].isfinite().all()
    assert torch.equal(got[3].isneginf(), torch.arange(132) // 16 == 3)
    nobody = [q, q_scale, codes, scale, table[:0], request * 0 - 1, count, weight]
    assert (scores(op, nobody, 132) == -torch.inf).all()
    short = [q, q_scale, codes[:0], scale[:0], table[:, :0], request, count, weight]
    assert (scores(op, short, 132) == -torch.inf).all()
    empty = [q[:0], q_scale[:0], codes, scale, table, request[:0], count[:0], weight[:0]]
    assert scores(op, empty, 132).shape == (0, 132)
    none = [q, q_scale, codes, scale, table, request, count, weight]
    assert scores(op, none, 0).shape == (4, 0)


def assert_counts_are_cut(op, seed):
    """At the ends of the columns, and of the request's pages."""
    inputs = draw(op, 4, 164, seed, L=9)
    inputs[5][:] = 0
    inputs[6][:] = torch.tensor([1 << 30, -(1 << 31), 7, 144])
    got = scores(op, inputs, 164)
    assert got.isfinite().sum(1).tolist() == [144, 0, 7, 144]


def assert_nan_stays(op, seed):
    """A scale that is NaN reaches the scores of its key alone."""
    inputs = draw(op, 2, 132, seed)
    inputs[5][:], inputs[6][:] = 1, 132
    clean = scores(op, inputs, 132)
    page = inputs[4][1, 2]
    inputs[3].view(torch.uint8)[page, 5, -1] = 255
    got = scores(op, inputs, 132, finite=False)
    bad = torch.arange(132) == 2 * 16 + 5
    assert got[:, bad].isnan().all()
    assert torch.equal(got[:, ~bad], clean[:, ~bad])


def assert_alone(op, seed):
    """A token's bits: alone, with fewer columns, and with its pages elsewhere in the pool."""
    inputs = draw(op, 4, 132, seed)
    together = scores(op, inputs, 132)
    q, q_scale, codes, scale, table, request, count, weight = inputs
    moved = torch.randperm(len(codes))
    place = moved.argsort().int()
    views = pages(op, 96, 16, len(codes))
    for view, part in zip(views, (codes, scale), strict=True):
        as_bytes(view).copy_(as_bytes(part)[moved])
    for m in range(4):
        one = slice(m, m + 1)
        row = place[table[request[one].long()].long()]
        S = int(count[m] + 3) // 4 * 4
        alone = [q[one], q_scale[one], *views, row, request[one] * 0, count[one], weight[one]]
        assert torch.equal(scores(op, alone, S)[0], together[m, :S])
        assert (together[m, S:] == -torch.inf).all()
