"""Where each token's row lies when rows are sorted by expert (spec §5)."""

from tileproof.dsl import In, Op, Out, Values, check
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import reference
from ._gate import CHOSEN, EXPERTS
from ._lists import PAIRS, TILE, TILES


def model_sizes(config):
    """The experts of a HF config."""
    yield {"E": config["n_routed_experts"], "K": config["num_experts_per_tok"]}


op = Op(
    "moe/permute",
    args=(
        In("index", "M K", "i64", values=Values("0", "E-1", none=-1)),
        Out("place", "M K", "i32"),
        Out("expert", "Q", "i32"),
    ),
    dims={"M": PAIRS, "K": CHOSEN, "E": EXPERTS, "Q": TILES},
    doc="rows of (token, slot) sorted by expert, in tiles of R; -1 is none (spec §5)",
    reference=reference.permute,
    shapes={
        "tiny": {"M": 7, "K": 2, "E": 8, "Q": 10},
        "flash": {"M": 4096, "K": 6, "E": 256, "Q": 636},
        "pro": {"M": 4096, "K": 6, "E": 384, "Q": 762},
        "edge": {"M": [0, 1, 146, 147, 700], "K": 7, "E": 130, "Q": [0, 1, 257]},
    },
    params={"R": TILE},
    model_sizes=model_sizes,
)

_CHUNK = 1024  # pairs of a block
_WARP = 32
_STEPS = (1, 2, 4, 8, 16)  # between lanes


@op.kernel(**OPTIONS)
def permute(T, M, K, E, Q, R):
    """A thread has an expert, and walks a chunk of pairs in their order: no place hangs on luck.

    Every block counts all pairs by itself, and those before its chunk, which are few reads from
    the cache beside a launch. It also tells as many tiles as it has threads their experts.
    """
    check(0 < R <= _CHUNK, "moe/permute: rows of a tile", got=R, expected=f"1..{_CHUNK}")
    threads = max(128, ceildiv(E, _WARP) * _WARP)
    warps = threads // _WARP

    @T.prim_func
    def kernel(
        index: T.Tensor((M, K), "int64"),
        place: T.Tensor((M, K), "int32"),
        expert: T.Tensor((Q,), "int32"),
    ):
        blocks = T.max(T.ceildiv(M * K, _CHUNK), T.ceildiv(Q, threads))
        with T.Kernel(blocks, threads=threads) as block:
            thread = T.get_thread_binding()
            every = T.alloc_shared((threads,), "int32")
            before = T.alloc_shared((threads,), "int32")
            last = T.alloc_shared((threads,), "int32")
            total = T.alloc_shared((warps,), "int32")
            wanted = T.alloc_shared((_CHUNK,), "int32")
            row = T.alloc_shared((_CHUNK,), "int32")
            tiles = T.alloc_local((1,), "int32")
            other = T.alloc_local((1,), "int32")
            at = T.alloc_local((1,), "int32")
            every[thread] = 0
            before[thread] = 0
            for step in T.serial(ceildiv(_CHUNK, threads)):
                i = step * threads + thread
                pair = block * _CHUNK + i
                if i < _CHUNK:
                    wanted[i] = -1
                    if pair < M * K:
                        wanted[i] = T.cast(index[pair // K, pair % K], "int32")
                    row[i] = -1
            T.sync_threads()
            for step in T.serial(T.ceildiv(M * K, threads)):
                pair = step * threads + thread
                if pair < M * K:
                    e = index[pair // K, pair % K]
                    if e >= 0:
                        T.atomic_add(every[e], 1)
                        if pair < block * _CHUNK:
                            T.atomic_add(before[e], 1)
            T.sync_threads()
            # tiles of the experts up to this one
            tiles[0] = T.ceildiv(every[thread], R)
            for step in _STEPS:
                other[0] = T.shfl_up(tiles[0], step)
                if thread % _WARP >= step:
                    tiles[0] += other[0]
            if thread % _WARP == _WARP - 1:
                total[thread // _WARP] = tiles[0]
            T.sync_threads()
            for w in T.unroll(warps):
                if w < thread // _WARP:
                    tiles[0] += total[w]
            last[thread] = tiles[0]
            at[0] = (tiles[0] - T.ceildiv(every[thread], R)) * R + before[thread]
            for i in T.serial(T.max(0, T.min(_CHUNK, M * K - block * _CHUNK))):
                if wanted[i] == thread:
                    row[i] = at[0]
                    at[0] += 1
            T.sync_threads()
            for step in T.serial(ceildiv(_CHUNK, threads)):
                i = step * threads + thread
                pair = block * _CHUNK + i
                if (i < _CHUNK) & (pair < M * K):
                    place[pair // K, pair % K] = row[i]
            q = block * threads + thread
            if q < Q:
                at[0] = 0  # experts whose tiles all lie before q
                for e in T.serial(E):
                    at[0] += T.if_then_else(last[e] <= q, 1, 0)
                expert[q] = T.if_then_else(at[0] < E, at[0], -1)

    return kernel
