"""A 3 × 3 convolution with padding as a GEMM: rows of the image matrix are gathered by index."""

import tilelang.language as T

H, W, CIN, COUT, TAPS = 6, 5, 32, 32, 9
IMAGES = T.dynamic("images")


@T.prim_func
def conv(
    X: T.Tensor((IMAGES, H, W, CIN), "bfloat16"),
    Filter: T.Tensor((TAPS, CIN, COUT), "bfloat16"),
    Bias: T.Tensor((COUT,), "float32"),
    Y: T.Tensor((IMAGES, H, W, COUT), "bfloat16"),
):
    with T.Kernel(IMAGES, threads=64) as image:
        x = T.alloc_shared((32, CIN), "bfloat16")
        w = T.alloc_shared((CIN, COUT), "bfloat16")
        acc = T.alloc_fragment((32, COUT), "float32")
        T.clear(acc)
        for tap in T.Pipelined(TAPS, num_stages=2):
            for p, c in T.Parallel(32, CIN):
                row = p // W + tap // 3 - 1
                column = p % W + tap % 3 - 1
                inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (p < H * W)
                x[p, c] = T.if_then_else(inside, X[image, row, column, c], T.cast(0, "bfloat16"))
            T.copy(Filter[tap, :, :], w)
            T.gemm(x, w, acc)
        for p, c in T.Parallel(32, COUT):
            if p < H * W:
                Y[image, p // W, p % W, c] = T.max(acc[p, c] + Bias[c], 0)
