"""An fp8 GEMM with scales per 1 × 64 of A and per 64 × 64 of B: every step's product is scaled into
the sum.

TileLang 0.1.15's own warp specialisation gives a slot back before the scales in it are read, which
the sanitizer reports; so it is off.
"""

import tilelang
import tilelang.language as T


@tilelang.jit(pass_configs={"tl.disable_warp_specialized": True})
def fp8_gemm(N=64, K=256, out="bfloat16"):
    M, tile, step = T.dynamic("m"), 32, 64

    @T.prim_func
    def fp8_gemm(
        A: T.Tensor((M, K), "float8_e4m3fn"),
        ScaleA: T.Tensor((M, K // step), "float32"),
        B: T.Tensor((N, K), "float8_e4m3fn"),
        ScaleB: T.Tensor((N // 64, K // step), "float32"),
        C: T.Tensor((M, N), out),
    ):
        with T.Kernel(N // 64, T.ceildiv(M, tile), threads=64) as (bx, by):
            a = T.alloc_shared((tile, step), "float8_e4m3fn")
            b = T.alloc_shared((64, step), "float8_e4m3fn")
            scale = T.alloc_shared((tile,), "float32")
            part = T.alloc_fragment((tile, 64), "float32")
            acc = T.alloc_fragment((tile, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // step, num_stages=2):
                T.copy(A[by * tile, k * step], a)
                T.copy(B[bx * 64, k * step], b)
                for i in T.Parallel(tile):
                    scale[i] = ScaleA[by * tile + i, k] * ScaleB[bx, k]
                T.clear(part)
                T.gemm(a, b, part, transpose_B=True)
                for i, j in T.Parallel(tile, 64):
                    acc[i, j] += part[i, j] * scale[i]
            T.copy(acc, C[by * tile, bx * 64])

    return fp8_gemm
