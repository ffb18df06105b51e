"""Races, copies and barriers: a kernel just inside each rule and its neighbour just outside."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.props import races

from ..runtime.virtual.catalogue import PROGRAMS

# Without TileLang's own barriers and guards: what a kernel says is what runs.
CONFIGS = {
    "tl.disable_thread_storage_sync": True,
    "tl.disable_safe_memory_legalize": True,
    "tl.disable_tma_lower": True,
    "tl.disable_warp_specialized": True,
}


def exchange(partner, sync="block", threads=128):
    """Every thread leaves a value in shared memory and takes its partner's."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, threads), "float32"), y: T.Tensor((M, threads), "float32")):
        with T.Kernel(M, threads=threads) as m:
            tile = T.alloc_shared((threads,), "float32")
            t = T.get_thread_binding()
            tile[t] = x[m, t]
            if sync == "block":
                T.sync_threads()
            if sync == "warp":
                T.sync_warp()
            y[m, t] = tile[partner(t)]

    return kernel


def rounds(slots, every=1, steps=None):
    """A ring of `slots` tiles: write one, meet every so many rounds, read the neighbour's."""
    M, K = T.dynamic("M"), T.dynamic("K")

    @T.prim_func
    def kernel(x: T.Tensor((M, K, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            tile = T.alloc_shared((slots, 128), "float32")
            total = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            total[0] = 0.0
            for k in T.serial(K if steps is None else steps):
                tile[k % slots, t] = x[m, k % K, t]
                if every == 1:
                    T.sync_threads()
                else:
                    if k % every == every - 1:
                        T.sync_threads()
                total[0] += tile[(k + (slots if every == 1 else 1)) % slots, 127 - t]
            y[m, t] = total[0]

    return kernel


def turned(divisor):
    """Rounds of unknown number, each of four steps that write a tile at places without a period."""
    M, K = T.dynamic("M"), T.dynamic("K")

    @T.prim_func
    def kernel(x: T.Tensor((M, K, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=32) as m:
            tile = T.alloc_shared((7, 20), "float32")
            t = T.get_thread_binding()
            for k in T.serial(K):
                for n in T.serial(4):
                    tile[(n * 32 + t) % 7, (n * 32 + t) // divisor] = x[m, k, n * 32 + t]
                    T.sync_threads()
                for n in T.serial(4):
                    y[m, n * 32 + t] = tile[(n * 32 + t) % 7, (n * 32 + t) // divisor]
                T.sync_threads()

    return kernel


def met_where(condition):
    """A barrier under a condition of block `m`, thread `t` and a flag in global memory."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(flags: T.Tensor((M,), "int32"), y: T.Tensor((M, 128), "int32")):
        with T.Kernel(M, threads=128) as m:
            t = T.get_thread_binding()
            if condition(m, t, flags):
                T.sync_threads()
            y[m, t] = flags[m]

    return kernel


def met_often(count):
    """A loop of barriers whose length may depend on the thread."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            t = T.get_thread_binding()
            for _ in T.serial(count(m, t)):
                T.sync_threads()
            y[m, t] = 0.0

    return kernel


def flagged(fill, place=lambda t: 0, sync=True, late=False):
    """A barrier under a flag that threads read from shared memory, where `fill` left it."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(flags: T.Tensor((M, 128), "int32"), y: T.Tensor((M, 128), "int32")):
        with T.Kernel(M, threads=128) as m:
            flag = T.alloc_shared((128,), "int32")
            t = T.get_thread_binding()
            fill(flag, flags, m, t)
            if sync:
                T.sync_threads()
            if flag[place(t)] > 0:
                T.sync_threads()
            if late:
                flag[0] = t
            y[m, t] = t

    return kernel


def one_fills(flag, flags, m, t):
    @T.macro
    def body():
        if t == 0:
            flag[0] = flags[m, 0]

    body()


def each_fills(flag, flags, m, t):
    @T.macro
    def body():
        flag[t] = flags[m, t]

    body()


def copies_fill(flag, flags, m, t):
    @T.macro
    def body():
        T.async_copy(flags[m, :], flag)

    body()


def run(kernel, **facts):
    lowered = lower(kernel, "sm_80", pass_configs=CONFIGS, keep_stages=True)
    return prove_lowered(lowered, facts=facts, use_cache=False)


def pipeline(pending, sync=True, mirror=False):
    """Copies two tiles, waits until `pending` groups are under way, reads the first."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 2, 512), "float32"), y: T.Tensor((M, 512), "float32")):
        with T.Kernel(M, threads=128) as m:
            tile = T.alloc_shared((2, 512), "float32")
            t = T.get_thread_binding()
            T.async_copy(x[m, 0, :], tile[0, :])
            T.async_copy(x[m, 1, :], tile[1, :])
            T.ptx_wait_group(pending)
            if sync:
                T.sync_threads()
            for v in T.vectorized(4):
                y[m, t * 4 + v] = tile[0, (127 - t if mirror else t) * 4 + v]

    return kernel


def shared_store(value):
    """Four threads write each element."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M, 32), "float32")):
        with T.Kernel(M, threads=128) as m:
            tile = T.alloc_shared((32,), "float32")
            t = T.get_thread_binding()
            tile[t // 4] = value(x, m, t)
            T.sync_threads()
            y[m, t // 4] = tile[t // 4] + x[m, t // 4]

    return kernel


def halves(count, start=0):
    """`count` neighbouring elements of half a byte each, written by a thread."""

    @T.prim_func
    def kernel(x: T.Tensor((512,), "float4_e2m1fn"), y: T.Tensor((512,), "float4_e2m1fn")):
        with T.Kernel(1, threads=128):
            tile = T.alloc_shared((512,), "float4_e2m1fn")
            t = T.get_thread_binding()
            for v in T.vectorized(count):
                tile[t * count + start + v] = x[t * count + start + v]
            T.sync_threads()
            for v in T.vectorized(2):
                y[t * 2 + v] = tile[t * 2 + v]

    return kernel


LADDER = {
    "barrier": ("races", exchange(lambda t: 127 - t), exchange(lambda t: 127 - t, sync=None)),
    "own slot": ("races", exchange(lambda t: t, sync=None), exchange(lambda t: t ^ 1, sync=None)),
    "warp": ("races", exchange(lambda t: t ^ 31, "warp"), exchange(lambda t: t ^ 32, "warp")),
    "ring": ("races", rounds(2), rounds(1)),
    "same value": (
        "races",
        shared_store(lambda x, m, t: x[m, t // 4] * 2.0),
        shared_store(lambda x, m, t: x[m, t // 2] * 2.0),
    ),
    "constant": (
        "races",
        shared_store(lambda x, m, t: T.float32(1.0)),
        shared_store(lambda x, m, t: T.cast(t, "float32")),
    ),
    "half bytes": ("races", halves(2), halves(1)),
    "whole byte": ("races", halves(2, start=2), halves(2, start=1)),
    "wait": ("async", pipeline(1), pipeline(2)),
    "own copy": ("async", pipeline(1, sync=False), pipeline(1, sync=False, mirror=True)),
    "path": (
        "barriers",
        met_where(lambda m, t, flags: flags[m] > m),
        met_where(lambda m, t, flags: m + t < 5),
    ),
    "loop": ("barriers", met_often(lambda m, t: m % 7), met_often(lambda m, t: t // 127 + 1)),
}


@pytest.mark.parametrize("rung", LADDER)
def test_inside_is_proved_and_outside_refuted(rung):
    name, inside, outside = LADDER[rung]
    good = run(inside)
    assert good.properties[name].verdict is Verdict.PROVED, good
    bad = run(outside).properties[name]
    assert bad.verdict is Verdict.REFUTED, bad
    assert all(e.confirmed and e.property == name for e in bad.counterexamples)


def test_all_threads_read_the_same_from_shared_memory():
    report = run(flagged(each_fills, place=lambda t: 5))
    assert report.verdict is Verdict.PROVED, report


@pytest.mark.parametrize(
    ("outside", "name", "verdict"),
    [
        ({"fill": one_fills, "sync": False}, "races", Verdict.ALARM),
        ({"fill": one_fills, "late": True}, "races", Verdict.ALARM),
        ({"fill": copies_fill}, "async", Verdict.ALARM),
        ({"fill": each_fills, "place": lambda t: t}, "barriers", Verdict.UNKNOWN),
        ({"fill": each_fills, "place": lambda t: t // 127}, "barriers", Verdict.UNKNOWN),
    ],
    ids=["no barrier before", "overwritten", "copy not waited for", "each its own", "two places"],
)
def test_a_barrier_rests_on_a_shared_value_only_where_no_thread_sees_another(
    outside, name, verdict
):
    report = run(flagged(**outside))
    assert report.properties[name].verdict is verdict, report
    assert report.properties["barriers"].verdict is Verdict.UNKNOWN
    assert len(report.properties["barriers"].reasons) == 1


def test_a_barrier_that_data_decides_is_an_alarm():
    report = run(met_where(lambda m, t, flags: flags[T.max(m - t, 0)] > 0))
    barriers = report.properties["barriers"]
    assert barriers.verdict is Verdict.ALARM
    assert "it hangs on the value of data" in barriers.reasons[0]


def test_a_race_names_two_threads_their_rounds_and_the_least_sizes():
    example = run(rounds(1)).properties["races"].counterexamples[0]
    assert example.sizes == {"K": 2, "M": 1} and example.block == (0, 0, 0)
    assert [(s.thread, s.loops) for s in example.steps] == [
        ((0, 0, 0), {"k": 0}),
        ((127, 0, 0), {"k": 1}),
    ]
    assert [s.message for s in example.steps] == ["reads tile", "writes tile"]
    assert example.offset == 508


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("flash_attention", "sm_80"),
        ("dequant_gemm", "sm_80"),
        ("conv", "sm_80"),
        ("linear_attention", "sm_90a"),
        ("layernorm", "sm_90a"),
    ],
)
def test_programs_in_other_styles_are_proved(name, arch):
    """What TileLang inserts by itself is enough for them: no false alarm, nothing unmodelled."""
    program = PROGRAMS[name]
    report = prove_lowered(program.lowered(arch), facts=program.facts, use_cache=False)
    verdicts = {n: report.properties[n].verdict for n in ("barriers", "races", "async")}
    assert set(verdicts.values()) <= {Verdict.PROVED, Verdict.NOT_APPLICABLE}, report.unmodelled
    assert verdicts["races"] is Verdict.PROVED


def test_places_without_a_period_are_enumerated_in_loops_beside_unknown_ones():
    right, wrong = (
        prove_lowered(
            lower(turned(n), "sm_80", pass_configs=CONFIGS, keep_stages=True), use_cache=False
        )
        for n in (7, 8)
    )
    found = right.properties["races"]
    assert found.verdict is Verdict.PROVED and found.rlimit == 0
    assert wrong.properties["races"].verdict is Verdict.REFUTED


def ring_of_a_block(slots):
    """A tile is read backwards behind a barrier, and the next one written at once; where a block
    begins in the ring is its own number's choice."""
    N = T.dynamic("N")

    @T.prim_func
    def kernel(x: T.Tensor((N, 128), "float32"), y: T.Tensor((8, N, 128), "float32")):
        with T.Kernel(8, threads=128) as block:
            tile = T.alloc_shared((slots, 128), "float32")
            thread = T.get_thread_binding()
            for t in T.serial(N):
                slot = (t + block % 3) % slots
                tile[slot, thread] = x[t, thread]
                T.sync_threads()
                y[block, t, thread] = tile[slot, 127 - thread]

    return kernel


@pytest.mark.parametrize(("slots", "verdict"), [(2, Verdict.PROVED), (1, Verdict.REFUTED)])
def test_a_ring_that_blocks_begin_at_different_slots(slots, verdict, monkeypatch):
    """Enumerated for every residue of the block's number, without the solver."""
    asked = []
    real = races._Pair._apart
    monkeypatch.setattr(races._Pair, "_apart", lambda pair, at: asked.append(at) or real(pair, at))
    report = run(ring_of_a_block(slots))
    assert report.properties["races"].verdict is verdict, report
    assert bool(asked) is (verdict is not Verdict.PROVED)
