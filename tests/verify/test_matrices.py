"""Rows of a tile through matrix instructions: each its own, all alike, nothing left from before."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

from .test_determinism import CONFIGS

SIZE = 64


def product(dtype, source=lambda m: m, column=lambda m, k: k, rows=SIZE, clear=True, **how):
    """y = x w^T, or x w, for 64 rows a block: row m of its tile is row ``source(m)`` of x, with
    columns in order ``column(m, k)``; of w's tile only `rows` rows are written."""
    M = T.dynamic("M")
    by_columns, registers = how.get("by_columns", False), how.get("registers", False)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, SIZE), dtype), w: T.Tensor((SIZE, SIZE), dtype),
        y: T.Tensor((M, SIZE), "float32"),
    ):  # fmt: skip
        with T.Kernel(T.ceildiv(M, SIZE), threads=128) as i:
            x_tile = T.alloc_shared((SIZE, SIZE), dtype)
            w_tile = T.alloc_shared((SIZE, SIZE), dtype)
            x_held = T.alloc_fragment((SIZE, SIZE), dtype)
            total = T.alloc_fragment((SIZE, SIZE), "float32")
            for m, k in T.Parallel(SIZE, SIZE):
                row = i * SIZE + source(m)
                x_tile[m, k] = T.if_then_else(row < M, x[row, column(m, k)], 0)
            for n, k in T.Parallel(SIZE, SIZE):
                if n < rows:
                    w_tile[n, k] = w[n, k]
            if registers:
                T.copy(x_tile, x_held)
                T.gemm(x_held, w_tile, total, transpose_B=not by_columns, clear_accum=clear)
            else:
                T.gemm(x_tile, w_tile, total, transpose_B=not by_columns, clear_accum=clear)
            for m, n in T.Parallel(SIZE, SIZE):
                if i * SIZE + m < M:
                    y[i * SIZE + m, n] = total[m, n]

    return kernel


WAYS = {
    "mma of e4m3": ("sm_89", "float8_e4m3fn", {}),
    "wgmma of e4m3": ("sm_90a", "float8_e4m3fn", {}),
    "wgmma of columns": ("sm_90a", "bfloat16", {"by_columns": True}),
    "wgmma of registers": ("sm_90a", "bfloat16", {"registers": True}),
}
BUGS = {
    "depends on row": {"source": lambda m: m ^ 1},
    "is not computed as row 0": {"column": lambda m, k: T.if_then_else(m < 32, k, SIZE - 1 - k)},
    "that nobody wrote": {"rows": SIZE - 1},
    "y depends on memory": {"clear": False},
}


def found(way, **bug):
    arch, dtype, how = WAYS[way]
    lowered = lower(product(dtype, **bug, **how), arch, pass_configs=CONFIGS, keep_stages=True)
    assert ("wgmma_" in lowered.cuda) == (arch == "sm_90a")
    report = prove_lowered(lowered, facts={"batch": ["M"]}, use_cache=False)
    return report.properties["determinism"]


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_a_product_are_followed(way):
    right = found(way)
    assert right.verdict is Verdict.PROVED, right
    for words, bug in BUGS.items() if way == "wgmma of e4m3" else [*BUGS.items()][:1]:
        wrong = found(way, **bug)
        assert wrong.verdict is Verdict.ALARM and words in wrong.reasons[0], (bug, wrong)
