"""DeepSeek-V4 composed from ops alone, in the official precision, over a paged cache.

    model = DeepseekV4.load("path/to/checkpoint")
    cache = model.cache(slots=4, tokens=8192)
    logits = model.forward([Chunk(0, 0, 5), Chunk(1, 0, 3)], ids, cache).logits

A batch is any chunks of any requests: prompts, pieces of prompts and single steps side by side. A
token's bits are the same in all of them, for every op's are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from tileproof.dsl import Specialization, check, get
from tileproof.kernels.kv_cache import MODEL_ENTRIES

from . import weights as checkpoints
from .cache import Chunk, Pages
from .library import Ops, opened
from .official import (
    Numbers,
    PagedBatch,
    Run,
    State,
    Streams,
    block,
    collapsed,
    linear,
    multiprocessors,
    normed,
)
from .official_weights import Head, Reader

if TYPE_CHECKING:
    from transformers import DeepseekV4Config


# Every op of the network.
OPS = (
    "attention/out_rope",
    "attention/paged",
    "attention/paged_cluster",
    "attention/q_prologue",
    "compressor/keep",
    "compressor/pool_fp4",
    "compressor/pool_fp8",
    "gemm/dense",
    "gemm/fp4_experts",
    "gemm/fp8",
    "gemm/grouped",
    "indexer/score_fp4",
    "indexer/slots",
    "indexer/topk",
    "mhc/collapse",
    "mhc/head",
    "mhc/post",
    "mhc/post_prenorm_gemm",
    "mhc/pre",
    "mhc/prenorm_gemm",
    "mhc/sinkhorn",
    "moe/combine",
    "moe/dispatch_fp8",
    "moe/hash_gate",
    "moe/mega",
    "moe/permute",
    "moe/source",
    "moe/swiglu",
    "moe/swiglu_fp8",
    "moe/topk_gate",
    "norm/kv_fp8",
    "norm/rmsnorm",
    "norm/rmsnorm_fp8",
    "quant/fp8_cast",
    "rope/rotate_fp4",
)


def specializations(config: DeepseekV4Config, ops: Iterable[str] = OPS) -> list[Specialization]:
    """The kernels of `ops` that the network `config` describes runs on."""
    sizes = config.to_dict()
    needed = [s for name in ops for s in get(name).for_model(sizes, "bf16")]

    def used(s: Specialization) -> bool:
        if s.op.name == "gemm/dense":  # the other matrices are FP8
            return s.dims["K"] == config.hidden_size
        if s.op.name == "norm/rmsnorm":  # of the head; others are part of other ops
            return s.types["weight"] == "bf16" and s.dims["D"] == config.hidden_size
        if s.op.name == "quant/fp8_cast":  # other linears' inputs come out of norms
            merged = config.o_groups * config.o_lora_rank
            return s.dims["K"] in (merged, config.moe_intermediate_size)
        return s.types.get("weight", "bf16") == "bf16"

    return [s for s in needed if used(s)]


class Output(NamedTuple):
    """What :meth:`DeepseekV4.forward` gives.

    Attributes:
        logits: [R, V] f32, of each chunk's last token or of all tokens.
        streams: [M, N, D] bf16, all tokens' residual streams before the head; what
            :meth:`DeepseekV4.predict` takes.
    """

    logits: torch.Tensor
    streams: torch.Tensor


@dataclass
class Cache:
    """Everything a model keeps of its requests (spec §12.2).

    State pools have one block for each of `slots` requests; pages of the compressed pools go to
    whoever needs them. A request begins with a chunk at position 0 in a slot that holds none.

    Attributes:
        slots: requests there may be at once.
        pages: who has which pages.
        length: tokens of each slot's request so far.
        scratch: tokens there may be in one batch.
        layers: state of each layer.
        predicted, predictor: length and state of the block of multi-token prediction, if any.
    """

    slots: int
    pages: Pages
    length: list[int]
    scratch: int
    layers: list[State]
    predicted: list[int]
    predictor: State | None

    def release(self, slot: int) -> None:
        """End the request in `slot`; its pages serve others."""
        check(0 <= slot < self.slots, "slot", got=slot, expected=f"0..{self.slots - 1}")
        self.pages.release(slot)
        self.length[slot] = self.predicted[slot] = 0


class DeepseekV4:
    """The network.

    Args:
        config: of transformers, which describes official checkpoints too.
        state: tensors under official names, quantised or not, see :mod:`weights`. Missing or
            misshapen ones raise ContractError.
        run: runs an op by stem, ``run("gemm_dense", x, w, out="f32")``.
        device: where weights and caches go.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        state: Mapping[str, torch.Tensor],
        run: Run,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.run = config, run
        self.numbers = Numbers(
            config.rms_norm_eps,
            config.hc_eps,
            config.hc_sinkhorn_iters,
            config.num_experts_per_tok,
            config.routed_scaling_factor,
            config.swiglu_limit,
            multiprocessors(torch.device(device)),
        )
        read = Reader(config, checkpoints.official(config, state), device)
        self.embed, self.vocabulary = read["embed.weight"], read["head.weight"]
        self.head = read.head("")
        self.blocks = [
            read.block(f"layers.{i}.", kind) for i, kind in enumerate(config.layer_types)
        ]
        self.predictor = read.predictor("mtp.0.") if "mtp.0.norm.weight" in read.state else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        *,
        bundle: str | Path | None = None,
        arch: str | None = None,
        device: torch.device | str = "cpu",
        on_missing: Literal["compile", "error"] = "compile",
    ) -> DeepseekV4:
        """The model of a checkpoint, official or of transformers, in folder `path`.

        Args:
            path: has ``config.json`` and safetensors; what is not quantised there is quantised.
            backend: ``auto``, ``cuda``, ``virtual`` or ``reference``, see :func:`tileproof.load`.
                References sum as torch's float32 products do: last bits hang on the batch.
            bundle: the kernels; None for those this model needs from the user's cache.
            arch: the architecture the virtual GPU plays.
            device: where weights and caches are.
            on_missing: whether kernels that the bundle lacks are compiled on the spot.

        Raises ContractError in one sentence for a damaged or unfitting checkpoint.
        """
        from transformers import DeepseekV4Config

        config = DeepseekV4Config.from_pretrained(path)
        state = checkpoints.read(path)
        needed = specializations(config) if backend != "reference" else []
        where = (torch.device(device), backend, bundle, arch, on_missing)
        return cls(config, state, Ops(*opened(needed, *where)), device)

    def cache(
        self, slots: int, tokens: int, scratch: int = 4096, entries: int = MODEL_ENTRIES
    ) -> Cache:
        """An empty cache.

        Args:
            slots: requests at once.
            tokens: of all requests together; each takes whole pages.
            scratch: tokens of the longest batch.
            entries: of a page of the most finely compressed layers.
        """
        for name, value in (("slots", slots), ("tokens", tokens), ("scratch", scratch)):
            check(value > 0, f"cache: {name}", got=value, expected="at least 1")
        ratios = list(self.config.compress_rates.values())
        page = self._page(entries)
        whole = all(page % ratio == 0 for ratio in ratios)
        expected = f"pages of a multiple of {max(ratios)} tokens"
        check(whole, "cache: entries of a page", got=f"{entries}, {page} tokens", expected=expected)
        pages = Pages(slots, -(-tokens // page), page)
        layers, mtp = self._states(pages, slots, scratch)
        return Cache(slots, pages, [0] * slots, scratch, layers, [0] * slots, mtp)

    def _states(self, pages: Pages, slots: int, scratch: int) -> tuple[list[State], State | None]:
        """Empty states of all layers, and of the block of multi-token prediction."""
        entries = pages.page // min(self.config.compress_rates.values())
        window = slots * self.config.sliding_window + scratch
        room = (slots, window, pages.count * pages.page, entries)
        layers = [State.empty(b.attention, *room) for b in self.blocks]
        mtp = State.empty(self.predictor.block.attention, *room) if self.predictor else None
        return layers, mtp

    def make_room(self, chunks: Sequence[Chunk], cache: Cache) -> None:
        """Let `cache` take a batch of `chunks`: what it holds moves to larger pools if it must."""
        count, lacking = sum(chunk.count for chunk in chunks), cache.pages.lacking(chunks)
        if count <= cache.scratch and not lacking:
            return
        if lacking:  # half as much again, as growing copies
            cache.pages.extend(lacking + cache.pages.count // 2)
        cache.scratch = max(count, cache.scratch)
        layers, mtp = self._states(cache.pages, cache.slots, cache.scratch)
        for old, new in zip(cache.layers, layers, strict=True):
            old.copy_into(new)
        if cache.predictor is not None and mtp is not None:
            cache.predictor.copy_into(mtp)
        cache.layers, cache.predictor = layers, mtp

    @torch.no_grad()
    def forward(
        self, chunks: Sequence[Chunk], tokens: torch.Tensor, cache: Cache, every: bool = False
    ) -> Output:
        """Process a batch and move `cache` on.

        Args:
            chunks: which tokens these are, at most one chunk for each request.
            tokens: [M] integer ids, chunk by chunk.
            cache: holds all tokens before each chunk's first.
            every: give logits of all tokens, not of each chunk's last alone.

        Raises ContractError, and changes nothing, for ids outside the vocabulary, chunks that do
        not continue their request or come twice, and a cache with too few pages or scratch rows.
        """
        x = self._streams(chunks, tokens, cache)
        ends = torch.tensor([chunk.count for chunk in chunks], dtype=torch.int64).cumsum(0)
        y = x if every else x[(ends - 1).to(x.device)]
        return Output(self.logits(self._normed(self.head, y)), x)

    @torch.no_grad()
    def hidden(self, chunks: Sequence[Chunk], tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """As :meth:`forward`, but normed hidden states [M, D] bf16 of all tokens."""
        return self._normed(self.head, self._streams(chunks, tokens, cache))

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        """[M, V] f32 of normed hidden states [M, D] bf16."""
        logits: torch.Tensor = self.run("gemm_dense", y, self.vocabulary, out="f32")
        return logits

    @torch.no_grad()
    def predict(
        self, chunks: Sequence[Chunk], streams: torch.Tensor, following: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Logits [M, V] of one token further ahead, by multi-token prediction (spec §13).

        Args:
            chunks: as they went to :meth:`forward`.
            streams: [M, N, D] that it gave.
            following: [M] ids of the token behind each.
            cache: the same.
        """
        weights = self.predictor
        expected = "one with tensors mtp.0.…"
        check(weights is not None, "model", got="a checkpoint without MTP", expected=expected)
        assert weights is not None and cache.predictor is not None
        ids = self._checked(chunks, following, cache, cache.predicted)
        wide = (len(ids), self.config.hc_mult, self.config.hidden_size)
        got = tuple(streams.shape)
        check(got == wide, "streams", got=[*got], expected=[*wide])
        run, eps, flat = self.run, self.numbers.eps, streams.flatten(0, 1)
        _, e = normed(run, self.embed[ids], weights.e_norm, eps)
        _, h = normed(run, flat, weights.h_norm, eps)
        x = linear(run, h, weights.h_proj).view(wide) + linear(run, e, weights.e_proj)[:, None]
        if not chunks:
            return self.logits(self._normed(weights.head, x))
        batch = self._batch(chunks, cache)
        x, _ = block(run, weights.block, cache.predictor, batch, Streams(x), ids, self.numbers)
        for chunk in chunks:
            cache.predicted[chunk.slot] += chunk.count
        return self.logits(self._normed(weights.head, x))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        cache: Cache | None = None,
        chunk: int | None = None,
        stop: int | None = None,
    ) -> list[list[int]]:
        """Greedy continuations of several prompts at once.

        Args:
            prompts: ids, at least one each.
            count: new tokens of each, fewer where `stop` comes.
            cache: an empty one to use; None makes one.
            chunk: tokens of a prompt in one batch, None for all of it.
            stop: id that ends a continuation; it is part of it.
        """
        for prompt in prompts:
            check(len(prompt) > 0, "prompt", got="no tokens", expected="at least 1")
        check(chunk is None or chunk > 0, "chunk", got=chunk, expected="at least 1 token")
        longest = max(map(len, prompts), default=0)
        if cache is None:
            page = self._page(MODEL_ENTRIES)
            tokens = sum(-(-(len(p) + count) // page) * page for p in prompts)
            cache = self.cache(max(1, len(prompts)), max(1, tokens), max(1, sum(map(len, prompts))))
        waiting = [list(prompt) for prompt in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        step = chunk or longest
        while any(waiting):
            slots = [slot for slot, ids in enumerate(waiting) if ids]
            parts = [waiting[slot][:step] for slot in slots]
            chunks = [
                Chunk(slot, cache.length[slot], len(part))
                for slot, part in zip(slots, parts, strict=True)
            ]
            ids = torch.tensor([i for part in parts for i in part], dtype=torch.int64)
            best = self.forward(chunks, ids, cache).logits.argmax(-1).tolist()
            for slot, part, token in zip(slots, parts, best, strict=True):
                del waiting[slot][: len(part)]
                if not waiting[slot] and len(found[slot]) < count:
                    found[slot].append(token)
                    if len(found[slot]) < count and token != stop:
                        waiting[slot].append(token)
        return found

    def _checked(
        self, chunks: Sequence[Chunk], tokens: torch.Tensor, cache: Cache, length: list[int]
    ) -> torch.Tensor:
        """`tokens` as int64 on the device, after all checks."""
        count = sum(chunk.count for chunk in chunks)
        fits = tokens.ndim == 1 and len(tokens) == count and not tokens.is_floating_point()
        got = f"{str(tokens.dtype).removeprefix('torch.')} {[*tokens.shape]}"
        check(fits, "tokens", got=got, expected=f"integers [{count}], as many as the chunks have")
        vocabulary = len(self.embed)
        outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
        expected = f"ids 0..{vocabulary - 1}"
        check(not len(outside), "tokens", got=outside[:3].tolist(), expected=expected)
        expected = f"at most {cache.scratch}, the cache's scratch"
        check(count <= cache.scratch, "tokens of a batch", got=count, expected=expected)
        slots = [chunk.slot for chunk in chunks]
        once = len({*slots}) == len(slots) and all(0 <= slot < cache.slots for slot in slots)
        expected = f"one chunk for each of slots 0..{cache.slots - 1}"
        check(once, "slots", got=slots, expected=expected)
        for slot, start, number in chunks:
            name = f"chunk of slot {slot}"
            check(number > 0, name, got=f"{number} tokens", expected="at least 1")
            expected = f"at {length[slot]}, behind what the cache holds"
            check(start == length[slot], name, got=f"tokens from position {start} on",
                  expected=expected)  # fmt: skip
            most, end = self.config.max_position_embeddings, start + number
            check(end <= most, name, got=f"{end} tokens", expected=f"at most {most}")
        return tokens.to(self.embed.device, torch.int64, copy=True)  # a slice may be unaligned

    def _page(self, entries: int) -> int:
        """Tokens whose entries fill a page in the most finely compressed layers."""
        return entries * min(self.config.compress_rates.values())

    def _batch(self, chunks: Sequence[Chunk], cache: Cache) -> PagedBatch:
        width, device = self.config.sliding_window, self.embed.device
        batch = PagedBatch(chunks, cache.slots, width, cache.pages, device)
        assert len(batch.table) == cache.slots  # which checks it, before anything is written
        return batch

    def _streams(self, chunks: Sequence[Chunk], tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Residual streams [M, N, D] of a batch behind the last layer."""
        ids = self._checked(chunks, tokens, cache, cache.length)
        x = self.embed[ids][:, None].repeat(1, self.config.hc_mult, 1)
        if not chunks:
            return x
        cache.pages.reserve(chunks)
        batch = self._batch(chunks, cache)
        streams = Streams(x)
        behind = [*(weights.attn_mixing for weights in self.blocks[1:]), None]
        for weights, state, following in zip(self.blocks, cache.layers, behind, strict=True):
            streams = block(self.run, weights, state, batch, streams, ids, self.numbers, following)
        for chunk in chunks:
            cache.length[chunk.slot] += chunk.count
        return streams.x

    def _normed(self, head: Head, x: torch.Tensor) -> torch.Tensor:
        """Streams [M, N, D] → normed hidden states [M, D]."""
        y = collapsed(self.run, head.mixing, x, self.numbers)
        normed: torch.Tensor = self.run("norm_rmsnorm", y, head.norm, eps=self.numbers.eps)
        return normed
