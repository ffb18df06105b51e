"""A persistent GEMM: fewer blocks than tiles, each walks over its share of them."""

import tilelang.language as T


def persistent(M=192, N=128, K=64, blocks=4, tile=64):
    across = N // tile
    tiles = (M // tile) * across

    @T.prim_func
    def persistent_gemm(
        A: T.Tensor((M, K), "bfloat16"),
        B: T.Tensor((N, K), "bfloat16"),
        C: T.Tensor((M, N), "bfloat16"),
    ):
        with T.Kernel(blocks, threads=128) as block:
            a = T.alloc_shared((tile, 32), "bfloat16")
            b = T.alloc_shared((tile, 32), "bfloat16")
            acc = T.alloc_fragment((tile, tile), "float32")
            for wave in T.serial(T.ceildiv(tiles, blocks)):
                index = wave * blocks + block
                if index < tiles:
                    T.clear(acc)
                    for k in T.Pipelined(K // 32, num_stages=2):
                        T.copy(A[index // across * tile, k * 32], a)
                        T.copy(B[index % across * tile, k * 32], b)
                        T.gemm(a, b, acc, transpose_B=True)
                    T.copy(acc, C[index // across * tile, index % across * tile])

    return persistent_gemm
