"""Copies by the TMA unit beyond plain tiles: rows by number, im2col, additions, runs of bytes; and
the neighbours that touch too much."""

import functools

import pytest
import tilelang.cuda.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.props import PROPERTIES

from .test_tma import argument, changed, constant, encoding, shifted_pointer

MEMORY = [p.name for p in PROPERTIES if not p.ordered]
FACTS = {"dims": {"m": [1, 1 << 20], "r": [1, 1 << 20]}}


def gather():
    """Four rows of x for each block, by their numbers, then one run of bytes to y."""
    m, r = T.dynamic("m"), T.dynamic("r")

    @T.prim_func
    def kernel(
        x: T.Tensor((r, 64), "float16"),
        rows: T.Tensor((m * 4,), "int32"),
        y: T.Tensor((m * 4, 64), "float16"),
    ):
        with T.Kernel(m, threads=32) as b:
            s = T.alloc_shared((4, 64), "float16")
            done = T.alloc_barrier(1)
            if T.shuffle_elect(32):
                T.mbarrier_expect_tx(done, 4 * 64 * 2)
                T.tma_gather4(x, s, 0, [rows[b * 4 + i] for i in range(4)], barrier=done)
                T.mbarrier_arrive(done)
            T.mbarrier_wait_parity(done, 0)
            T.copy(s, y[b * 4, 0])

    return kernel


