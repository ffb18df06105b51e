"""Chosen entries of a request as slots of a paged pool (spec §3.1, §12)."""

from tileproof.dsl import In, Op, Out, Values, dim, static
from tileproof.kernels import kv_cache
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._pages import PAGED_DIMS, REQUEST, page_of

_PAGES = 1 << 24  # a pool has at most; slots of 128 entries each are still int32

op = Op(
    "indexer/slots",
    args=(
        In("index", "M K", "i32"),
        In("table", "R L", "i32", values=Values("0", f"{_PAGES - 1}", none=-1)),
        REQUEST,
        Out("slot", "M K", "i32"),
    ),
    dims={
        "M": dim(0, 1 << 20, batch=True),
        "K": static(1, 2048),
        "E": static(1, 128),
        "R": PAGED_DIMS["R"],
        "L": PAGED_DIMS["L"],
    },
    doc="table[request, index // E] E + index % E, -1 where there is none (spec §12.2)",
    reference=reference.slots,
    shapes={
        "tiny": {"M": 7, "K": 4, "E": 4, "R": 3, "L": 6},
        "flash": {"M": 128, "K": 512, "E": 64, "R": 4, "L": 256},
        "pro": {"M": 128, "K": 1024, "E": 64, "R": 4, "L": 256},
        "edge": {"M": [0, 1, 33], "K": 131, "E": 16, "R": 2, "L": [0, 1, 9]},
    },
    model_sizes=lambda config: [{"K": config["index_topk"], "E": kv_cache.MODEL_ENTRIES}],
)


@op.kernel(**OPTIONS)
def slots(T, M, K, E, R, L):
    """A thread takes an entry."""

    @T.prim_func
    def kernel(
        index: T.Tensor((M, K), "int32"),
        table: T.Tensor((R, L), "int32"),
        request: T.Tensor((M,), "int32"),
        slot: T.Tensor((M, K), "int32"),
    ):
        with T.Kernel(M, T.ceildiv(K, THREADS), threads=THREADS) as (m, block):
            k = block * THREADS + T.get_thread_binding()
            if k < K:
                entry = index[m, k]
                page = T.alloc_local((1,), "int32")
                page[0] = -1
                if entry >= 0:
                    page[0] = page_of(T, table, request[m], entry, entry + 1, L, E)
                slot[m, k] = T.if_then_else(page[0] >= 0, page[0] * E + entry % E, -1)

    return kernel
