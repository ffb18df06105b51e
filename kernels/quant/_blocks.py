"""What the quantisers share: domains, geometry and exact arithmetic on formats (spec §6.1).

A *group* is the elements of one scale: 1×32, 1×64 or 1×128 of a row, or a 128×128 tile. Scales are
powers of two and are handled as codes, 2^(code - 127), computed on the bits of float32.
"""

from dataclasses import dataclass

from tileproof.dsl import check, derived, dim, static
from tileproof.kernels.row_stream import THREADS, ceildiv

TOKENS = dim(0, 1 << 20, batch=True)
PITCH = dim(16, 1 << 20, multiple=8)  # rows may be a slice of wider ones
ACT = {"act": ("bf16", "f32")}

TILE = 128  # rows and columns of a weight's group
FP4_GROUP = 32
FP8_VECTOR = 16  # elements a thread takes at once: 16 bytes of codes
MOST_ROWS = [0, 1, 31, 32, 33, 127, 129, 4099]


def _groups(K: int, B: int) -> int:
    check(B in (32, 64, 128), "elements of a group", got=B, expected="32, 64 or 128")
    return ceildiv(K, B)


FP8_DIMS = {
    "M": TOKENS,
    "K": static(32, 16384, multiple=32),
    "B": static(32, 128, multiple=32),
    "G": derived(_groups),
}
FP8_SHAPES = {
    "tiny": {"M": 7, "K": 64, "B": 32},
    "flash": {"M": 4096, "K": 4096, "B": 128},
    "pro": {"M": 4096, "K": 7168, "B": 128},
    "edge": {"M": MOST_ROWS, "K": 448, "B": 64},  # the channels of a KV entry that are fp8
}
# A weight [rows, K] is M strips of N rows: 128, or fewer in a strip of its own that ends it.
WEIGHT_DIMS = {
    "M": dim(0, 1 << 18, batch=True),
    "N": static(1, TILE),
    "K": static(32, 16384, multiple=32),
    "G": derived(lambda K: ceildiv(K, TILE)),
}
WEIGHT_SHAPES = {
    "tiny": {"M": 1, "N": 64, "K": 64},
    "flash": {"M": 8, "N": 128, "K": 4096},
    "pro": {"M": 12, "N": 128, "K": 7168},
    "edge": {"M": [0, 1, 3], "N": 67, "K": 160},
}
FP4_DIMS = {
    "M": TOKENS,
    "K": static(32, 16384, multiple=FP4_GROUP),
    "H": derived(lambda K: K // 2),
    "G": derived(lambda K: K // FP4_GROUP),
}
ROTATED_DIMS = {**FP4_DIMS, "K": static(128, 16384, multiple=128)}
FP4_SHAPES = {
    "tiny": {"M": 7, "K": 64},
    "flash": {"M": 4096, "K": 2048},
    "pro": {"M": 4096, "K": 3072},
    "edge": {"M": MOST_ROWS, "K": 96},
}

ROTATED_SHAPES = {
    "tiny": {"M": 7, "K": 128},
    "flash": {"M": 4096, "K": 128},  # an indexer head
    "pro": {"M": 4096, "K": 128},
    "edge": {"M": MOST_ROWS, "K": 384},
}

NAN = 0x7FC00000
INFINITY = 0x7F800000
MAGNITUDE = 0x7FFFFFFF
NAN_SCALE = 255


def activation_sizes(config):
    """Inputs of the FP8 linears (spec §6.2): one scale per 1×128."""
    merged = config["o_groups"] * config["o_lora_rank"]
    for K in (
        config["hidden_size"], config["q_lora_rank"], merged, config["moe_intermediate_size"]
    ):  # fmt: skip
        yield {"K": K, "B": TILE}


def kv_sizes(config):
    """Channels of a KV entry that are stored in FP8, all but RoPE's (spec §6.2): 1×64."""
    K = config["head_dim"] - config["qk_rope_head_dim"]
    if K % 64 == 0:  # else the model has no official form
        yield {"K": K, "B": 64}


def weight_sizes(config):
    """FP8 weights, in strips of 128 rows."""
    yield {"N": TILE, "K": config["hidden_size"]}


def fp4_sizes(config):
    """Expert weights, one scale per 1×32 along K."""
    yield {"K": config["hidden_size"]}


def index_sizes(config):
    """Queries and keys of the indexer, rotated in blocks of 128."""
    if config["index_head_dim"] % 128 == 0:
        yield {"K": config["index_head_dim"]}


@dataclass(frozen=True)
class Format:
    """How a scale follows from a group's largest magnitude.

    It is 2^ceil(log2(amax / MAX)) with MAX = 1.75 * 2^8 (e4m3) or 1.5 * 2^2 (e2m1): the exponent of
    amax less `exponent`, one more where amax's mantissa exceeds MAX's. Adding `carry` to the bits
    of amax carries into its exponent exactly there. `least` is the code at the floor of amax, 1e-4
    (e4m3) or 6 * 2^-126 (e2m1).
    """

    carry: int
    exponent: int
    least: int


E4M3 = Format(carry=0x1FFFFF, exponent=8, least=105)
E2M1 = Format(carry=0x3FFFFF, exponent=2, least=1)


def geometry(K: int, B: int, per_thread: int) -> tuple[int, int]:
    """(rows, groups of `B` of a row) of a block whose threads take `per_thread` elements each."""
    groups = THREADS * per_thread // B
    across = min(groups, 1 << (ceildiv(K, B) - 1).bit_length())
    return groups // across, across


def magnitude(T, x):
    """|x| as the bits of a float32; as integers they order like |x|, and NaN is the largest."""
    return T.reinterpret(T.cast(x, "float32"), "int32") & MAGNITUDE


def scale_code(T, fmt, amax):
    """Code of the scale of a group whose largest :func:`magnitude` is `amax`; 255 if not finite."""
    code = T.shift_right(amax + fmt.carry, 23) - fmt.exponent
    return T.if_then_else(amax >= INFINITY, NAN_SCALE, T.max(code, fmt.least))


def inverse(T, code):
    """2^(127 - code) as float32, of a code that :func:`scale_code` chose and that is not 255."""
    return T.reinterpret(T.shift_left(254 - code, 23), "float32")


def scale(T, code):
    """2^(code - 127) as float32: code 0 is subnormal, 255 is NaN."""
    finite = T.if_then_else(code == 0, 1 << 22, T.shift_left(code, 23))
    return T.reinterpret(T.if_then_else(code == NAN_SCALE, NAN, finite), "float32")


def load_code(T, stored):
    """Code of a stored scale, as an int32."""
    return T.cast(T.reinterpret(stored, "uint8"), "int32")


def stored_scale(T, code):
    """The way back."""
    return T.reinterpret(T.cast(code, "uint8"), "float8_e8m0fnu")
