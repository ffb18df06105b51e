"""Queries before the core attention: RMSNorm of every head, then RoPE (spec §3.2)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import _rotary, reference


def model_sizes(config):
    """The query heads of a HF config."""
    for sizes in _rotary.model_sizes(config):
        yield {**sizes, "eps": config["rms_norm_eps"]}


op = Op(
    "attention/q_prologue",
    args=(
        In("x", "M H D", "act"),
        In("cos", "M C", "f32"),
        In("sin", "M C", "f32"),
        Out("y", "M H D", "act"),
    ),
    dims=_rotary.DIMS,
    doc="unweighted RMSNorm of every head, then RoPE of its last 2 C channels (spec §3.2)",
    reference=reference.q_prologue,
    shapes=_rotary.SHAPES,
    types={"act": ("bf16", "f32")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def q_prologue(T, M, H, D, C, act, eps):
    """A block takes some heads of one token; a head stays in registers."""
    turn, rows = _rotary.turning(T, H, D, C, act, False, eps)

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
