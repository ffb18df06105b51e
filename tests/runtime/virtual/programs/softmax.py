"""Row softmax with a dynamic number of rows, and a gather by an index tensor."""

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


@T.prim_func
def gather(
    table: T.Tensor((R, D), "float16"), index: T.Tensor((M,), "int32"), y: T.Tensor((M, D), "float16")
):
    with T.Kernel(M, threads=64) as row:
        for d in T.Parallel(D):
            y[row, d] = T.if_then_else(index[row] >= 0, table[index[row], d], T.cast(0, "float16"))
