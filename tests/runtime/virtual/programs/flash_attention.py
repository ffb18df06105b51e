"""Flash attention forward as a `@tilelang.jit` factory with arguments."""

import tilelang
import tilelang.language as T


@tilelang.jit(out_idx=[3])
def flash_attention(batch=1, heads=2, seq=128, dim=64, causal=False, block_m=64, block_n=64):
    scale = (1.0 / dim) ** 0.5 * 1.44269504
    shape = (batch, seq, heads, dim)

    @T.prim_func
    def attention(
        Q: T.Tensor(shape, "float16"),
        K: T.Tensor(shape, "float16"),
        V: T.Tensor(shape, "float16"),
        Output: T.Tensor(shape, "float16"),
    ):
        with T.Kernel(T.ceildiv(seq, block_m), heads, batch, threads=128) as (bx, by, bz):
            q = T.alloc_shared((block_m, dim), "float16")
            k = T.alloc_shared((block_n, dim), "float16")
            v = T.alloc_shared((block_n, dim), "float16")
            s = T.alloc_fragment((block_m, block_n), "float32")
            p = T.alloc_fragment((block_m, block_n), "float16")
            o = T.alloc_fragment((block_m, dim), "float32")
            m_new = T.alloc_fragment((block_m,), "float32")
            m_old = T.alloc_fragment((block_m,), "float32")
            alpha = T.alloc_fragment((block_m,), "float32")
            row = T.alloc_fragment((block_m,), "float32")
            total = T.alloc_fragment((block_m,), "float32")
            T.copy(Q[bz, bx * block_m : (bx + 1) * block_m, by, :], q)
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(m_new, -T.infinity("float32"))
            steps = T.ceildiv((bx + 1) * block_m, block_n) if causal else T.ceildiv(seq, block_n)
            for j in T.Pipelined(steps, num_stages=1):
                T.copy(K[bz, j * block_n : (j + 1) * block_n, by, :], k)
                if causal:
                    for a, b in T.Parallel(block_m, block_n):
                        s[a, b] = T.if_then_else(
                            bx * block_m + a >= j * block_n + b, 0, -T.infinity("float32")
                        )
                else:
                    T.clear(s)
                T.gemm(q, k, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(m_new, m_old)
                T.reduce_max(s, m_new, dim=1, clear=False)
                for a in T.Parallel(block_m):
                    alpha[a] = T.exp2(m_old[a] * scale - m_new[a] * scale)
                for a, b in T.Parallel(block_m, block_n):
                    s[a, b] = T.exp2(s[a, b] * scale - m_new[a] * scale)
                T.reduce_sum(s, row, dim=1)
                for a in T.Parallel(block_m):
                    total[a] = total[a] * alpha[a] + row[a]
                T.copy(s, p)
                for a, b in T.Parallel(block_m, dim):
                    o[a, b] *= alpha[a]
                T.copy(V[bz, j * block_n : (j + 1) * block_n, by, :], v)
                T.gemm(p, v, o, policy=T.GemmWarpPolicy.FullRow)
            for a, b in T.Parallel(block_m, dim):
                o[a, b] /= total[a]
            T.copy(o, Output[bz, bx * block_m : (bx + 1) * block_m, by, :])

    return attention
