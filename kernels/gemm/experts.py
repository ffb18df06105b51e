"""Tiles of rows times the weight of each tile's expert (spec §5.2)."""

from tileproof.dsl import In, Op, Out, Values, dim, static
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._tiles import COLUMNS, EXPERTS, ROWS, TILE, TYPES, device, writer

LISTED = 64  # rows of a tile of the lists


def model_sizes(config):
    """Both products of the routed experts of the exact model; gate and up are one weight."""
    D, hidden = config["hidden_size"], config["moe_intermediate_size"]
    for K in (D, hidden):
        yield {"R": LISTED, "K": K, "out": "act"}


op = Op(
    "gemm/experts",
    args=(
        In("x", "Q R K", "act"),
        In("expert", "Q", "i32", values=Values("0", "E-1", none=-1)),
        In("w", "E N K", "act"),
        Out("y", "Q R N", "out"),
    ),
    dims={
        "Q": dim(0, 1 << 20, batch=True),
        "R": static(16, 128, multiple=16),
        "E": EXPERTS,
        "N": ROWS,
        "K": COLUMNS,
    },
    doc="x_q W_e^T of Q tiles of R rows, e = expert_q; zeros where it is -1 (spec §5.2)",
    reference=reference.experts,
    shapes={
        "tiny": {"Q": 3, "R": 16, "E": 4, "N": 64, "K": 64},
        "flash": {"Q": 640, "R": 64, "E": 256, "N": 4096, "K": 4096},
        "pro": {"Q": 768, "R": 64, "E": 384, "N": 6144, "K": 7168},
        "edge": {"Q": [0, 1, 5], "R": 64, "E": 3, "N": 72, "K": 112},
    },
    types=TYPES,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**MATRIX_OPTIONS, width=TILE["width"], threads=TILE["threads"], stages=TILE["stages"])
def experts(T, Q, R, E, N, K, act, out, width, threads, stages):
    """One block makes one tile; tiles of an expert, one behind the other, share what they read."""
    code = device(T, K, act, R, width, stages)
    write = writer(T, N, R, width, out)

    @T.macro
    def bring(x, w, q, e, j, k, x_tile, w_tile):
        T.copy(x[q, 0:R, k : k + code.depth], x_tile)
        T.copy(w[e, j * width : (j + 1) * width, k : k + code.depth], w_tile)

    @T.prim_func
    def kernel(
        x: T.Tensor((Q, R, K), act),
        expert: T.Tensor((Q,), "int32"),
        w: T.Tensor((E, N, K), act),
        y: T.Tensor((Q, R, N), out),
    ):
        with T.Kernel(Q, T.ceildiv(N, width), threads=threads) as (q, j):
            staged = T.alloc_shared((R, width), out)
            if expert[q] >= 0:
                code.product(lambda *at: bring(x, w, q, expert[q], j, *at), staged)
            else:
                T.clear(staged)
            write(staged, y, j, lambda m: (q, m), lambda m: True)

    return kernel
