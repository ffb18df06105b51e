"""RMSNorm with weight, and its result in FP8, as the official linears take it (spec §1.1, §6.1)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels.quant._blocks import stored_scale
from tileproof.kernels.quant._fp8 import device, owned
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import reference
from ._tiles import DIMS, SHAPES, VECTOR, geometry, statistics

_GROUP = 128  # elements of a scale


def model_sizes(config):
    """The norms before FP8 linears: attention and experts, q_a."""
    for D in sorted({config["hidden_size"], config["q_lora_rank"]}):
        for weight in ("f32", "bf16"):
            yield {"D": D, "weight": weight, "eps": config["rms_norm_eps"]}


op = Op(
    "norm/rmsnorm_fp8",
    args=(
        In("x", "M D", "bf16", strides="P 1"),
        In("weight", "D", "weight"),
        Out("y", "M D", "bf16"),
        Out("q", "M D", "e4m3"),
        Out("s", "M G", "ue8m0"),
    ),
    dims={**DIMS, "G": derived(lambda D: ceildiv(D, _GROUP))},
    doc="RMSNorm with weight in bf16, and its e4m3 codes with a ue8m0 scale per 1×128"
    " (spec §1.1, §6.1)",
    reference=reference.rmsnorm_fp8,
    shapes=SHAPES,
    types={"weight": ("f32", "bf16")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def rmsnorm_fp8(T, M, D, G, P, weight, eps):
    """A row is read once; its groups pass through shared memory to threads that hold whole ones."""
    rows, width, threads = geometry(D)
    start = statistics(T, D, eps)
    padded = ceildiv(width, _GROUP) * _GROUP
    across = padded // _GROUP
    shape = (rows * across, _GROUP)
    code = device(T, shape, "bfloat16")

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, D), (P, 1), "bfloat16"),
        w: T.Tensor((D,), weight),
        y: T.Tensor((M, D), "bfloat16"),
        q: T.Tensor((M, D), "float8_e4m3fn"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=threads) as block:
            T.assume(P % VECTOR == 0)
            row = T.alloc_fragment((rows, width), "bfloat16")
            gain = T.alloc_fragment((rows, width), weight)
            factor = T.alloc_fragment((rows,), "float32")
            staged = T.alloc_shared((rows, padded), "bfloat16")
            group = T.alloc_fragment(shape, "bfloat16")
            codes = T.alloc_fragment(shape, "float8_e4m3fn")
            exponent = T.alloc_fragment((rows * across,), "int32")
            T.annotate_layout({group: owned(T, shape, threads, VECTOR)})
            start(x, M, block * rows, row, factor)
            # y = w * (x * factor)
            for i, d in T.Parallel(rows, width):
                gain[i, d] = T.if_then_else(d < D, w[d], 0)
            for i, d in T.Parallel(rows, width):
                row[i, d] = T.cast(gain[i, d], "float32") * (
                    T.cast(row[i, d], "float32") * factor[i]
                )
            for i, d in T.Parallel(rows, width):
                if (block * rows + i < M) & (d < D):
                    y[block * rows + i, d] = row[i, d]
            if padded > width:
                T.clear(staged)
            for i, d in T.Parallel(rows, width):
                staged[i, d] = row[i, d]
            for i, k in T.Parallel(*shape):
                group[i, k] = staged[i // across, i % across * _GROUP + k]
            code.encode(group, exponent, codes)
            for i, k in T.Parallel(*shape):
                m = block * rows + i // across
                d = i % across * _GROUP + k
                if (m < M) & (d < D):
                    q[m, d] = codes[i, k]
            for i in T.Parallel(rows * across):
                m = block * rows + i // across
                if (m < M) & (i % across < G):
                    s[m, i % across] = stored_scale(T, exponent[i])

    return kernel
