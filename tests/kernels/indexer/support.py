"""Tokens of requests whose keys lie in pages, and their scores by indexer/score."""

import torch

from tileproof.kernels.indexer import score

from ..support import run


def pages(layout, count, apart):
    """Views of a pool whose pages lie `apart` bytes further apart than they are long."""
    memory = torch.full((count, layout.page + apart), 0x7F, dtype=torch.uint8)
    return layout.views(memory[:, : layout.page])


def tokens(M, S, H, R, L, E, generator):
    """(table, request, count, weight): R requests of L pages each, anywhere among R L + 1."""

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    table = torch.randperm(R * L + 1, generator=generator)[: R * L].reshape(R, L).int()
    count = integers(0, min(S, L * E) + 1, M)
    count[:1] = min(S, L * E)
    return table, integers(0, R, M), count, torch.randn(M, H, generator=generator)


def scores_of_rows(queries, read, E, table, request, count, weight, S):
    """Scores of bfloat16 queries by indexer/score; ``read(slot)`` gives the keys, pages have E."""
    L = table.shape[1]
    slot = table[:, :, None] * E + torch.arange(E)
    keys = read(slot.reshape(-1)).contiguous()
    (got,) = run(
        score.op,
        [queries, keys, weight, request * (L * E), count.clamp(max=L * E)],
        S=S,
        H=queries.shape[1],
        D=queries.shape[2],
        act="bf16",
    )
    return got
