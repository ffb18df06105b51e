"""One token's attention over a list of entries, reduced in one canonical order (spec §3.2, §8).

A list is cut into chunks of fixed length; a slot without an entry (index -1) has logit -inf. Chunks
are reduced left to right by an online softmax:

    s_j = (q . k_j) D^-1/2                 float32, channels ascending, 16 at a time
    m'  = max(m, max_j s_j)                0 stands for m' where it is -inf: nothing was seen yet
    p_j = exp(s_j - m')
    l_j = l_j exp(m - m') + p_j            one sum for each place j in a chunk
    o   = o exp(m - m') + sum_j p_j v_j    p rounded to the type of entries, 16 entries at a time

and at the end ``out = o / (sum_j l_j + exp(sink - m))``, in an order that the chunk's length fixes.
A chunk without entries changes no bit, so lists may be padded at will. Which heads share a block
changes no bit either: a head is one row of every matrix product, and the pair of warps that
computes its logits splits a chunk alike.

Entries are key and value at once. bfloat16 operands feed the tensor cores as they are. A float32 is
the exact sum of three bfloat16 (high, middle, low); of the nine products of two such sums the six
largest are added up, which leaves out less than a rounding to float32 does.
"""

from types import SimpleNamespace

from tileproof.dsl import check, dim, static
from tileproof.kernels.row_stream import ceildiv

TOKENS = dim(0, 1 << 20, batch=True)
ENTRIES = dim(0, 1 << 24)  # of a pool
SLOTS = dim(0, 1 << 16)  # of a list
HEADS = static(1, 256)
WIDTH = static(32, 512, multiple=32)

LARGE = ("sm_80", "sm_100a")  # 163 KiB of shared memory a block and more
SMALL = ("sm_89", "sm_120a")  # 99 KiB

_ROWS = 16  # heads of one matrix instruction; of one wgmma four times as many
_PAIR = 64  # threads of the two warps that take them


def geometry(H: int, D: int, act: str, heads: int, wgmma: bool) -> tuple[int, int, int]:
    """(rows of a block, threads, entries of a chunk); heads beyond those it takes are zeros.

    `heads` is how many a block may take at most; float32 operands leave room for 16. The threads
    of a block share a chunk evenly, so the rows divide D.
    """
    check(D % 32 == 0, "channels of an entry", got=D, expected="a multiple of 32")
    parts = _parts(act)
    padded = max(_ROWS, 1 << (H - 1).bit_length())
    rows = min(padded, D & -D, max(heads, _ROWS) if parts == 1 else _ROWS)
    chunk = 32 if parts == 1 else 16
    if wgmma and parts == 1 and D % (4 * _ROWS) == 0:
        rows, chunk = 4 * _ROWS, 64
    return rows, rows // _ROWS * _PAIR, chunk


def _parts(act: str) -> int:
    return 3 if act == "float32" else 1


