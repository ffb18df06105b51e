"""Atomic operations of every kind, and clearing shared memory at once: just inside and just
outside of bounds and alignment, of races, and of what determinism allows."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

from .test_tma import changed

CONFIGS = {"tl.disable_safe_memory_legalize": True}


def prove(kernel, arch="sm_90a", configs=CONFIGS):
    facts = {"dims": {"M": [0, 1 << 20]}}
    lowered = lower(kernel, arch, pass_configs=configs, keep_stages=True)
    report = prove_lowered(lowered, facts=facts, use_cache=False)
    assert not report.error and not report.unmodelled
    return report.properties


def vectors(width, first=0, dtype="float32", returning=False):
    """Thread t adds `width` elements of row m from `first` on at once."""
    M = T.dynamic("M")
    add = {2: T.atomic_addx2, 4: T.atomic_addx4}[width]

    @T.prim_func
    def kernel(x: T.Tensor((M, 64), dtype), y: T.Tensor((M, 64), dtype)):
        with T.Kernel(M, threads=64 // width) as m:
            t = T.get_thread_binding()
            if returning:
                old = T.alloc_local((width,), dtype)
                old[0] = 0
                add(y[m, t * width + first], x[m, t * width], return_prev=True)
            else:
                add(y[m, t * width + first], x[m, t * width])

    return kernel


@pytest.mark.parametrize("width", [2, 4])
def test_vectors_lie_in_their_row_and_are_aligned(width):
    inside = prove(vectors(width))
    for name in ("overflow", "bounds", "alignment", "determinism"):
        assert inside[name].verdict is Verdict.PROVED, name
    shifted = prove(vectors(width, first=1))
    assert shifted["alignment"].verdict is Verdict.REFUTED
    assert shifted["bounds"].verdict is Verdict.REFUTED
    assert prove(vectors(width, first=width))["bounds"].verdict is Verdict.REFUTED


def meeting(operation, dtype="int32", apart=False, first="atomic"):
    """64 threads of a block at one element of shared memory (or each at its own), then a barrier.

    `first` is what thread 0 does there as well, without a barrier in between.
    """
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 64), dtype), y: T.Tensor((M, 64), dtype)):
        with T.Kernel(M, threads=64) as m:
            s = T.alloc_shared((64,), dtype)
            t = T.get_thread_binding()
            s[t] = 0
            T.sync_threads()
            if first == "store" and t == 0:
                s[1] = x[m, 0]
            if first == "load":
                y[m, t] = s[1]
            if operation == "add":
                T.atomic_add(s[t if apart else 1], x[m, t])
            if operation == "max":
                T.atomic_max(s[t if apart else 1], x[m, t])
            if operation == "store":
                T.atomic_store(s[t if apart else 1], x[m, t])
            T.sync_threads()
            y[m, t] = s[t]

    return kernel


def test_atomics_do_not_race_with_each_other_but_with_plain_accesses():
    own = {**CONFIGS, "tl.disable_thread_storage_sync": True}  # no barriers but those written
    for dtype in ("int32", "float32"):
        for apart in (False, True):
            races = prove(meeting("add", dtype, apart=apart), configs=own)["races"]
            assert races.verdict is Verdict.PROVED
    for plain in ("store", "load"):
        races = prove(meeting("add", first=plain), configs=own)["races"]
        assert races.verdict is Verdict.REFUTED, plain


@pytest.mark.parametrize(
    ("operation", "dtype", "verdict"),
    [
        ("add", "int32", Verdict.PROVED),
        ("max", "int32", Verdict.PROVED),
        ("add", "float32", Verdict.ALARM),
        ("max", "float32", Verdict.ALARM),  # of two zeros or NaNs either may stay
        ("store", "int32", Verdict.ALARM),
    ],
)
def test_the_order_of_atomics_in_shared_memory_shows_unless_they_commute(operation, dtype, verdict):
    assert prove(meeting(operation, dtype))["determinism"].verdict is verdict
    alone = prove(meeting(operation, dtype, apart=True))["determinism"]
    assert alone.verdict is Verdict.PROVED


def global_order(write, read=None):
    """Every block does `write` to one element of y; `read` is another thread's."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M,), "int32"), y: T.Tensor((1,), "int32"), z: T.Tensor((M,), "int32")):
        with T.Kernel(M, threads=1) as m:
            if write == "add":
                T.atomic_add(y[0], x[m])
            if write == "old":
                z[m] = T.atomic_add(y[0], x[m], return_prev=True)
            if write == "ordered":
                T.atomic_add(y[0], x[m], memory_order="acq_rel")
            if read == "load":
                z[m] = T.atomic_load(y[0])
            if read == "none":
                z[m] = 0

    return kernel


@pytest.mark.parametrize(
    ("write", "read", "verdict"),
    [
        ("add", "none", Verdict.PROVED),
        ("ordered", "none", Verdict.PROVED),
        ("none", "load", Verdict.PROVED),
        ("old", None, Verdict.REFUTED),
        ("add", "load", Verdict.REFUTED),
    ],
)
def test_a_value_read_while_others_add_depends_on_the_order(write, read, verdict):
    properties = prove(global_order(write, read))
    assert properties["determinism"].verdict is verdict
    assert properties["blocks"].verdict is Verdict.PROVED


@pytest.mark.parametrize(
    ("first", "size", "broken"),
    [
        (0, 256, ""),
        (2, 248, ""),
        (0, 264, "bounds"),
        (2, 256, "bounds"),
        (1, 248, "alignment"),
    ],
)
def test_shared_memory_cleared_at_once(first, size, broken):
    """64 integers, of which `size` bytes are cleared from the one numbered `first` on."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 64), "int32")):
        with T.Kernel(M, threads=64) as m:
            s = T.alloc_shared((64,), "int32")
            t = T.get_thread_binding()
            T.clear(s)
            T.sync_threads()
            y[m, t] = s[t]

    from tilelang import tvm

    lowered = lower(kernel, "sm_100a", pass_configs=CONFIGS, keep_stages=True)
    assert "ptx_st_bulk_shared" in str(lowered.device_mod)

    def change(n):
        if type(n).__name__ != "Call" or str(n.op.name) != "tl.ptx_st_bulk_shared":
            return None
        pointer = list(n.args[0].args)
        pointer[2] = tvm.tirx.IntImm("int32", first)
        where = tvm.tirx.Call(n.args[0].dtype, n.args[0].op, pointer)
        return tvm.tirx.Call(n.dtype, n.op, [where, tvm.tirx.IntImm("int32", size), n.args[2]])

    report = prove_lowered(changed(lowered, "device", "tirx.Call", change), use_cache=False)
    assert not report.unmodelled
    for name in ("bounds", "alignment", "races"):
        expected = Verdict.REFUTED if name == broken else Verdict.PROVED
        assert report.properties[name].verdict is expected, name
