"""Wrong code that TileLang 0.1.15 emits, by the number of its report, each with a control.

The kernels are ours; the compiler inserts the barriers and waits. When an upgrade mends one of
these, its test fails, and then goes.
"""

import pytest
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


REPORTS = {
    "2698": ("races", filled(10, 16), filled(0, 6)),
    "2612": ("races", branch(4), branch(1)),
    "2668": ("async", consumed(2), consumed(0)),
}


@pytest.mark.parametrize("number", REPORTS)
def test_the_report_is_refuted_and_its_control_proved(number):
    name, wrong, control = REPORTS[number]
    found = prove(wrong).properties[name]
    assert found.verdict is Verdict.REFUTED
    assert all(e.confirmed for e in found.counterexamples)
    verdicts = {p.verdict for p in prove(control).properties.values()}
    assert verdicts <= {Verdict.PROVED, Verdict.NOT_APPLICABLE}


def prove(kernel):
    return prove_lowered(lower(kernel, "sm_80", keep_stages=True), use_cache=False)
