"""The official inference policy on one sequence, from the specification: dense, without a cache.

Every rounding point of spec §1.1, §2.1, §3, §4, §5.2 and §6 is there; between them elementwise
arithmetic is float32 and every sum of products is formed in float64 and rounded once, so that a
token's bits do not hang on how many others stand beside it. What defines an order, the chunks of
attention and the slots of a token's experts, is as the kernels' files define it. Two things are not
the official code's: the heads' RMSNorm has float32 statistics, and the indexer's scores stay
float32 (spec §3.1, as DeepGEMM has them).
"""

from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tileproof.kernels.indexer.reference import topk
from tileproof.kernels.mhc import reference as mhc
from tileproof.kernels.moe import reference as moe
from tileproof.kernels.quant import reference as quant
from tileproof.model.rope import frequencies

CHUNK = 32  # entries of attention reduced at once (kernels/attention/_core.py)


# --- arithmetic -----------------------------------------------------------------------------------


def product(a, b):
    """a b^T, [..., M, K] × [..., N, K] → f32."""
    return (a.double() @ b.double().mT).float()


def linear_fp8(x, w):
    """FP8 × FP8 or FP8 × FP4 Linear: x bf16 [M, K] is cast 1×128; bf16 out (spec §6.2, §6.3)."""
    return product(values(*quant.fp8_cast(x, 128), (1, 128)), w).bfloat16()


def weight_values(codes, scale):
    """A stored matrix [N, K], exactly."""
    if codes.dtype in (torch.int8, torch.uint8):
        codes = codes.view(torch.uint8)
        table = torch.tensor((*quant.E2M1_VALUES, *(-v for v in quant.E2M1_VALUES)))
        codes = table[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()]
        return values(codes, scale, (1, 32))
    return values(codes, scale, (128, 128))


def values(codes, scale, tile):
    wide = scale.float()
    for dim, size in enumerate(tile):
        wide = wide.repeat_interleave(size, dim).narrow(dim, 0, codes.shape[dim])
    return codes.float() * wide


def norm(x, weight, eps):
    """float32 statistics and product, one cast (spec §1.1)."""
    wide = x.float()
    wide = wide * (1 / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps))
    return (weight.float() * wide).to(x.dtype)


def turn(x, cos, sin):
    """The last channels of x [M, H, D] as neighbouring pairs, turned by cos and sin [M, Q]."""
    still = x.shape[-1] - 2 * cos.shape[-1]
    a, b = x[..., still::2].float(), x[..., still + 1 :: 2].float()
    c, s = cos[:, None], sin[:, None]
    pairs = torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)
    return torch.cat([x[..., :still], pairs.to(x.dtype)], -1)


def stored(entries, rope):
    """Entries as the cache gives them back: FP8 per 64 channels but for RoPE's (spec §6.2)."""
    nope = entries.shape[-1] - rope
    return torch.cat([quant.fp8_simulate(entries[..., :nope], 64), entries[..., nope:]], -1)


def mixing(x, fn, scale, base, iters, eps, norm_eps):
    """post, comb and the sublayer's input (spec §4)."""
    partial, sqrsum = (t.float() for t in mhc.prenorm_gemm(x.double(), fn))
    pre, post, comb = mhc.sinkhorn(
        partial, sqrsum, scale, base, x.shape[2], iters, eps, norm_eps
    )  # fmt: skip
    return post, comb, mhc.collapse(x, pre)


def head(x, fn, scale, base, eps, norm_eps):
    partial, sqrsum = (t.float() for t in mhc.prenorm_gemm(x.double(), fn))
    return mhc.head(x, partial, sqrsum, scale, base, eps, norm_eps)


def attend(q, scopes, sink):
    """Attention of q [M, H, D] over `scopes`: (entries [M, L, D] bf16, valid [M, L]) each, reduced
    chunk by chunk with probabilities in bf16 (spec §3.2, §8)."""
    M, H, D = q.shape
    peak = torch.full((M, H, 1), -torch.inf)
    total, out = torch.zeros(M, H, CHUNK), torch.zeros(M, H, D)
    for entries, valid in scopes:
        for rows, there in zip(entries.split(CHUNK, 1), valid.split(CHUNK, 1), strict=True):
            rows = F.pad(rows, (0, 0, 0, CHUNK - rows.shape[1]))
            there = F.pad(there, (0, CHUNK - there.shape[1]))
            s = product(q, rows).mul(D**-0.5).masked_fill(~there[:, None], -torch.inf)
            before, peak = peak, torch.maximum(peak, s.amax(-1, keepdim=True))
            base = torch.where(peak == -torch.inf, 0, peak)
            factor = torch.where(peak == -torch.inf, 1, torch.exp(before - base))
            p = torch.exp(s - base)
            total = total * factor + p
            out = out * factor + product(p.bfloat16(), rows.mT)
    base = torch.where(peak == -torch.inf, 0, peak)
    weight = total.double().sum(-1, keepdim=True).float() + torch.exp(sink[:, None] - base)
    return (out / torch.where(weight == 0, 1, weight)).bfloat16()


