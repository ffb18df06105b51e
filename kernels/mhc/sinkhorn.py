"""mHC mixing weights: norm, gates and the balanced matrix (spec §4, steps 1–3)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import _mix, reference
from ._prenorm import splits
from ._tiles import HIDDEN, MIX_PARAMS, SHAPES, STREAMS, TOKENS, mixing_sizes

op = Op(
    "mhc/sinkhorn",
    args=(
        In("partial", "S M C", "f32"),
        In("sqrsum", "S M", "f32"),
        In("scale", "3", "f32"),
        In("base", "C", "f32"),
        Out("pre", "M N", "f32"),
        Out("post", "M N", "f32"),
        Out("comb", "M N N", "f32"),
    ),
    dims={
        "M": TOKENS,
        "N": STREAMS,
        "D": HIDDEN,
        "C": derived(lambda N: N * (N + 2)),
        "S": derived(splits),
    },
    doc="pre, post and the Sinkhorn-balanced comb from the projection's sums (spec §4, steps 1–3)",
    reference=reference.sinkhorn,
    shapes=SHAPES,
    params=MIX_PARAMS,
    model_sizes=mixing_sizes,
    reduces=("S",),
)


@op.kernel(**OPTIONS, tokens=32)
def sinkhorn(T, M, N, D, C, S, iters, eps, norm_eps, tokens):
    """All threads add the splits, then one thread balances one token in its registers."""
    shares = ceildiv(tokens * C, THREADS)
    code = _mix.device(T, N, N * D, iters, eps, norm_eps)

    @T.prim_func
    def kernel(
        partial: T.Tensor((S, M, C), "float32"),
        sqrsum: T.Tensor((S, M), "float32"),
        scale: T.Tensor((3,), "float32"),
        base: T.Tensor((C,), "float32"),
        pre: T.Tensor((M, N), "float32"),
        post: T.Tensor((M, N), "float32"),
        comb: T.Tensor((M, N, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, tokens), threads=THREADS) as block:
            thread = T.get_thread_binding()
            sums = T.alloc_local((shares,), "float32")
            shared = T.alloc_shared((tokens, C), "float32")
            squares = T.alloc_local((1,), "float32")
            factor = T.alloc_local((1,), "float32")
            gate = T.alloc_local((N,), "float32")
            gain = T.alloc_local((N,), "float32")
            mix = T.alloc_local((N, N), "float32")
            # sums = sum_s partial_s, first split to last
            T.clear(sums)
            for s in T.serial(S):
                for e in T.unroll(shares):
                    i = (e * THREADS + thread) // C
                    c = (e * THREADS + thread) % C
                    if (i < tokens) & (block * tokens + i < M):
                        sums[e] += partial[s, block * tokens + i, c]
            for e in T.unroll(shares):
                if e * THREADS + thread < tokens * C:
                    shared[(e * THREADS + thread) // C, (e * THREADS + thread) % C] = sums[e]
            if (thread < tokens) & (block * tokens + thread < M):
                m = block * tokens + thread
                squares[0] = 0.0
                for s in T.serial(S):
                    squares[0] += sqrsum[s, m]
                code.gates(shared, thread, squares[0], scale, base, factor, gate, gain)
                code.balance(shared, thread, scale, base, factor, mix)
                code.store_vector(gate, pre, m)
                code.store_vector(gain, post, m)
                code.store_matrix(mix, comb, m)

    return kernel
