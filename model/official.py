"""One block of DeepSeek-V4 in the official precision, composed from ops (spec §2–§6).

Matrices stay as checkpoints store them, FP8 or FP4; activations are cast per 1×128 before each.
Entries go to FP8 pages, the indexer's keys to FP4 pages. Which rows of a pool a token reads and
writes is :mod:`attention`'s `Batch`, as in exact precision; this module decides what is rounded
where, and no token's bits hang on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from tileproof.dsl import check
from tileproof.kernels.attention.form import clustered
from tileproof.kernels.kv_cache import key_pages, kv_pages

from .attention import Batch, Compressor, Rope
from .cache import Rows
from .moe import Sorted, by_expert
from .official_weights import Attention, Block, Codes, Experts, Mixing

Run = Callable[..., Any]  # run("gemm_dense", x, w, out="f32")
Views = tuple[torch.Tensor, ...]
FUSED_TOKENS = 32  # up to which mHC is one launch, and routed experts are, see `dispatch`
GROUP = 128  # channels of an activation's scale


class Numbers(NamedTuple):
    """What the config says beside sizes."""

    eps: float
    hc_eps: float
    hc_iters: int
    top_k: int
    scale: float
    limit: float
    multiprocessors: int = 0  # of the device; without them decoding has one form


@dataclass(frozen=True)
class Branch:
    """What one branch of the compressor keeps: `kept` [slots L, 2 C] f32, a ring of projections for
    each request, and views of a pool of compressed entries."""

    kept: torch.Tensor
    pool: Views

    @classmethod
    def empty(cls, weights: Compressor, slots: int, pool: Views) -> Branch:
        """Room for so many requests."""
        wide = 2 * weights.ape.shape[1]
        return cls(weights.ape.new_zeros(slots * weights.slots, wide), pool)


@dataclass(frozen=True)
class State:
    """What one layer keeps between batches.

    Attributes:
        window: views of FP8 pages, a ring for each request and scratch rows behind.
        main, index: branches of the compressor.
    """

    window: Views
    main: Branch | None
    index: Branch | None

    @classmethod
    def empty(cls, weights: Attention, slots: int, window: int, tokens: int, entries: int) -> State:
        """State of `slots` requests.

        Args:
            weights: of the layer.
            slots: requests.
            window: rows of the window's pool, scratch included.
            tokens: in the compressed pools, of all requests together.
            entries: of a page.
        """
        rope = 2 * len(weights.rope.frequency)
        layout = kv_pages(entries, len(weights.kv_norm) - rope, rope)
        device = weights.kv_norm.device

        def views(layout: Any, rows: int) -> Views:
            return tuple(layout.views(layout.pool(-(-rows // entries), device)))

        main = index = None
        if (compressor := weights.compressor) is not None:
            pool = views(layout, tokens // compressor.ratio)
            main = Branch.empty(compressor, slots, pool)
        if (indexer := weights.indexer) is not None:
            keys = key_pages(entries, len(indexer.keys.norm))
            pool = views(keys, tokens // indexer.keys.ratio)
            index = Branch.empty(indexer.keys, slots, pool)
        return cls(views(layout, window), main, index)

    def copy_into(self, wider: State) -> None:
        """Fill `wider`, of the same requests and with more room, with what this one holds."""
        pairs = [(self.window, wider.window)]
        for old, new in ((self.main, wider.main), (self.index, wider.index)):
            if old is not None and new is not None:
                new.kept.copy_(old.kept)
                pairs.append((old.pool, new.pool))
        for views, others in pairs:
            for view, other in zip(views, others, strict=True):
                other[: len(view)] = view


class PagedBatch(Batch):
    """A batch whose entries lie in pages; also what the ops on pages ask for."""

    @cached_property
    def kept(self) -> torch.Tensor:
        """The window's ring row of each token that the next batch may need, else -1; [M] int32."""
        return self.tokens.kept(Rows(self.requests, self.width)).to(self.device)

    @cached_property
    def table(self) -> torch.Tensor:
        """Pages of each request in order, int32, -1 behind the last.

        Raises ContractError for a page that the pools do not have.
        """
        table, count = self.places.tensor(), self.places.count
        outside = table[(table < -1) | (table >= count)]
        expected = f"pages 0..{count - 1}"
        check(not len(outside), "page table", got=outside[:3].tolist(), expected=expected)
        return table.int().to(self.device)

    @cached_property
    def request(self) -> torch.Tensor:
        """The row of :attr:`table` of each token, [M] int32."""
        return self.slot.int()

    def seen(self, ratio: int) -> torch.Tensor:
        """How many entries each token sees, [M] int32."""
        return ((self.position + 1) // ratio).int()


def cast(run: Run, x: torch.Tensor) -> Codes:
    """x [M, K] bf16 per 1×128."""
    return Codes(*run("quant_fp8_cast", x, B=GROUP))


def normed(
    run: Run, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Codes]:
    """RMSNorm [M, K] bf16 of x, and the same per 1×128."""
    y, *codes = run("norm_rmsnorm_fp8", x, weight, eps=eps)
    return y, Codes(*codes)


def linear(run: Run, x: Codes, w: Codes) -> torch.Tensor:
    """x W^T [M, N] bf16 for FP8 x and W."""
    y: torch.Tensor = run("gemm_fp8", *x, *w, out="bf16")
    return y


class Streams(NamedTuple):
    """Residual streams x [M, N, D] bf16; `sums` are what :func:`projected` gives for the sublayer
    they go to next, where that came with them."""

    x: torch.Tensor
    sums: Views | None = None


def block(
    run: Run,
    weights: Block,
    state: State,
    batch: PagedBatch,
    streams: Streams,
    ids: torch.Tensor,
    numbers: Numbers,
    following: Mixing | None = None,
) -> Streams:
    """The streams of tokens `ids` [M] through one layer, which moves `state` on; `following` is
    the mixing of the layer behind it."""
    for mixing, norm, sublayer, then in (
        (weights.attn_mixing, weights.attn_norm,
         lambda y, low: attention(run, weights.attention, state, batch, y, low, numbers),
         weights.ffn_mixing),
        (weights.ffn_mixing, weights.ffn_norm,
         lambda y, low: experts(run, weights.experts, y, low, ids, numbers),
         following),
    ):  # fmt: skip
        post, comb, y = before(run, mixing, streams, numbers)
        y = sublayer(*normed(run, y, norm, numbers.eps))
        streams = behind(run, streams.x, y, post, comb, then)
    return streams


def before(
    run: Run, mixing: Mixing, streams: Streams, numbers: Numbers
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """post [M, N] and comb [M, N, N] of a sublayer, and what goes into its norm (spec §4)."""
    x, sums = streams
    norm = {"eps": numbers.hc_eps, "norm_eps": numbers.eps}
    params = {"iters": numbers.hc_iters, **norm}
    if sums is None and len(x) <= FUSED_TOKENS:
        post, comb, y = run("mhc_pre", x, mixing.fn, mixing.scale, mixing.base, **params)
        return post, comb, y
    partial, sqrsum = projected(run, x, mixing) if sums is None else sums
    scale, base, D = mixing.scale, mixing.base, x.shape[2]
    pre, post, comb = run("mhc_sinkhorn", partial, sqrsum, scale, base, D=D, **params)
    return post, comb, run("mhc_collapse", x, pre)


def behind(
    run: Run,
    x: torch.Tensor,
    y: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    following: Mixing | None,
) -> Streams:
    """The streams with what a sublayer made of them (spec §4), and of many tokens the sums of the
    next one's projection."""
    if following is None or len(x) <= FUSED_TOKENS:
        return Streams(run("mhc_post", x, y, post, comb))
    out, *sums = run("mhc_post_prenorm_gemm", x, y, post, comb, following.fn)
    return Streams(out, tuple(sums))


def projected(run: Run, x: torch.Tensor, mixing: Mixing) -> Views:
    """The projection's partial results [S, M, C] and sums of squares [S, M] of streams x."""
    sums: Views = run("mhc_prenorm_gemm", x, mixing.fn)
    return sums


def collapsed(run: Run, mixing: Mixing, x: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """Residual streams [M, N, D] to [M, D], as the head takes them (spec §4)."""
    sums = projected(run, x, mixing)
    made = (x, *sums, mixing.scale, mixing.base)
    y: torch.Tensor = run("mhc_head", *made, eps=numbers.hc_eps, norm_eps=numbers.eps)
    return y


def attention(
    run: Run,
    weights: Attention,
    state: State,
    batch: PagedBatch,
    x: torch.Tensor,
    low: Codes,
    numbers: Numbers,
) -> torch.Tensor:
    """Attention of normed hidden states [M, D], in bf16 and as codes; entries of the batch are made
    on the way."""
    M, H, eps = len(x), len(weights.sink), numbers.eps
    cos, sin = batch.turned(weights.rope)
    _, latent = normed(run, linear(run, low, weights.wq_a), weights.q_norm, eps)
    q = linear(run, latent, weights.wq_b).view(M, H, -1)
    q = run("attention_q_prologue", q, cos, sin, eps=eps)
    kv = linear(run, low, weights.wkv)
    turned = (kv, weights.kv_norm, cos, sin, batch.number)
    run("norm_kv_fp8", *turned, batch.written, *state.window, eps=eps)
    pool, chosen = _compressed(run, weights, state, batch, x, latent, eps)
    lists = (*state.window, batch.near, *pool, chosen)
    out = core(run, q, lists, weights.sink, numbers.multiprocessors)
    if not batch.alone:  # the rings still held what this batch's first tokens saw
        run("norm_kv_fp8", *turned, batch.kept, *state.window, eps=eps)
    out = run("attention_out_rope", out, cos, sin)
    grouped = out.view(M, len(weights.wo_a), -1)
    merged = run("gemm_grouped", grouped, weights.wo_a, out="bf16")
    return linear(run, cast(run, merged.flatten(1)), weights.wo_b)


def multiprocessors(device: torch.device) -> int:
    """Those of a GPU, 0 elsewhere."""
    if device.type != "cuda":
        return 0
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def core(
    run: Run, q: torch.Tensor, lists: Sequence[torch.Tensor], sink: torch.Tensor, processors: int
) -> torch.Tensor:
    """Attention of q [M, H, D] over its lists, the last tokens by clusters of blocks where `form`
    says so; the bits are the same. `lists` are those of `attention/paged`."""
    *window, near = lists[:4]
    *pool, chosen = lists[4:]
    slots = near.shape[1] + chosen.shape[1]
    few = clustered(len(q), q.shape[1], q.shape[2], slots, processors)

    def part(op: str, q: torch.Tensor, near: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = run(op, q, *window, near, *pool, chosen, sink)
        return out

    if not few:
        return part("attention_paged", q, near, chosen)
    alone = len(q) - few
    # copies, as rows of a list may lie where no kernel takes a pointer
    rows = near[alone:].clone(), chosen[alone:].clone()
    last = part("attention_paged_cluster", q[alone:], *rows)
    if not alone:
        return last
    return torch.cat([part("attention_paged", q[:alone], near[:alone], chosen[:alone]), last])


def _compressed(
    run: Run,
    weights: Attention,
    state: State,
    batch: PagedBatch,
    x: torch.Tensor,
    latent: Codes,
    eps: float,
) -> tuple[Views, torch.Tensor]:
    """A pool with this batch's own entries in it, and rows of it each token attends to [M, K]."""
    compressor, indexer = weights.compressor, weights.indexer
    if compressor is None or state.main is None:
        return tuple(view[:0] for view in state.window), batch.near[:, :0]
    rope, ratio, whole = weights.rope, compressor.ratio, slice(0, len(batch))
    _compress(run, "compressor_pool_fp8", compressor, rope, state.main, batch, x, eps)
    if indexer is None or state.index is None:
        return state.main.pool, batch.all_entries(ratio, whole)
    _compress(run, "compressor_pool_fp4", indexer.keys, rope, state.index, batch, x, eps)
    q = linear(run, latent, indexer.wq_b).view(len(x), -1, len(indexer.keys.norm))
    q, scale = run("rope_rotate_fp4", q, *batch.turned(rope), batch.number)
    weight = run("gemm_dense", x, indexer.weights, out="bf16").float()
    chosen, seen = [], batch.seen(ratio)
    for at in batch.blocks(ratio):
        most = int((batch.tokens.position[at].max() + 1) // ratio)
        lists = (batch.table, batch.request[at], seen[at], weight[at])
        columns = -(-most // 4) * 4
        score = run("indexer_score_fp4", q[at], scale[at], *state.index.pool, *lists, S=columns)
        entry = run("indexer_topk", score, seen[at], K=indexer.top_k)
        E = batch.places.page // ratio
        chosen.append(run("indexer_slots", entry, batch.table, batch.request[at], E=E))
    return state.main.pool, chosen[0] if len(chosen) == 1 else torch.cat(chosen)


def _compress(
    run: Run,
    op: str,
    weights: Compressor,
    rope: Rope,
    branch: Branch,
    batch: PagedBatch,
    x: torch.Tensor,
    eps: float,
) -> None:
    """Make the entries whose windows end in the batch; keep what later windows need (spec §2.2)."""
    fresh = run("gemm_dense", x, weights.kv_gate, out="f32")
    closed = batch.closed(weights, rope)
    if len(closed.row):
        sources = (branch.kept, fresh, closed.source, closed.number, weights.ape, weights.norm)
        run(op, *sources, closed.cos, closed.sin, closed.row, *branch.pool, eps=eps)
    run("compressor_keep", fresh, batch.state_rows(weights), branch.kept)


def experts(
    run: Run, weights: Experts, x: torch.Tensor, low: Codes, ids: torch.Tensor, numbers: Numbers
) -> torch.Tensor:
    """The experts of normed hidden states [M, D], in bf16 and as codes, of tokens `ids` [M], summed
    (spec §5)."""
    logits = run("gemm_dense", x, weights.gate, out="f32")
    if weights.table is not None:
        index, weight = run("moe_hash_gate", logits, ids, weights.table, scale=numbers.scale)
    else:
        choice = {"K": numbers.top_k, "scale": numbers.scale}
        index, weight = run("moe_topk_gate", logits, weights.bias, **choice)
    hidden = run("moe_swiglu", linear(run, low, weights.shared_w13), limit=numbers.limit)
    shared = linear(run, cast(run, hidden), weights.shared_w2)
    rows = by_expert(run, index, len(weights.w2.codes))
    if len(x) <= FUSED_TOKENS:
        return at_once(run, weights, low, rows, weight, shared, numbers.limit)
    made = run("moe_dispatch_fp8", x, rows.source, K=numbers.top_k)
    hidden = run("gemm_fp4_experts", *made, rows.expert, *weights.w13, B=GROUP, out="bf16")
    made = run("moe_swiglu_fp8", hidden, weight, rows.source, limit=numbers.limit)
    y = run("gemm_fp4_experts", *made, rows.expert, *weights.w2, B=GROUP, out="bf16")
    # the rows have their weights in them (spec §0.1 item 6)
    total: torch.Tensor = run("moe_combine", y, rows.place, torch.ones_like(weight), shared)
    return total


def at_once(
    run: Run,
    weights: Experts,
    x: Codes,
    rows: Sorted,
    weight: torch.Tensor,
    shared: torch.Tensor,
    limit: float,
) -> torch.Tensor:
    """Routed experts of hidden states x [M, D] in one launch, with the bits of the ops in a row.

    Args:
        run: runs an op by stem.
        weights: of the layer.
        x: normed hidden states.
        rows: where those of each expert lie.
        weight: [M, K] f32 of a token's slots.
        shared: [M, D] bf16, added last.
        limit: of SwiGLU.
    """
    tiles, hidden = rows.source.shape, 2 * weights.w2.codes.shape[2]

    def room(wide: int, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(*tiles, wide, dtype=kind, device=shared.device)

    groups = -(-hidden // GROUP)
    between = (room(hidden, x.codes.dtype), room(groups, x.scale.dtype))
    lists = (rows.source, rows.expert, rows.place, weight)
    matrices = (*weights.w13, *weights.w2, shared)
    made = room(shared.shape[1], shared.dtype)
    total: torch.Tensor = run("moe_mega", *x, *lists, *matrices, *between, made, limit=limit)
    return total