def swiglu(gate, up, limit, weight=None):
    """silu(min(g, limit)) clamp(u), times the routing weight, in float32; bf16 out (spec §5.2)."""
    gate = gate.float().clamp(max=limit)
    a = gate / (1 + torch.exp(-gate)) * up.float().clamp(-limit, limit)
    return (a if weight is None else a * weight[:, None]).bfloat16()


# --- the network ----------------------------------------------------------------------------------


class Official:
    """One sequence at a time; `state` is what :func:`tileproof.model.weights.official` gives."""

    def __init__(self, config, state, length):
        self.config, self.state = config, state
        self.matrices = {}
        self.rope = {kind: self.turns(kind, length) for kind in ("main", "compress")}

    def turns(self, kind, length):
        """cos and sin by position; angles are float32."""
        turned = frequencies(self.config.rope_parameters[kind], self.config.qk_rope_head_dim)
        angle = (torch.arange(length).float()[:, None] * turned).double()
        return angle.cos().to(turned.dtype), angle.sin().to(turned.dtype)

    def __call__(self, ids):
        """ids [S] → logits [S, V] f32 and the residual streams [S, N, D] before the head."""
        c = self.config
        x = self.state["embed.weight"].bfloat16()[ids][:, None].repeat(1, c.hc_mult, 1)
        for i, kind in enumerate(c.layer_types):
            x = self.block(x, ids, f"layers.{i}.", kind)
        return self.logits(x, ""), x

    def predict(self, x, ids):
        """Multi-token prediction (spec §13): streams of S tokens and the id behind each."""
        w, eps = self.weight("mtp.0."), self.config.rms_norm_eps
        e = linear_fp8(norm(self.state["embed.weight"].bfloat16()[ids], w("enorm.weight"), eps),
                       w.matrix("e_proj"))  # fmt: skip
        h = linear_fp8(norm(x, w("hnorm.weight"), eps).flatten(0, 1), w.matrix("h_proj"))
        x = e[:, None] + h.unflatten(0, x.shape[:2])
        return self.logits(self.block(x, ids, "mtp.0.", "sliding_attention"), "mtp.0.")

    def weight(self, prefix):
        """Tensors by what follows `prefix`; ``.matrix``: stored matrices, as float32."""

        def get(name):
            return self.state[prefix + name]

        def matrix(name):
            key = prefix + name
            if key not in self.matrices:
                stored = self.state[f"{key}.weight"], self.state[f"{key}.scale"]
                self.matrices[key] = weight_values(*stored)
            return self.matrices[key]

        get.matrix = matrix
        return get

    def logits(self, x, prefix):
        c, w = self.config, self.weight(prefix)
        mixed = (w(f"hc_head_{n}") for n in ("fn", "scale", "base"))
        y = norm(head(x, *mixed, c.hc_eps, c.rms_norm_eps), w("norm.weight"), c.rms_norm_eps)
        return product(y, self.state["head.weight"].bfloat16())

    def block(self, x, ids, prefix, kind):
        c, w = self.config, self.weight(prefix)
        for name, sublayer in (
            ("attn", lambda y: self.attention(y, prefix + "attn.", kind)),
            ("ffn", lambda y: self.experts(y, ids, prefix + "ffn.")),
        ):
            mixed = (w(f"hc_{name}_{n}") for n in ("fn", "scale", "base"))
            post, comb, y = mixing(x, *mixed, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps)
            y = sublayer(norm(y, w(f"{name}_norm.weight"), c.rms_norm_eps))
            x = mhc.post(x, y, post, comb)
        return x

    def attention(self, x, prefix, kind):
        c, w = self.config, self.weight(prefix)
        S, R, eps = len(x), c.qk_rope_head_dim, c.rms_norm_eps
        cos, sin = (t[:S] for t in self.rope["main" if kind == "sliding_attention" else "compress"])
        latent = norm(linear_fp8(x, w.matrix("wq_a")), w("q_norm.weight"), eps)
        q = linear_fp8(latent, w.matrix("wq_b")).unflatten(1, (-1, c.head_dim))
        q = turn(norm(q, torch.ones(c.head_dim), eps), cos, sin)
        kv = norm(linear_fp8(x, w.matrix("wkv")), w("kv_norm.weight"), eps)
        kv = stored(turn(kv[:, None], cos, sin)[:, 0], R)
        t = torch.arange(S)
        # the oldest first; early tokens leave the last slots empty
        near = (t - c.sliding_window + 1).clamp(min=0)[:, None] + torch.arange(c.sliding_window)
        scopes = [(kv[near.clamp(max=S - 1)], near <= t[:, None])]
        if kind != "sliding_attention":
            m = c.compress_rates[kind]
            entries = stored(self.compress(x, prefix + "compressor.", m), R)
            seen = (t + 1) // m
            chosen = torch.arange(len(entries)).expand(S, -1)
            chosen = chosen.where(chosen < seen[:, None], -1)
            if kind == "compressed_sparse_attention":
                chosen = self.select(x, latent, prefix, m, seen)
            if len(entries):
                scopes.append((entries[chosen.clamp(min=0).long()], chosen >= 0))
        out = turn(attend(q, scopes, w("attn_sink")), cos, -sin).bfloat16()
        G = c.o_groups
        grouped = out.flatten(1).unflatten(1, (G, -1))
        wo_a = w.matrix("wo_a").bfloat16().unflatten(0, (G, -1))
        out = torch.stack([product(grouped[:, g], wo_a[g]) for g in range(G)], 1).bfloat16()
        return linear_fp8(out.flatten(1), w.matrix("wo_b"))

    def compress(self, x, prefix, m):
        """Entries [S // m, D] of all whole windows, before they are stored (spec §2.1)."""
        w, eps = self.weight(prefix), self.config.rms_norm_eps
        D = len(w("norm.weight"))
        n = len(x) // m
        kv, z = (product(x[: n * m], w(f"{k}.weight").bfloat16()) for k in ("wkv", "wgate"))
        kv, z = kv.unflatten(0, (n, m)), z.unflatten(0, (n, m)) + w("ape")
        if kv.shape[-1] == 2 * D:  # the first half goes to the window behind
            kv, z = (
                torch.cat([F.pad(v[:-1, :, :D], (0, 0, 0, 0, 1, 0), value=none), v[..., D:]], 1)
                if n
                else v[..., D:]
                for v, none in ((kv, 0.0), (z, -torch.inf))
            )
        p = torch.exp(z - z.amax(1, keepdim=True))
        pooled = (p * kv).sum(1) / p.sum(1)
        cos, sin = (t[: n * m : m] for t in self.rope["compress"])
        return turn(norm(pooled.bfloat16(), w("norm.weight"), eps)[:, None], cos, sin)[:, 0]

    def select(self, x, latent, prefix, m, seen):
        """Entries each token attends to, ascending, -1 behind (spec §3.1)."""
        c, w = self.config, self.weight(prefix + "indexer.")
        H, D = c.index_n_heads, c.index_head_dim
        cos, sin = (t[: len(x)] for t in self.rope["compress"])
        q = turn(linear_fp8(latent, w.matrix("wq_b")).unflatten(1, (H, D)), cos, sin)
        q = quant.fp4_rotate_simulate(q)
        k = quant.fp4_rotate_simulate(self.compress(x, prefix + "indexer.compressor.", m))
        weight = product(x, w("weights_proj.weight").bfloat16()).bfloat16().float()
        score = self.score(q, k[None].expand(len(x), -1, -1), weight)
        return topk(score, seen.int(), c.index_topk)

    @staticmethod
    def score(q, k, weight):
        """q [M, H, D] and k [M, T, D] → [M, T] f32."""
        logits = product(k, q).relu()
        scale = (q.shape[1] * q.shape[2]) ** -0.5
        return (logits.double() * (weight * scale)[:, None].double()).sum(-1).float()

    def experts(self, x, ids, prefix):
        c, w = self.config, self.weight(prefix)
        logits = product(x, w("gate.weight").bfloat16())
        if prefix + "gate.tid2eid" in self.state:
            index, weight = moe.hash_gate(
                logits, ids, w("gate.tid2eid"), c.routed_scaling_factor
            )  # fmt: skip
        else:
            bias, K = w("gate.bias"), c.num_experts_per_tok
            index, weight = moe.topk_gate(logits, bias, K, c.routed_scaling_factor)
        total = torch.zeros(x.shape)
        for slot in range(index.shape[1]):
            y = torch.zeros_like(x)
            for e in index[:, slot].unique().tolist():
                at = index[:, slot] == e
                y[at] = self.expert(x[at], f"{prefix}experts.{e}.", weight[at, slot])
            total += y
        return (total + self.expert(x, prefix + "shared_experts.")).bfloat16()

    def expert(self, x, prefix, weight=None):
        w = self.weight(prefix)
        gate, up = (linear_fp8(x, w.matrix(k)) for k in ("w1", "w3"))
        return linear_fp8(swiglu(gate, up, self.config.swiglu_limit, weight), w.matrix("w2"))


# --- without roundings ----------------------------------------------------------------------------


class _Wide(TorchFunctionMode):
    """Code that asks for float32 or bfloat16 gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.float, torch.Tensor.bfloat16):
            function = torch.Tensor.double
        return function(*args, **(kwargs or {}))


def unrounded(config, state, ids):
    """Logits of the same network in float64, with the stored weights and no other rounding."""
    plain = {
        "linear_fp8": product,
        "stored": lambda entries, rope: entries,
        "quant.fp4_rotate_simulate": lambda x: x,
    }
    for name, function in plain.items():
        plain[name] = mock.patch(f"{__name__}.{name}", function)
    with plain["linear_fp8"], plain["stored"], plain["quant.fp4_rotate_simulate"], _Wide():
        state = {k: t.double() if t.dtype == torch.float32 else t for k, t in state.items()}
        return Official(config, state, len(ids))(ids)[0]
