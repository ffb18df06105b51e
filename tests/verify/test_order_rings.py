"""Rings of unknown length written to deceive: bugs that show late, rarely, or for some lengths."""

from __future__ import annotations

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.verify import domain
from tileproof.verify.arena import shared_sizes
from tileproof.verify.order import analyse
from tileproof.verify.prove import launches_of


def order(program):
    """What is found for 1 to 2^20 iterations."""
    kernel = lower(program, "sm_90a", keep_stages=True)
    facts = kernel.facts.updated(Facts.read({"dims": {"n": [1, 1 << 20]}}))
    assumed = domain.build(kernel.source, kernel.spec, facts)
    launches, _ = launches_of(kernel, assumed, shared_sizes(kernel.stages))
    return analyse(launches[0])


def block(body, roles=2, slots=1, cells=1, counts=(128, 128)):
    """`roles` warpgroups with `slots` mbarriers each way and `cells` tiles."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n, 128), "float32"), y: T.Tensor((n, 128), "float32")):
        with T.Kernel(1, threads=128 * roles):
            tile = T.alloc_shared((cells, 128), "float32")
            full = T.alloc_barrier([counts[0]] * slots)
            free = T.alloc_barrier([counts[1]] * slots)
            thread = T.get_thread_binding()
            body(thread, x, y, tile, full, free, n)

    return kernel


def never(k, n):
    return False


def handed(slots=1, cells=None, produce=1, consume=0, early=never, skipped=never, more=0):
    """Tiles handed over by a ring. The consumer may give a slot back too early, or not wait."""
    cells = cells or slots

    @T.macro
    def body(thread, x, y, tile, full, free, n):
        if thread >= 128:
            for k in T.serial(n):
                T.barrier_wait(free[k % slots], (k // slots + produce) % 2)
                tile[k % cells, thread - 128] = x[k, thread - 128]
                T.barrier_arrive(full[k % slots])
        else:
            for k in T.serial(n + more):
                if not skipped(k, n):
                    T.barrier_wait(full[k % slots], (k // slots + consume) % 2)
                if early(k, n):
                    T.barrier_arrive(free[k % slots])
                y[k, thread] = tile[k % cells, 127 - thread]
                if not early(k, n):
                    T.barrier_arrive(free[k % slots])

    return block(body, slots=slots, cells=cells)


def counters(wraps=True, steps=3, flips=True):
    """The same ring with slot and parity kept by hand in local variables, two levels of loops."""

    @T.macro
    def body(thread, x, y, tile, full, free, n):
        slot = T.alloc_var("int32", init=0)
        parity = T.alloc_var("int32", init=0)
        for _ in T.serial(n):
            for _ in T.serial(steps):
                if thread >= 128:
                    T.barrier_wait(free[slot], parity ^ 1)
                    tile[slot, thread - 128] = x[0, thread - 128]
                    T.barrier_arrive(full[slot])
                else:
                    T.barrier_wait(full[slot], parity)
                    y[0, thread] = tile[slot, 127 - thread]
                    T.barrier_arrive(free[slot])
                slot = slot + 1
                if slot == 2:
                    slot = 0
                    if flips:
                        parity = parity ^ 1

    return block(body, slots=2, cells=2)


def slow_reader(lag=3, cells=3, asks=3, answers=3):
    """A second reader that says only every so often that it is done, and a producer that asks only
    every so often: until then it goes on, over `cells` tiles and `lag` mbarriers."""

    @T.macro
    def body(thread, x, y, tile, full, free, n):
        if thread >= 256:
            for k in T.serial(n):
                T.barrier_wait(free[k % lag], (k // lag + 1) % 2)
                if k % asks == 0:
                    T.barrier_wait(free[lag], (k // asks + 1) % 2)
                tile[k % cells, thread - 256] = x[k, thread - 256]
                T.barrier_arrive(full[k % lag])
        elif thread >= 128:
            for k in T.serial(n):
                T.barrier_wait(full[k % lag], (k // lag) % 2)
                y[k, thread - 128] = tile[k % cells, 255 - thread]
                T.barrier_arrive(free[k % lag])
        else:
            for k in T.serial(n):
                T.barrier_wait(full[k % lag], (k // lag) % 2)
                y[k, thread] = tile[k % cells, 127 - thread]
                if k % answers == answers - 1:
                    T.barrier_arrive(free[lag])

    return block(body, roles=3, slots=lag + 1, cells=cells)


def drifting(count):
    """All arrive once an iteration; a phase takes `count` arrivals."""

    @T.macro
    def body(thread, x, y, tile, full, free, n):
        for k in T.serial(n):
            tile[0, thread % 128] = x[k, thread % 128]
            T.barrier_arrive(full[0])
            T.barrier_wait(full[0], k % 2)
            y[k, thread % 128] = tile[0, 127 - thread % 128]
            T.barrier_arrive(free[0])
            T.barrier_wait(free[0], k % 2)

    return block(body, roles=1, counts=(128, count))


@pytest.mark.parametrize(
    "kernel",
    [
        handed(),
        handed(slots=3),
        handed(early=lambda k, n: k == n - 1),  # nobody takes the last slot
        handed(early=lambda k, n: k + 1 >= n, slots=2),
        counters(),
        slow_reader(),
        drifting(128),
    ],
    ids=["one slot", "three slots", "early at the end", "early by >=", "counters", "slow reader",
         "one barrier"],
)  # fmt: skip
def test_rings_of_any_length_are_proved(kernel):
    found = order(kernel)
    assert not found.why and not found.findings, found


@pytest.mark.parametrize(
    "kernel",
    [
        handed(consume=1),
        handed(produce=0),
        handed(slots=3, cells=2),
        handed(slots=2, early=lambda k, n: k % 3 == 2),
        handed(early=lambda k, n: k == 7),
        handed(early=lambda k, n: k == 300),
        handed(early=lambda k, n: n % 2 == 1),
        handed(early=lambda k, n: k + 2 == n),
        handed(early=lambda k, n: k < n - 1, slots=2),
        handed(slots=2, skipped=lambda k, n: k == n - 1),
        handed(more=1),
        counters(flips=False),
        slow_reader(cells=2),
        slow_reader(lag=2, cells=4),
        slow_reader(asks=3, answers=2),
        slow_reader(asks=2, answers=3),
        drifting(127),
        drifting(129),
    ],
    ids=[
        "consumer's parity", "producer's parity", "fewer tiles than slots", "every third",
        "the seventh", "the 300th", "odd lengths", "the last but one", "all but the last",
        "last wait", "one more", "parity never flips", "overtaken tiles", "overtaken mbarriers",
        "answers too often", "answers too rarely", "fewer arrivals", "more arrivals",
    ],
)  # fmt: skip
def test_bugs_that_show_late_or_rarely_are_never_proved(kernel):
    found = order(kernel)
    assert found.why or found.findings
