"""Rows of tokens, sorted by expert (spec §5)."""

from tileproof.dsl import In, Op, Out, Values
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._gate import CHOSEN
from ._lists import PAIRS, ROWS, TILE
from ._rows import HIDDEN, TILES, geometry


def model_sizes(config):
    """Routed experts of a HF config."""
    yield {"D": config["hidden_size"], "K": config["num_experts_per_tok"], "R": TILE}


SHAPES = {
    "tiny": {"Q": 2, "R": 16, "M": 12, "K": 2, "D": 64},
    "flash": {"Q": 640, "R": 64, "M": 4096, "K": 6, "D": 4096},
    "pro": {"Q": 768, "R": 64, "M": 4096, "K": 6, "D": 7168},
    "edge": {"Q": [0, 1, 3], "R": 32, "M": [0, 1, 13], "K": 3, "D": 160},
}
DIMS = {"M": PAIRS, "K": CHOSEN, "Q": TILES, "R": ROWS, "D": HIDDEN}

op = Op(
    "moe/dispatch",
    args=(
        In("x", "M D", "act"),
        In("source", "Q R", "i32", values=Values("0", "M*K-1", none=-1)),
        Out("rows", "Q R D", "act"),
    ),
    dims=DIMS,
    doc="x of the token of each sorted row, zeros where source is -1 (spec §5)",
    reference=reference.dispatch,
    shapes=SHAPES,
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def dispatch(T, M, K, Q, R, D, act):
    """A thread has 16 bytes of a row."""
    wide, threads, blocks = geometry(D, act)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, D), act),
        source: T.Tensor((Q, R), "int32"),
        rows: T.Tensor((Q, R, D), act),
    ):
        with T.Kernel(Q, R, blocks, threads=threads) as (q, r, block):
            row = T.alloc_local((wide,), act)
            d = (block * threads + T.get_thread_binding()) * wide
            if d < D:
                T.clear(row)
                if source[q, r] >= 0:
                    for v in T.vectorized(wide):
                        row[v] = x[source[q, r] // K, d + v]
                for v in T.vectorized(wide):
                    rows[q, r, d + v] = row[v]

    return kernel
