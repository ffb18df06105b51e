"""Order of tensor memory: multiplies, copies of scales, loads and stores of sm_100a are proved to
follow each other, and each rule has a neighbour just outside."""

import functools

import pytest
import tilelang.cuda.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, mutate

from . import test_tensor_memory as memory
from .test_order_loops import order
from .test_tma import changed

SINGLE = {"tl.disable_warp_specialized": True}


def roles(stages=2, late=True):
    """A warp copies by TMA, a warp multiplies, all load; K is any. Commits give the slots back, and
    one more says that all is done: if it is `late`, after the last multiply."""
    m, depth, size = T.dynamic("m"), T.dynamic("k"), 64

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, depth), "bfloat16"),
        b: T.Tensor((128, depth), "bfloat16"),
        c: T.Tensor((m * 128, 128), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((stages, 128, size), "bfloat16")
            b_tile = T.alloc_shared((stages, 128, size), "bfloat16")
            acc = T.alloc_tmem([128, 128], "float32")
            full = T.alloc_barrier([32] * stages)
            empty = T.alloc_barrier([1] * stages)
            done = T.alloc_barrier([1])
            out = T.alloc_fragment((128, 128), "float32")
            t = T.get_thread_binding()
            if t < 32:
                for k in T.serial(T.ceildiv(depth, size)):
                    slot, at = k % stages, k * size
                    T.mbarrier_wait_parity(empty[slot], (k // stages + 1) % 2)
                    T.tma_copy(
                        a[by * 128 : by * 128 + 128, at : at + size],
                        a_tile[slot, :, :],
                        barrier=full[slot],
                    )
                    T.tma_copy(b[0:128, at : at + size], b_tile[slot, :, :], barrier=full[slot])
                    T.barrier_arrive(full[slot])
            elif t < 64:
                if not late:
                    T.tcgen05_mma_arrive(done)
                for k in T.serial(T.ceildiv(depth, size)):
                    slot = k % stages
                    T.mbarrier_wait_parity(full[slot], k // stages % 2)
                    T.tcgen05_gemm(
                        a_tile[slot, :, :],
                        b_tile[slot, :, :],
                        acc,
                        transpose_B=True,
                        mbar=empty[slot],
                        clear_accum=k == 0,
                    )
                if late:
                    T.tcgen05_mma_arrive(done)
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


def pipelined(depth=None, stages=2, fenced=True, synced=True):
    """TileLang's own pipeline, with roles where it has several stages. K is any without `depth`."""
    m, size = T.dynamic("m"), 64
    depth = T.dynamic("k") if depth is None else depth

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, depth), "bfloat16"),
        b: T.Tensor((128, depth), "bfloat16"),
        c: T.Tensor((m * 128, 128), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((128, size), "bfloat16")
            b_tile = T.alloc_shared((128, size), "bfloat16")
            acc = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((128, 128), "float32")
            for k in T.Pipelined(T.ceildiv(depth, size), num_stages=stages):
                T.copy(a[by * 128, k * size], a_tile)
                T.copy(b[0, k * size], b_tile)
                T.gemm(a_tile, b_tile, acc, transpose_B=True, mbar=done, clear_accum=k == 0)
            if fenced:
                T.tcgen05_after_thread_sync()
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            if synced:
                T.sync_threads()

    return gemm


def doubled(ahead=False, threads=128):
    """Two accumulators: one is loaded while the next is multiplied into; `ahead` loads that one."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 128), "bfloat16"),
        b: T.Tensor((64, 128), "bfloat16"),
        c: T.Tensor((m * 128, 64), "float32"),
    ):
        with T.Kernel(m, threads=threads) as by:
            a_tile = T.alloc_shared((2, 128, 64), "bfloat16")
            b_tile = T.alloc_shared((2, 64, 64), "bfloat16")
            first = T.alloc_tmem([128, 64], "float32")
            second = T.alloc_tmem([128, 64], "float32")
            done = T.alloc_barrier([1, 1])
            one = T.alloc_fragment((128, 64), "float32")
            two = T.alloc_fragment((128, 64), "float32")
            for k in T.unroll(2):
                at = k * 64
                T.copy(a[by * 128 : by * 128 + 128, at : at + 64], a_tile[k, :, :])
                T.copy(b[0:64, at : at + 64], b_tile[k, :, :])
            T.tcgen05_gemm(a_tile[0, :, :], b_tile[0, :, :], first, transpose_B=True,
                           mbar=done[0], clear_accum=True)  # fmt: skip
            T.tcgen05_gemm(a_tile[1, :, :], b_tile[1, :, :], second, transpose_B=True,
                           mbar=done[1], clear_accum=True)  # fmt: skip
            T.mbarrier_wait_parity(done[0], 0)
            if ahead:
                T.copy(second, one)
            else:
                T.copy(first, one)
            T.mbarrier_wait_parity(done[1], 0)
            if ahead:
                T.copy(first, two)
            else:
                T.copy(second, two)
            for i, j in T.Parallel(128, 64):
                one[i, j] += two[i, j]
            T.copy(one, c[by * 128, 0])
            T.sync_threads()

    return gemm


def reused(early=False):
    """Two steps of K through one slot, which is written again once the first multiply is complete;
    `early`, while it goes on."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 128), "bfloat16"),
        b: T.Tensor((64, 64), "bfloat16"),
        c: T.Tensor((m * 128, 64), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((128, 64), "bfloat16")
            b_tile = T.alloc_shared((64, 64), "bfloat16")
            acc = T.alloc_tmem([128, 64], "float32")
            done = T.alloc_barrier([1, 1])
            out = T.alloc_fragment((128, 64), "float32")
            T.copy(b, b_tile)
            T.copy(a[by * 128, 0], a_tile)
            T.tcgen05_gemm(a_tile, b_tile, acc, transpose_B=True, mbar=done[0], clear_accum=True)
            if not early:
                T.mbarrier_wait_parity(done[0], 0)
            T.copy(a[by * 128, 64], a_tile)
            if early:
                T.mbarrier_wait_parity(done[0], 0)
            T.tcgen05_gemm(a_tile, b_tile, acc, transpose_B=True, mbar=done[1])
            T.mbarrier_wait_parity(done[1], 0)
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


def rescaled(own=False):
    """Scales of a second multiply over those of the first, without a wait, as NVIDIA's kernels do;
    in columns of their `own` they need none."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 128), "float8_e4m3fn"),
        b: T.Tensor((128, 128), "float8_e4m3fn"),
        s: T.Tensor((256,), "uint32"),
        c: T.Tensor((m * 128, 128), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((128, 128), "float8_e4m3fn")
            b_tile = T.alloc_shared((128, 128), "float8_e4m3fn")
            s_tile = T.alloc_shared((128,), "uint32")
            t_tile = T.alloc_shared((128,), "uint32")
            scales = T.alloc_tmem([128, 4], "uint32")
            others = T.alloc_tmem([128, 4], "uint32")
            acc = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_barrier([1, 1])
            out = T.alloc_fragment((128, 128), "float32")
            T.copy(a[by * 128, 0], a_tile)
            T.copy(b, b_tile)
            T.copy(s[0:128], s_tile)
            T.copy(s[128:256], t_tile)
            T.fence_proxy_async()
            T.sync_threads()
            second = others if own else scales
            if T.get_thread_binding() < 32:
                T.tcgen05_cp_warpx4(s_tile, scales)
            T.tcgen05_gemm_blockscaled(
                a_tile, b_tile, acc, scales, scales, transpose_B=True, mbar=done[0],
                clear_accum=True, k_start=0, sf_a_granularity_k=32, sf_b_granularity_k=32,
            )  # fmt: skip
            if T.get_thread_binding() < 32:
                T.tcgen05_cp_warpx4(t_tile, second)
            T.tcgen05_gemm_blockscaled(
                a_tile, b_tile, acc, second, second, transpose_B=True, mbar=done[1],
                k_start=0, sf_a_granularity_k=32, sf_b_granularity_k=32,
            )  # fmt: skip
            T.mbarrier_wait_parity(done[1], 0)
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


@functools.cache
def lowered(program, *args, **configs):
    return lower(program(*args), "sm_100a", pass_configs=configs, keep_stages=True)


def kernels(name):
    if name == "roles":
        return lowered(roles, **SINGLE)
    if name == "doubled":
        return lowered(doubled, **memory.CONFIGS)
    return memory.lowered(name)


PROVED = {
    "roles": lambda: kernels("roles"),
    "three slots": lambda: lowered(roles, 3, **SINGLE),
    "two accumulators": lambda: kernels("doubled"),
    "eight warps": lambda: lowered(doubled, False, 256, **memory.CONFIGS),
    "pipeline of any depth": lambda: lowered(pipelined, None, 0),
    "the same without TMA": lambda: lowered(pipelined, None, 0, **memory.CONFIGS),
    "one slot": lambda: lowered(reused, **memory.CONFIGS),
    "pipeline of two stages": lambda: lowered(pipelined, 256, **memory.CONFIGS),
}


@pytest.mark.parametrize("case", PROVED)
def test_programs_are_proved(case):
    found = order(PROVED[case]())
    assert not found.why and not found.findings, found


def dropped(*names):
    from tilelang import tvm

    def change(n):
        call = n.value
        hit = type(call).__name__ == "Call" and str(call.op.name) in names
        return tvm.tirx.Evaluate(tvm.tirx.const(0)) if hit else None

    return change


def argument(name, at, value):
    return memory.argument(name, at, value)


def flipped(e):
    return 1 - e


WAIT, COMMIT, FENCE = "tl.mbarrier_wait_parity", "tl.tcgen05_mma_arrive", "tl.fence_proxy_async"
AFTER, BEFORE = "tl.tcgen05_after_thread_sync", "tl.tcgen05_before_thread_sync"

# Of a program: what is taken from all of its places, the property, a part of the message.
OUTSIDE = {
    "commit dropped": ("plain", dropped(COMMIT), "barriers", "no thread can go on"),
    "commit of roles dropped": ("roles", dropped(COMMIT), "barriers", "no thread can go on"),
    "wait dropped": ("from-tensor-memory", dropped(WAIT), "async", "multiplies into"),
    "wait for scales dropped": ("scaled", dropped(WAIT), "async", "multiplies into"),
    "wait in a loop dropped": ("plain", dropped(WAIT), "barriers", "may come too early"),
    "wait of roles dropped": ("roles", dropped(WAIT), "async", "while a copy is under way"),
    "proxy fence dropped": ("plain", dropped(FENCE), "async", "fence_proxy_async"),
    "proxy fence of scales dropped": ("scaled", dropped(FENCE), "async", "fence_proxy_async"),
    "fence before loads dropped": ("plain", dropped(AFTER), "async", "::after_thread_sync"),
    "fence after stores dropped": (
        "from-tensor-memory", dropped(BEFORE), "async", "::before_thread_sync"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_neighbour_just_outside_is_refuted(case):
    name, change, broken, message = OUTSIDE[case]
    found = order(changed(kernels(name), "device", "tirx.Evaluate", change))
    assert not found.why
    hits = [f for f in found.findings if f.property == broken and message in f.message]
    assert hits and hits[0].verdict is Verdict.REFUTED, found.findings


def test_a_wrong_parity_is_refuted():
    for name in ("plain", "roles"):
        kernel = changed(kernels(name), "device", "tirx.Call", argument(WAIT, 1, flipped))
        (found, *_) = order(kernel).findings
        assert found.verdict is Verdict.REFUTED, found


PROGRAMS = {
    "committed before": (
        lambda: lowered(roles, 2, False, **SINGLE), "async", "while one of them may be under way"),
    "fence forgotten": (
        lambda: lowered(pipelined, None, 0, False), "async", "::after_thread_sync"),
    "slot written early": (
        lambda: lowered(reused, True, **memory.CONFIGS), "async", "while a copy is under way"),
    "given back early": (
        lambda: lowered(pipelined, None, 0, True, False), "races", "gives back"),
    "the other accumulator": (
        lambda: lowered(doubled, True, **memory.CONFIGS), "async", "tensor memory second"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_just_outside_is_refuted(case):
    made, broken, message = PROGRAMS[case]
    found = order(made())
    assert not found.why
    hits = [f for f in found.findings if f.property == broken and message in f.message]
    assert hits and hits[0].verdict is Verdict.REFUTED, found


def thread_of(kernel):
    """The variable of a thread's number."""
    from tilelang import tvm

    found = []

    def look(n):
        if type(n).__name__ == "AttrStmt" and str(n.attr_key) == "thread_extent":
            found.extend([n.node.var] if str(n.node.thread_tag) == "threadIdx.x" else [])

    for _, function in kernel.device_mod.functions_items():
        tvm.tirx.stmt_functor.post_order_visit(function.body, look)
    return found[0]


def test_every_lane_has_to_wait_for_what_the_warp_loads():
    from tilelang import tvm

    kernel = kernels("from-tensor-memory")
    thread, drop = thread_of(kernel), dropped(WAIT)

    def by_first_lanes(n):
        return None if drop(n) is None else tvm.tirx.IfThenElse(thread % 32 == 0, n, None)

    found = order(changed(kernel, "device", "tirx.Evaluate", by_first_lanes))
    (lacking, *_) = found.findings
    assert lacking.property == "async" and lacking.verdict is Verdict.REFUTED
    assert "which thread 33 loads" in lacking.message


@pytest.mark.parametrize("call", ["tcgen05_mma_arrive", "ptx_deallocate_tensor_memory"])
def test_half_a_warp_does_not_do_what_a_warp_does(call):
    from tilelang import tvm

    kernel = kernels("from-tensor-memory")
    thread = thread_of(kernel)

    def halved(n):
        inside = f"T.{call}(" in str(n.then_case)
        return tvm.tirx.IfThenElse(thread < 16, n.then_case, None) if inside else None

    found = memory.decide(changed(kernel, "device", "tirx.IfThenElse", halved))["barriers"]
    assert found.verdict is Verdict.REFUTED, found
    assert any("of a warp do not both come" in e.message for e in found.counterexamples)


def test_scales_over_others_rest_on_an_assumption():
    for own in (True, False):
        found = order(lowered(rescaled, own, **memory.CONFIGS))
        assert not found.why and not found.findings, found
        assert any("tcgen05.cp" in a for a in found.assumptions) != own


# Fences without effect, by the site: around the barriers before tensor memory is touched and before
# it is given back, and between the wait for a slot and a multiply into what nobody else touches.
SAME = {
    "from-tensor-memory": {0, 1, 2, 3, 7, 8},
    "roles": {0, 1, 2, 3, 4, 6, 7},
}


@pytest.mark.parametrize("name", SAME)
def test_seeded_bugs_are_found(name):
    kinds = ["multiply-commit-dropped", "mbarrier-wait-dropped", "parity-flipped"]
    seeded = list(mutate.mutants(kernels(name), [*kinds, "tensor-fence-dropped"]))
    missed = [m.name for m in seeded if not order(m.lowered).findings]
    assert missed == [f"tensor-fence-dropped#{n}" for n in sorted(SAME[name])]