def scatter():
    """Each block stores four rows by their numbers."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(x: T.Tensor((m * 4, 64), "float16"), y: T.Tensor((m * 4, 64), "float16")):
        with T.Kernel(m, threads=32) as b:
            s = T.alloc_shared((4, 64), "float16")
            T.copy(x[b * 4, 0], s)
            T.fence_proxy_async()
            if T.shuffle_elect(32):
                T.tma_scatter4(s, y, 0, [b * 4 + i for i in range(4)])
                T.tma_store_arrive()
                T.tma_store_wait(0)

    return kernel


def convolution():
    """Images of 8 x 8 pixels and 64 channels, filters of 3 x 3."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(
        x: T.Tensor((m, 8, 8, 64), "float16"),
        w: T.Tensor((9 * 64, 64), "float16"),
        y: T.Tensor((m * 64, 64), "float16"),
    ):
        with T.Kernel(m, threads=128) as b:
            x_tile = T.alloc_shared((64, 64), "float16")
            w_tile = T.alloc_shared((64, 64), "float16")
            acc = T.alloc_fragment((64, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(9, num_stages=2):
                T.im2col(x, x_tile, b, k, 3, 1, 1, 1)
                T.copy(w[k * 64, 0], w_tile)
                T.gemm(x_tile, w_tile, acc)
            T.copy(acc, y[b * 64, 0])

    return kernel


def total(dtype="float32"):
    """All blocks add their rows to the same 64 of y."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(x: T.Tensor((m, 64), dtype), y: T.Tensor((64, 64), dtype)):
        with T.Kernel(T.ceildiv(m, 64), threads=128) as b:
            s = T.alloc_shared((64, 64), dtype)
            T.copy(x[b * 64, 0], s)
            T.atomic_add(y, s, use_tma=True)

    return kernel


KERNELS = {
    "gather": (gather, "sm_100a", "tma_load_gather4", {"written": {"y": "once"}}),
    "scatter": (scatter, "sm_100a", "tma_store_scatter4", {"written": {"y": "once"}}),
    "convolution": (convolution, "sm_90a", "tma_load_im2col", {"written": {"y": "once"}}),
    "total": (total, "sm_90a", "tma_store", {}),
}


@functools.cache
def lowered(name):
    source, arch, call, _ = KERNELS[name]
    found = lower(source(), arch, keep_stages=True)
    assert f"T.{call}(" in str(found.device_mod)
    return found


def decide(kernel, name):
    report = prove_lowered(kernel, facts={**FACTS, **KERNELS[name][3]}, use_cache=False)
    assert not report.error and not report.unmodelled
    return report.properties


@pytest.mark.parametrize("name", KERNELS)
def test_memory_is_proved(name):
    properties = decide(lowered(name), name)
    expected = ["overflow", "limits", "maps", "bounds", "alignment"]
    expected += ["coverage", "blocks"] if KERNELS[name][3] else []
    for found in expected:
        assert properties[found].verdict is Verdict.PROVED, found
    assert {properties[n].verdict for n in MEMORY} <= {Verdict.PROVED, Verdict.NOT_APPLICABLE}


def test_every_block_adds_to_the_same_rows():
    """Additions meet without a race, but onto an output nobody has written before."""
    report = prove_lowered(
        lowered("total"), facts={**FACTS, "written": {"y": "once"}}, use_cache=False
    )
    coverage = report.properties["coverage"]
    assert coverage.verdict is Verdict.ALARM
    assert "goes onto what y held before, which no contract gives" in coverage.reasons[0]
    stored = changed(
        lowered("total"), "device", "tirx.Call", argument("tl.tma_store", -2, constant(0))
    )
    assert decide(stored, "total")["blocks"].verdict is Verdict.REFUTED


OUTSIDE = {
    "a-row-of-the-next-block": (
        "scatter", "device", lambda: argument("tl.tma_store_scatter4", -2, lambda e: e + 1),
        "blocks"),
    "a-row-twice": (
        "scatter", "device", lambda: argument("tl.tma_store_scatter4", -2, lambda e: e - 1),
        "coverage"),
    "half-a-row": (
        "scatter", "device", lambda: argument("tl.tma_store_scatter4", 2, lambda e: e + 32),
        "coverage"),
    "four-rows-past-the-tile": (
        "scatter", "device", lambda: argument("tl.tma_store_scatter4", 1, shifted_pointer(64)),
        "bounds"),
    "four-rows-misaligned": (
        "scatter", "device", lambda: argument("tl.tma_store_scatter4", 1, shifted_pointer(-8)),
        "alignment"),
    "gathered-past-the-tile": (
        "gather", "device", lambda: argument("tl.tma_load_gather4", 2, shifted_pointer(64)),
        "bounds"),
    "one-more-row-than-x-has": (
        "gather", "host", lambda: encoding("x_desc", 6, lambda e: e + 1), "bounds"),
    "a-run-of-too-many-bytes": (
        "gather", "device", lambda: argument("tl.tma_store", 2, constant(528)), "bounds"),
    "a-run-of-too-few-bytes": (
        "gather", "device", lambda: argument("tl.tma_store", 2, constant(496)), "coverage"),
    "a-run-of-the-next-block": (
        "gather", "device", lambda: argument("tl.tma_store", 0, shifted_pointer(64)), "coverage"),
    "a-run-misaligned": (
        "gather", "device", lambda: argument("tl.tma_store", 1, shifted_pointer(-4)), "alignment"),
    "pixels-past-the-ring": (
        "convolution", "device",
        lambda: argument("tl.tma_load_im2col", 2, shifted_pointer(64)), "bounds"),
    "one-more-image-than-x-has": (
        "convolution", "host", lambda: encoding("x_desc", 8, lambda e: e + 1, "im2col"),
        "bounds"),
    "corner-of-a-byte": (
        "convolution", "host", lambda: encoding("x_desc", 17, constant(-129), "im2col"), "maps"),
    "too-many-pixels": (
        "convolution", "host", lambda: encoding("x_desc", 22, constant(1025), "im2col"), "maps"),
    "added-past-the-tile": (
        "total", "device", lambda: argument("tl.tma_store", 1, shifted_pointer(32)), "bounds"),
}  # fmt: skip


# Which row is gathered is data, and which pixels an image gives is not followed: these stay alarms.
ALARMS = {"one-more-row-than-x-has", "one-more-image-than-x-has"}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_copy_just_outside_is_found(case):
    name, where, change, broken = OUTSIDE[case]
    found = decide(changed(lowered(name), where, "tirx.Call", change()), name)[broken]
    assert found.verdict is (Verdict.ALARM if case in ALARMS else Verdict.REFUTED), found
    assert found.counterexamples[0].confirmed == (case not in ALARMS)


def test_copies_of_another_kind_than_their_map_are_unknown_by_name():
    several = changed(lowered("scatter"), "host", "tirx.Call", encoding("y_desc", 10, constant(4)))
    report = prove_lowered(several, facts=FACTS, use_cache=False)
    assert report.unmodelled == ["rows by number through boxes of 4 rows"]
    odd = changed(
        lowered("gather"), "device", "tirx.Call", argument("tl.tma_store", 2, constant(8))
    )
    report = prove_lowered(odd, facts=FACTS, use_cache=False)
    assert report.unmodelled == ["a bulk copy of 8 bytes, no multiple of 16"]
