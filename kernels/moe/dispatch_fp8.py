"""Rows of tokens, sorted by expert, as FP8 (spec §5, §6.2)."""

from tileproof.dsl import In, Op, Out, Values, derived
from tileproof.kernels.quant._blocks import TILE
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import reference
from ._rows import fp8_rows
from .dispatch import DIMS, SHAPES, model_sizes

op = Op(
    "moe/dispatch_fp8",
    args=(
        In("x", "M D", "bf16"),
        In("source", "Q R", "i32", values=Values("0", "M*K-1", none=-1)),
        Out("rows", "Q R D", "e4m3"),
        Out("s", "Q R G", "ue8m0"),
    ),
    dims={**DIMS, "G": derived(lambda D: ceildiv(D, TILE))},
    doc="moe/dispatch, to e4m3 with a scale per 1×128 (spec §5, §6.2)",
    reference=reference.dispatch_fp8,
    shapes=SHAPES,
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def dispatch_fp8(T, M, K, Q, R, D, G):
    """Sixteen neighbouring threads have a group of a row, and another one."""
    code = fp8_rows(T, D)

    @T.macro
    def fill(x, source, q, r, group, first):
        for i, k in T.Parallel(code.across, TILE):
            inside = (first + i * TILE + k < D) & (source[q, r] >= 0)
            group[i, k] = T.if_then_else(inside, x[source[q, r] // K, first + i * TILE + k], 0)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, D), "bfloat16"),
        source: T.Tensor((Q, R), "int32"),
        rows: T.Tensor((Q, R, D), "float8_e4m3fn"),
        s: T.Tensor((Q, R, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(Q, R, code.steps, threads=code.threads) as (q, r, step):
            code.cast(lambda *at: fill(x, source, q, r, *at), step, rows, s, q, r)

    return kernel
