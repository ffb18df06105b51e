"""Matrix units of sm_100a: tensor memory and operands in shared memory, and the neighbours that
take, touch or keep too much."""

import functools

import pytest
import tilelang.cuda.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.mutate import mutants

from .test_tma import argument, called, changed, constant, shifted_pointer

# Without vectors of 32 bytes, which an argument that is only aligned to 16 does not admit.
CONFIGS = {
    "tl.disable_vectorize_256": True,
    "tl.disable_tma_lower": True,
    "tl.disable_warp_specialized": True,
}
FACTS = {"dims": {"m": [0, 65535]}, "written": {"c": "once"}}
PROVED = ("overflow", "limits", "bounds", "alignment", "blocks", "coverage")
ORDERED = ("barriers", "races", "async")


def gemm(rows=128, columns=128, dtype="bfloat16", trans_a=False, trans_b=True):
    """C = A B, a tile of `rows` and `columns` for each block; K is 128."""
    m = T.dynamic("m")
    size = 64

    @T.prim_func
    def gemm(
        a: T.Tensor((128, m * rows) if trans_a else (m * rows, 128), dtype),
        b: T.Tensor((2 * columns, 128) if trans_b else (128, 2 * columns), dtype),
        c: T.Tensor((m * rows, 2 * columns), "float32"),
    ):
        with T.Kernel(2, m, threads=128) as (bx, by):
            a_tile = T.alloc_shared((size, rows) if trans_a else (rows, size), dtype)
            b_tile = T.alloc_shared((columns, size) if trans_b else (size, columns), dtype)
            acc = T.alloc_tmem([rows, columns], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((rows, columns), "float32")
            for k in T.serial(128 // size):
                if trans_a:
                    T.copy(a[k * size, by * rows], a_tile)
                else:
                    T.copy(a[by * rows, k * size], a_tile)
                if trans_b:
                    T.copy(b[bx * columns, k * size], b_tile)
                else:
                    T.copy(b[k * size, bx * columns], b_tile)
                T.gemm(
                    a_tile,
                    b_tile,
                    acc,
                    transpose_A=trans_a,
                    transpose_B=trans_b,
                    mbar=done,
                    clear_accum=k == 0,
                )
            T.tcgen05_after_thread_sync()
            T.copy(acc, out)
            T.copy(out, c[by * rows, bx * columns])
            T.sync_threads()

    return gemm


def from_tensor_memory():
    """A comes through tensor memory."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 64), "bfloat16"),
        b: T.Tensor((64, 64), "bfloat16"),
        c: T.Tensor((m * 128, 64), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_local = T.alloc_fragment((128, 64), "bfloat16")
            a_tile = T.alloc_tmem([128, 64], "bfloat16")
            b_tile = T.alloc_shared((64, 64), "bfloat16")
            acc = T.alloc_tmem([128, 64], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((128, 64), "float32")
            T.copy(a[by * 128, 0], a_local)
            T.copy(a_local, a_tile)
            T.copy(b, b_tile)
            T.tcgen05_gemm(a_tile, b_tile, acc, transpose_B=True, mbar=done, clear_accum=True)
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


def scaled():
    """Operands of 8 bits with a scale for each 32 of K."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 128), "float8_e4m3fn"),
        b: T.Tensor((128, 128), "float8_e4m3fn"),
        s: T.Tensor((m * 128,), "uint32"),
        t: T.Tensor((128,), "uint32"),
        c: T.Tensor((m * 128, 128), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((128, 128), "float8_e4m3fn")
            b_tile = T.alloc_shared((128, 128), "float8_e4m3fn")
            s_tile = T.alloc_shared((128,), "uint32")
            t_tile = T.alloc_shared((128,), "uint32")
            s_scales = T.alloc_tmem([128, 4], "uint32")
            t_scales = T.alloc_tmem([128, 4], "uint32")
            acc = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((128, 128), "float32")
            T.copy(a[by * 128, 0], a_tile)
            T.copy(b, b_tile)
            T.copy(s[by * 128], s_tile)
            T.copy(t, t_tile)
            T.sync_threads()
            if T.get_thread_binding() < 32:
                T.tcgen05_sf_warp_transpose(s_tile)
                T.tcgen05_sf_warp_transpose(t_tile)
                T.fence_proxy_async()
                T.tcgen05_cp_warpx4(s_tile, s_scales)
                T.tcgen05_cp_warpx4(t_tile, t_scales)
            T.tcgen05_gemm_blockscaled(
                a_tile,
                b_tile,
                acc,
                s_scales,
                t_scales,
                transpose_B=True,
                mbar=done,
                clear_accum=True,
                k_start=0,
                sf_a_granularity_k=32,
                sf_b_granularity_k=32,
            )
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


def pair():
    """Two blocks of a cluster multiply together, each with half of the rows of A and of B."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 256, 128), "float16"),
        b: T.Tensor((256, 128), "float16"),
        c: T.Tensor((m * 256, 256), "float32"),
    ):
        with T.Kernel(m * 2, 2, threads=128, cluster_dims=(2, 1, 1)) as (bx, by):
            a_tile = T.alloc_shared((128, 64), "float16")
            b_tile = T.alloc_shared((64, 64), "float16")
            acc = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_cluster_barrier([1])
            out = T.alloc_fragment((128, 128), "float32")
            for k in T.serial(2):
                T.copy(a[bx * 128, k * 64], a_tile)
                T.copy(b[by * 128 + T.block_rank_in_cluster() * 64, k * 64], b_tile)
                T.cluster_sync()
                T.tcgen05_gemm(
                    a_tile,
                    b_tile,
                    acc,
                    transpose_B=True,
                    mbar=done,
                    clear_accum=k == 0,
                    use_2cta=True,
                )
                T.mbarrier_wait_parity(done, k % 2)
            T.copy(acc, out)
            T.copy(out, c[bx * 128, by * 128])
            T.sync_threads()

    return gemm


def parts():
    """Two products side by side in what is held: the second is loaded."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m * 128, 64), "bfloat16"),
        b: T.Tensor((64, 64), "bfloat16"),
        c: T.Tensor((m * 128, 64), "float32"),
    ):
        with T.Kernel(m, threads=128) as by:
            a_tile = T.alloc_shared((128, 64), "bfloat16")
            b_tile = T.alloc_shared((64, 64), "bfloat16")
            acc = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((128, 64), "float32")
            T.copy(a[by * 128, 0], a_tile)
            T.copy(b, b_tile)
            for g in T.serial(2):
                part = g * 64
                T.tcgen05_gemm(
                    a_tile,
                    b_tile,
                    acc[:, part : part + 64],
                    transpose_B=True,
                    mbar=done,
                    clear_accum=True,
                )
                T.mbarrier_wait_parity(done, g)
                T.sync_threads()
            T.tcgen05_after_thread_sync()
            T.copy(acc[:, 64:128], out)
            T.copy(out, c[by * 128, 0])
            T.sync_threads()

    return gemm


SOURCES = {
    "plain": gemm,
    "64-rows": lambda: gemm(64, 64),
    "32-rows": lambda: gemm(32, 128),
    "256-columns": lambda: gemm(128, 256, "float16"),
    "bytes": lambda: gemm(128, 64, "float8_e4m3fn"),
    "columns-of-a": lambda: gemm(128, 128, "float16", True, False),
    "from-tensor-memory": from_tensor_memory,
    "scaled": scaled,
    "parts": parts,
    "pair": pair,
}


@functools.cache
def lowered(name):
    return lower(SOURCES[name](), "sm_100a", pass_configs=CONFIGS, keep_stages=True)


def decide(kernel):
    report = prove_lowered(kernel, facts=FACTS, use_cache=False)
    assert not report.error and not report.unmodelled
    return report.properties


@pytest.mark.parametrize("name", SOURCES)
def test_memory_and_order_are_proved(name):
    assert "tcgen05_mma" in str(lowered(name).device_mod)
    properties = decide(lowered(name))
    for found in PROVED:
        assert properties[found].verdict is Verdict.PROVED, (found, properties[found])
    for found in ORDERED:
        if name != "pair":
            assert properties[found].verdict is Verdict.PROVED, (found, properties[found])
        elif found != "barriers":
            assert properties[found].verdict is Verdict.UNKNOWN
            assert "pairs of blocks that multiply together" in properties[found].reasons[0]


def fields(change):
    """A change of the instruction descriptor of a multiply of two operands in shared memory."""
    return lambda: argument("tl.ptx_tcgen05_mma_ss", 7, constant(change))


def instruction(rows, columns):
    return 0x490 | columns // 8 << 17 | rows // 16 << 24


OUTSIDE = {
    "load-past-the-last-part": (
        "parts", lambda: argument("tl.tcgen05_ld", 4, constant(1)), "bounds"),
    "load-past-the-columns": (
        "plain", lambda: argument("tl.tcgen05_ld", 4, constant(1)), "bounds"),
    "load-of-more-columns": ("64-rows", lambda: argument("tl.tcgen05_ld", 1, constant(128)),
        "bounds"),
    "store-past-the-columns": (
        "from-tensor-memory", lambda: argument("tl.tcgen05_st", 4, constant(1)), "bounds"),
    "result-past-the-columns": (
        "plain", lambda: argument("tl.ptx_tcgen05_mma_ss", 6, constant(32)), "bounds"),
    "result-wider-than-its-columns": ("plain", fields(instruction(128, 136)), "bounds"),
    "a-past-the-columns": (
        "from-tensor-memory",
        lambda: argument("tl.ptx_tcgen05_mma_ts", 2, lambda e: e + 8), "bounds"),
    "scales-past-the-columns": (
        "scaled", lambda: argument("tl.ptx_tcgen05_mma_blockscaled_ss", 10, constant(29)),
        "bounds"),
    "copied-scales-past-the-columns": (
        "scaled", lambda: argument("tl.ptx_tcgen05_cp_warpx4", 2, constant(29)), "bounds"),
    "operand-past-its-tile": (
        "plain", lambda: argument("tl.ptx_tcgen05_mma_ss", 4, lambda e: e + 128), "bounds"),
    "operand-of-a-pair-past-its-tile": (
        "pair", lambda: argument("tl.ptx_tcgen05_mma_ss", 4, lambda e: e + 128), "bounds"),
    "pattern-from-its-second-line": (
        "plain",
        lambda: argument("tl.initialize_tcgen05_descriptor", 1, shifted_pointer(-64)),
        "alignment"),
    "stride-of-a-longer-tile": (
        "plain", lambda: argument("tl.initialize_tcgen05_descriptor", 3, constant(72)), "bounds"),
    "mbarrier-past-the-end": (
        "plain", lambda: argument("tl.tcgen05_mma_arrive", 0, shifted_pointer(1)), "bounds"),
    "scales-transposed-past-the-end": (
        "scaled", lambda: bound_pointer, "bounds"),
    "no-amount-there-is": (
        "plain", lambda: argument("tl.ptx_init_tensor_memory", 1, constant(96)), "limits"),
    "more-than-there-is": (
        "from-tensor-memory", lambda: argument("tl.ptx_init_tensor_memory", 1, constant(512)),
        "limits"),
    "other-columns-given-back": (
        "plain", lambda: argument("tl.ptx_deallocate_tensor_memory", 1, constant(64)), "limits"),
    "given-back-by-all-warps": ("plain", lambda: by_all("tl.ptx_deallocate_tensor_memory"),
        "limits"),
    "taken-by-all-warps": ("plain", lambda: by_all("tl.ptx_init_tensor_memory"), "limits"),
    "never-given-back": ("plain", lambda: dropped("tl.ptx_deallocate_tensor_memory"), "limits"),
}  # fmt: skip


def bound_pointer(n):
    """Pointers with names start one element later."""
    if type(n).__name__ != "Call" or str(n.op.name) != "tirx.tvm_access_ptr":
        return None
    return shifted_pointer(4)(n) if "s_tile" in str(n.args[1]) else None


def by_all(name):
    """The condition around a call holds for every warp."""

    def change(n):
        inside = type(n).__name__ == "IfThenElse" and f"T.{name[3:]}(" in str(n.then_case)
        return n.then_case if inside else None

    return change


def dropped(name):
    from tilelang import tvm

    def change(n):
        is_call = type(n).__name__ == "Evaluate" and called(n.value, name)
        return tvm.tirx.Evaluate(tvm.tirx.const(0)) if is_call else None

    return change


KEYS = {
    "given-back-by-all-warps": "tirx.IfThenElse",
    "taken-by-all-warps": "tirx.IfThenElse",
    "never-given-back": "tirx.Evaluate",
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_neighbour_just_outside_is_refuted(case):
    name, change, broken = OUTSIDE[case]
    kernel = changed(lowered(name), "device", KEYS.get(case, "tirx.Call"), change())
    found = decide(kernel)[broken]
    assert found.verdict is Verdict.REFUTED, found
    assert found.counterexamples[0].confirmed


def test_what_is_not_modelled_is_unknown_by_name():
    for change, name in (
        (argument("tl.initialize_tcgen05_descriptor", 6, constant(1)), "of swizzle 1"),
        (argument("tl.ptx_tcgen05_mma_ss", 7, constant(instruction(16, 128))), "of 16 rows"),
    ):
        kernel = changed(lowered("plain"), "device", "tirx.Call", change)
        report = prove_lowered(kernel, facts=FACTS, use_cache=False)
        assert any(name in found for found in report.unmodelled), report.unmodelled
        assert report.properties["bounds"].verdict is not Verdict.PROVED


@pytest.mark.parametrize(("align", "verdict"), [(32, Verdict.PROVED), (16, Verdict.REFUTED)])
def test_vectors_of_32_bytes_need_an_address_that_is_said_to_be_aligned(align, verdict):
    configs = {**CONFIGS, "tl.disable_vectorize_256": False}
    kernel = lower(gemm(), "sm_100a", pass_configs=configs, keep_stages=True)
    facts = {**FACTS, "align": {"a": align, "b": align, "c": align}}
    found = prove_lowered(kernel, facts=facts, use_cache=False).properties["alignment"]
    assert found.verdict is verdict
    if verdict is Verdict.REFUTED:
        assert "c is accessed 32 bytes wide, but its pointer is only aligned to 16" in found.reasons


def test_columns_moved_by_eight_are_refuted():
    """No load, and no result of a multiply, has room for that in what is held."""
    seeded = list(mutants(lowered("plain"), ["tensor-column+8"]))
    assert len(seeded) >= 2
    for mutant in seeded:
        found = decide(mutant.lowered)["bounds"]
        assert found.verdict is Verdict.REFUTED, (mutant.name, found)
