"""Row softmax with a dynamic number of rows, and a gather that trusts its index tensor."""

import tilelang
import tilelang.language as T

M, R, D = T.dynamic("m"), T.dynamic("r"), 256


@T.prim_func
def softmax(x: T.Tensor((M, D), "float32"), y: T.Tensor((M, D), "float32")):
    with T.Kernel(M, threads=128) as row:
        v = T.alloc_fragment((D,), "float32")
        most = T.alloc_fragment((1,), "float32")
        total = T.alloc_fragment((1,), "float32")
        T.copy(x[row, 0], v)
        T.reduce_max(v, most)
        for d in T.Parallel(D):
            v[d] = T.exp(v[d] - most[0])
        T.reduce_sum(v, total)
        for d in T.Parallel(D):
            y[row, d] = v[d] / total[0]


@tilelang.jit(pass_configs={"tl.disable_safe_memory_legalize": True})
def gather(width=D):
    @T.prim_func
    def gather_rows(
        table: T.Tensor((R, width), "float16"),
        index: T.Tensor((M,), "int32"),
        y: T.Tensor((M, width), "float16"),
    ):
        with T.Kernel(M, threads=64) as row:
            for d in T.Parallel(width):
                if index[row] >= 0:
                    y[row, d] = table[index[row], d]
                else:
                    y[row, d] = T.cast(0, "float16")

    return gather_rows
