"""Hadamard-128 on rows whose 128 elements lie in four neighbouring threads, 32 each."""

from ._blocks import FP4_GROUP

# float32 nearest to 128^-1/2
SCALE = 0.08838834764831845


def rotation(T):
    """Macro ``(row, staged, thread)``: bf16 row = H row / sqrt(128), rounded once.

    H is Sylvester's matrix in natural order, as seven stages of sums and differences in float32, of
    elements 1, 2, 4 … 64 apart. Every thread of the block must take part; `staged` is [32, threads]
    in shared memory.
    """

    @T.macro
    def butterflies(wave, apart):
        """One stage, on elements of this thread."""
        for block in T.unroll(FP4_GROUP // (2 * apart)):
            for at in T.unroll(apart):
                low = block * 2 * apart + at
                plus = wave[low] + wave[low + apart]
                minus = wave[low] - wave[low + apart]
                wave[low] = plus
                wave[low + apart] = minus

    @T.macro
    def rotate(row, staged, thread):
        wave = T.alloc_local((FP4_GROUP,), "float32")
        for k in T.unroll(FP4_GROUP):
            wave[k] = T.cast(row[k], "float32")
        butterflies(wave, 1)
        butterflies(wave, 2)
        butterflies(wave, 4)
        butterflies(wave, 8)
        butterflies(wave, 16)
        # elements 32 and 64 apart are other threads'
        for k in T.unroll(FP4_GROUP):
            staged[k, thread] = wave[k]
        T.sync_threads()
        first = thread - thread % 4
        for k in T.unroll(FP4_GROUP):
            sign = T.if_then_else(thread % 2 == 0, 1.0, -1.0)
            near = staged[k, first] + sign * staged[k, first + 1]
            far = staged[k, first + 2] + sign * staged[k, first + 3]
            total = near + T.if_then_else(thread % 4 < 2, 1.0, -1.0) * far
            row[k] = T.cast(total * T.float32(SCALE), "bfloat16")
        T.sync_threads()

    return rotate
