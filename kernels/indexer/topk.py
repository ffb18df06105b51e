"""Exact, canonical top-k of index scores (spec §3.1, §8)."""

from tileproof.dsl import In, Op, Out, dim, static
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import _select, reference
from ._select import LOWEST, STEPS, THREADS, VECTOR, WARP, WARPS

op = Op(
    "indexer/topk",
    args=(
        In("score", "M S", "f32"),
        In("count", "M", "i32"),
        Out("index", "M K", "i32"),
    ),
    dims={
        "M": dim(0, 1 << 20, batch=True),
        "S": dim(0, 1 << 18, multiple=4),
        "K": static(1, 2048),
    },
    doc="the K largest of a row's first `count` scores, ascending by index, -1 behind (spec §3.1)",
    reference=reference.topk,
    shapes={
        "tiny": {"M": 7, "S": 64, "K": 4},
        "flash": {"M": 128, "S": 16384, "K": 512},
        "pro": {"M": 128, "S": 16384, "K": 1024},
        "edge": {"M": [0, 1, 3], "S": [0, 4, 5124], "K": 7},
    },
    model_sizes=lambda config: [{"K": config["index_topk"]}],
)

_NEGATIVE_INFINITY = -0x7F800001  # its key
_NAN = 0x7FFFFFFF
_OPTIONS = {
    **OPTIONS,
    # every barrier is written here, and proved to be enough
    "pass_configs": {**OPTIONS["pass_configs"], "tl.disable_thread_storage_sync": True},
}


