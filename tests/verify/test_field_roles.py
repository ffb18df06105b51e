"""Source programs whose author gives threads roles, executed over a prime field."""

import pytest
import tilelang.cuda.language as T

from tests.verify.test_field_async import program
from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.field import Reference, UnmodelledError, compare_values
from tileproof.verify.mutate import mutants

M = T.dynamic("m")
NO_TMA = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}


@T.prim_func
def handed_over(x: T.Tensor((M, 64), "float16"), y: T.Tensor((M, 64), "float16")):
    """Two tiles a block through one slot: `full` and `free` hand it back and forth."""
    with T.Kernel(T.ceildiv(M, 128), threads=256) as row:
        slot = T.alloc_shared((64, 64), "float16")
        full = T.alloc_barrier(128)
        free = T.alloc_barrier(128)
        trips = T.alloc_local((1,), "int32")
        trips[0] = 2
        if T.get_thread_binding() >= 128:
            for k in T.serial(trips[0]):
                T.barrier_wait(free, (k + 1) % 2)
                T.copy(x[row * 128 + k * 64, 0], slot)
                T.barrier_arrive(full)
        else:
            for k in T.serial(trips[0]):
                T.barrier_wait(full, k % 2)
                T.copy(slot, y[row * 128 + k * 64, 0])
                T.barrier_arrive(free)


@T.prim_func
def met(x: T.Tensor((M, 64), "float16"), y: T.Tensor((M, 64), "float16")):
    """The second role reads what the first wrote before all threads met."""
    with T.Kernel(T.ceildiv(M, 64), threads=256) as row:
        tile = T.alloc_shared((64, 64), "float16")
        if T.get_thread_binding() < 128:
            T.sync_threads(1, 256)
            T.copy(tile, y[row * 64, 0])
        else:
            T.copy(x[row * 64, 0], tile)
            T.sync_threads(1, 256)


@T.prim_func
def apart(x: T.Tensor((M, 64), "float16"), y: T.Tensor((M, 64), "float16")):
    """TileLang puts a barrier of all threads between the branches, at which neither arrives: the
    first waits for the second."""
    with T.Kernel(T.ceildiv(M, 64), threads=256) as row:
        tile = T.alloc_shared((64, 64), "float16")
        full = T.alloc_barrier(128)
        with T.ws(0):
            T.barrier_wait(full, 0)
            T.copy(tile, y[row * 64, 0])
        with T.ws(1):
            T.copy(x[row * 64, 0], tile)
            T.barrier_arrive(full)


@T.prim_func
def beyond(x: T.Tensor((M, 64), "float32"), y: T.Tensor((M, 64), "float32")):
    """Who waits in one branch is let go by a branch further on."""
    with T.Kernel(T.ceildiv(M, 64), threads=256) as row:
        full = T.alloc_barrier(128)
        thread = T.get_thread_binding()
        if thread < 128:
            T.barrier_wait(full, 0)
        if row < M:
            y[row * 64, thread % 64] = x[row * 64, thread % 64]
        if thread >= 128:
            T.barrier_arrive(full)


@T.prim_func
def by_block(x: T.Tensor((M, 64), "float16"), y: T.Tensor((M, 64), "float16")):
    """As many threads copy as the block's number says."""
    with T.Kernel(T.ceildiv(M, 64), threads=256) as row:
        tile = T.alloc_shared((64, 64), "float16")
        if T.get_thread_binding() < 128 + row % 2 * 64:
            T.copy(x[row * 64, 0], y[row * 64, 0])
        else:
            T.clear(tile)


@T.prim_func
def of_one_thread(x: T.Tensor((M, 64), "float16"), y: T.Tensor((M, 64), "float16")):
    """Threads fill variables of their own, where data says so: no roles."""
    with T.Kernel(M, threads=64) as row:
        thread = T.get_thread_binding()
        own = T.alloc_local((4,), "float16")
        own[0] = x[row, thread]
        if own[0] < 0:
            T.clear(own)
        y[row, thread] = own[0]


@pytest.mark.parametrize("kernel", [handed_over, met, of_one_thread])
def test_roles_wait_for_each_other(kernel):
    lowered = lower(kernel, "sm_90a", pass_configs=NO_TMA, keep_stages=True)
    reference = Reference(lowered, Facts(), of_source=True)
    assert reference.anywhere(lowered) is None
    (wrong,) = mutants(lowered, ["load+1"], 1)
    assert reference.difference(wrong.lowered) is not None


def test_roles_that_differ_between_blocks_are_named():
    lowered = lower(by_block, "sm_90a", pass_configs=NO_TMA, keep_stages=True)
    why = "roles that differ between blocks"
    with pytest.raises(UnmodelledError, match=why):
        Reference(lowered, Facts(), of_source=True).difference(lowered)
    unknown = compare_values(lowered, use_cache=False)
    assert unknown.verdict is Verdict.UNKNOWN
    assert [why in name for name in unknown.unmodelled] == [True]


def test_a_tile_of_another_role_is_stored_by_tma_without_a_fence():
    """TileLang 0.1.15: a role's ordinary stores, a barrier, then the other role's TMA store."""
    lowered = lower(met, "sm_90a", keep_stages=True)
    report = compare_values(lowered, use_cache=False)
    assert report.verdict is Verdict.ALARM
    copies = prove_lowered(lowered, use_cache=False).properties["async"]
    assert copies.verdict is Verdict.REFUTED and "no fence_proxy_async" in copies.reasons[0]


WRONG = ("stride+1", "column+8", "row+1", "operand-major", "tile+64", "operand+2")


def test_wrong_values_of_a_gemm_with_roles_are_found():
    lowered, facts = program("ws_gemm", "sm_90a")
    reference = Reference(lowered, facts, of_source=True)
    seeded = list(mutants(lowered, WRONG, 1))
    assert len(seeded) == len(WRONG)
    for mutant in seeded:
        assert reference.difference(mutant.lowered) is not None, mutant.name


def test_a_barrier_between_roles_that_hangs_is_found():
    lowered = lower(apart, "sm_90a", keep_stages=True)
    report = compare_values(lowered, use_cache=False)
    assert report.verdict is Verdict.REFUTED
    assert report.properties["values"].counterexamples[0].message == "threads wait for ever"


def test_without_a_source_that_is_executed_schedules_still_show_a_hang():
    lowered = lower(beyond, "sm_90a", keep_stages=True)
    with pytest.raises(UnmodelledError, match="wait beyond their branches"):
        Reference(lowered, Facts(), of_source=True).difference(lowered)
    report = compare_values(lowered, use_cache=False)
    assert report.verdict is Verdict.UNKNOWN and "beyond" in report.unmodelled[0]
    hangs = next(mutants(lowered, ["arrivals+1"]))
    report = compare_values(hangs.lowered, use_cache=False)
    assert report.verdict is Verdict.REFUTED
    assert report.properties["values"].counterexamples[0].message == "threads wait for ever"
