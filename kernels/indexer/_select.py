"""The K largest of candidates in shared memory: a radix select that keeps their order."""

from types import SimpleNamespace

from tileproof.kernels.row_stream import ceildiv

THREADS = 512
WARP = 32
WARPS = THREADS // WARP
VECTOR = 4
LOWEST = -0x80000000  # key of what is not there, below all
STEPS = (1, 2, 4, 8, 16)  # between lanes
_DIGIT = 8  # bits of a key that one round decides
BINS = 1 << _DIGIT
_OWN = BINS // WARP  # bins of a lane


def device(T, K):
    """Device code of a block that keeps candidates for the K largest, as a namespace.

    There are `slots`, at least 4 K, of which the first are taken. A slot holds a key, an int32
    whose sign bit is turned, and a place plus one; zeros where it is empty. It is filled by adding
    to these zeros: a scatter whose result hangs on no order.
    """
    held_vectors = ceildiv(4 * K, THREADS * VECTOR)
    own = VECTOR * held_vectors  # slots of a thread
    slots = own * THREADS

    @T.macro
    def clear(key, place):
        for i in T.unroll(own):
            key[i * THREADS + T.get_thread_binding()] = 0
            place[i * THREADS + T.get_thread_binding()] = 0

    @T.macro
    def put(key, place, slot, what, where):
        T.atomic_add(key[slot], what ^ LOWEST)
        T.atomic_add(place[slot], where + 1)

    @T.macro
    def kth(keys, count, digits, histogram, chosen, target, need):
        """target: the leading `digits`, an even number, of the K-th largest of all threads' `count`
        keys, sign bit turned; need: how many of those that share them are among the K largest.

        Passes two barriers a digit. ``histogram[0]`` is clear, before and after.
        """
        thread = T.get_thread_binding()
        lane = thread % WARP
        bins = T.alloc_local((_OWN,), "int32")
        above = T.alloc_local((1,), "int32")
        other = T.alloc_local((1,), "int32")
        found = T.alloc_local((1,), "int32")
        decided = T.alloc_local((1,), "int32")
        need[0] = K  # as all numbers of keys, below 2^16
        target[0] = 0
        decided[0] = 0
        for r in T.serial(digits):
            shift = 32 - _DIGIT - r * _DIGIT
            for i in T.unroll(count):
                bits = keys[i] ^ LOWEST
                other[0] = (bits ^ target[0]) & decided[0]
                found[0] = T.shift_right(bits, shift)
                if other[0] == 0:
                    T.atomic_add(histogram[r % 2, found[0] & (BINS - 1)], 1)
            T.sync_threads()
            if thread < WARP:
                for i in T.unroll(_OWN // VECTOR):
                    for v in T.vectorized(VECTOR):
                        bins[i * VECTOR + v] = histogram[r % 2, lane * _OWN + i * VECTOR + v]
                # above: keys with the lane's digits or larger ones
                found[0] = 0
                for b in T.unroll(_OWN):
                    found[0] += bins[b]
                above[0] = found[0]
                for step in STEPS:
                    other[0] = T.shfl_down(above[0], step)
                    if lane + step < WARP:
                        above[0] += other[0]
                # the digit with fewer than `need` keys above it and as many from it on, and
                # how many of its own are needed
                above[0] -= found[0]
                found[0] = -1
                for b in T.unroll(_OWN):
                    digit = lane * _OWN + (_OWN - 1 - b)
                    other[0] = (need[0] & 0xFFFF) - (above[0] & 0xFFFF)
                    above[0] += bins[_OWN - 1 - b]
                    if (other[0] > 0) & (need[0] <= above[0]):
                        found[0] = T.shift_left(digit, 16) | other[0]
                for step in STEPS:
                    found[0] = T.max(found[0], T.shfl_xor(found[0], step))
                if lane == 0:
                    chosen[0] = found[0]
            if thread >= THREADS - BINS:
                histogram[1 - r % 2, thread - (THREADS - BINS)] = 0
            T.sync_threads()
            need[0] = chosen[0] & 0xFFFF
            target[0] = target[0] | T.shift_left(T.shift_right(chosen[0], 16), shift)
            decided[0] = decided[0] | T.shift_left(BINS - 1, shift)

    @T.macro
    def cut(key, place, histogram, total, chosen, floor):
        """Leave the K largest, of equal ones the first, in the first slots and in order; `floor` is
        the K-th key. At least K slots are taken; ends at a barrier."""
        thread = T.get_thread_binding()
        lane = thread % WARP
        held = T.alloc_local((own,), "int32")
        places = T.alloc_local((own,), "int32")
        before = T.alloc_local((1,), "int32")
        other = T.alloc_local((1,), "int32")
        mine = T.alloc_local((1,), "int32")
        need = T.alloc_local((1,), "int32")
        target = T.alloc_local((1,), "int32")
        for i in T.unroll(held_vectors):
            for v in T.vectorized(VECTOR):
                held[i * VECTOR + v] = key[thread * own + i * VECTOR + v]
        for i in T.unroll(held_vectors):
            for v in T.vectorized(VECTOR):
                places[i * VECTOR + v] = place[thread * own + i * VECTOR + v]
        for i in T.unroll(own):
            held[i] = held[i] ^ LOWEST
        kth(held, own, 32 // _DIGIT, histogram, chosen, target, need)
        floor[0] = target[0] ^ LOWEST
        clear(key, place)
        # of a thread: larger keys in the high half, equal ones in the low
        mine[0] = 0
        for i in T.unroll(own):
            mine[0] += T.if_then_else(held[i] > floor[0], 1 << 16, 0)
            mine[0] += T.if_then_else(held[i] == floor[0], 1, 0)
        before[0] = mine[0]
        for step in STEPS:
            other[0] = T.shfl_up(before[0], step)
            if lane >= step:
                before[0] += other[0]
        if lane == WARP - 1:
            total[thread // WARP] = before[0]
        T.sync_threads()
        other[0] = 0
        if lane < thread // WARP:
            other[0] = total[lane]
        before[0] += T.warp_reduce_sum(other[0]) - mine[0]
        for i in T.unroll(own):
            equal = before[0] & 0xFFFF
            other[0] = T.shift_right(before[0], 16) + T.min(equal, need[0] & 0xFFFF)
            at = other[0] & 0xFFFF
            stays = (held[i] > floor[0]) | ((held[i] == floor[0]) & (equal < need[0]))
            if stays & (at < K):
                put(key, place, at, held[i], places[i] - 1)
            before[0] += T.if_then_else(held[i] > floor[0], 1 << 16, 0)
            before[0] += T.if_then_else(held[i] == floor[0], 1, 0)
        T.sync_threads()

    return SimpleNamespace(slots=slots, clear=clear, put=put, kth=kth, cut=cut)
