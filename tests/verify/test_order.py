"""Order in kernels with mbarriers, TMA, wgmma and roles: proved as TileLang makes them, and every
seeded bug of synchronisation found.

Which of those bugs change nothing at these sizes is said beside each program, by the site.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.codegen.target import resolve_target
from tileproof.dsl import Facts
from tileproof.verify import Verdict, changes, domain, mutate, prove_lowered
from tileproof.verify.arena import shared_sizes
from tileproof.verify.order import analyse
from tileproof.verify.prove import launches_of

PROGRAMS = Path(__file__).parents[1] / "runtime" / "virtual" / "programs"
ORDERED = ("barriers", "races", "async", "determinism")
SIZES = {"dims": {"m": [1, 1 << 20]}}

# Classes whose mutants move the right bytes at the right time: another element, which values find.
VALUES = {"column+8", "row+1", "operand-major", "operand+2"}


def lowered(target, arch, **args):
    return lower(resolve_target(f"{PROGRAMS}/{target}", args), arch, keep_stages=True)


def order(kernel):
    """What is found in the first launch of a lowered kernel, without the rest of a proof."""
    facts = kernel.facts.updated(Facts.read(SIZES))
    assumed = domain.build(kernel.source, kernel.spec, facts)
    launches, _ = launches_of(kernel, assumed, shared_sizes(kernel.stages))
    return analyse(launches[0])


@pytest.mark.parametrize(
    ("target", "arch"),
    [
        ("tma_gemm.py:tma_gemm", "sm_90a"),
        ("tma_gemm.py:tma_gemm", "sm_100a"),
        ("tma_gemm.py:tma_gemm", "sm_120a"),
        ("ws_gemm.py:ws_gemm", "sm_90a"),
        ("flash_attention.py:flash_attention", "sm_90a"),
        ("dequant_gemm.py:dequant_gemm", "sm_90a"),
    ],
)
def test_programs_are_proved(target, arch):
    report = prove_lowered(lowered(target, arch), facts=SIZES, use_cache=False)
    for name in ORDERED:
        found = report.properties[name]
        assert found.verdict is Verdict.PROVED, (name, found.reasons)


# Without effect: a descriptor is prefetched, and all of a block store the same tile.
SAME = {
    ("ws_gemm.py:ws_gemm", "guard-dropped#0"),
    ("tma_gemm.py:tma_gemm", "guard-dropped#0"),
}


@pytest.mark.parametrize(
    ("target", "args"),
    [("ws_gemm.py:ws_gemm", {"K": 512}), ("tma_gemm.py:tma_gemm", {"K": 256})],
)
def test_every_seeded_bug_of_synchronisation_is_found(target, args):
    kernel = lowered(target, "sm_90a", **args)
    assert not order(kernel).why and not order(kernel).findings
    kinds = [k for k in (*changes.of_copies(), "slot+1") if k not in VALUES]
    kinds += ["barrier-dropped", "barrier-guarded"]
    seeded = [m for m in mutate.mutants(kernel, kinds, most=1) if (target, m.name) not in SAME]
    outcomes = {m.name: order(m.lowered) for m in seeded}
    assert len(seeded) > 12
    missed = [name for name, o in outcomes.items() if o.why or not o.findings]
    assert not missed


def doubled():
    """A row goes by halves through one tile of shared memory and, in bulk, to the result."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(x: T.Tensor((m, 2048), "float32"), y: T.Tensor((m, 2048), "float32")):
        with T.Kernel(m, threads=128) as row:
            tile = T.alloc_shared((1024,), "float32")
            for half in T.serial(2):
                for i in T.Parallel(1024):
                    tile[i] = x[row, half * 1024 + i] * 2.0
                T.copy(tile, y[row, half * 1024 : half * 1024 + 1024])

    return kernel


def test_bytes_that_are_stored_without_a_tensor_map():
    kernel = lower(doubled(), "sm_90a", keep_stages=True)
    assert "tma_store(" in kernel.cuda and not order(kernel).why and not order(kernel).findings
    kinds = ["barrier-dropped", "fence-dropped", "store-wait-dropped", "store-commit-dropped"]
    seeded = list(mutate.mutants(kernel, kinds))
    assert len(seeded) == 5
    assert [m.name for m in seeded if not order(m.lowered).findings] == []


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120a"])
def test_a_slot_that_tilelang_gives_back_before_its_last_read(arch):
    """What 0.1.15's warp specialisation makes of a scaled GEMM; the sanitizer reports it too."""
    kernel = resolve_target(f"{PROGRAMS}/fp8_gemm.py:fp8_gemm", {})
    configs = {"tl.disable_warp_specialized": False}
    found = order(lower(kernel, arch, pass_configs=configs, keep_stages=True))
    (race,) = found.findings
    assert race.property == "races"
    assert [s.message for s in race.steps] == ["writes", "reads"]
    assert all(s.site.startswith("scale[") for s in race.steps)
    # the slot is written for the next round while another thread still reads it
    assert race.steps[0].loops["k"] == race.steps[1].loops["k"] + 2


