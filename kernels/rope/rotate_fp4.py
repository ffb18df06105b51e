"""RoPE, Hadamard and FP4 in one: the indexer's queries in official precision (spec §3.1)."""

from tileproof.dsl import Op, Out, check, derived, static
from tileproof.kernels.quant._blocks import FP4_GROUP, stored_scale
from tileproof.kernels.quant._fp4 import device
from tileproof.kernels.quant._hadamard import rotation
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv, vector

from . import reference
from . import rotate as plain
from ._pairs import turner


def model_sizes(config):
    """Queries that are no multiple of 128 wide have no official form."""
    if config["index_head_dim"] % 128 == 0:
        yield from plain.model_sizes(config)


op = Op(
    "rope/rotate_fp4",
    args=(*plain.inputs("bf16"), Out("q", "M H B", "u8"), Out("s", "M H G", "ue8m0")),
    dims={
        "M": plain.TOKENS,
        "X": plain.POSITIONS,
        "H": plain.HEADS,
        "D": static(128, 1024, multiple=128),
        "Q": static(2, 256, multiple=2),
        "B": derived(lambda D: D // 2),
        "G": derived(lambda D: D // FP4_GROUP),
    },
    doc="RoPE, Hadamard-128 and fp4_cast of every head (spec §3.1, §6.1)",
    reference=reference.rotate_fp4,
    shapes={
        "tiny": {"M": 7, "X": 64, "H": 2, "D": 128, "Q": 32},
        "flash": {"M": 4096, "X": 4096, "H": 64, "D": 128, "Q": 32},
        "pro": {"M": 4096, "X": 4096, "H": 64, "D": 128, "Q": 32},
        "edge": {"M": [0, 1, 65], "X": 3, "H": 3, "D": 256, "Q": 6},
    },
    model_sizes=model_sizes,
)


_WIDE = vector("bfloat16")
_PIECES = FP4_GROUP // _WIDE
# of a group in shared memory: 16 bytes of eight lanes, read or written, lie in different banks
_PITCH = FP4_GROUP + _WIDE


@op.kernel(**OPTIONS)
def rotate_fp4(T, M, X, H, D, Q, B, G):
    """A block takes a token, a thread a group of 32; four neighbours rotate their 128 together.

    Neighbours load, and turn, 16 bytes side by side of one of their groups after another: whole
    sectors at once, of the same channels of each head. By shared memory each gets its own group.
    """
    first = D - 2 * Q
    check(first >= 0, "RoPE channels", got=2 * Q, expected=f"at most D = {D}")
    heads = min(H, THREADS // G)  # at once
    lanes = heads * G
    pairs = 4 if Q % 4 == 0 else 2  # whose cos is one access
    code = device(T, "bfloat16")
    hadamard = rotation(T)
    turn = turner(T, FP4_GROUP // 2)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, H, D), "bfloat16"),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        position: T.Tensor((M,), "int32"),
        q: T.Tensor((M, H, B), "uint8"),
        s: T.Tensor((M, H, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(M, threads=lanes) as m:
            thread = T.get_thread_binding()
            whole = T.alloc_shared((lanes, _PITCH), "bfloat16")
            staged = T.alloc_shared((FP4_GROUP, lanes), "float32")
            row = T.alloc_local((FP4_GROUP,), "bfloat16")
            cosine = T.alloc_local((FP4_GROUP // 2,), "float32")
            sine = T.alloc_local((FP4_GROUP // 2,), "float32")
            exponent = T.alloc_local((1,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "int32")
            packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
            g = thread % G
            # of the pieces of four groups, one is this thread's
            near, own = thread - thread % 4, thread % 4 * _WIDE
            d = g // 4 * 4 * FP4_GROUP + own
            for c in T.unroll(_PIECES):
                for k in T.unroll(_WIDE // 2 // pairs):
                    at = (d + c * FP4_GROUP - first) // 2 + k * pairs
                    if at >= 0:
                        for v in T.vectorized(pairs):
                            cosine[c * _WIDE // 2 + k * pairs + v] = cos[position[m], at + v]
                        for v in T.vectorized(pairs):
                            sine[c * _WIDE // 2 + k * pairs + v] = sin[position[m], at + v]
            for step in T.serial(ceildiv(H, heads)):
                h = step * heads + thread // G
                T.clear(row)
                if h < H:
                    for c in T.unroll(_PIECES):
                        for v in T.vectorized(_WIDE):
                            row[c * _WIDE + v] = x[m, h, d + c * FP4_GROUP + v]
                    # pair k is one of piece 2k // 8, which lies as many groups behind the first
                    turn(
                        row, cosine, sine,
                        lambda k: d + 2 * k // _WIDE * FP4_GROUP + 2 * k % _WIDE >= first,
                    )  # fmt: skip
                for c in T.unroll(_PIECES):
                    for v in T.vectorized(_WIDE):
                        whole[near + c, own + v] = row[c * _WIDE + v]
                T.sync_threads()
                for c in T.unroll(_PIECES):
                    for v in T.vectorized(_WIDE):
                        row[c * _WIDE + v] = whole[thread, c * _WIDE + v]
                hadamard(row, staged, thread)
                if h < H:
                    code.encode(row, exponent, codes)
                    code.pack(codes, packed)
                    for v in T.vectorized(FP4_GROUP // 2):
                        q[m, h, g * (FP4_GROUP // 2) + v] = packed[v]
                    s[m, h, g] = stored_scale(T, exponent[0])

    return kernel
