"""RoPE on heads in exact precision (spec §3.1)."""

from tileproof.dsl import In, Op, Out, Values, check, dim, static
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv, vector

from . import reference
from ._pairs import turner

TOKENS = dim(0, 1 << 20, batch=True)
POSITIONS = dim(1, 1 << 22)
HEADS = static(1, 128)


def inputs(act):
    """Heads, tables of cos and sin, and each token's position."""
    return (
        In("x", "M H D", act),
        In("cos", "X Q", "f32"),
        In("sin", "X Q", "f32"),
        In("position", "M", "i32", values=Values("0", "X-1")),
    )


def model_sizes(config):
    """The queries of the indexer."""
    yield {
        "H": config["index_n_heads"],
        "D": config["index_head_dim"],
        "Q": config["qk_rope_head_dim"] // 2,
    }


op = Op(
    "rope/rotate",
    args=(*inputs("act"), Out("y", "M H D", "act")),
    dims={
        "M": TOKENS,
        "X": POSITIONS,
        "H": HEADS,
        "D": static(8, 1024, multiple=8),
        "Q": static(2, 256, multiple=2),
    },
    doc="RoPE on the last 2 Q channels of every head, neighbours in pairs (spec §3.1)",
    reference=reference.rotate,
    shapes={
        "tiny": {"M": 7, "X": 64, "H": 2, "D": 16, "Q": 4},
        "flash": {"M": 4096, "X": 4096, "H": 64, "D": 128, "Q": 32},
        "pro": {"M": 4096, "X": 4096, "H": 64, "D": 128, "Q": 32},
        "edge": {"M": [0, 1, 65], "X": 3, "H": 3, "D": 24, "Q": 4},
    },
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def rotate(T, M, X, H, D, Q, act):
    """A block takes a token; a thread the same 16 bytes of one head after another."""
    wide = vector(act)
    first = D - 2 * Q
    check(first >= 0 and first % wide == 0, "RoPE channels", got=2 * Q,
          expected=f"up to D = {D} less a multiple of {wide}")  # fmt: skip
    pieces = D // wide
    heads = min(H, max(1, THREADS // pieces))  # at once
    turn = turner(T, wide // 2)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, H, D), act),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        position: T.Tensor((M,), "int32"),
        y: T.Tensor((M, H, D), act),
    ):
        with T.Kernel(M, threads=heads * pieces) as m:
            row = T.alloc_local((wide,), act)
            cosine = T.alloc_local((wide // 2,), "float32")
            sine = T.alloc_local((wide // 2,), "float32")
            d = T.get_thread_binding() % pieces * wide
            if d >= first:
                for v in T.vectorized(wide // 2):
                    cosine[v] = cos[position[m], (d - first) // 2 + v]
                for v in T.vectorized(wide // 2):
                    sine[v] = sin[position[m], (d - first) // 2 + v]
            for step in T.serial(ceildiv(H, heads)):
                h = step * heads + T.get_thread_binding() // pieces
                if h < H:
                    for v in T.vectorized(wide):
                        row[v] = x[m, h, d + v]
                    if d >= first:
                        turn(row, cosine, sine, lambda k: True)
                    for v in T.vectorized(wide):
                        y[m, h, d + v] = row[v]

    return kernel
