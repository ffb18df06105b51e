"""A histogram: counts of a block in shared memory, then added to the output, both atomically. And
the top k of a row by k sweeps, ties to the lowest index."""

import tilelang.language as T

N, ROWS = T.dynamic("n"), T.dynamic("rows")


def histogram(bins=64, block=256):
    @T.prim_func
    def histogram(x: T.Tensor((N,), "int32"), counts: T.Tensor((bins,), "int32")):
        with T.Kernel(T.ceildiv(N, block), threads=128) as bx:
            local = T.alloc_shared((bins,), "int32")
            T.clear(local)
            T.sync_threads()
            for i in T.Parallel(block):
                if bx * block + i < N:
                    T.atomic_add(local[x[bx * block + i]], 1)
            T.sync_threads()
            for i in T.Parallel(bins):
                if local[i] > 0:
                    T.atomic_add(counts[i], local[i])

    return histogram


def topk(k=4, width=128):
    @T.prim_func
    def topk(
        x: T.Tensor((ROWS, width), "float32"),
        values: T.Tensor((ROWS, k), "float32"),
        indices: T.Tensor((ROWS, k), "int32"),
    ):
        with T.Kernel(ROWS, threads=64) as row:
            v = T.alloc_fragment((width,), "float32")
            place = T.alloc_fragment((width,), "int32")
            most = T.alloc_fragment((1,), "float32")
            first = T.alloc_fragment((1,), "int32")
            T.copy(x[row, 0], v)
            for j in T.serial(k):
                T.reduce_max(v, most)
                for i in T.Parallel(width):
                    place[i] = T.if_then_else(v[i] == most[0], i, width)
                T.reduce_min(place, first)
                for i in T.Parallel(width):
                    v[i] = T.if_then_else(i == first[0], -T.infinity("float32"), v[i])
                values[row, j] = most[0]
                indices[row, j] = first[0]

    return topk
