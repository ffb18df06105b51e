"""A kernel with one wrong character, for the README: its tail guard lets a row too many through.

    tileproof verify docs/planted_bug.py:scale --arch sm_90a --dim m=0..1048576

TileLang would mask this bug with a guard of its own, at the price of a second comparison for every
access; kernels that write their guards themselves switch that off, and then they must be right.
"""

import tilelang
import tilelang.language as T

D = 4096


@tilelang.jit(pass_configs={"tl.disable_safe_memory_legalize": True})
def scale(rows=4, threads=128):
    """y = x / 2 on x [m, D] bf16, `rows` rows a block."""
    m = T.dynamic("m")

    @T.prim_func
    def scale(x: T.Tensor((m, D), "bfloat16"), y: T.Tensor((m, D), "bfloat16")):
        with T.Kernel(T.ceildiv(m, rows), threads=threads) as block:
            for i, d in T.Parallel(rows, D):
                if block * rows + i <= m:  # the bug: < is right
                    y[block * rows + i, d] = x[block * rows + i, d] * T.bfloat16(0.5)

    return scale
