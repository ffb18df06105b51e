"""Hadamard rotation and FP4 rounding in one: the indexer's queries and keys (spec §3.1, §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import (
    FP4_GROUP,
    PITCH,
    ROTATED_DIMS,
    ROTATED_SHAPES,
    geometry,
    index_sizes,
)
from ._fp4 import device
from ._hadamard import rotation

op = Op(
    "quant/fp4_rotate_simulate",
    args=(In("x", "M K", "bf16", strides="P 1"), Out("y", "M K", "bf16")),
    dims={**ROTATED_DIMS, "P": PITCH},
    doc="fp4_simulate of x rotated by Hadamard-128 and rounded to bf16 (spec §3.1, §6.1)",
    reference=reference.fp4_rotate_simulate,
    shapes=ROTATED_SHAPES,
    model_sizes=index_sizes,
)


@op.kernel(**OPTIONS)
def fp4_rotate_simulate(T, M, K, G, P):
    """A thread rounds one group; four neighbours rotate their 128 elements together."""
    rows, across = geometry(K, FP4_GROUP, FP4_GROUP)
    code = device(T, "bfloat16")
    rotate = rotation(T)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, K), (P, 1), "bfloat16"),
        y: T.Tensor((M, K), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            T.assume(P % 8 == 0)
            thread = T.get_thread_binding()
            staged = T.alloc_shared((FP4_GROUP, THREADS), "float32")
            row = T.alloc_local((FP4_GROUP,), "bfloat16")
            exponent = T.alloc_local((1,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "int32")
            m = block * rows + thread // across
            for step in T.serial(ceildiv(G, across)):
                g = step * across + thread % across
                T.clear(row)
                if (m < M) & (g < G):
                    code.load(x, m, g, row)
                rotate(row, staged, thread)
                if (m < M) & (g < G):
                    code.encode(row, exponent, codes)
                    code.decode(codes, exponent, row)
                    code.store(row, y, m, g)

    return kernel
