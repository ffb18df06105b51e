"""Routing by score: the K best experts of a token and their weights (spec §5.1)."""

from tileproof.dsl import In, Op, Out, check
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._gate import CHOSEN, EXPERTS, PARAMS, SHAPES, TOKENS, model_sizes, score
from .reference import GUARD

op = Op(
    "moe/topk_gate",
    args=(
        In("logits", "M E", "f32"),
        In("bias", "E", "f32"),
        Out("index", "M K", "i64"),
        Out("weight", "M K", "f32"),
    ),
    dims={"M": TOKENS, "E": EXPERTS, "K": CHOSEN},
    doc="the K experts of largest sqrt(softplus(logit)) + bias, and their weights (spec §5.1)",
    reference=reference.topk_gate,
    shapes=SHAPES,
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("E", "K"),
)

_WARP = 32
_VECTOR = 4
_LARGEST, _TAKEN = 0x7FFFFFFF, -0x80000000  # keys of NaN and of what was chosen before


@op.kernel(**OPTIONS)
def topk_gate(T, M, E, K, scale):
    """A warp takes a token and holds all its scores; each pick is two reductions over its lanes.

    A score is compared by its bits, as an integer of the same order in which NaN is the largest,
    so the choice is exact and of equal scores the lowest index is found by a minimum.
    """
    check(K <= E, "moe/topk_gate: experts of a token", got=K, expected=f"at most E = {E}")
    rows = THREADS // _WARP
    step = _WARP * _VECTOR
    width = ceildiv(E, step) * step
    vector = _VECTOR if E % _VECTOR == 0 else 1

    @T.prim_func
    def kernel(
        logits: T.Tensor((M, E), "float32"),
        bias: T.Tensor((E,), "float32"),
        index: T.Tensor((M, K), "int64"),
        weight: T.Tensor((M, K), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            gain = T.alloc_fragment((rows, width), "float32")
            biased = T.alloc_fragment((rows, width), "float32")
            key = T.alloc_fragment((rows, width), "int32")
            where = T.alloc_fragment((rows, width), "int32")
            best = T.alloc_fragment((rows,), "int32")
            first = T.alloc_fragment((rows,), "int32")
            picked = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            # lane k keeps the k-th pick
            picks = T.alloc_fragment((rows, _WARP), "int32")
            gains = T.alloc_fragment((rows, _WARP), "float32")
            T.annotate_layout(
                {
                    gain: T.Fragment(
                        (rows, width),
                        forward_thread_fn=lambda i, e: i * _WARP + e // vector % _WARP,
                        forward_index_fn=lambda i, e: e // (_WARP * vector) * vector + e % vector,
                    ),
                    picks: T.Fragment(
                        (rows, _WARP),
                        forward_thread_fn=lambda i, k: i * _WARP + k,
                        forward_index_fn=lambda i, k: 0,
                    ),
                }
            )
            for i, e in T.Parallel(rows, width):
                inside = (block * rows + i < M) & (e < E)
                gain[i, e] = T.if_then_else(inside, logits[block * rows + i, e], 0)
            for i, e in T.Parallel(rows, width):
                gain[i, e] = score(T, gain[i, e])
            for i, e in T.Parallel(rows, width):
                biased[i, e] = gain[i, e] + T.if_then_else(e < E, bias[e], 0)
            # negative floats have the order of their bits reversed
            for i, e in T.Parallel(rows, width):
                where[i, e] = T.reinterpret(biased[i, e], "int32")
            for i, e in T.Parallel(rows, width):
                key[i, e] = where[i, e] ^ ((where[i, e] >> 31) & _LARGEST)
            for i, e in T.Parallel(rows, width):
                key[i, e] = T.if_then_else(T.isnan(biased[i, e]), _LARGEST, key[i, e])
                key[i, e] = T.if_then_else(e < E, key[i, e], _TAKEN)
            T.clear(total)
            T.clear(picks)
            T.clear(gains)
            for k in T.serial(K):
                T.reduce_max(key, best, dim=1)
                for i, e in T.Parallel(rows, width):
                    where[i, e] = T.if_then_else(key[i, e] == best[i], e, width)
                T.reduce_min(where, first, dim=1)
                for i, e in T.Parallel(rows, width):
                    biased[i, e] = T.if_then_else(e == first[i], gain[i, e], 0)
                    key[i, e] = T.if_then_else(e == first[i], _TAKEN, key[i, e])
                T.reduce_sum(biased, picked, dim=1)
                for i in T.Parallel(rows):
                    total[i] += picked[i]
                for i, lane in T.Parallel(rows, _WARP):
                    picks[i, lane] = T.if_then_else(lane == k, first[i], picks[i, lane])
                    gains[i, lane] = T.if_then_else(lane == k, picked[i], gains[i, lane])
            for i in T.Parallel(rows):
                total[i] += GUARD
            # weight_k = s_k / (sum_k s_k + 1e-20) scale
            for i, lane in T.Parallel(rows, _WARP):
                if (block * rows + i < M) & (lane < K):
                    index[block * rows + i, lane] = T.cast(picks[i, lane], "int64")
                    weight[block * rows + i, lane] = gains[i, lane] / total[i] * scale

    return kernel
