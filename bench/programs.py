"""TileLang programs that the virtual GPU is timed on."""

import math

import tilelang.language as T


def gemm(n, tile=128, step=32):
    """C = A B, fp16 in and out, fp32 sums; all n × n."""

    @T.prim_func
    def gemm(
        a: T.Tensor((n, n), "float16"),
        b: T.Tensor((n, n), "float16"),
        c: T.Tensor((n, n), "float16"),
    ):
        with T.Kernel(n // tile, n // tile, threads=128) as (bx, by):
            a_tile = T.alloc_shared((tile, step), "float16")
            b_tile = T.alloc_shared((step, tile), "float16")
            acc = T.alloc_fragment((tile, tile), "float32")
            T.clear(acc)
            for k in T.Pipelined(n // step, num_stages=3):
                T.copy(a[by * tile, k * step], a_tile)
                T.copy(b[k * step, bx * tile], b_tile)
                T.gemm(a_tile, b_tile, acc)
            T.copy(acc, c[by * tile, bx * tile])

    return gemm


def attention(S, H, D, rows=64, columns=64):
    """O = softmax(Q K^T / sqrt(D)) V per head, fp16 [S, H, D], online softmax in base 2."""
    scale = math.log2(math.e) / math.sqrt(D)
    shape = (S, H, D)
    by_row = T.GemmWarpPolicy.FullRow  # a warp holds whole rows of scores

    @T.prim_func
    def attention(
        q: T.Tensor(shape, "float16"),
        k: T.Tensor(shape, "float16"),
        v: T.Tensor(shape, "float16"),
        o: T.Tensor(shape, "float16"),
    ):
        with T.Kernel(S // rows, H, threads=128) as (bx, h):
            q_tile = T.alloc_shared((rows, D), "float16")
            k_tile = T.alloc_shared((columns, D), "float16")
            v_tile = T.alloc_shared((columns, D), "float16")
            scores = T.alloc_fragment((rows, columns), "float32")
            weights = T.alloc_fragment((rows, columns), "float16")
            acc = T.alloc_fragment((rows, D), "float32")
            most = T.alloc_fragment((rows,), "float32")
            before = T.alloc_fragment((rows,), "float32")
            factor = T.alloc_fragment((rows,), "float32")
            part = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            T.copy(q[bx * rows : (bx + 1) * rows, h, :], q_tile)
            T.clear(acc)
            T.clear(total)
            T.fill(most, -T.infinity("float32"))
            for i in T.Pipelined(S // columns, num_stages=2):
                T.copy(k[i * columns : (i + 1) * columns, h, :], k_tile)
                T.clear(scores)
                T.gemm(q_tile, k_tile, scores, transpose_B=True, policy=by_row)
                T.copy(v[i * columns : (i + 1) * columns, h, :], v_tile)
                T.copy(most, before)
                T.reduce_max(scores, most, dim=1, clear=False)
                for r in T.Parallel(rows):
                    factor[r] = T.exp2((before[r] - most[r]) * scale)
                for r, c in T.Parallel(rows, columns):
                    scores[r, c] = T.exp2((scores[r, c] - most[r]) * scale)
                T.reduce_sum(scores, part, dim=1)
                for r in T.Parallel(rows):
                    total[r] = total[r] * factor[r] + part[r]
                for r, d in T.Parallel(rows, D):
                    acc[r, d] *= factor[r]
                T.copy(scores, weights)
                T.gemm(weights, v_tile, acc, policy=by_row)
            for r, d in T.Parallel(rows, D):
                acc[r, d] /= total[r]
            T.copy(acc, o[bx * rows : (bx + 1) * rows, h, :])

    return attention


def softmax(rows, columns):
    """y = softmax of each row, fp32; a block holds a row in registers."""

    @T.prim_func
    def softmax(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows, columns), "float32")):
        with T.Kernel(rows, threads=128) as r:
            row = T.alloc_fragment((columns,), "float32")
            most = T.alloc_fragment((1,), "float32")
            total = T.alloc_fragment((1,), "float32")
            T.copy(x[r, :], row)
            T.reduce_max(row, most)
            for c in T.Parallel(columns):
                row[c] = T.exp2((row[c] - most[0]) * math.log2(math.e))
            T.reduce_sum(row, total)
            for c in T.Parallel(columns):
                y[r, c] = row[c] / total[0]

    return softmax
