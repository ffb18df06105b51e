"""Exact, canonical top-k of index scores (spec §3.1, §8)."""

from tileproof.dsl import In, Op, Out, dim, static
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import reference

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

_THREADS = 256
_WARP = 32
_WARPS = _THREADS // _WARP
_VECTOR = 4
_STEPS = (1, 2, 4, 8, 16)  # between lanes
_DIGIT = 8  # bits of a key that one round of the radix select decides
_SHIFTS = (24, 16, 8, 0)
_BINS = 1 << _DIGIT
_LOWEST = -0x80000000  # key of an empty slot, below all
_NEGATIVE_INFINITY = -0x7F800001  # its key
_NAN = 0x7FFFFFFF
_OPTIONS = {
    **OPTIONS,
    # every barrier is written here, and proved to be enough
    "pass_configs": {**OPTIONS["pass_configs"], "tl.disable_thread_storage_sync": True},
}


@op.kernel(**_OPTIONS, vectors=4)
def topk(T, M, S, K, vectors):
    """A block streams one row, once, and keeps what may still be chosen in shared memory.

    A score joins the candidates if it is above the K-th best so far; an equal one that comes later
    is not, since of equal ones the lower index wins. When the candidates would overflow, a radix
    select cuts them down to K. All stay in the order of their indices, so the output is a copy.

    Slots are filled by integer maxima over cleared ones: a scatter whose result hangs on no order.
    """
    chunk = _THREADS * _VECTOR * vectors
    own = _VECTOR * ceildiv(K + chunk, _THREADS * _VECTOR)  # slots of a thread
    slots = own * _THREADS

    @T.macro
    def scan(value, total, before, everything):
        """Sums of `value` over the threads below, and over all; ends at a barrier."""
        thread = T.get_thread_binding()
        before[0] = value
        for step in _STEPS:
            everything[0] = T.shfl_up(before[0], step)
            if thread % _WARP >= step:
                before[0] += everything[0]
        if thread % _WARP == _WARP - 1:
            total[thread // _WARP] = before[0]
        T.sync_threads()
        before[0] -= value
        everything[0] = 0
        for w in T.unroll(_WARPS):
            if w < thread // _WARP:
                before[0] += total[w]
            everything[0] += total[w]

    @T.macro
    def select(key, place, histogram, total, chosen, floor):
        """Leave the K largest candidates in the first slots, in order; `floor` is the K-th key."""
        thread = T.get_thread_binding()
        lane = thread % _WARP
        held = T.alloc_local((own,), "int32")
        places = T.alloc_local((own,), "int32")
        above = T.alloc_local((1,), "int32")
        other = T.alloc_local((1,), "int32")
        found = T.alloc_local((1,), "int32")
        need = T.alloc_local((1,), "int32")
        target = T.alloc_local((1,), "int32")
        for i in T.unroll(own // _VECTOR):
            for v in T.vectorized(_VECTOR):
                held[i * _VECTOR + v] = key[thread * own + i * _VECTOR + v]
        for i in T.unroll(own // _VECTOR):
            for v in T.vectorized(_VECTOR):
                places[i * _VECTOR + v] = place[thread * own + i * _VECTOR + v]
        # the K-th key, most significant digit first; its sign bit is turned, so bits order it
        need[0] = K  # as all numbers of slots, below 2^15
        target[0] = 0
        for shift in _SHIFTS:
            histogram[thread] = 0
            T.sync_threads()
            for i in T.unroll(own):
                bits = held[i] ^ _LOWEST
                # the digits found so far are alike; a shift by 32 is none
                other[0] = (
                    0 if shift == _SHIFTS[0] else T.shift_right(bits ^ target[0], shift + _DIGIT)
                )
                if other[0] == 0:
                    T.atomic_add(histogram[T.shift_right(bits, shift) & (_BINS - 1)], 1)
            T.sync_threads()
            if thread < _WARP:
                # a lane has eight digits; above: keys with those or larger ones
                above[0] = 0
                for b in T.unroll(_BINS // _WARP):
                    above[0] += histogram[lane * (_BINS // _WARP) + b]
                found[0] = above[0]
                for step in _STEPS:
                    other[0] = T.shfl_down(above[0], step)
                    if lane + step < _WARP:
                        above[0] += other[0]
                # the digit with fewer than `need` keys above it and as many from it on, and
                # how many of its own are needed
                above[0] -= found[0]
                found[0] = -1
                for b in T.unroll(_BINS // _WARP):
                    digit = lane * (_BINS // _WARP) + (_BINS // _WARP - 1 - b)
                    other[0] = (need[0] & 0xFFFF) - (above[0] & 0xFFFF)
                    above[0] += histogram[digit]
                    if (other[0] > 0) & (need[0] <= above[0]):
                        found[0] = T.shift_left(digit, 16) | other[0]
                for step in _STEPS:
                    found[0] = T.max(found[0], T.shfl_xor(found[0], step))
                if lane == 0:
                    chosen[0] = found[0]
            T.sync_threads()
            need[0] = chosen[0] & 0xFFFF
            target[0] = target[0] | T.shift_left(T.shift_right(chosen[0], 16), shift)
        floor[0] = target[0] ^ _LOWEST
        # of a thread: larger keys in the high half, equal ones in the low
        found[0] = 0
        for i in T.unroll(own):
            found[0] += T.if_then_else(held[i] > floor[0], 1 << 16, 0)
            found[0] += T.if_then_else(held[i] == floor[0], 1, 0)
        scan(found[0], total, above, other)
        for i in T.unroll(own):
            key[i * _THREADS + thread] = _LOWEST
            place[i * _THREADS + thread] = -1
        T.sync_threads()
        for i in T.unroll(own):
            equal = above[0] & 0xFFFF
            at = T.shift_right(above[0], 16) + T.min(equal, need[0] & 0xFFFF)
            stays = (held[i] > floor[0]) | ((held[i] == floor[0]) & (equal < need[0]))
            if stays & (at >= 0) & (at < K):
                T.atomic_max(key[at], held[i])
                T.atomic_max(place[at], places[i])
            above[0] += T.if_then_else(held[i] > floor[0], 1 << 16, 0)
            above[0] += T.if_then_else(held[i] == floor[0], 1, 0)
        T.sync_threads()

    @T.prim_func
    def kernel(
        score: T.Tensor((M, S), "float32"),
        count: T.Tensor((M,), "int32"),
        index: T.Tensor((M, K), "int32"),
    ):
        with T.Kernel(M, threads=_THREADS) as m:
            T.assume(S % _VECTOR == 0)
            thread = T.get_thread_binding()
            key = T.alloc_shared((slots,), "int32")
            place = T.alloc_shared((slots,), "int32")
            histogram = T.alloc_shared((_BINS,), "int32")
            total = T.alloc_shared((_WARPS,), "int32")
            filled = T.alloc_shared((1,), "int32")
            chosen = T.alloc_shared((1,), "int32")
            raw = T.alloc_local((_VECTOR * vectors,), "float32")
            fresh = T.alloc_local((_VECTOR * vectors,), "int32")
            have = T.alloc_local((1,), "int32")
            floor = T.alloc_local((1,), "int32")
            joins = T.alloc_local((1,), "int32")
            before = T.alloc_local((1,), "int32")
            everyone = T.alloc_local((1,), "int32")
            columns = T.max(T.min(count[m], S), 0)
            for i in T.unroll(own):
                key[i * _THREADS + thread] = _LOWEST
                place[i * _THREADS + thread] = -1
            have[0] = 0
            floor[0] = _NEGATIVE_INFINITY
            T.sync_threads()
            # one chunk more than the row has: it is empty, and what is left over K is cut
            for c in T.serial(T.ceildiv(columns, chunk) + 1):
                for g in T.unroll(vectors):
                    s = c * chunk + (thread * vectors + g) * _VECTOR
                    for v in T.vectorized(_VECTOR):
                        raw[g * _VECTOR + v] = 0
                    if s < columns:
                        for v in T.vectorized(_VECTOR):
                            raw[g * _VECTOR + v] = score[m, s + v]
                joins[0] = 0
                for i in T.unroll(_VECTOR * vectors):
                    bits = T.if_then_else(raw[i] == 0, 0, T.reinterpret(raw[i], "int32"))
                    fresh[i] = bits ^ (T.shift_right(bits, 31) & _NAN)
                    fresh[i] = T.if_then_else(T.isnan(raw[i]), _NAN, fresh[i])
                    s = c * chunk + thread * _VECTOR * vectors + i
                    fresh[i] = T.if_then_else(s < columns, fresh[i], _LOWEST)
                    joins[0] += T.if_then_else(fresh[i] > floor[0], 1, 0)
                scan(joins[0], total, before, everyone)
                if thread == 0:
                    filled[0] = have[0] + everyone[0]
                T.sync_threads()
                # a loop of at most one round, which TileLang does not cut up as it does an `if`
                limit = T.if_then_else(c * chunk < columns, slots, K)
                for _ in T.serial(T.if_then_else(filled[0] > limit, 1, 0)):
                    select(key, place, histogram, total, chosen, floor)
                    have[0] = K
                    joins[0] = 0
                    for i in T.unroll(_VECTOR * vectors):
                        joins[0] += T.if_then_else(fresh[i] > floor[0], 1, 0)
                    scan(joins[0], total, before, everyone)
                    T.sync_threads()
                for i in T.unroll(_VECTOR * vectors):
                    if fresh[i] > floor[0]:
                        at = (have[0] & 0xFFFF) + (before[0] & 0xFFFF)
                        if (at >= 0) & (at < slots):
                            T.atomic_max(key[at], fresh[i])
                            T.atomic_max(place[at], c * chunk + thread * _VECTOR * vectors + i)
                        before[0] += 1
                have[0] += everyone[0]
            T.sync_threads()
            for i in T.serial(ceildiv(K, _THREADS)):
                k = i * _THREADS + thread
                if k < K:
                    index[m, k] = place[k]

    return kernel
