"""mHC pre in one kernel, for few tokens: all that precedes a sublayer (spec §4, steps 1–4)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels.row_stream import MATRIX_OPTIONS, VECTOR_BYTES, ceildiv, vector

from . import _mix, reference
from ._prenorm import GROUPS, PARTS, SLICE, device, padded, split_length, splits
from ._tiles import HIDDEN, MIX_PARAMS, SHAPES, STREAMS, TOKENS, mixing_sizes, weighted_sum

op = Op(
    "mhc/pre",
    args=(
        In("x", "M N D", "act"),
        In("fn", "C K", "f32"),
        In("scale", "3", "f32"),
        In("base", "C", "f32"),
        Out("post", "M N", "f32"),
        Out("comb", "M N N", "f32"),
        Out("collapsed", "M D", "act"),
    ),
    dims={
        "M": TOKENS,
        "N": STREAMS,
        "D": HIDDEN,
        "C": derived(lambda N: N * (N + 2)),
        "K": derived(lambda N, D: N * D),
    },
    doc="prenorm_gemm, sinkhorn and collapse in one launch, bit for bit (spec §4, steps 1–4)",
    reference=reference.pre,
    shapes={**SHAPES, "flash": {"M": 32, "N": 4, "D": 4096}, "pro": {"M": 32, "N": 4, "D": 7168}},
    types={"act": ("bf16", "f32")},
    params=MIX_PARAMS,
    model_sizes=mixing_sizes,
    reduces=("K", "N"),
)

_SHARED = 98 * 1024  # bytes a block may fill: sm_89 and sm_120a have 99 KiB


def _stacked(C: int) -> int:
    """Rows of the stacked parts of `fn`, in whole steps of four warps that share them."""
    return ceildiv(PARTS * padded(C), 32) * 32


def _stages(N: int, C: int, act: str, tokens: int) -> int:
    """Steps of the pipeline: as many bytes in flight as shared memory holds, eight at most."""
    parts = (_stacked(C) + (0 if act == "bfloat16" else PARTS * tokens)) * SLICE * 2
    sums = tokens * (_stacked(C) + GROUPS + C + N) * 4
    stage = SLICE * (tokens * VECTOR_BYTES // vector(act) + padded(C) * 4)
    return max(1, min(8, (_SHARED - parts - sums) // stage))


@op.kernel(**MATRIX_OPTIONS, tokens=16, threads=128)
def pre(T, M, N, D, C, K, act, iters, eps, norm_eps, tokens, threads):
    """A block takes 16 tokens through all steps; its warps share the columns of the product."""
    width = vector(act)
    column = weighted_sum(T, N, act)
    length = split_length(N, D)
    steps = length // SLICE * N
    stacked = _stacked(C)
    vectors = D // width
    shares = ceildiv(tokens * C, threads)
    code = device(T, C, act, tokens, threads, T.GemmWarpPolicy.FullCol)
    mixing = _mix.device(T, N, K, iters, eps, norm_eps)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act),
        fn: T.Tensor((C, K), "float32"),
        scale: T.Tensor((3,), "float32"),
        base: T.Tensor((C,), "float32"),
        post: T.Tensor((M, N), "float32"),
        comb: T.Tensor((M, N, N), "float32"),
        collapsed: T.Tensor((M, D), act),
    ):
        with T.Kernel(T.ceildiv(M, tokens), threads=threads) as block:
            T.annotate_min_blocks_per_sm(3 if act == "bfloat16" else 1)
            thread = T.get_thread_binding()
            weights = T.reshape(fn, (C, N, D))
            x_tile = T.alloc_shared((tokens, SLICE), act)
            x_parts = T.alloc_shared((PARTS * tokens, SLICE), "bfloat16")
            fn_tile = T.alloc_shared((code.rows, SLICE), "float32")
            fn_parts = T.alloc_shared((stacked, SLICE), "bfloat16")
            product = T.alloc_fragment((tokens, stacked), "float32")
            staged = T.alloc_shared((tokens, stacked), "float32")
            running = T.alloc_local((code.owned,), "float32")
            groups = T.alloc_shared((tokens, GROUPS), "float32")
            sums = T.alloc_local((shares,), "float32")
            shared = T.alloc_shared((tokens, C), "float32")
            squares = T.alloc_local((1,), "float32")
            total = T.alloc_local((1,), "float32")
            factor = T.alloc_local((1,), "float32")
            gate = T.alloc_local((N,), "float32")
            gain = T.alloc_local((N,), "float32")
            mix = T.alloc_local((N, N), "float32")
            gates = T.alloc_shared((tokens, N), "float32")
            weight = T.alloc_local((N,), "float32")
            # rows beyond the three parts are never written again
            if stacked > PARTS * code.rows:
                for n, k in T.Parallel(stacked - PARTS * code.rows, SLICE):
                    fn_parts[PARTS * code.rows + n, k] = 0
            T.clear(sums)
            T.clear(product)
            T.clear(running)
            squares[0] = 0.0
            for t in T.Pipelined(splits(N, D) * steps, num_stages=_stages(N, C, act, tokens)):
                d = t // N * SLICE
                T.copy(x[block * tokens : (block + 1) * tokens, t % N, d : d + SLICE], x_tile)
                T.copy(weights[0 : code.rows, t % N, d : d + SLICE], fn_tile)
                code.multiply(x_tile, 0, x_parts, fn_tile, fn_parts, product)
                code.square(x_tile, 0, running)
                if t % steps == steps - 1:
                    # the split is complete: sums += high + (middle + low)
                    T.copy(product, staged)
                    code.publish(running, groups)
                    for e in T.unroll(shares):
                        i = (e * threads + thread) // C
                        c = (e * threads + thread) % C
                        if i < tokens:
                            sums[e] += code.joined(staged, i, c)
                    if thread < tokens:
                        code.squares(groups, thread, total)
                        squares[0] += total[0]
                    T.clear(product)
                    T.clear(running)
            for e in T.unroll(shares):
                if e * threads + thread < tokens * C:
                    shared[(e * threads + thread) // C, (e * threads + thread) % C] = sums[e]
            if (thread < tokens) & (block * tokens + thread < M):
                m = block * tokens + thread
                mixing.gates(shared, thread, squares[0], scale, base, factor, gate, gain)
                mixing.balance(shared, thread, scale, base, factor, mix)
                for j in T.unroll(N):
                    gates[thread, j] = gate[j]
                mixing.store_vector(gain, post, m)
                mixing.store_matrix(mix, comb, m)
            for step in T.serial(ceildiv(tokens * vectors, threads)):
                i = (step * threads + thread) // vectors
                d = (step * threads + thread) % vectors * width
                if (i < tokens) & (block * tokens + i < M):
                    for j in T.unroll(N):
                        weight[j] = gates[i, j]
                    column(x, block * tokens + i, d, weight, collapsed)

    return kernel
