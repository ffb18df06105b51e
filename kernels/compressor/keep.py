"""Projected tokens of unfinished windows, kept for the next batch (spec §2.2)."""

from tileproof.dsl import In, InOut, Op, Values, dim, static
from tileproof.kernels.row_stream import OPTIONS, row_lanes, vector

from . import reference
from ._pool import sizes


def model_sizes(config):
    """Rows ``[kv | z]`` of every compressor."""
    for key in ("head_dim", "index_head_dim"):
        for size in sizes(config, key):
            yield {"C2": 2 * size["C"]}


op = Op(
    "compressor/keep",
    args=(
        In("fresh", "M C2", "f32"),
        In("row", "M", "i32", values=Values("0", "MK-1", none=-1, distinct=True)),
        InOut("kept", "MK C2", "f32"),
    ),
    dims={
        "M": dim(0, 1 << 20, batch=True),
        "MK": dim(0, 1 << 24),
        "C2": static(32, 4096, multiple=16),
    },
    doc="rows of projected tokens into the state of their requests; -1 is not kept (spec §2.2)",
    reference=reference.keep,
    shapes={
        "tiny": {"M": 9, "MK": 24, "C2": 128},
        "flash": {"M": 4096, "MK": 512, "C2": 2048},
        "pro": {"M": 4096, "MK": 8192, "C2": 1024},
        "edge": {"M": [0, 1, 65], "MK": 66, "C2": 272},
    },
    model_sizes=model_sizes,
)

_MOST = 256


@op.kernel(**OPTIONS)
def keep(T, M, MK, C2):
    """A block copies a row, or has nothing to do."""
    wide = vector("float32")
    lanes = max(32, row_lanes(C2, wide, _MOST))

    @T.prim_func
    def kernel(
        fresh: T.Tensor((M, C2), "float32"),
        row: T.Tensor((M,), "int32"),
        kept: T.Tensor((MK, C2), "float32"),
    ):
        with T.Kernel(M, threads=lanes) as m:
            if row[m] >= 0:
                for step in T.unroll(-(-C2 // (lanes * wide))):
                    column = (step * lanes + T.get_thread_binding()) * wide
                    if column < C2:
                        for v in T.vectorized(wide):
                            kept[row[m], column + v] = fresh[m, column + v]

    return kernel
