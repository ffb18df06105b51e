"""Where a batch reads and writes its keys and values: pools of rows, and lists of row numbers.

Two kinds of pools per layer (spec §12.2). A *state* pool has one ring of rows per request, the
same for all lengths: the window's last W entries, or the projections the compressor may still need.
Behind the rings of the window lie scratch rows, one per token of a batch: a chunk of a prompt is
longer than the ring, and its early tokens still need what its late ones will overwrite. The
*compressed* pool is made of pages that hold the entries of `page` original tokens each and belong
to whichever request took them.

Kernels see none of this, only row numbers, so paged, contiguous and packed caches are one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tileproof.dsl import check


class Chunk(NamedTuple):
    """`count` >= 1 new tokens of the request in `slot`, the first at position `start`."""

    slot: int
    start: int
    count: int


class Rows(NamedTuple):
    """Rows of a state pool: `ring` rows for each of `slots` requests, then the scratch rows."""

    slots: int
    ring: int

    def kept(self, slot: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The ring row of a token."""
        return slot * self.ring + position % self.ring

    def scratch(self, index: torch.Tensor) -> torch.Tensor:
        """The scratch row of the batch's token number `index`."""
        return self.slots * self.ring + index


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, request by request: what every list is computed from. All [M] int64.

    Attributes:
        slot: the request's block in the state pools.
        position: in the request, from 0.
        start: position of the request's first token in this batch.
        first: number of that token in this batch.
        end: position behind the request's last token in this batch.
    """

    slot: torch.Tensor
    position: torch.Tensor
    start: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Tokens:
        counts = torch.tensor([c.count for c in chunks], dtype=torch.int64)
        first = counts.cumsum(0) - counts

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(counts)

        start = spread(torch.tensor([c.start for c in chunks], dtype=torch.int64))
        position = torch.arange(int(counts.sum())) - spread(first) + start
        slot = spread(torch.tensor([c.slot for c in chunks], dtype=torch.int64))
        return cls(slot, position, start, spread(first), start + spread(counts))

    def __len__(self) -> int:
        return len(self.position)

    def index(self) -> torch.Tensor:
        """The number of each token in the batch."""
        return self.first + self.position - self.start

    def written(self, rows: Rows) -> torch.Tensor:
        """Where each token's row is written: in the ring if it comes alone, else in scratch."""
        alone = self.end - self.start == 1
        kept, scratch = rows.kept(self.slot, self.position), rows.scratch(self.index())
        return torch.where(alone, kept, scratch).int()

    def kept(self, rows: Rows) -> torch.Tensor:
        """The ring row of every token the next batch may need, to be filled behind this one."""
        needed = self.position >= self.end - rows.ring
        return torch.where(needed, rows.kept(self.slot, self.position), -1).int()

    def rows(self, rows: Rows, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The row of `position` [n, k] of the request of the batch's token number `token` [n].

        -1 stays -1. During the batch a row of an earlier batch is in the ring.
        """
        new = self.numbers(token, position)
        here = self.written(rows)[new.clamp(min=0)] if len(self) else new
        old = rows.kept(self.slot[token, None], position)
        return torch.where(position < 0, -1, torch.where(new >= 0, here, old)).int()

    def sources(self, rows: Rows, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """As :meth:`rows`, for rows that are not in the ring yet: -2 - i is the batch's token i."""
        new = self.numbers(token, position)
        old = rows.kept(self.slot[token, None], position)
        return torch.where(position < 0, -1, torch.where(new >= 0, -2 - new, old)).int()

    def numbers(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Numbers in the batch of `position` [n, k] of a token's request, -1 before the batch."""
        after = position - self.start[token, None]
        return torch.where(after >= 0, self.first[token, None] + after, -1)


def window(tokens: Tokens, rows: Rows) -> torch.Tensor:
    """Rows [M, W] of each token's window, oldest first, then -1 (spec §3.2). W is ``rows.ring``."""
    oldest = (tokens.position - rows.ring + 1).clamp(min=0)
    position = oldest[:, None] + torch.arange(rows.ring)
    position = position.where(position <= tokens.position[:, None], -1)
    return tokens.rows(rows, torch.arange(len(tokens)), position)


@dataclass(frozen=True)
class Closing:
    """The windows of one ratio that end in a batch, each to become a compressed entry (spec §2.2).

    Attributes:
        source: [n, slots] int32, the tokens it pools as ``compressor/pool`` takes them, -1 where
            there is none: the window's own, behind the previous window's where windows overlap.
        position: [n] int64, of the entry's first own token.
        row: [n] int32 rows of the compressed pool, where it goes.
    """

    source: torch.Tensor
    position: torch.Tensor
    row: torch.Tensor


class Pages:
    """Who has which pages of the compressed pools. A page holds entries of `page` tokens.

    Args:
        slots: requests there may be at once.
        count: pages there are.
        page: original tokens of a page, a multiple of every compression ratio.
    """

    def __init__(self, slots: int, count: int, page: int) -> None:
        self.page = page
        self.count = count
        self.table: list[list[int]] = [[] for _ in range(slots)]
        self._free = list(range(count - 1, -1, -1))
        self._made: dict[torch.device, torch.Tensor] = {}  # the table, until pages move

    def reserve(self, chunks: Sequence[Chunk]) -> None:
        """Give every request the pages that its tokens up to the chunk's end need.

        Raises ContractError, and takes nothing, where too few are free.
        """
        wanted = self._wanted(chunks)
        check(self.lacking(chunks) == 0, "cache", got=f"{len(self._free)} free pages of {self.page}"
              " tokens", expected=f"at least {sum(wanted.values())} for this batch")  # fmt: skip
        for slot, pages in wanted.items():
            self.table[slot] += [self._free.pop() for _ in range(pages)]
        self._made.clear()

    def _wanted(self, chunks: Sequence[Chunk]) -> dict[int, int]:
        """Pages that each request needs beside those it has."""
        return {c.slot: max(0, -(-(c.start + c.count) // self.page) - len(self.table[c.slot]))
                for c in chunks}  # fmt: skip

    def lacking(self, chunks: Sequence[Chunk]) -> int:
        """Pages too few for :meth:`reserve`."""
        return max(0, sum(self._wanted(chunks).values()) - len(self._free))

    def extend(self, count: int) -> None:
        """So many pages more, behind the others."""
        self._free = [*range(self.count + count - 1, self.count - 1, -1), *self._free]
        self.count += count

    def release(self, slot: int) -> None:
        """Take back all pages of a request."""
        self._free += reversed(self.table[slot])
        self.table[slot] = []
        self._made.clear()

    def rows(self, slot: torch.Tensor, entry: torch.Tensor, ratio: int) -> torch.Tensor:
        """Rows of the pool of `ratio` for entries number `entry` of requests `slot`, as int32."""
        table = self.tensor(slot.device)
        per_page = self.page // ratio
        page = table[slot, (entry // per_page).clamp(max=table.shape[1] - 1)]
        return (page * per_page + entry % per_page).where(entry >= 0, -1).int()

    def keys(
        self, pool: torch.Tensor, slot: torch.Tensor, count: torch.Tensor, ratio: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of each request's first `count` entries, one after the other; where they begin."""
        first = count.cumsum(0) - count
        request = torch.arange(len(slot), device=slot.device).repeat_interleave(count)
        entry = torch.arange(len(request), device=slot.device) - first[request]
        return pool[self.rows(slot[request], entry, ratio).long()], first

    def tensor(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """[slots, most pages] int64, -1 behind the last page of a request."""
        device = torch.device(device)
        if device not in self._made:
            width = max(1, *map(len, self.table))
            rows = [pages + [-1] * (width - len(pages)) for pages in self.table]
            self._made[device] = torch.tensor(rows, device=device)
        return self._made[device]


class Stripes(NamedTuple):
    """Compressed pools without pages: each request owns the entries of `length` tokens in a row.

    A multiple of every compression ratio. What :class:`Pages` can do, without a copy of keys.
    """

    length: int

    def rows(self, slot: torch.Tensor, entry: torch.Tensor, ratio: int) -> torch.Tensor:
        """As :meth:`Pages.rows`."""
        return (slot * (self.length // ratio) + entry).where(entry >= 0, -1).int()

    def keys(
        self, pool: torch.Tensor, slot: torch.Tensor, count: torch.Tensor, ratio: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Pages.keys`: the pool itself."""
        return pool, slot * (self.length // ratio)


Places = Pages | Stripes


def closing(tokens: Tokens, rows: Rows, places: Places, ratio: int) -> Closing:
    """What :class:`Closing` says, for windows of `ratio` tokens pooling ``rows.ring`` slots."""
    last = (tokens.position + 1) % ratio == 0
    token = last.nonzero()[:, 0]
    end = tokens.position[token]
    position = end[:, None] - rows.ring + 1 + torch.arange(rows.ring)
    source = tokens.sources(rows, token, position.clamp(min=-1))
    row = places.rows(tokens.slot[token], end // ratio, ratio)
    return Closing(source, end - ratio + 1, row)


def all_entries(
    slot: torch.Tensor, position: torch.Tensor, places: Places, ratio: int
) -> torch.Tensor:
    """Rows [M, K] of every compressed entry tokens see, s < (position + 1) // ratio, then -1."""
    seen = (position + 1) // ratio
    entry = torch.arange(int(seen.max()) if len(seen) else 0)
    entry = torch.where(entry < seen[:, None], entry, -1)
    return places.rows(slot[:, None].expand_as(entry), entry, ratio)
