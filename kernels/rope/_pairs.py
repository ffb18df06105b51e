"""RoPE of the pairs of channels that a thread holds (spec §3.1)."""


def turner(T, pairs):
    """Macro ``(row, cosine, sine, turns)``: (x, y) -> (x cos - y sin, x sin + y cos) in place, for
    each of the `pairs` neighbours of `row` of which ``turns(k)`` holds. `cosine` and `sine` have an
    element a pair, float32. Each product is rounded by itself, a result once more, to `row`'s type.
    """

    @T.macro
    def device(row, cosine, sine, turns):
        pair = T.alloc_local((2,), "float32")
        turned = T.alloc_local((4,), "float32")
        for k in T.unroll(pairs):
            if turns(k):
                for i in T.unroll(2):
                    pair[i] = T.cast(row[2 * k + i], "float32")
                    turned[i] = pair[i] * cosine[k]
                    turned[2 + i] = pair[i] * sine[k]
                row[2 * k] = turned[0] - turned[3]
                row[2 * k + 1] = turned[2] + turned[1]

    return device
