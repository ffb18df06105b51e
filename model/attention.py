"""The attention of one layer, composed from ops over lists of rows (spec §2, §3).

A model calls :func:`attention` once a layer with the tokens of a batch, one after the other,
whatever request they belong to. :class:`Batch` has what all layers share: where every token's rows
are read and written, and the rotations of its position. No mask is ever built, and no token's bits
hang on what else is in the batch or how a prompt was cut up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from .cache import Chunk, Places, Rows, Tokens, all_entries, closing, window

Run = Callable[..., Any]  # run("gemm_dense", x, w, out="f32"), see `dispatch.Kernels`

# Lists and scores of so many elements are held at once; long prompts go through them in blocks.
AT_ONCE = 1 << 24
NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotations of one kind of layer: pair k of a token turns by ``position frequency[k]``.

    Attributes:
        frequency: [Q] f32, YaRN included (spec §3.2).
        scale: factor on cos and sin.
    """

    frequency: torch.Tensor
    scale: float = 1.0

    def __call__(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [M, Q] in f32 of positions [M].

        Angles round to float32, as everywhere. Their cos is computed wider and rounded once, since
        float32 routines may give a vector's last elements other bits than its first.
        """
        angle = (position[:, None].float() * self.frequency.float()).double()
        return (angle.cos() * self.scale).float(), (angle.sin() * self.scale).float()


@dataclass(frozen=True, eq=False)
class Compressor:
    """Weights of one branch of the compressor (spec §2). Its windows are as long as `ape`.

    Attributes:
        kv_gate: [2 C, D], wkv above wgate, in the type of activations; C is twice the channels of
            an entry where windows overlap.
        ape: [A, C] f32.
        norm: [K] f32 or bf16.
    """

    kv_gate: torch.Tensor
    ape: torch.Tensor
    norm: torch.Tensor

    @property
    def ratio(self) -> int:
        """Tokens of a window."""
        return len(self.ape)

    @property
    def slots(self) -> int:
        """Tokens an entry pools: the window's, and those of the one before if they overlap."""
        return self.ratio * (self.ape.shape[1] // len(self.norm))


@dataclass(frozen=True, eq=False)
class Indexer:
    """Weights of the lightning indexer (spec §3.1).

    Attributes:
        keys: of its own branch of the compressor.
        q_b: [HI * DI, R].
        weights: [HI, D].
        top_k: entries a token attends to.
    """

    keys: Compressor
    q_b: torch.Tensor
    weights: torch.Tensor
    top_k: int


@dataclass(frozen=True, eq=False)
class Attention:
    """Weights of one layer (spec §1, §3.2); matrices are in the type of activations.

    Attributes:
        q_a, q_b, kv, o_b: [R, D], [H K, R], [K, D], [D, G N].
        o_a: [G, N, H K / G].
        q_norm, kv_norm: [R], [K] f32 or bf16.
        sink: [H] f32.
        rope: of queries and every kind of entry.
        eps: of all norms.
        compressor: None in a layer with a sliding window only.
        indexer: None where tokens see all compressed entries.
    """

    q_a: torch.Tensor
    q_norm: torch.Tensor
    q_b: torch.Tensor
    kv: torch.Tensor
    kv_norm: torch.Tensor
    o_a: torch.Tensor
    o_b: torch.Tensor
    sink: torch.Tensor
    rope: Rope
    eps: float
    compressor: Compressor | None = None
    indexer: Indexer | None = None


@dataclass
class Branch:
    """What one branch of the compressor keeps between batches.

    Attributes:
        state: [slots * L, 2 C] f32, a ring of projected tokens for each request.
        entries: [T, K], pool of compressed entries; `Batch.places` says which rows are whose.
    """

    state: torch.Tensor
    entries: torch.Tensor

    @classmethod
    def empty(cls, weights: Compressor, requests: int, entries: int) -> Branch:
        """State of so many requests, and a pool."""
        norm, C = weights.norm, weights.ape.shape[1]
        state = norm.new_zeros(requests * weights.slots, 2 * C, dtype=torch.float32)
        return cls(state, weights.kv_gate.new_zeros(entries, len(norm)))


@dataclass
class State:
    """What one layer keeps between batches.

    Attributes:
        window: [slots * W, K], a ring of entries for each request.
        main, index: branches of the compressor.
    """

    window: torch.Tensor
    main: Branch | None = None
    index: Branch | None = None

    @classmethod
    def empty(cls, weights: Attention, width: int, requests: int, tokens: int) -> State:
        """State of so many requests, and pools for the entries of `tokens` tokens in all."""
        kept = cls(weights.kv.new_zeros(requests * width, len(weights.kv_norm)))
        if (main := weights.compressor) is not None:
            kept.main = Branch.empty(main, requests, tokens // main.ratio)
        if weights.indexer is not None:
            keys = weights.indexer.keys
            kept.index = Branch.empty(keys, requests, tokens // keys.ratio)
        return kept


class Closed(NamedTuple):
    """:class:`cache.Closing` on the device, with the entries' rotations."""

    source: torch.Tensor
    number: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    row: torch.Tensor


class Batch:
    """The tokens of one call of the model, and what all its layers share about them.

    Args:
        chunks: at most one for each request, in the order of their tokens.
        requests: rings there are in every state pool.
        width: of the sliding window, W.
        places: where the requests' compressed entries are.
        device: of the pools.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        requests: int,
        width: int,
        places: Places,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokens = Tokens.of(chunks)
        self.requests = requests
        self.width = width
        self.places = places
        self.device = torch.device(device)
        self.alone = all(c.count == 1 for c in chunks)
        rows = Rows(requests, width)
        self.near = window(self.tokens, rows).to(device)
        self.written = self.tokens.written(rows).to(device)
        self.number = torch.arange(len(self.tokens), dtype=torch.int32, device=device)
        kept = self.tokens.kept(rows).long()
        token = (kept >= 0).nonzero()[:, 0]
        self._kept = kept[token].to(device), self.written[token.to(device)].long()

        def each(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self._slot = each([c.slot for c in chunks])
        self._end = each([c.start + c.count for c in chunks])
        number = torch.arange(len(chunks), device=device)
        self._chunk = number.repeat_interleave(each([c.count for c in chunks]))
        self._known: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def slot(self) -> torch.Tensor:
        """[M] int64, on the device."""
        return self.tokens.slot.to(self.device)

    @cached_property
    def position(self) -> torch.Tensor:
        """[M] int64, on the device."""
        return self.tokens.position.to(self.device)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def turned(self, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [M, Q] of every token."""
        found: tuple[torch.Tensor, torch.Tensor] = self._once(rope, lambda: rope(self.position))
        return found

    def pool(self, ring: torch.Tensor) -> torch.Tensor:
        """`ring` with scratch rows behind, where a chunk is longer than one token."""
        return ring if self.alone else torch.cat([ring, ring.new_empty(len(self), ring.shape[1])])

    def keep(self, pool: torch.Tensor, ring: torch.Tensor) -> None:
        """Fill `ring` with what the next batch may need of the scratch rows."""
        if not self.alone:
            to, source = self._kept
            ring[to] = pool[source]

    def closed(self, weights: Compressor, rope: Rope) -> Closed:
        """The entries that windows ending in this batch make."""

        def make() -> Closed:
            rows = Rows(self.requests, weights.slots)
            found = closing(self.tokens, rows, self.places, weights.ratio)
            number = torch.arange(len(found.row), dtype=torch.int32, device=self.device)
            cos, sin = rope(found.position.to(self.device))
            return Closed(found.source.to(self.device), number, cos, sin, found.row.to(self.device))

        closed: Closed = self._once((rope, weights.slots, weights.ratio), make)
        return closed

    def state_rows(self, weights: Compressor) -> torch.Tensor:
        """Where each token's projection is kept, -1 where no later window needs it."""
        rows = Rows(self.requests, weights.slots)
        found: torch.Tensor = self._once(rows, lambda: self.tokens.kept(rows).to(self.device))
        return found

    def blocks(self, ratio: int) -> Iterator[slice]:
        """The batch in pieces that see at most AT_ONCE compressed entries in all.

        Pieces are multiples of 4 tokens, so that slices of index tensors stay aligned.
        """
        most = int((self.tokens.position.max() + 1) // ratio)
        step = max(4, AT_ONCE // max(1, most) // 4 * 4)
        for first in range(0, len(self), step):
            yield slice(first, min(first + step, len(self)))

    def all_entries(self, ratio: int, at: slice) -> torch.Tensor:
        """Rows [m, K] of all compressed entries that the tokens `at` see, then -1."""

        def make() -> torch.Tensor:
            slot, position = self.tokens.slot[at], self.tokens.position[at]
            return all_entries(slot, position, self.places, ratio).to(self.device)

        if at != slice(0, len(self)):
            return make()
        found: torch.Tensor = self._once(ratio, make)
        return found

    def keys(self, pool: torch.Tensor, ratio: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of all requests one after the other, and where those of each token begin, int32."""
        keys, first = self.places.keys(pool, self._slot, self._end // ratio, ratio)
        return keys, first[self._chunk].int()


def linear(run: Run, x: torch.Tensor, weight: torch.Tensor, out: str | None = None) -> torch.Tensor:
    """x W^T [M, N] for x [M, K] and W [N, K], in the type of `x` or as `out` says."""
    if out is None and x.dtype in NAMES:
        out = NAMES[x.dtype]
    y: torch.Tensor = run("gemm_dense", x, weight, out=out or "f32")
    return y if out else y.to(x.dtype)


def attention(
    run: Run, weights: Attention, state: State, batch: Batch, x: torch.Tensor
) -> torch.Tensor:
    """One layer's attention of normed hidden states, which also moves `state` on.

    Args:
        run: runs an op by stem.
        weights: of the layer.
        state: of the layer, as the last batch left it.
        batch: which tokens these are, at least one.
        x: [M, D] in bf16 or f32.

    Returns:
        [M, D] in the type of `x`.
    """
    M, H = len(x), len(weights.sink)
    cos, sin = batch.turned(weights.rope)
    latent = run("norm_rmsnorm", linear(run, x, weights.q_a), weights.q_norm, eps=weights.eps)
    q = linear(run, latent, weights.q_b).view(M, H, -1)
    q = run("attention_q_prologue", q, cos, sin, eps=weights.eps)
    entries = batch.pool(state.window)
    kv, where = linear(run, x, weights.kv), (batch.number, batch.written)
    run("norm_kv_row", kv, weights.kv_norm, cos, sin, *where, entries, eps=weights.eps)
    out = torch.empty_like(q)
    for at, pool, chosen in _compressed(run, weights, state, batch, x, latent):
        lists = (entries, batch.near[at], pool, chosen)
        out[at] = run("attention_sparse", q[at], *lists, weights.sink)
    batch.keep(entries, state.window)
    out = run("attention_out_rope", out, cos, sin)
    grouped = out.view(M, len(weights.o_a), -1)
    name = NAMES.get(x.dtype, "f32")
    low = run("gemm_grouped", grouped, weights.o_a, out=name).to(x.dtype)
    return linear(run, low.flatten(1), weights.o_b)


def _compressed(
    run: Run, weights: Attention, state: State, batch: Batch, x: torch.Tensor, latent: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(tokens, pool, rows of it they attend to [m, K]), after this batch's own entries are made."""
    whole = slice(0, len(batch))
    compressor, indexer = weights.compressor, weights.indexer
    if compressor is None or state.main is None:
        yield whole, state.window[:0], batch.near[:, :0]
        return
    ratio, pool = compressor.ratio, state.main.entries
    _compress(run, compressor, weights, state.main, batch, x)
    if indexer is None or state.index is None:
        for at in batch.blocks(ratio):
            yield at, pool, batch.all_entries(ratio, at)
        return
    _compress(run, indexer.keys, weights, state.index, batch, x)
    cos, sin = batch.turned(weights.rope)
    q = linear(run, latent, indexer.q_b).view(len(x), -1, len(indexer.keys.norm))
    q = run("rope_rotate", q, cos, sin, batch.number)
    weight = linear(run, x, indexer.weights)[:, : q.shape[1]].float()
    keys, first = batch.keys(state.index.entries, ratio)
    count = ((batch.position + 1) // ratio).int()
    for at in batch.blocks(ratio):
        most = int((batch.tokens.position[at].max() + 1) // ratio)
        tokens = (weight[at], first[at], count[at])
        score = run("indexer_score", q[at], keys, *tokens, S=-(-most // 4) * 4)
        entry = run("indexer_topk", score, count[at], K=indexer.top_k)
        slot = batch.slot[at, None].expand_as(entry)
        yield at, pool, batch.places.rows(slot, entry.long(), ratio)


def _compress(
    run: Run, weights: Compressor, layer: Attention, branch: Branch, batch: Batch, x: torch.Tensor
) -> None:
    """Make the entries whose windows end in the batch; keep what later windows need (spec §2.2)."""
    fresh = linear(run, x, weights.kv_gate, out="f32")
    closed = batch.closed(weights, layer.rope)
    if len(closed.row):
        sources = (branch.state, fresh, closed.source, closed.number)
        shape = (weights.ape, weights.norm, closed.cos, closed.sin)
        run("compressor_pool_row", *sources, *shape, closed.row, branch.entries, eps=layer.eps)
    run("compressor_keep", fresh, batch.state_rows(weights), branch.state)