@op.kernel(**_OPTIONS, vectors=8)
def topk(T, M, S, K, vectors):
    """A block streams one row, once, and keeps what may still be chosen in shared memory.

    A score joins the candidates if it is above a floor. When their slots are full, they are cut
    down to K, and the floor is the K-th: an equal score that comes later is not chosen, since of
    equal ones the lower index wins. All stay in the order of their indices: the output is a copy.

    The first floor precedes the first candidate: the largest of each of 2 K or more groups of
    scores are scores, so the K-th of these is no larger than the K-th of all.
    """
    code = _select.device(T, K)
    slots = code.slots
    each = VECTOR * vectors  # scores of a thread
    wide = THREADS * VECTOR  # columns of a vector of all threads
    chunk = wide * vectors
    groups = 1 << (ceildiv(2 * K, THREADS) - 1).bit_length()  # of a thread's scores
    parts = vectors * WARPS // WARP  # counts of a lane, when one warp adds up all

    def byte(word, g):
        four = T.shift_right(word[g // 4], T.Cast("uint32", g % 4 * 8))
        return T.Cast("int32", four & T.uint32(0xFF))

    @T.macro
    def load(score, m, column, columns, fresh):
        """Keys of a thread's scores from `column` on: integers in the order of the scores."""
        raw = T.alloc_local((each,), "float32")
        for g in T.unroll(vectors):
            for v in T.vectorized(VECTOR):
                raw[g * VECTOR + v] = 0
            if column + g * wide < columns:
                for v in T.vectorized(VECTOR):
                    raw[g * VECTOR + v] = score[m, column + g * wide + v]
        for i in T.unroll(each):
            bits = T.if_then_else(raw[i] == 0, 0, T.reinterpret(raw[i], "int32"))
            fresh[i] = bits ^ (T.shift_right(bits, 31) & _NAN)
            fresh[i] = T.if_then_else(T.isnan(raw[i]), _NAN, fresh[i])
            s = column + i // VECTOR * wide + i % VECTOR
            fresh[i] = T.if_then_else(s < columns, fresh[i], LOWEST)

    @T.macro
    def raise_floor(fresh, histogram, chosen, floor):
        """A floor that K of these scores are above, if that many are there."""
        largest = T.alloc_local((groups,), "int32")
        need = T.alloc_local((1,), "int32")
        target = T.alloc_local((1,), "int32")
        for i in T.unroll(groups):
            largest[i] = fresh[i]
        for i in T.unroll(each - groups):
            largest[i % groups] = T.max(largest[i % groups], fresh[groups + i])
        # two of four digits are enough: a floor below costs some candidates more
        code.kth(largest, groups, 2, histogram, chosen, target, need)
        target[0] = target[0] ^ LOWEST
        floor[0] = T.max(floor[0], T.max(target[0], LOWEST + 1) - 1)

    @T.macro
    def rank(fresh, floor, have, word, total, filled):
        """Places among the scores above `floor`, in the order of columns.

        word: of a thread's vector, a byte each, how many of them its lane and those below have.
        total: slots taken before the vectors of a warp. filled: slots after all of them.
        Passes two barriers.
        """
        thread = T.get_thread_binding()
        lane = thread % WARP
        other = T.alloc_local((1,), "uint32")
        counts = T.alloc_local((vectors,), "int32")
        part = T.alloc_local((parts,), "int32")
        before = T.alloc_local((1,), "int32")
        below = T.alloc_local((1,), "int32")
        everyone = T.alloc_local((1,), "int32")
        for h in T.unroll(vectors // 4):
            word[h] = T.uint32(0)
        for i in T.unroll(each):
            if fresh[i] > floor[0]:
                one = T.shift_left(T.uint32(1), T.Cast("uint32", i // VECTOR % 4 * 8))
                word[i // VECTOR // 4] += one
        for step in STEPS:
            for h in T.unroll(vectors // 4):
                other[0] = T.shfl_up(word[h], step)
                if lane >= step:
                    word[h] += other[0]  # up to 128
        if lane == WARP - 1:
            for g in T.unroll(vectors):
                counts[g] = byte(word, g)
            for i in T.unroll(vectors // VECTOR):
                for v in T.vectorized(VECTOR):
                    total[thread // WARP * vectors + i * VECTOR + v] = counts[i * VECTOR + v]
        T.sync_threads()
        if thread < WARP:
            everyone[0] = 0
            for i in T.unroll(parts):
                n = lane * parts + i  # in the order of columns: of one vector, then the next
                part[i] = total[n % WARPS * vectors + n // WARPS]
                everyone[0] += part[i]
            before[0] = everyone[0]
            for step in STEPS:
                below[0] = T.shfl_up(before[0], step)
                if lane >= step:
                    before[0] += below[0]
            if lane == WARP - 1:
                filled[0] = have[0] + before[0]
            before[0] += have[0] - everyone[0]
            for i in T.unroll(parts):
                n = lane * parts + i
                total[n % WARPS * vectors + n // WARPS] = before[0]
                before[0] += part[i]
        T.sync_threads()

    @T.macro
    def append(fresh, floor, column, word, total, key, place):
        """Scatter the scores above `floor` that :func:`rank` ranked, as far as there are slots."""
        thread = T.get_thread_binding()
        left = T.alloc_local((1,), "int32")
        at = T.alloc_local((1,), "int32")
        after = T.alloc_local((1,), "int32")
        which = T.alloc_local((1,), "int32")
        pick = T.alloc_local((1,), "int32")
        for g in T.unroll(vectors):
            left[0] = 0
            for v in T.unroll(VECTOR):
                left[0] += T.if_then_else(fresh[g * VECTOR + v] > floor[0], 1, 0)
            at[0] = total[thread // WARP * vectors + g] + byte(word, g) - left[0]
            after[0] = 0
            # the first of each lane's, then the second: few accesses, of neighbouring slots
            for _ in T.serial(left[0]):
                for u in T.unroll(VECTOR):
                    v = VECTOR - 1 - u
                    if (v >= (after[0] & 7)) & (fresh[g * VECTOR + v] > floor[0]):
                        which[0] = v
                        pick[0] = fresh[g * VECTOR + v]
                slot = at[0] & 0xFFFF
                if slot < slots:
                    code.put(key, place, slot, pick[0], column + g * wide + which[0])
                at[0] += 1
                after[0] = which[0] + 1

    @T.prim_func
    def kernel(
        score: T.Tensor((M, S), "float32"),
        count: T.Tensor((M,), "int32"),
        index: T.Tensor((M, K), "int32"),
    ):
        with T.Kernel(M, threads=THREADS) as m:
            T.assume(S % VECTOR == 0)
            thread = T.get_thread_binding()
            key = T.alloc_shared((slots,), "int32")
            place = T.alloc_shared((slots,), "int32")
            histogram = T.alloc_shared((2, _select.BINS), "int32")
            total = T.alloc_shared((WARPS * vectors,), "int32")
            filled = T.alloc_shared((1,), "int32")
            chosen = T.alloc_shared((1,), "int32")
            fresh = T.alloc_local((each,), "int32")
            have = T.alloc_local((1,), "int32")
            floor = T.alloc_local((1,), "int32")
            last = T.alloc_local((1,), "int32")
            word = T.alloc_local((vectors // 4,), "uint32")
            columns = T.min(count[m], S)
            code.clear(key, place)
            if thread < _select.BINS:
                histogram[0, thread] = 0
            if thread == 0:
                filled[0] = 0
            have[0] = 0
            floor[0] = _NEGATIVE_INFINITY
            last[0] = -1
            T.sync_threads()
            for c in T.serial(T.ceildiv(columns, chunk)):
                column = c * chunk + thread * VECTOR
                load(score, m, column, columns, fresh)
                # loops of at most one round, which TileLang does not cut up as it does an `if`
                for _ in T.serial(T.if_then_else((c == 0) & (columns > slots), 1, 0)):
                    raise_floor(fresh, histogram, chosen, floor)
                limit = T.if_then_else((c + 1) * chunk < columns, slots, K)
                # once; and what found no slot as often as it may fill those that a cut sets free
                for again in T.serial(2):
                    late = T.max((filled[0] & 0xFFFF) - slots, 0)
                    for _ in T.serial(T.if_then_else(again == 0, 1, T.ceildiv(late, slots - K))):
                        if again > 0:
                            for i in T.unroll(each):
                                s = column + i // VECTOR * wide + i % VECTOR
                                fresh[i] = T.if_then_else(s > last[0], fresh[i], LOWEST)
                        rank(fresh, floor, have, word, total, filled)
                        append(fresh, floor, column, word, total, key, place)
                        T.sync_threads()
                        have[0] = filled[0]
                        # where slots are full, scores up to that of the last one have joined
                        last[0] = (c + 1) * chunk
                        if filled[0] > slots:
                            last[0] = place[slots - 1] - 1
                        for _ in T.serial(T.if_then_else(filled[0] > limit, 1, 0)):
                            code.cut(key, place, histogram, total, chosen, floor)
                            have[0] = K
            for i in T.serial(ceildiv(K, THREADS)):
                k = i * THREADS + thread
                if k < K:
                    index[m, k] = place[k] - 1

    return kernel
