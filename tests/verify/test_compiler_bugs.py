"""Wrong code that TileLang 0.1.15 emits, by the number of its report if there is one, each with a
control.

The kernels are ours; the compiler inserts the barriers and waits. When an upgrade mends one of
these, its test fails, and then goes.
"""

import pytest
import tilelang.cuda.language as C
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered


def filled(first, last):
    """Copy a row into shared memory, overwrite a part of it, read all of it (#2698)."""

    @T.prim_func
    def kernel(x: T.Tensor((64,), "float32"), y: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=32):
            tile = T.alloc_shared((64,), "float32")
            T.copy(x, tile)
            T.fill(tile[first:last], 0.0)
            T.copy(tile, y)

    return kernel


def branch(every):
    """One thread in `every` exchanges values in rounds, all within one branch (#2612)."""

    @T.prim_func
    def kernel(x: T.Tensor((2, 128), "float32"), y: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            tile = T.alloc_shared((128,), "float32")
            total = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            if t % every == 0:
                total[0] = 0.0
                for i in T.serial(2):
                    tile[t] = x[i, t]
                    total[0] += tile[(t + every) % 128]
                y[t] = total[0]

    return kernel


def consumed(stages):
    """A pipelined loop reads a tile, then loads the next into its place (#2668)."""

    @T.prim_func
    def kernel(x: T.Tensor((8, 64, 32), "float32"), y: T.Tensor((8, 64, 32), "float32")):
        with T.Kernel(1, threads=128):
            tile = T.alloc_shared((64, 32), "float32")
            held = T.alloc_fragment((64, 32), "float32")
            T.fill(tile, 0.0)
            for k in T.Pipelined(8, num_stages=stages):
                T.copy(tile, held)
                T.copy(held, y[k, :, :])
                T.copy(x[k, :, :], tile)

    return kernel


def narrowed(extent):
    """A loop over a part of a fragment, then one over all of it (#2957, "A `T.Parallel` loop larger
    than the smallest loop sharing its fragment silently drops its out-of-range iterations"): the
    second is guarded by the extent of the first."""

    @T.prim_func
    def kernel(y: T.Tensor((256,), "float32")):
        with T.Kernel(1, threads=128):
            held = T.alloc_fragment((256,), "float32")
            for i in T.Parallel(extent):
                held[i] = 5.0
            for i in T.Parallel(256):
                y[i] = held[i] + 1.0

    return kernel


def packed(threads):
    """Half a byte a thread goes through shared memory (#2963, "`T.copy` of a packed sub-byte buffer
    silently drops ~half the elements"): two threads read and write one byte."""

    @T.prim_func
    def kernel(x: T.Tensor((128,), "int4"), y: T.Tensor((128,), "int4")):
        with T.Kernel(1, threads=threads):
            tile = T.alloc_shared((128,), "int4")
            T.copy(x, tile)
            T.copy(tile, y)

    return kernel


def grouped(group):
    """What warpgroup -1 does, which is every thread's (#2978, "`T.ws(-1)` silently runs its region
    on no thread"): the store stands under a condition that never holds."""

    @T.prim_func
    def kernel(y: T.Tensor((256,), "float32")):
        with T.Kernel(1, threads=256):
            t = T.get_thread_binding()
            if group:
                with T.ws(-1):
                    y[t] = 5.0
            else:
                y[t] = 5.0

    return kernel


def exchanged(first):
    """A block sends half a row, from element `first` on, to the other of its cluster (#2564,
    "`T.copy_cluster` of a sub-tile whose start offset isn't 16-byte aligned crashes"): one bulk
    copy, which moves pieces of 16 bytes."""

    @C.prim_func
    def kernel(x: C.Tensor((2, 64), "float32"), y: C.Tensor((2, 64), "float32")):
        with C.Kernel(2, threads=32, cluster_dims=(2, 1, 1)) as b:
            mine = C.alloc_shared((64,), "float32")
            theirs = C.alloc_shared((64,), "float32")
            done = C.alloc_cluster_barrier([1])
            C.copy(x[b, :], mine)
            C.cluster_sync()
            part = mine[first : first + 32]
            other = C.block_rank_in_cluster() ^ 1
            C.copy_cluster(part, theirs[0:32], dst_block=other, remote_barrier=done[0])
            C.mbarrier_wait_parity(done, 0)
            C.cluster_sync()
            C.copy(theirs[0:32], y[b, 0:32])

    return kernel


def accumulated(stages, fenced=True, synced=True):
    """A GEMM into tensor memory. Not in TileLang's tracker: one warp gives it back while others may
    still load, unless a barrier of the block ends the kernel (`synced`), and with roles (`stages`)
    even then, since that warp is a producer; nothing waits for the multiply before the load as PTX
    asks, unless the program does (`fenced`)."""

    @C.prim_func
    def kernel(
        x: C.Tensor((128, 128), "bfloat16"),
        w: C.Tensor((128, 128), "bfloat16"),
        y: C.Tensor((128, 128), "float32"),
    ):
        with C.Kernel(1, threads=128):
            x_tile = C.alloc_shared((128, 64), "bfloat16")
            w_tile = C.alloc_shared((128, 64), "bfloat16")
            acc = C.alloc_tmem([128, 128], "float32")
            done = C.alloc_barrier(1)
            out = C.alloc_fragment((128, 128), "float32")
            for k in C.Pipelined(2, num_stages=stages):
                C.copy(x[0, k * 64], x_tile)
                C.copy(w[0, k * 64], w_tile)
                C.gemm(x_tile, w_tile, acc, transpose_B=True, mbar=done, clear_accum=k == 0)
            if fenced:
                C.tcgen05_after_thread_sync()
            C.copy(acc, out)
            C.copy(out, y)
            if synced:
                C.sync_threads()

    return kernel


# Of a report: the architecture, the property, the contract, the wrong kernel and its control.
ONCE = {"written": {"y": "once"}}
WIDE = {"align": {"y": 32}}
REPORTS = {
    "2698": ("sm_80", "races", {}, filled(10, 16), filled(0, 6)),
    "2612": ("sm_80", "races", {}, branch(4), branch(1)),
    "2612 on sm_100a": ("sm_100a", "races", {}, branch(4), branch(1)),
    "2668": ("sm_80", "async", {}, consumed(2), consumed(0)),
    "2668 on sm_89": ("sm_89", "async", {}, consumed(2), consumed(0)),
    "2957": ("sm_80", "coverage", ONCE, narrowed(100), narrowed(256)),
    "2957 on sm_120a": ("sm_120a", "coverage", ONCE, narrowed(100), narrowed(256)),
    "2963": ("sm_89", "races", {}, packed(128), packed(32)),
    "2978": ("sm_90a", "coverage", ONCE, grouped(True), grouped(False)),
    "given back early": ("sm_100a", "races", WIDE, accumulated(0, synced=False), accumulated(0)),
    "given back by a producer": ("sm_100a", "races", WIDE, accumulated(2), accumulated(0)),
    "without a fence": ("sm_100a", "async", WIDE, accumulated(0, fenced=False), accumulated(0)),
    "2564": ("sm_90a", "alignment", {}, exchanged(1), exchanged(4)),
}
# The order of copies between blocks is not modelled, so the control of this one is UNKNOWN there.
UNORDERED = {"2564": {"barriers", "races", "async", "determinism"}}


@pytest.mark.parametrize("report", REPORTS)
def test_the_report_is_refuted_and_its_control_proved(report):
    arch, name, facts, wrong, control = REPORTS[report]
    found = prove(wrong, arch, facts).properties[name]
    assert found.verdict is Verdict.REFUTED
    assert found.counterexamples and all(e.confirmed for e in found.counterexamples)
    passed = {
        n: p.verdict in (Verdict.PROVED, Verdict.NOT_APPLICABLE)
        for n, p in prove(control, arch, facts).properties.items()
    }
    assert {n for n, ok in passed.items() if not ok} == UNORDERED.get(report, set())


def prove(kernel, arch, facts):
    lowered = lower(kernel, arch, keep_stages=True)
    return prove_lowered(lowered, facts=facts, use_cache=False)


def stepped(strided):
    """Nine elements of each warp's row by steps of a warp."""

    @T.prim_func
    def kernel(y: T.Tensor((8, 9), "int32")):
        with T.Kernel(1, threads=256):
            t = T.get_thread_binding()
            if strided:
                for i in T.serial(t % 32, 9, 32):
                    y[t // 32, i] = 0
            else:
                for i in T.serial(9):
                    if i == t % 32:
                        y[t // 32, i] = 0

    return kernel


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_step_loop_that_starts_beyond_its_end_still_runs_once(arch):
    """Not in TileLang's tracker: ``ceildiv(9 - lane, 32)`` trips are taken to be one, and the loop
    of lanes 9 to 31, which none of them enters, is gone. TileLang's own guard of the index hides it
    where that pass is on and the tensor has the dimension; here it is off."""
    options = {"tl.disable_safe_memory_legalize": True}
    found = {}
    for strided in (True, False):
        made = lower(stepped(strided), arch, pass_configs=options, keep_stages=True)
        found[strided] = prove_lowered(made, use_cache=False)
    bounds = found[True].properties["bounds"]
    assert bounds.verdict is Verdict.REFUTED
    assert bounds.counterexamples[0].confirmed
    passed = {Verdict.PROVED, Verdict.NOT_APPLICABLE}
    assert {p.verdict for p in found[False].properties.values()} <= passed
