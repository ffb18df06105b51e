"""Barriers of the whole grid: what they order, who must come to them, which launches have them."""

from dataclasses import replace

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.field import EVERY, Reference
from tileproof.verify.html import to_html
from tileproof.verify.model import Report
from tileproof.verify.report import to_text

PASSED = {Verdict.PROVED, Verdict.NOT_APPLICABLE}


def turned(late=False, rounds=1, barriers=1, when=""):
    """Each block writes its part of `b`, then reads another's, `rounds` times."""
    G = T.dynamic("G")

    @T.macro
    def meet(bx, t):
        if when == "block":
            if bx > 0:
                T.sync_grid()
        elif when == "thread":
            if t > 0:
                T.sync_grid()
        elif when == "size":
            if G > 1:
                T.sync_grid()
        else:
            T.sync_grid()

    @T.prim_func
    def kernel(b: T.Tensor((G * 32,), "float32"), c: T.Tensor((G * 32,), "float32")):
        with T.Kernel(G, threads=32) as bx:
            t = T.get_thread_binding()
            for _ in T.serial(rounds):
                if late:
                    meet(bx, t)
                b[bx * 32 + t] = 1.0
                if not late:
                    meet(bx, t)
                c[bx * 32 + t] = b[G * 32 - 1 - bx * 32 - t]
                if barriers > 1:
                    meet(bx, t)

    return kernel


def lowered(kernel):
    return lower(kernel, "sm_90a", keep_stages=True)


def prove(found):
    report = prove_lowered(found, facts={"dims": {"G": [1, 4096]}}, use_cache=False)
    assert not report.error
    return report


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (turned(), turned(late=True)),
        (turned(rounds=3, barriers=2), turned(rounds=3)),
    ],
    ids=["once", "in rounds"],
)
def test_blocks_meet_only_where_no_barrier_of_the_grid_is_between(inside, outside):
    report = prove(lowered(inside))
    assert {p.verdict for p in report.properties.values()} <= PASSED
    found = prove(lowered(outside)).properties["blocks"]
    assert found.verdict is Verdict.REFUTED
    assert found.counterexamples[0].confirmed
    assert found.counterexamples[0].sizes["G"] == 2


def copied(anew):
    """Each block writes its part of `b`, copies another's by cp.async, and may write `anew`."""
    G = T.dynamic("G")

    @T.prim_func
    def kernel(b: T.Tensor((G * 128,), "float32"), c: T.Tensor((G * 128,), "float32")):
        with T.Kernel(G, threads=32) as bx:
            t = T.get_thread_binding()
            part = T.alloc_shared((128,), "float32")
            for v in T.vectorized(4):
                b[bx * 128 + t * 4 + v] = 1.0
            T.sync_grid()
            there = (G - 1 - bx) * 128 + t * 4
            T.ptx_cp_async(T.access_ptr(part[t * 4], "w", 4), T.access_ptr(b[there], "r", 4), 4)
            T.ptx_commit_group()
            if anew:
                T.sync_grid()
                for v in T.vectorized(4):
                    b[bx * 128 + t * 4 + v] = 2.0
            T.ptx_wait_group(0)
            for v in T.vectorized(4):
                c[bx * 128 + t * 4 + v] = part[t * 4 + v]

    return kernel


@pytest.mark.parametrize("anew", [False, True], ids=["after", "beyond"])
def test_a_copy_begins_after_a_barrier_and_may_last_beyond_the_next(anew):
    found = prove(lowered(copied(anew))).properties["blocks"]
    assert found.verdict is (Verdict.UNKNOWN if anew else Verdict.PROVED)


def test_values_show_a_barrier_that_comes_too_early():
    reference = Reference(lowered(turned()), Facts(dims={"G": (1, 4)}), of_source=True)
    assert reference.difference(lowered(turned()), EVERY) is None
    assert reference.difference(lowered(turned(late=True)), EVERY) is not None


@pytest.mark.parametrize("when", ["block", "thread", "size"])
def test_every_thread_of_the_grid_must_come(when):
    report = prove(lowered(turned(when=when)))
    verdict = report.properties["barriers"].verdict
    if when != "size":
        assert verdict is Verdict.REFUTED
        assert report.properties["blocks"].verdict is Verdict.REFUTED
    else:  # all of it comes, but that a grid of one block needs no order is not followed
        assert verdict is Verdict.PROVED
        assert report.properties["blocks"].verdict is Verdict.UNKNOWN
        assert "may order them" in report.properties["blocks"].reasons[0]


def test_a_launch_that_is_not_cooperative_has_no_such_barrier():
    from tilelang import tvm

    good = lowered(turned())
    functions = {
        g: f.with_attr("use_cooperative_groups", 0) for g, f in good.device_mod.functions_items()
    }
    report = prove(replace(good, device_mod=tvm.IRModule(functions)))
    found = report.properties["barriers"]
    assert found.verdict is Verdict.REFUTED
    assert "not cooperative" in found.counterexamples[0].message
    assert report.properties["blocks"].verdict is Verdict.REFUTED


def idle():
    """A GEMM of TileLang's roles: all but one lane of a producer only wait."""

    @T.prim_func
    def kernel(
        a: T.Tensor((64, 128), "float16"),
        b: T.Tensor((128, 64), "float16"),
        c: T.Tensor((64, 64), "float32"),
    ):
        with T.Kernel(1, threads=128):
            left = T.alloc_shared((64, 64), "float16")
            right = T.alloc_shared((64, 64), "float16")
            total = T.alloc_fragment((64, 64), "float32")
            T.clear(total)
            for k in T.Pipelined(2, num_stages=2):
                T.copy(a[0, k * 64], left)
                T.copy(b[k * 64, 0], right)
                T.gemm(left, right, total)
            T.copy(total, c)

    return kernel


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(idle, "that only wait at mbarriers"), (turned, "are on the device at once")],
    ids=["phases", "grid"],
)
def test_reports_say_what_they_take_for_granted_of_waiting(kernel, words):
    report = prove(lowered(kernel()))
    every = Report([report])
    for text in (to_text(every), to_html(every), str(every.to_dict())):
        said = " ".join(text.split())
        assert "it is assumed that" in said and words in said
    assert "aligned to 16 bytes" in to_html(every)


def test_a_kernel_that_waits_for_nothing_takes_nothing_for_granted():
    @T.prim_func
    def kernel(y: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            y[T.get_thread_binding()] = 0.0

    assert "is assumed" not in to_text(Report([prove(lowered(kernel))]))
