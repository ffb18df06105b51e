"""Requests whose tokens come in chunks, and what the ops of the compressor are called with."""

import torch

from tileproof.kernels.compressor import keep

from ..support import run

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def weights(D, A, C, Q, seed, weight="f32"):
    """ape, RMSNorm weight, and cos and sin of 512 positions."""
    draw = torch.Generator().manual_seed(seed)
    angle = torch.arange(512)[:, None] * 10000 ** -(torch.arange(Q) / Q)
    gain = (1 + torch.randn(D, generator=draw) / 4).to(TYPES[weight])
    return torch.randn(A, C, generator=draw), gain, angle.cos(), angle.sin()


class Requests:
    """Projected tokens of several requests, and the state of each in a ring of L rows.

    Rows of the state that no token has written are NaN: what reads them shows.
    """

    def __init__(self, lengths, A, C, L, seed):
        draw = torch.Generator().manual_seed(seed)
        self.tokens = [torch.randn(n, 2 * C, generator=draw) for n in lengths]
        self.done = [0] * len(lengths)
        self.A, self.L = A, L
        self.kept = torch.full((len(lengths) * L, 2 * C), float("nan"))

    def batch(self, chunks):
        """The next chunk of each (request, count): fresh, source, position, slot, row.

        Entry i of request r goes to slot 64 r + i.
        """
        fresh, source, position, slot, row = [], [], [], [], []
        for r, count in chunks:
            start, first = self.done[r], sum(map(len, fresh))
            end = start + count
            fresh.append(self.tokens[r][start:end])
            for i in range(start // self.A, end // self.A):
                begin = self.A * (i + 1) - self.L
                source.append(
                    [self._place(r, p, start, first) for p in range(begin, begin + self.L)]
                )
                position.append(self.A * i)
                slot.append(64 * r + i)
            tail = range(start, end)
            row += [r * self.L + p % self.L if p >= end - self.L else -1 for p in tail]
            self.done[r] = end
        lists = [torch.tensor(v, dtype=torch.int32) for v in (position, slot, row)]
        shape = (len(source), self.L)
        return torch.cat(fresh), torch.tensor(source, dtype=torch.int32).view(shape), *lists

    def _place(self, r, p, start, first):
        if p < 0:
            return -1
        return r * self.L + p % self.L if p < start else -2 - (first + p - start)

    def run(self, op, chunks, constants, pool, **sizes):
        """Pool what the chunks complete, then keep their last tokens."""
        fresh, source, position, slot, row = self.batch(chunks)
        run(
            op, [self.kept, fresh, source, position, *constants, slot, *pool], finite=False, **sizes
        )
        run(keep.op, [fresh, row, self.kept], finite=False, C2=fresh.shape[1])
