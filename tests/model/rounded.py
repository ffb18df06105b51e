"""The ops' torch references with the arithmetic of `official.py`: sums of products are formed in
float64 and rounded once, so bits do not hang on the number of rows, as those of torch's float32
products do. What ops are tested for one by one is left to their references."""

import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.indexer.reference import slots
from tileproof.kernels.mhc import reference as mhc
from tileproof.kernels.moe.reference import dispatch
from tileproof.kernels.quant import reference as quant
from tileproof.model.library import References

from . import official

KINDS = {"bf16": torch.bfloat16, "f32": torch.float32}


def experts_in_steps(
    run, x, xs, source, expert, place, weight, w13, s13, w2, s2, shared, *_, limit
):
    """What `moe/mega` makes, by one op after the other."""
    rows = [dispatch(t.view(torch.uint8), source, place.shape[1]) for t in (x, xs)]
    rows = [row.view(t.dtype) for row, t in zip(rows, (x, xs), strict=True)]
    product = {"B": quant.TILE, "out": "bf16"}
    h = run("gemm_fp4_experts", *rows, expert, w13, s13, **product)
    rows = run("moe_swiglu_fp8", h, weight, source, limit=limit)
    y = run("gemm_fp4_experts", *rows, expert, w2, s2, **product)
    return run("moe_combine", y, place, torch.ones_like(weight), shared)


class Rounded(References):
    def __call__(self, op, *tensors, **params):
        return getattr(self, op)(*tensors, **params)

    @staticmethod
    def gemm_dense(x, w, out):
        return official.product(x, w).to(KINDS[out])

    @staticmethod
    def gemm_grouped(x, w, out):
        return official.product(x.transpose(0, 1), w).transpose(0, 1).to(KINDS[out])

    @staticmethod
    def gemm_fp8(x, xs, w, ws, out):
        x, w = official.values(x, xs, (1, 128)), official.values(w, ws, (128, 128))
        return official.product(x, w).to(KINDS[out])

    @staticmethod
    def mhc_prenorm_gemm(x, fn):
        return tuple(t.float() for t in mhc.prenorm_gemm(x.double(), fn))

    def mhc_post_prenorm_gemm(self, x, y, post, comb, fn):
        out = mhc.post(x, y, post, comb)
        return out, *self.mhc_prenorm_gemm(out, fn)

    def mhc_pre(self, x, fn, scale, base, iters, eps, norm_eps):
        sums = self.mhc_prenorm_gemm(x, fn)
        pre, post, comb = mhc.sinkhorn(*sums, scale, base, x.shape[2], iters, eps, norm_eps)
        return post, comb, mhc.collapse(x, pre)

    @staticmethod
    def attention_paged(q, wn, wr, ws, near, pn, pr, ps, chosen, sink):
        scopes = [
            (kv_cache.read_kv(*views, index), index >= 0)
            for views, index in (((wn, wr, ws), near), ((pn, pr, ps), chosen))
        ]
        return official.attend(q, scopes, sink)

    attention_paged_cluster = attention_paged

    @staticmethod
    def indexer_score_fp4(q, scale, codes, key_scale, table, request, count, weight, S):
        M, H = q.shape[:2]
        q = quant.fp4_dequant(q.flatten(0, 1), scale.flatten(0, 1)).unflatten(0, (M, H))
        entry = torch.arange(S).expand(M, -1)
        entry = entry.where(entry < count[:, None], -1)
        slot = slots(entry, table, request, codes.shape[1])
        keys = kv_cache.read_keys(codes, key_scale, slot)
        return official.Official.score(q, keys, weight).masked_fill(entry < 0, -torch.inf)

    @staticmethod
    def gemm_fp4_experts(x, xs, expert, w, ws, B, out):
        y = torch.zeros(*x.shape[:2], w.shape[1], dtype=KINDS[out])
        for q, e in enumerate(expert.tolist()):
            if e >= 0:
                rows, matrix = (
                    official.values(x[q], xs[q], (1, B)),
                    official.weight_values(w[e], ws[e]),
                )
                y[q] = official.product(rows, matrix).to(KINDS[out])
        return y

    def moe_mega(self, *tensors, limit):
        return experts_in_steps(self, *tensors, limit=limit)
