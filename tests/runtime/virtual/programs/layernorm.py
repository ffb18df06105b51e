"""LayerNorm with rows of any length: both dims are dynamic, a row is walked over three times."""

import tilelang
import tilelang.language as T

M, D = T.dynamic("m"), T.dynamic("d")


@tilelang.jit
def layernorm(dtype="float16", step=256, eps=1e-5):
    @T.prim_func
    def layernorm(
        x: T.Tensor((M, D), dtype),
        weight: T.Tensor((D,), "float32"),
        bias: T.Tensor((D,), "float32"),
        y: T.Tensor((M, D), dtype),
    ):
        with T.Kernel(M, threads=128) as row:
            part = T.alloc_fragment((step,), "float32")
            total = T.alloc_fragment((1,), "float32")
            mean = T.alloc_fragment((1,), "float32")
            T.clear(part)
            for k in T.serial(T.ceildiv(D, step)):
                for i in T.Parallel(step):
                    if k * step + i < D:
                        part[i] += x[row, k * step + i]
            T.reduce_sum(part, total)
            mean[0] = total[0] / D
            T.clear(part)
            for k in T.serial(T.ceildiv(D, step)):
                for i in T.Parallel(step):
                    if k * step + i < D:
                        part[i] += (x[row, k * step + i] - mean[0]) * (
                            x[row, k * step + i] - mean[0]
                        )
            T.reduce_sum(part, total)
            for k in T.serial(T.ceildiv(D, step)):
                for i in T.Parallel(step):
                    if k * step + i < D:
                        y[row, k * step + i] = (x[row, k * step + i] - mean[0]) * T.rsqrt(
                            total[0] / D + eps
                        ) * weight[k * step + i] + bias[k * step + i]

    return layernorm
