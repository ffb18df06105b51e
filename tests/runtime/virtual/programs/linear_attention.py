"""Causal linear attention in chunks: o = (q kᵀ ∘ lower triangle) v + q S, then S += kᵀ v. The state
S lives in registers and is laid down in shared memory for every chunk's product."""

import tilelang
import tilelang.language as T


@tilelang.jit(pass_configs={"tl.disable_warp_specialized": True})
def linear_attention(heads=2, length=128, dim=32, chunk=32):
    shape = (heads, length, dim)

    @T.prim_func
    def chunk_scan(
        Q: T.Tensor(shape, "float16"),
        K: T.Tensor(shape, "float16"),
        V: T.Tensor(shape, "float16"),
        Output: T.Tensor(shape, "float32"),
    ):
        with T.Kernel(heads, threads=64) as head:
            q = T.alloc_shared((chunk, dim), "float16")
            k = T.alloc_shared((chunk, dim), "float16")
            v = T.alloc_shared((chunk, dim), "float16")
            weights = T.alloc_shared((chunk, chunk), "float16")
            before = T.alloc_shared((dim, dim), "float16")
            scores = T.alloc_fragment((chunk, chunk), "float32")
            state = T.alloc_fragment((dim, dim), "float32")
            o = T.alloc_fragment((chunk, dim), "float32")
            T.clear(state)
            for i in T.serial(length // chunk):
                T.copy(Q[head, i * chunk, 0], q)
                T.copy(K[head, i * chunk, 0], k)
                T.copy(V[head, i * chunk, 0], v)
                T.gemm(q, k, scores, transpose_B=True, clear_accum=True)
                for a, b in T.Parallel(chunk, chunk):
                    scores[a, b] = T.if_then_else(a >= b, scores[a, b], 0)
                T.copy(scores, weights)
                T.copy(state, before)
                T.gemm(weights, v, o, clear_accum=True)
                T.gemm(q, before, o)
                T.gemm(k, v, state, transpose_A=True)
                T.copy(o, Output[head, i * chunk, 0])

    return chunk_scan
