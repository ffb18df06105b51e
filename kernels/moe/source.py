"""Which token each sorted row is of: the inverse of the places (spec §5)."""

from tileproof.dsl import In, InOut, Op, Values
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._gate import CHOSEN
from ._lists import PAIRS, ROWS, TILE, TILES


def model_sizes(config):
    """The experts of a HF config."""
    yield {"K": config["num_experts_per_tok"], "R": TILE}


op = Op(
    "moe/source",
    args=(
        In("place", "M K", "i32", values=Values("0", "Q*R-1", none=-1, distinct=True)),
        InOut("source", "Q R", "i32"),
    ),
    dims={"M": PAIRS, "K": CHOSEN, "Q": TILES, "R": ROWS},
    doc="the pair m K + k of each sorted row, into a list of -1 (spec §5)",
    reference=reference.source,
    shapes={
        "tiny": {"M": 7, "K": 2, "Q": 10, "R": 16},
        "flash": {"M": 4096, "K": 6, "Q": 636, "R": 64},
        "pro": {"M": 4096, "K": 6, "Q": 762, "R": 64},
        "edge": {"M": [0, 1, 129], "K": 7, "Q": [29, 60], "R": 32},
    },
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def source(T, M, K, Q, R):
    """A thread has a pair."""

    @T.prim_func
    def kernel(place: T.Tensor((M, K), "int32"), source: T.Tensor((Q, R), "int32")):
        with T.Kernel(T.ceildiv(M * K, THREADS), threads=THREADS) as block:
            pair = block * THREADS + T.get_thread_binding()
            if pair < M * K:
                row = place[pair // K, pair % K]
                if row >= 0:
                    source[row // R, row % R] = pair

    return kernel
