"""Routing by token id, as the first layers do it (spec §5.1)."""

from tileproof.dsl import In, Op, Out, Values, dim
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._gate import CHOSEN, EXPERTS, PARAMS, SHAPES, TOKENS, model_sizes, weigh

op = Op(
    "moe/hash_gate",
    args=(
        In("logits", "M E", "f32"),
        In("token", "M", "i64", values=Values("0", "V-1")),
        In("table", "V K", "i64", values=Values("0", "E-1")),
        Out("index", "M K", "i64"),
        Out("weight", "M K", "f32"),
    ),
    dims={"M": TOKENS, "E": EXPERTS, "K": CHOSEN, "V": dim(1, 1 << 20)},
    doc="experts table[token], and their weights from current scores (spec §5.1)",
    reference=reference.hash_gate,
    shapes={
        name: {**sizes, "V": 17 if name in ("tiny", "edge") else 129280}
        for name, sizes in SHAPES.items()
    },
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**OPTIONS)
def hash_gate(T, M, E, K, V, scale):
    """One thread a token: it reads the K logits it needs, not the row."""
    weights = weigh(T, K, scale)

    @T.prim_func
    def kernel(
        logits: T.Tensor((M, E), "float32"),
        token: T.Tensor((M,), "int64"),
        table: T.Tensor((V, K), "int64"),
        index: T.Tensor((M, K), "int64"),
        weight: T.Tensor((M, K), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, THREADS), threads=THREADS) as block:
            m = block * THREADS + T.get_thread_binding()
            if m < M:
                for k in T.unroll(K):
                    index[m, k] = table[token[m], k]
                weights(logits, m, lambda k: table[token[m], k], weight)

    return kernel
