"""GEMM with int4 weights, two to a byte, unpacked in registers."""

import tilelang.language as T

M, N, K, BLOCK = T.dynamic("m"), 64, 128, 32


@T.prim_func
def dequant_gemm(
    A: T.Tensor((M, K), "float16"),
    B: T.Tensor((N, K // 2), "uint8"),
    Scale: T.Tensor((N,), "float32"),
    C: T.Tensor((M, N), "float32"),
):
    with T.Kernel(T.ceildiv(M, BLOCK), N // BLOCK, threads=64) as (bx, by):
        a = T.alloc_shared((BLOCK, 64), "float16")
        packed = T.alloc_shared((BLOCK, 32), "uint8")
        b = T.alloc_shared((BLOCK, 64), "float16")
        acc = T.alloc_fragment((BLOCK, BLOCK), "float32")
        T.clear(acc)
        for k in T.Pipelined(K // 64, num_stages=2):
            T.copy(A[bx * BLOCK, k * 64], a)
            T.copy(B[by * BLOCK, k * 32], packed)
            for i, j in T.Parallel(BLOCK, 64):
                nibble = (packed[i, j // 2] >> T.cast(j % 2 * 4, "uint8")) & T.cast(15, "uint8")
                b[i, j] = T.cast(nibble, "float16") - T.cast(8, "float16")
            T.gemm(a, b, acc, transpose_B=True)
        for i, j in T.Parallel(BLOCK, BLOCK):
            acc[i, j] *= Scale[by * BLOCK + j]
        T.copy(acc, C[bx * BLOCK, by * BLOCK])
