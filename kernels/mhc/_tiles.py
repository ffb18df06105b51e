"""Geometry, size sets and device code that the mHC kernels share."""

from tileproof.dsl import dim, static
from tileproof.kernels.row_stream import THREADS, ceildiv, row_lanes, vector

TOKENS = dim(0, 1 << 20, batch=True)
STREAMS = static(2, 8)
HIDDEN = static(32, 16384, multiple=32)
SHAPES = {
    "tiny": {"M": 7, "N": 4, "D": 64},
    "flash": {"M": 4096, "N": 4, "D": 4096},
    "pro": {"M": 4096, "N": 4, "D": 7168},
    "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 4099], "N": 3, "D": 96},
}


MIX_PARAMS = {"iters": 20, "eps": 1e-6, "norm_eps": 1e-6}


def head_sizes(config):
    """The HyperHead of a HF config; eps is added to weights, norm_eps to the mean square."""
    yield {
        "N": config["hc_mult"],
        "D": config["hidden_size"],
        "eps": config["hc_eps"],
        "norm_eps": config["rms_norm_eps"],
    }


def mixing_sizes(config):
    """Every HyperConnection of a HF config."""
    for sizes in head_sizes(config):
        yield {**sizes, "iters": config["hc_sinkhorn_iters"]}


def stream_sizes(config):
    """The residual streams of a HF config: hc_mult streams of hidden_size."""
    yield {"N": config["hc_mult"], "D": config["hidden_size"]}


def stream_geometry(D: int, act: str) -> tuple[int, int, int, int]:
    """(tokens per block, threads per token, elements per access, steps along D)."""
    width = vector(act)
    lanes = row_lanes(D, width)
    return THREADS // lanes, lanes, width, ceildiv(D, lanes * width)


def float_vector(N: int) -> int:
    """Floats of one access to a row of N floats that starts at a multiple of N: 4, 2 or 1."""
    return 4 if N % 4 == 0 else 2 if N % 2 == 0 else 1


def weighted_sum(T, N, act):
    """Macro ``(x, m, d, weight, y)``: one 16-byte column of all streams, summed in order."""
    width = vector(act)

    @T.macro
    def column(x, m, d, weight, y):
        streams = T.alloc_local((N, width), act)
        term = T.alloc_local((width,), "float32")
        total = T.alloc_local((width,), "float32")
        for j in T.unroll(N):
            for v in T.vectorized(width):
                streams[j, v] = x[m, j, d + v]
        # y = sum_j pre_j X_j
        for v in T.vectorized(width):
            total[v] = weight[0] * T.cast(streams[0, v], "float32")
        for j in T.unroll(1, N):
            for v in T.vectorized(width):
                term[v] = weight[j] * T.cast(streams[j, v], "float32")
            for v in T.vectorized(width):
                total[v] += term[v]
        for v in T.vectorized(width):
            y[m, d + v] = total[v]

    return column


def remix(T, N, act):
    """Macro ``(gain, mix, layer, streams, k, total)``: 16 bytes of stream k behind a sublayer, from
    its result `layer` [width] and the `streams` [N, width] before it, which are added in order;
    ``gain(k)`` is the token's post_k, ``mix(j, k)`` its comb_{jk}."""
    width = vector(act)

    @T.macro
    def mixed(gain, mix, layer, streams, k, total):
        term = T.alloc_local((width,), "float32")
        # out_k = post_k y + sum_j comb_{jk} X_j
        for v in T.vectorized(width):
            total[v] = gain(k) * T.cast(layer[v], "float32")
        for j in T.unroll(N):
            for v in T.vectorized(width):
                term[v] = mix(j, k) * T.cast(streams[j, v], "float32")
            for v in T.vectorized(width):
                total[v] += term[v]

    return mixed
