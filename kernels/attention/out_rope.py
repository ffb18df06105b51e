"""Outputs behind the core attention: inverse RoPE at the query's position (spec §3.2)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import _rotary, reference

op = Op(
    "attention/out_rope",
    args=(
        In("x", "M H D", "act"),
        In("cos", "M C", "f32"),
        In("sin", "M C", "f32"),
        Out("y", "M H D", "act"),
    ),
    dims=_rotary.DIMS,
    doc="inverse RoPE of the last 2 C channels of every head (spec §3.2)",
    reference=reference.out_rope,
    shapes=_rotary.SHAPES,
    types={"act": ("bf16", "f32")},
    model_sizes=_rotary.model_sizes,
)


@op.kernel(**OPTIONS)
def out_rope(T, M, H, D, C, act):
    """A block takes some heads of one token."""
    turn, rows = _rotary.turning(T, H, D, C, act, True, None)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, H, D), act),
        cos: T.Tensor((M, C), "float32"),
        sin: T.Tensor((M, C), "float32"),
        y: T.Tensor((M, H, D), act),
    ):
        with T.Kernel(M, ceildiv(H, rows), threads=THREADS) as (m, h):
            turn(x, cos, sin, y, m, h)

    return kernel
