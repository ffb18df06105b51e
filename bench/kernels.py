"""The kernels whose launches are measured: eight tensors, with and without tensor maps."""

import tilelang.language as T

D = 64


def eight():
    """``out = a + b + c + d + e + f + g`` on [m, D], where g has n rows."""
    m, n = T.dynamic("m"), T.dynamic("n")

    @T.prim_func
    def kernel(
        a: T.Tensor((m, D), "float32"),
        b: T.Tensor((m, D), "float32"),
        c: T.Tensor((m, D), "float32"),
        d: T.Tensor((m, D), "float32"),
        e: T.Tensor((m, D), "float32"),
        f: T.Tensor((m, D), "float32"),
        g: T.Tensor((n, D), "float32"),
        out: T.Tensor((m, D), "float32"),
    ):
        with T.Kernel(m, threads=D) as i:
            for j in T.Parallel(D):
                first = a[i, j] + b[i, j] + c[i, j] + d[i, j] + e[i, j] + f[i, j]
                out[i, j] = first + T.if_then_else(i < n, g[i, j], 0.0)

    return kernel


def eight_maps():
    """As ``eight``, on [64 m, D]; the seven inputs are loaded by TMA (sm_90a and later)."""
    m, n = T.dynamic("m"), T.dynamic("n")

    @T.prim_func
    def kernel(
        a: T.Tensor((m, D), "float32"),
        b: T.Tensor((m, D), "float32"),
        c: T.Tensor((m, D), "float32"),
        d: T.Tensor((m, D), "float32"),
        e: T.Tensor((m, D), "float32"),
        f: T.Tensor((m, D), "float32"),
        g: T.Tensor((n, D), "float32"),
        out: T.Tensor((m, D), "float32"),
    ):
        with T.Kernel(T.ceildiv(m, 32), threads=128) as block:
            tile = T.alloc_shared((7, 32, D), "float32")
            full = T.alloc_barrier(128)
            row = block * 32
            T.tma_copy(a[row : row + 32, 0:D], tile[0, :, :], barrier=full)
            T.tma_copy(b[row : row + 32, 0:D], tile[1, :, :], barrier=full)
            T.tma_copy(c[row : row + 32, 0:D], tile[2, :, :], barrier=full)
            T.tma_copy(d[row : row + 32, 0:D], tile[3, :, :], barrier=full)
            T.tma_copy(e[row : row + 32, 0:D], tile[4, :, :], barrier=full)
            T.tma_copy(f[row : row + 32, 0:D], tile[5, :, :], barrier=full)
            T.tma_copy(g[row : row + 32, 0:D], tile[6, :, :], barrier=full)
            T.barrier_arrive(full)
            T.barrier_wait(full, 0)
            for i, j in T.Parallel(32, D):
                first = tile[0, i, j] + tile[1, i, j] + tile[2, i, j] + tile[3, i, j]
                out[row + i, j] = first + tile[4, i, j] + tile[5, i, j] + tile[6, i, j]

    return kernel