def piped():
    """A GEMM whose tiles come by cp.async into the slots of a pipeline and are read by wgmma."""

    @T.prim_func
    def kernel(
        a: T.Tensor((64, 256), "float16"),
        b: T.Tensor((64, 256), "float16"),
        c: T.Tensor((64, 64), "float32"),
    ):
        with T.Kernel(1, threads=128):
            a_tile = T.alloc_shared((64, 64), "float16")
            b_tile = T.alloc_shared((64, 64), "float16")
            acc = T.alloc_fragment((64, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(4, num_stages=3):
                T.copy(a[0, k * 64], a_tile)
                T.copy(b[0, k * 64], b_tile)
                for _ in T.unroll(1):  # else the fence comes before the wait
                    T.fence_proxy_async()
                    T.gemm(a_tile, b_tile, acc, transpose_B=True)
            T.copy(acc, c)

    return kernel


def test_descriptors_of_the_slots_of_a_pipeline():
    configs = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}
    kernel = lower(piped(), "sm_90a", pass_configs=configs, keep_stages=True)
    assert "handle_add_byte_offset" in str(kernel.device_mod) and "wgmma" in kernel.cuda
    found = order(kernel)
    assert not found.why and not found.findings
    for m in mutate.mutants(kernel, ["slot+1", "barrier-dropped"], most=1):
        found = order(m.lowered)
        assert found.why or found.findings, m.name


def shared(body):
    """A block of two warpgroups, with an mbarrier of 128 arrivals each way."""

    @T.prim_func
    def kernel(x: T.Tensor((128,), "float32"), y: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=256):
            tile = T.alloc_shared((128,), "float32")
            full = T.alloc_barrier([128])
            free = T.alloc_barrier([128])
            thread = T.get_thread_binding()
            body(thread, x, y, tile, full, free)

    return kernel


def handed(rounds, produce=1, consume=1, ahead=0, both=True):
    """`rounds` tiles handed from one warpgroup to the other; parities may be shifted."""

    @T.macro
    def body(thread, x, y, tile, full, free):
        if thread >= 128:
            for k in T.serial(rounds):
                T.barrier_wait(free[0], (k + produce) % 2)
                tile[thread - 128] = x[thread - 128]
                T.barrier_arrive(full[0])
        else:
            for k in T.serial(rounds):
                T.barrier_wait(full[0], (k + consume) % 2)
                y[thread] = tile[127 - thread]
                if both:
                    T.barrier_arrive(free[0])

    return shared(body)


def test_a_tile_handed_back_and_forth():
    found = order(lower(handed(5, consume=0), "sm_90a", keep_stages=True))
    assert not found.why and not found.findings, found


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (handed(5, consume=1), "it may come too early"),
        (handed(5, produce=0, consume=0), "no thread can go on"),
        (handed(5, consume=0, both=False), "no thread can go on"),
    ],
    ids=["consumer's parity", "producer's parity", "nothing handed back"],
)
def test_a_tile_handed_wrongly(kernel, says):
    found = order(lower(kernel, "sm_90a", keep_stages=True))
    assert not found.why, found
    assert any(says in f.message for f in found.findings), found


def clustered(blocks, produce, rounds=lambda b: 3):
    """As :func:`handed`, in each block of clusters of two; `produce` is the producer's parity."""

    @T.prim_func
    def kernel(x: T.Tensor((128,), "float32"), y: T.Tensor((blocks, 128), "float32")):
        with T.Kernel(blocks, threads=256, cluster_dims=(2, 1, 1)) as b:
            tile = T.alloc_shared((128,), "float32")
            full = T.alloc_barrier([128])
            free = T.alloc_barrier([128])
            thread = T.get_thread_binding()
            if thread >= 128:
                for k in T.serial(rounds(b)):
                    T.barrier_wait(free[0], (k + produce(b)) % 2)
                    tile[thread - 128] = x[thread - 128]
                    T.barrier_arrive(full[0])
            else:
                for k in T.serial(rounds(b)):
                    T.barrier_wait(full[0], k % 2)
                    y[b, thread] = tile[127 - thread]
                    T.barrier_arrive(free[0])

    return order(lower(kernel, "sm_90a", keep_stages=True))


MANY = 2 * T.dynamic("m")


@pytest.mark.parametrize("blocks", [2, 6, MANY], ids=["one", "three", "any number"])
def test_every_block_of_a_cluster_is_followed(blocks):
    right = clustered(blocks, lambda b: b % 2 * 2 + 1, lambda b: 3 + b % 2)
    assert not right.why and not right.findings
    for rank in (0, 1):
        wrong = clustered(blocks, lambda b, rank=rank: T.if_then_else(b % 2 == rank, 0, 1))
        assert [f.verdict for f in wrong.findings] == [Verdict.REFUTED] and not wrong.why
        assert "no thread can go on" in wrong.findings[0].message


def test_what_hangs_on_the_cluster_is_followed_by_number_or_not_at_all():
    for blocks in (6, MANY):
        right = clustered(blocks, lambda b: b // 2 * 2 + 1, lambda b: 3 + b // 2)
        assert not right.why and not right.findings
    (wrong,) = clustered(6, lambda b: T.if_then_else(b // 2 == 2, 0, 1)).findings
    assert wrong.verdict is Verdict.REFUTED and "no thread can go on" in wrong.message
    assert "order not followed" in clustered(MANY, lambda b: T.if_then_else(b // 2 == 2, 0, 1)).why
