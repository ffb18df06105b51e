"""FP4 in place of a cast: what `fp4_cast` and `fp4_dequant` make of a tensor (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import (
    ACT,
    FP4_DIMS,
    FP4_GROUP,
    FP4_SHAPES,
    PITCH,
    fp4_sizes,
    geometry,
)
from ._fp4 import device

op = Op(
    "quant/fp4_simulate",
    args=(In("x", "M K", "act", strides="P 1"), Out("y", "M K", "act")),
    dims={**FP4_DIMS, "P": PITCH},
    doc="x rounded to e2m1 with a scale per 1×32 (spec §6.1)",
    reference=reference.fp4_simulate,
    shapes=FP4_SHAPES,
    types=ACT,
    model_sizes=fp4_sizes,
)


@op.kernel(**OPTIONS)
def fp4_simulate(T, M, K, G, P, act):
    """A thread rounds one group."""
    rows, across = geometry(K, FP4_GROUP, FP4_GROUP)
    code = device(T, act)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, K), (P, 1), act),
        y: T.Tensor((M, K), act),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            T.assume(P % 8 == 0)
            thread = T.get_thread_binding()
            row = T.alloc_local((FP4_GROUP,), act)
            exponent = T.alloc_local((1,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "int32")
            m = block * rows + thread // across
            for step in T.serial(ceildiv(G, across)):
                g = step * across + thread % across
                if (m < M) & (g < G):
                    code.load(x, m, g, row)
                    code.encode(row, exponent, codes)
                    code.decode(codes, exponent, row)
                    code.store(row, y, m, g)

    return kernel
