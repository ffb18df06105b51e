"""SwiGLU with a clamp: the middle of an MLP (spec §5.2)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._rows import HIDDEN, LIMIT, TOKENS, gated, geometry


def model_sizes(config):
    """Experts and the shared expert of a HF config."""
    yield {
        "I": config["moe_intermediate_size"],
        "limit": config.get("swiglu_limit", LIMIT["limit"]),
    }


op = Op(
    "moe/swiglu",
    args=(In("h", "M N", "act"), Out("a", "M I", "act")),
    dims={"M": TOKENS, "I": HIDDEN, "N": derived(lambda I: 2 * I)},  # noqa: E741
    doc="silu(min(g, limit)) clamp(u, ±limit) of h = [g | u] in float32 (spec §5.2)",
    reference=reference.swiglu,
    shapes={
        "tiny": {"M": 7, "I": 64},
        "flash": {"M": 4096, "I": 2048},
        "pro": {"M": 4096, "I": 3072},
        "edge": {"M": [0, 1, 129], "I": 96},
    },
    types={"act": ("bf16", "f32")},
    params=LIMIT,
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def swiglu(T, M, I, N, act, limit):  # noqa: E741
    """A thread has 16 bytes of a row."""
    wide, threads, blocks = geometry(I, act)

    @T.prim_func
    def kernel(h: T.Tensor((M, N), act), a: T.Tensor((M, I), act)):
        with T.Kernel(M, blocks, threads=threads) as (m, block):
            gate = T.alloc_local((wide,), act)
            up = T.alloc_local((wide,), act)
            i = (block * threads + T.get_thread_binding()) * wide
            if i < I:
                for v in T.vectorized(wide):
                    gate[v] = h[m, i + v]
                for v in T.vectorized(wide):
                    up[v] = h[m, I + i + v]
                for v in T.unroll(wide):
                    gate[v] = T.cast(
                        gated(T, limit, T.cast(gate[v], "float32"), T.cast(up[v], "float32")), act
                    )
                for v in T.vectorized(wide):
                    a[m, i + v] = gate[v]

    return kernel
