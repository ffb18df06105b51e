"""A GEMM as most people write it, with TileLang's default passes: on sm_90a and later they make it
a warp-specialised pipeline of TMA copies, on the others one of `cp.async`."""

import tilelang
import tilelang.language as T


@tilelang.jit
def tma_gemm(N=128, K=128, dtype="float16", stages=3, tile=64, step=32):
    M = T.dynamic("m")

    @T.prim_func
    def tma_gemm(
        A: T.Tensor((M, K), dtype),
        B: T.Tensor((K, N), dtype),
        C: T.Tensor((M, N), dtype),
    ):
        with T.Kernel(N // tile, T.ceildiv(M, tile), threads=128) as (bx, by):
            a = T.alloc_shared((tile, step), dtype)
            b = T.alloc_shared((step, tile), dtype)
            c = T.alloc_shared((tile, tile), dtype)
            acc = T.alloc_fragment((tile, tile), "float32")
            T.use_swizzle(4)
            T.clear(acc)
            for k in T.Pipelined(K // step, num_stages=stages):
                T.copy(A[by * tile, k * step], a)
                T.copy(B[k * step, bx * tile], b)
                T.gemm(a, b, acc)
            T.copy(acc, c)
            T.copy(c, C[by * tile, bx * tile])

    return tma_gemm