def pieces(T, H, D, act, heads, spread, wgmma):
    """Sizes and macros of the order above, as a namespace; see :func:`device`."""
    check(spread in (1, 2, 4), "spread of a token's heads", got=spread, expected="1, 2 or 4")
    rows, threads, chunk = geometry(H, D, act, heads // spread, wgmma)
    taken = min(rows, max(heads // spread, _ROWS))
    parts = _parts(act)
    scale = D**-0.5
    lowest = -T.infinity("float32")

    @T.macro
    def split(value, target, *at):
        """target[0..parts] = the bfloat16 parts of a value, whose sum it is."""
        target[(0, *at)] = T.cast(value, "bfloat16")
        if parts == 3:
            rest = value - T.cast(T.cast(value, "bfloat16"), "float32")
            target[(1, *at)] = T.cast(rest, "bfloat16")
            target[(2, *at)] = T.cast(
                rest - T.cast(T.cast(rest, "bfloat16"), "float32"), "bfloat16"
            )

    def row(index, m, c, i, length):
        """Index of slot i of chunk c of the list ``index[m, :length]``, -1 beyond its end."""
        return T.if_then_else(c * chunk + i < length, index[m, c * chunk + i], -1)

    def own(h, i):
        """Whether row i of block h is a head."""
        return (i < taken) & (h * taken + i < H) if taken < rows else h * taken + i < H

    @T.macro
    def weigh(s, valid, c, peak, before, added):
        """Sums s of chunk c to p; `before` becomes the factor of what came before."""
        for i, j in T.Parallel(rows, chunk):
            s[i, j] = T.if_then_else(valid[c % 2, j] >= 0, s[i, j] * scale, lowest)
        T.copy(peak, before)
        T.reduce_max(s, peak, dim=1, clear=False)
        for i, j in T.Parallel(rows, chunk):
            s[i, j] = T.exp(s[i, j] - T.if_then_else(peak[i] == lowest, 0, peak[i]))
        for i in T.Parallel(rows):
            before[i] = T.if_then_else(peak[i] == lowest, 1, T.exp(before[i] - peak[i]))
        for i, j in T.Parallel(rows, chunk):
            added[i, j] *= before[i]
        for i, j in T.Parallel(rows, chunk):
            added[i, j] += s[i, j]

    @T.macro
    def divisor(added, sink, h, peak, before, total):
        """total = l + exp(sink - m); where nothing was seen and the sink is -inf, 1."""
        T.reduce_sum(added, total, dim=1)
        for i in T.Parallel(rows):
            peak[i] = T.if_then_else(peak[i] == lowest, 0, peak[i])
            before[i] = T.if_then_else(own(h, i), sink[h * taken + i], 0)
        for i in T.Parallel(rows):
            total[i] += T.exp(before[i] - peak[i])
        for i in T.Parallel(rows):
            total[i] = T.if_then_else(total[i] == 0, 1, total[i])

    return SimpleNamespace(
        blocks=ceildiv(H, taken),
        rows=rows,
        threads=threads,
        chunk=chunk,
        taken=taken,
        parts=parts,
        lowest=lowest,
        split=split,
        row=row,
        own=own,
        weigh=weigh,
        divisor=divisor,
    )


def device(T, H, D, act, heads, spread, ring, wgmma):
    """Device code of a block that takes one token and some heads, as a namespace.

    `attend` does everything, given two macros that bring chunks into shared memory:
    ``fetch(c, kv, valid)`` starts what is asynchronous, while chunk c - 1 is worked on, and
    ``settle(c, kv, valid)`` does the rest. Chunk c lies in ``kv[:, c % ring]``, at ``slot(c)``, the
    indices of its slots in ``valid[c % 2]``. A block takes one `spread`-th of the heads it could.
    A block whose products `wgmma` makes has 64 rows however few heads it takes.
    """
    code = pieces(T, H, D, act, heads, spread, wgmma)
    rows, chunk, taken, parts, own = code.rows, code.chunk, code.taken, code.parts, code.own
    # smallest products first: the rounding of large sums then happens once for every entry
    pairs = sorted(
        ((a, b) for a in range(parts) for b in range(parts) if a + b < parts), key=sum, reverse=True
    )

    @T.macro
    def attend(q, sink, out, m, h, rank, chunks, fetch, settle):
        # out[m, heads of block h], over so many chunks; `rank` is that of a cluster's block
        qs = T.alloc_shared((parts, rows, D), "bfloat16")
        kv = T.alloc_shared((parts, ring, chunk, D), "bfloat16")
        ps = T.alloc_shared((parts, rows, chunk), "bfloat16")
        valid = T.alloc_shared((2, chunk), "int32")
        factor = T.alloc_shared((rows,), "float32")
        s = T.alloc_fragment((rows, chunk), "float32")
        o = T.alloc_fragment((rows, D), "float32")
        peak = T.alloc_fragment((rows,), "float32")
        before = T.alloc_fragment((rows,), "float32")
        total = T.alloc_fragment((rows,), "float32")
        added = T.alloc_fragment((rows, chunk), "float32")
        held = T.alloc_fragment((rows,), "float32")  # `factor`, by the threads that hold `o`
        for i, d in T.Parallel(rows, D):
            code.split(T.if_then_else(own(h, i), q[m, h * taken + i, d], 0), qs, i, d)
        T.clear(o)
        T.clear(added)
        T.fill(peak, code.lowest)
        if chunks > 0:
            fetch(0, kv, valid)
        T.ptx_commit_group()
        for c in T.serial(chunks):
            T.ptx_wait_group(0)
            T.sync_threads()
            settle(c, kv, valid)
            if c + 1 < chunks:
                fetch(c + 1, kv, valid)
            T.ptx_commit_group()
            T.clear(s)
            for a, b in pairs:
                T.gemm(
                    qs[a, :, :],
                    kv[b, c % ring, :, :],
                    s,
                    transpose_B=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
            code.weigh(s, valid, c, peak, before, added)
            T.copy(before, factor)
            for i, j in T.Parallel(rows, chunk):
                code.split(s[i, j], ps, i, j)
            T.copy(factor, held)
            for i, d in T.Parallel(rows, D):
                o[i, d] *= held[i]
            for a, b in pairs:
                T.gemm(ps[a, :, :], kv[b, c % ring, :, :], o, policy=T.GemmWarpPolicy.FullCol)
        code.divisor(added, sink, h, peak, before, total)
        T.copy(total, factor)
        T.copy(factor, held)
        for i, d in T.Parallel(rows, D):
            o[i, d] = o[i, d] / held[i]
        if parts == 1:
            # in whole rows, by way of shared memory: of a fragment a row's share is 16 bytes
            for i, d in T.Parallel(rows, D):
                qs[0, i, d] = o[i, d]
            for i, d in T.Parallel(rows, D):
                if own(h, i):
                    out[m, h * taken + i, d] = qs[0, i, d]
        else:
            for i, d in T.Parallel(rows, D):
                if own(h, i):
                    out[m, h * taken + i, d] = o[i, d]

    code.ring, code.width, code.ways = ring, D, 1
    code.attend, code.slot = attend, lambda c: (0, c % ring)
    return code
