"""Mixing weights from the projection's sums, one token in one thread (spec §4, steps 1–3)."""

from types import SimpleNamespace

from ._tiles import float_vector


def sigmoid(T, z):
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + T.exp(-z))


def inverse_rms(T, sqrsum, K, norm_eps):
    """1 / sqrt(mean(x^2) + eps) from the sum of squares over K columns."""
    return 1.0 / T.sqrt(sqrsum / K + norm_eps)


def device(T, N, K, iters, eps, norm_eps):
    """Macros that fill a thread's registers with pre [N], post [N] and comb [N, N] of one token."""
    pack = float_vector(N)

    @T.macro
    def mapped(sums, i, c, factor, scale, base, z):
        # z = (x fn^T) r * scale + base
        z[0] = sums[i, c] * factor[0]
        z[0] = z[0] * scale
        z[0] = z[0] + base[c]

    @T.macro
    def gates(sums, i, sqrsum, scale, base, factor, pre, post):
        z = T.alloc_local((1,), "float32")
        factor[0] = inverse_rms(T, sqrsum, K, norm_eps)
        for j in T.unroll(N):
            # pre_j = sigmoid(z_j) + eps
            mapped(sums, i, j, factor, scale[0], base, z)
            pre[j] = sigmoid(T, z[0]) + eps
            # post_j = 2 sigmoid(z_{N+j})
            mapped(sums, i, N + j, factor, scale[1], base, z)
            post[j] = 2.0 * sigmoid(T, z[0])

    @T.macro
    def divide_rows(comb):
        # comb_{jk} /= sum_k comb_{jk} + eps, by the rounded reciprocal
        norm = T.alloc_local((1,), "float32")
        for j in T.unroll(N):
            norm[0] = comb[j, 0]
            for k in T.unroll(1, N):
                norm[0] += comb[j, k]
            norm[0] = 1.0 / (norm[0] + eps)
            for k in T.unroll(N):
                comb[j, k] = comb[j, k] * norm[0]

    @T.macro
    def divide_columns(comb):
        # comb_{jk} /= sum_j comb_{jk} + eps, by the rounded reciprocal
        norm = T.alloc_local((1,), "float32")
        for k in T.unroll(N):
            norm[0] = comb[0, k]
            for j in T.unroll(1, N):
                norm[0] += comb[j, k]
            norm[0] = 1.0 / (norm[0] + eps)
            for j in T.unroll(N):
                comb[j, k] = comb[j, k] * norm[0]

    @T.macro
    def balance(sums, i, scale, base, factor, comb):
        z = T.alloc_local((1,), "float32")
        norm = T.alloc_local((1,), "float32")
        # comb_j = softmax_k(z_{2N + Nj + k}) + eps
        for j in T.unroll(N):
            for k in T.unroll(N):
                mapped(sums, i, 2 * N + j * N + k, factor, scale[2], base, z)
                comb[j, k] = z[0]
            norm[0] = comb[j, 0]
            for k in T.unroll(1, N):
                norm[0] = T.max(norm[0], comb[j, k])
            for k in T.unroll(N):
                comb[j, k] = T.exp(comb[j, k] - norm[0])
            norm[0] = comb[j, 0]
            for k in T.unroll(1, N):
                norm[0] += comb[j, k]
            norm[0] = 1.0 / norm[0]
            for k in T.unroll(N):
                comb[j, k] = comb[j, k] * norm[0]
                comb[j, k] = comb[j, k] + eps
        divide_columns(comb)
        for _ in T.serial(iters - 1):
            divide_rows(comb)
            divide_columns(comb)

    @T.macro
    def store_vector(values, out, m):
        for p in T.unroll(N // pack):
            for v in T.vectorized(pack):
                out[m, p * pack + v] = values[p * pack + v]

    @T.macro
    def store_matrix(values, out, m):
        for j in T.unroll(N):
            for p in T.unroll(N // pack):
                for v in T.vectorized(pack):
                    out[m, j, p * pack + v] = values[j, p * pack + v]

    return SimpleNamespace(
        gates=gates, balance=balance, store_vector=store_vector, store_matrix=store_matrix
    )
