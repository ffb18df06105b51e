"""Elements of half a byte: what shares a byte is written together or not at all."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

CONFIGS = {"tl.disable_safe_memory_legalize": True, "tl.disable_vectorize_256": True}
FOUR_BITS = ["float4_e2m1fn", "int4"]


def quantized(dtype, each, value=None):
    """A row in shared memory with four bits an element, `each` of them written by a thread."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float16"), y: T.Tensor((M, 128), "float16")):
        with T.Kernel(M, threads=128 // each) as m:
            s = T.alloc_shared((128,), dtype)
            t = T.get_thread_binding()
            for i in T.vectorized(each):
                s[t * each + i] = T.cast(x[m, t * each + i] if value is None else value, dtype)
            T.sync_threads()
            for i in T.serial(each):
                y[m, t * each + i] = T.cast(s[127 - t * each - i], "float16")

    return kernel


def packed(each):
    """The same by hand in bytes, where a thread has one or both halves of a byte."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "int8"), y: T.Tensor((M, 64), "uint8")):
        with T.Kernel(M, threads=128 // each) as m:
            s = T.alloc_shared((64,), "uint8")
            t = T.get_thread_binding()
            if t < 64:
                s[t] = 0
            T.sync_threads()
            if each == 2:
                s[t] = T.cast((x[m, 2 * t] & 15) | ((x[m, 2 * t + 1] & 15) << 4), "uint8")
            else:
                s[t // 2] = T.cast(s[t // 2] | ((x[m, t] & 15) << (t % 2 * 4)), "uint8")
            T.sync_threads()
            if t < 64:
                y[m, t] = s[63 - t]

    return kernel


def prove(kernel):
    lowered = lower(kernel, "sm_100a", pass_configs=CONFIGS, keep_stages=True)
    report = prove_lowered(lowered, facts={"dims": {"M": [0, 1 << 20]}}, use_cache=False)
    assert not report.error and not report.unmodelled
    return report.properties


@pytest.mark.parametrize("dtype", FOUR_BITS)
@pytest.mark.parametrize("each", [2, 4])
def test_whole_bytes_are_proved(dtype, each):
    properties = prove(quantized(dtype, each))
    for name in ("bounds", "alignment", "races", "determinism"):
        assert properties[name].verdict is Verdict.PROVED, name


@pytest.mark.parametrize("dtype", FOUR_BITS)
@pytest.mark.parametrize("value", [None, 0])
def test_halves_of_a_byte_by_two_threads_are_refuted(dtype, value):
    """Each writes back what it read of the other half; that both write zeros is no excuse."""
    properties = prove(quantized(dtype, 1, value))
    assert properties["races"].verdict is Verdict.REFUTED
    assert properties["races"].counterexamples[0].confirmed
    assert properties["bounds"].verdict is Verdict.PROVED
    assert properties["alignment"].verdict.passed


def test_bytes_packed_by_hand():
    assert prove(packed(2))["races"].verdict is Verdict.PROVED
    assert prove(packed(1))["races"].verdict is Verdict.REFUTED
