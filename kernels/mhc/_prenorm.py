"""The mixing projection ``x fn^T`` and ``sum x^2``, reduced in one canonical order (spec §4, §8).

Tensor cores multiply bfloat16, yet the result is accurate to float32: a float32 is the exact sum of
three bfloat16 (high, middle, low), so the parts of `fn` are stacked as rows of one operand and
their products are added at the end. The order of every sum is a function of N and D alone:

* the D channels are cut into ranges of one length, at most 1024 / N; a range of all N streams is
  one split, and one partial result: whoever makes all streams of some channels, as the residual mix
  does, has all there is of a split;
* inside a split come its first 64 channels of each stream in turn, then the next 64; the matrix
  instruction takes 16 of them at a time, left to right;
* of ``x^2``, eight running sums take channels ``8 g .. 8 g + 7`` of each 64, for g = 0..7, and are
  then added in the order of g.

Splits are added first to last. f32 activations are split into three parts too; their parts are
multiplied one after the other for every 64 channels.
"""

from types import SimpleNamespace

from tileproof.kernels.row_stream import ceildiv

SPLIT = 1024  # channels of all streams: 16 partial results for V4-Flash fill a GPU at one token
SLICE = 64
GROUPS = 8
PARTS = 3  # bfloat16 parts of a float32


def splits(N: int, D: int) -> int:
    """Number of partial results for N streams of D channels."""
    return ceildiv(D, max(1, SPLIT // (N * SLICE)) * SLICE)


def split_length(N: int, D: int) -> int:
    """Channels of one split: a multiple of 64; what reaches beyond D counts as zero."""
    return ceildiv(D, splits(N, D) * SLICE) * SLICE


def padded(C: int) -> int:
    """Rows of one part of `fn` in shared memory, in whole steps of the warps that share them."""
    step = 16 if _two_columns(C) else 8
    return ceildiv(C, step) * step


def _two_columns(C: int) -> bool:
    """Whether two warps share the columns of a row tile, because one could not hold them."""
    return C > 40


def gemm_tile(C: int, N: int, D: int) -> tuple[int, int, int]:
    """(tokens, threads, blocks per multiprocessor to allow registers for) of the projection.

    Four blocks leave 128 registers a thread: enough for 24 columns in a loop over a full split. The
    compiler unrolls shorter splits, which then need more.
    """
    if _two_columns(C):
        return 32, 128, 1
    if C > 24:
        return 64, 128, 2
    return 64, 128, 4 if N * split_length(N, D) == SPLIT else 3


def device(T, C, act, tokens, threads, policy):
    """Device code on 64 channels of `tokens` rows, ``x_tile[first:]``, as a namespace of macros.

    `multiply` adds such a tile to the accumulator, `square` to the running sums of ``x^2``;
    `joined` is one element of the finished product, `squares` the finished sum of a row.
    """
    rows = padded(C)
    owned = tokens * GROUPS // threads

    @T.macro
    def split_f32(source, first, parts, count):
        # parts = [high; middle; low], high + middle + low = source exactly
        for n, k in T.Parallel(count, SLICE):
            high = T.cast(source[first + n, k], "bfloat16")
            rest = source[first + n, k] - T.cast(high, "float32")
            middle = T.cast(rest, "bfloat16")
            parts[n, k] = high
            parts[count + n, k] = middle
            parts[2 * count + n, k] = T.cast(rest - T.cast(middle, "float32"), "bfloat16")

    @T.macro
    def multiply(x_tile, first, x_parts, fn_tile, fn_parts, product):
        split_f32(fn_tile, 0, fn_parts, rows)
        # product += x [high; middle; low]^T
        if act == "float32":
            split_f32(x_tile, first, x_parts, tokens)
            for p in T.unroll(PARTS):
                T.gemm(
                    x_parts[p * tokens : (p + 1) * tokens, :],
                    fn_parts,
                    product,
                    transpose_B=True,
                    policy=policy,
                )
        else:
            T.gemm(
                x_tile[first : first + tokens, :],
                fn_parts,
                product,
                transpose_B=True,
                policy=policy,
            )

    @T.macro
    def square(x_tile, first, running):
        thread = T.get_thread_binding()
        values = T.alloc_local((GROUPS,), act)
        wide = T.alloc_local((1,), "float32")
        # running_g += x^2, eight columns of group g at a time
        for i in T.unroll(owned):
            for v in T.vectorized(GROUPS):
                values[v] = x_tile[
                    first + (i * threads + thread) // GROUPS, thread % GROUPS * GROUPS + v
                ]
            for v in T.unroll(GROUPS):
                wide[0] = T.cast(values[v], "float32")
                wide[0] = wide[0] * wide[0]
                running[i] += wide[0]

    @T.macro
    def publish(running, groups):
        thread = T.get_thread_binding()
        for i in T.unroll(owned):
            groups[(i * threads + thread) // GROUPS, thread % GROUPS] = running[i]

    def joined(product, i, c):
        """high + (middle + low) of one element."""
        return product[i, c] + (product[i, rows + c] + product[i, 2 * rows + c])

    @T.macro
    def squares(groups, i, total):
        total[0] = groups[i, 0]
        for g in T.unroll(1, GROUPS):
            total[0] += groups[i, g]

    @T.macro
    def write(product, running, staged, groups, s, block, M, partial, sqrsum):
        """The partial results of split s of a block's tokens."""
        T.copy(product, staged)
        publish(running, groups)
        # partial_s = high + (middle + low)
        for i, c in T.Parallel(tokens, C):
            if block * tokens + i < M:
                partial[s, block * tokens + i, c] = joined(staged, i, c)
        # sqrsum_s = sum of the eight running sums
        for i in T.Parallel(tokens):
            if block * tokens + i < M:
                total = T.alloc_local((1,), "float32")
                squares(groups, i, total)
                sqrsum[s, block * tokens + i] = total[0]

    return SimpleNamespace(
        rows=rows,
        owned=owned,
        multiply=multiply,
        square=square,
        publish=publish,
        joined=joined,
        squares=squares,
        write=write,
    )
