"""A GEMM whose author splits the warps: one warpgroup copies by TMA, one multiplies. Two rings of
mbarriers, *full* and *free*, hand the slots back and forth."""

import tilelang.cuda.language as T

SLOTS = 3


def ws_gemm(N=128, K=256, tile=64, step=64):
    M = T.dynamic("m")

    @T.prim_func
    def ws_gemm(
        A: T.Tensor((M, K), "float16"),
        B: T.Tensor((N, K), "float16"),
        C: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(N // tile, T.ceildiv(M, tile), threads=256) as (bx, by):
            a = T.alloc_shared((SLOTS, tile, step), "float16")
            b = T.alloc_shared((SLOTS, tile, step), "float16")
            acc = T.alloc_fragment((tile, tile), "float32")
            full = T.alloc_barrier([128] * SLOTS)
            free = T.alloc_barrier([128] * SLOTS)
            thread = T.get_thread_binding()
            if thread >= 128:
                T.dec_max_nreg(40)
                for k in T.serial(K // step):
                    slot, column = k % SLOTS, k * step
                    T.barrier_wait(free[slot], (k // SLOTS) % 2 ^ 1)
                    T.tma_copy(
                        A[by * tile : (by + 1) * tile, column : column + step],
                        a[slot, :, :],
                        barrier=full[slot],
                    )
                    T.tma_copy(
                        B[bx * tile : (bx + 1) * tile, column : column + step],
                        b[slot, :, :],
                        barrier=full[slot],
                    )
                    T.barrier_arrive(full[slot])
            else:
                T.inc_max_nreg(200)
                T.clear(acc)
                for k in T.serial(K // step):
                    T.barrier_wait(full[k % SLOTS], (k // SLOTS) % 2)
                    T.gemm(a[k % SLOTS, :, :], b[k % SLOTS, :, :], acc, transpose_B=True)
                    T.barrier_arrive(free[k % SLOTS])
                T.copy(acc, C[by * tile, bx * tile])

    return ws_gemm
