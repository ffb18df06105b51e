"""A kernel with one wrong character, for the README: its tail guard lets one row too many through.

    tileproof verify docs/planted_bug.py:scale --arch sm_90a --dim m=0..1048576
"""

import tilelang.language as T

HIDDEN = 4096
PASS_CONFIGS = {"tl.disable_safe_memory_legalize": True}


def scale(rows=4, threads=128):
    m = T.dynamic("m")

    @T.prim_func
    def scale(x: T.Tensor((m, HIDDEN), "bfloat16"), y: T.Tensor((m, HIDDEN), "bfloat16")):
        with T.Kernel(T.ceildiv(m, rows), threads=threads) as block:
            for i, d in T.Parallel(rows, HIDDEN):
                if block * rows + i <= m:  # the bug: < is right
                    y[block * rows + i, d] = x[block * rows + i, d] * T.bfloat16(0.5)

    return scale
