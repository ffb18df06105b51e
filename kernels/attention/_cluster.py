"""One token's attention by a cluster of blocks that share its channels (spec §3.2, §8).

Block `rank` of `ways` takes channels ``[rank S, rank S + S)`` of q, of every entry and of the
output, S = D / ways. A chunk's logits are summed along the blocks: each goes on with the sum that
the one before it stores into its shared memory, so channels are added in the order of one block.
The last block makes the weights p and stores them into all; each block then adds its own channels
of the values. A step does this for as many chunks as there are blocks:

    step t, block rank     logits of chunk t - rank; the last block its weights
                           outputs of chunk t - ways

Chunks behind the last have no entry and change no bit, so blocks that are ahead go on with those.
What a step stores is read in the next, behind a barrier of the cluster, from the other half of a
buffer of two. No partial output is merged and no sum cut, so every bit is that of ``_core.py``.
"""

from tileproof.dsl import check

from ._core import pieces

STEP = 16  # channels of one matrix instruction


def device(T, H, D, heads, ways, wgmma):
    """Device code of a block of a cluster that takes one token and some heads, as a namespace.

    `attend` is as that of ``_core.device``, for block `rank`; chunk c lies in ``kv[c % ring]``,
    `width` channels of it.
    """
    check(ways in (2, 4), "blocks of a cluster", got=ways, expected="2 or 4")
    fits = D % (ways * STEP) == 0
    check(fits, "channels of an entry", got=D, expected=f"a multiple of {ways * STEP}")
    code = pieces(T, H, D, "bfloat16", heads, 1, wgmma)
    rows, chunk, taken, own = code.rows, code.chunk, code.taken, code.own
    width, ring, last = D // ways, ways + 1, ways - 1

    from tilelang import tvm  # imported where a kernel is built, and only there

    # TileLang's T.copy_cluster takes shared memory alone, and lowers to this, an element at a time
    store = tvm.ir.Op.get("tl.ptx_cluster_store")

    def push(value, rank, buffer, half, at):
        """buffer[half, at] of block `rank` = value."""
        first, place = T.address_of(buffer[0, 0]), half * buffer.shape[1] + at
        return T.call_intrin("handle", store, first, value, rank, place)

    def place(i, j, pair):
        """Where element (i, j) of a chunk's sums lies: what the lanes of a warp hold of one 8 x 8
        tile of a product comes together, so they meet in no bank. Elements of a lane's pair are
        next to each other or a warp apart."""
        tile, lane = i // 8 * (chunk // 8) + j // 8, i % 8 * 4 + j % 8 // 2
        return (tile * 32 + lane) * 2 + j % 2 if pair else (tile * 2 + j % 2) * 32 + lane

    @T.macro
    def attend(q, sink, out, m, h, rank, chunks, fetch, settle):
        qs = T.alloc_shared((rows, width), "bfloat16")
        kv = T.alloc_shared((ring, chunk, width), "bfloat16")
        ps = T.alloc_shared((rows, chunk), "bfloat16")
        valid = T.alloc_shared((2, chunk), "int32")
        factor = T.alloc_shared((rows,), "float32")
        # what other blocks store here, two steps each
        sums = T.alloc_shared((2, rows * chunk), "float32")
        weights = T.alloc_shared((2, rows * chunk), "bfloat16")
        factors = T.alloc_shared((2, rows), "float32")
        s = T.alloc_fragment((rows, chunk), "float32")
        o = T.alloc_fragment((rows, width), "float32")
        peak = T.alloc_fragment((rows,), "float32")
        before = T.alloc_fragment((rows,), "float32")
        total = T.alloc_fragment((rows,), "float32")
        added = T.alloc_fragment((rows, chunk), "float32")
        held = T.alloc_fragment((rows,), "float32")
        thread = T.get_thread_binding()
        for i, d in T.Parallel(rows, width):
            qs[i, d] = T.if_then_else(own(h, i), q[m, h * taken + i, rank * width + d], 0)
        T.clear(o)
        T.clear(added)
        T.fill(peak, code.lowest)
        fetch(0, kv, valid)
        T.ptx_commit_group()
        T.cluster_sync()  # nobody stores into a block that has not begun
        for t in T.serial(chunks + ways):
            T.ptx_wait_group(0)
            T.sync_threads()
            if t >= rank:
                settle(t - rank, kv, valid)
                fetch(t - rank + 1, kv, valid)
            T.ptx_commit_group()
            if t >= rank:
                if rank == 0:
                    T.clear(s)
                else:
                    for i, j in T.Parallel(rows, chunk):
                        s[i, j] = sums[t % 2, place(i, j, False)]
                T.gemm(
                    qs,
                    kv[(t - rank + ring) % ring, :, :],
                    s,
                    transpose_B=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
                if rank < last:
                    for i, j in T.Parallel(rows, chunk):
                        push(s[i, j], rank + 1, sums, (t + 1) % 2, place(i, j, False))
                else:
                    code.weigh(s, valid, t - rank, peak, before, added)
                    T.copy(before, factor)
                    T.sync_threads()
                    for block in T.unroll(ways):
                        for i, j in T.Parallel(rows, chunk):
                            p = T.cast(s[i, j], "bfloat16")
                            push(p, block, weights, t % 2, place(i, j, True))
                        if thread < rows:
                            push(factor[thread], block, factors, t % 2, thread)
            if t >= ways:
                for i, j in T.Parallel(rows, chunk):
                    s[i, j] = weights[(t + 1) % 2, place(i, j, True)]
                for i, j in T.Parallel(rows, chunk):
                    ps[i, j] = s[i, j]
                for i in T.Parallel(rows):
                    held[i] = factors[(t + 1) % 2, i]
                for i, d in T.Parallel(rows, width):
                    o[i, d] *= held[i]
                T.gemm(ps, kv[(t - ways) % ring, :, :], o, policy=T.GemmWarpPolicy.FullCol)
            T.cluster_sync()
        T.ptx_wait_group(0)
        if rank == last:
            code.divisor(added, sink, h, peak, before, total)
            T.copy(total, factor)
            T.sync_threads()
            for block in T.unroll(ways):
                if thread < rows:
                    push(factor[thread], block, factors, 0, thread)
        T.cluster_sync()
        for i in T.Parallel(rows):
            held[i] = factors[0, i]
        for i, d in T.Parallel(rows, width):
            o[i, d] = o[i, d] / held[i]
        for i, d in T.Parallel(rows, width):
            qs[i, d] = o[i, d]
        for i, d in T.Parallel(rows, width):
            if own(h, i):
                out[m, h * taken + i, rank * width + d] = qs[i, d]

    code.ring, code.width, code.ways = ring, width, ways
    code.attend, code.slot = attend, lambda c: ((c + ring) % ring,)  # c > -ring
    return code
