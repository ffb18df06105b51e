"""Split-K GEMM: every block sums a slice of K and adds it to the output atomically."""

import tilelang.language as T


def splitk(M=128, N=128, K=256, split=2, block=64):
    @T.prim_func
    def gemm_splitk(
        A: T.Tensor((M, K), "float16"),
        B: T.Tensor((K, N), "float16"),
        C: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(N, block), T.ceildiv(M, block), split, threads=128) as (bx, by, bz):
            a_tile = T.alloc_shared((block, 32), "float16")
            b_tile = T.alloc_shared((32, block), "float16")
            acc = T.alloc_fragment((block, block), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // split // 32, num_stages=2):
                T.copy(A[by * block, bz * (K // split) + k * 32], a_tile)
                T.copy(B[bz * (K // split) + k * 32, bx * block], b_tile)
                T.gemm(a_tile, b_tile, acc)
            for i, j in T.Parallel(block, block):
                T.atomic_add(C[by * block + i, bx * block + j], acc[i, j])

    return gemm_splitk
