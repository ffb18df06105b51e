"""Routing weights of experts that were chosen elsewhere (spec §5.1, §10)."""

from tileproof.dsl import In, Op, Out, Values
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._gate import CHOSEN, EXPERTS, PARAMS, SHAPES, TOKENS, model_sizes, weigh

op = Op(
    "moe/given_gate",
    args=(
        In("logits", "M E", "f32"),
        In("index", "M K", "i64", values=Values("0", "E-1", none=-1)),
        Out("weight", "M K", "f32"),
    ),
    dims={"M": TOKENS, "E": EXPERTS, "K": CHOSEN},
    doc="weights of given experts, from current scores; -1 is none (spec §5.1, §10)",
    reference=reference.given_gate,
    shapes=SHAPES,
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**OPTIONS)
def given_gate(T, M, E, K, scale):
    """One thread a token: it reads the K logits it needs, not the row."""
    weights = weigh(T, K, scale)

    @T.prim_func
    def kernel(
        logits: T.Tensor((M, E), "float32"),
        index: T.Tensor((M, K), "int64"),
        weight: T.Tensor((M, K), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, THREADS), threads=THREADS) as block:
            m = block * THREADS + T.get_thread_binding()
            if m < M:
                weights(logits, m, lambda k: index[m, k], weight)

    return kernel
