"""Rows of a tile through tensor memory: each its own, all alike, nothing left from before."""

from types import SimpleNamespace

import numpy as np
import pytest
import tilelang.cuda.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, cells, prove_lowered
from tileproof.verify.field.tensor import cells as field_cells
from tileproof.verify.flow import UnfollowedError

from .test_determinism import CONFIGS
from .test_tensor_memory import dropped, pair
from .test_tma import argument, changed

K, N = 128, 64


def product(
    dtype="bfloat16", source=lambda m: m, column=lambda m, k: k, rows=N, clear=True, size=128,
    deep=K, transposed=False, through=False,
):  # fmt: skip
    """y = x w^T, for `size` rows a block: row m of its tile is row ``source(m)`` of x, with columns
    in order ``column(m, k)``; of w's tile only `rows` rows are written. `transposed`: w x^T is what
    is multiplied; `through`: rows of x come through tensor memory."""
    M = T.dynamic("M")
    wide = 128 if transposed else N  # rows of w

    @T.prim_func
    def kernel(
        x: T.Tensor((M, K), dtype), w: T.Tensor((wide, K), dtype), y: T.Tensor((M, wide), "float32")
    ):
        with T.Kernel(T.ceildiv(M, size), threads=128) as i:
            x_tile = T.alloc_shared((size, deep), dtype)
            w_tile = T.alloc_shared((wide, deep), dtype)
            x_held = T.alloc_fragment((size, deep), dtype)
            x_cells = T.alloc_tmem([size, deep], dtype)
            shape = (wide, size) if transposed else (size, wide)
            total = T.alloc_tmem(shape, "float32")
            out = T.alloc_fragment(shape, "float32")
            done = T.alloc_barrier(1)
            for g in T.serial(K // deep):
                for m, k in T.Parallel(size, deep):
                    row = i * size + source(m)
                    x_tile[m, k] = T.if_then_else(row < M, x[row, column(m, g * deep + k)], 0)
                for n, k in T.Parallel(wide, deep):
                    if n < rows + wide - N:
                        w_tile[n, k] = w[n, g * deep + k]
                first = clear & (g == 0)
                if through:
                    T.copy(x_tile, x_held)
                    T.copy(x_held, x_cells)
                    T.sync_threads()
                    T.tcgen05_gemm(
                        x_cells, w_tile, total, transpose_B=True, mbar=done, clear_accum=first
                    )
                elif transposed:
                    T.tcgen05_gemm(
                        w_tile, x_tile, total, transpose_B=True, mbar=done, clear_accum=first
                    )
                else:
                    T.tcgen05_gemm(
                        x_tile, w_tile, total, transpose_B=True, mbar=done, clear_accum=first
                    )
                T.mbarrier_wait_parity(done, g % 2)
                T.tcgen05_after_thread_sync()
            T.copy(total, out)
            if transposed:
                for n, m in T.Parallel(wide, size):
                    if i * size + m < M:
                        y[i * size + m, n] = out[n, m]
            else:
                for m, n in T.Parallel(size, wide):
                    if i * size + m < M:
                        y[i * size + m, n] = out[m, n]
            T.sync_threads()

    return kernel


WAYS = {
    "rows of A": {},
    "in steps": {"deep": 64},
    "columns of B": {"transposed": True, "size": 64, "deep": 64},
    "bytes": {"dtype": "float8_e4m3fn"},
    "64 rows": {"size": 64},
    "through tensor memory": {"through": True, "deep": 64},
}
BUGS = {
    "depends on row": {"source": lambda m: m ^ 1},
    "is not computed as row 0": {"column": lambda m, k: T.if_then_else(m < 32, k, K - 1 - k)},
    "that nobody wrote": {"rows": N - 1},
    "y depends on memory": {"clear": False},
}


def decide(kernel):
    return prove_lowered(kernel, facts={"batch": ["M"]}, use_cache=False).properties["determinism"]


def compiled(program):
    return lower(program, "sm_100a", pass_configs=CONFIGS, keep_stages=True)


def lowered(way, **bug):
    kernel = compiled(product(**{**WAYS[way], **bug}))
    assert "tcgen05_mma" in str(kernel.device_mod)
    return kernel


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_a_product_are_followed(way):
    right = decide(lowered(way))
    assert right.verdict is Verdict.PROVED, right
    for words, bug in BUGS.items() if way == "rows of A" else [*BUGS.items()][:1]:
        wrong = decide(lowered(way, **bug))
        assert wrong.verdict is Verdict.ALARM and words in wrong.reasons[0], (bug, wrong)


def scaled(source=lambda m: m):
    """128 rows a block, as columns of the product; row m of a tile has the scales of row
    ``source(m)``."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(
        x: T.Tensor((M, 32), "float8_e4m3fn"), w: T.Tensor((128, 32), "float8_e4m3fn"),
        s: T.Tensor((M,), "uint32"), t: T.Tensor((128,), "uint32"),
        y: T.Tensor((M, 128), "float32"),
    ):  # fmt: skip
        with T.Kernel(T.ceildiv(M, 128), threads=128) as i:
            x_tile = T.alloc_shared((128, 32), "float8_e4m3fn")
            w_tile = T.alloc_shared((128, 32), "float8_e4m3fn")
            s_tile = T.alloc_shared((128,), "uint32")
            t_tile = T.alloc_shared((128,), "uint32")
            s_cells = T.alloc_tmem([128, 4], "uint32")
            t_cells = T.alloc_tmem([128, 4], "uint32")
            total = T.alloc_tmem([128, 128], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((128, 128), "float32")
            for m, k in T.Parallel(128, 32):
                x_tile[m, k] = T.if_then_else(i * 128 + m < M, x[i * 128 + m, k], 0)
            T.copy(w, w_tile)
            for m in T.Parallel(128):
                row = i * 128 + source(m)
                s_tile[m] = T.if_then_else(row < M, s[row], T.uint32(0))
            T.copy(t, t_tile)
            T.sync_threads()
            if T.get_thread_binding() < 32:
                T.tcgen05_sf_warp_transpose(s_tile)
                T.tcgen05_sf_warp_transpose(t_tile)
                T.fence_proxy_async()
                T.tcgen05_cp_warpx4(s_tile, s_cells)
                T.tcgen05_cp_warpx4(t_tile, t_cells)
            T.tcgen05_gemm_blockscaled(
                w_tile, x_tile, total, t_cells, s_cells, transpose_B=True, mbar=done,
                clear_accum=True, k_start=0, sf_a_granularity_k=32, sf_b_granularity_k=32,
            )  # fmt: skip
            T.mbarrier_wait_parity(done, 0)
            T.tcgen05_after_thread_sync()
            T.copy(total, out)
            for n, m in T.Parallel(128, 128):
                if i * 128 + m < M:
                    y[i * 128 + m, n] = out[n, m]
            T.sync_threads()

    return kernel


def test_scales_of_a_row_are_its_own():
    kernel = compiled(scaled())
    found = decide(kernel)
    assert found.verdict is Verdict.PROVED, found
    never = dropped("tl.ptx_tcgen05_cp_warpx4")
    for wrong, words in (
        (compiled(scaled(lambda m: m ^ 1)), "depends on several rows"),
        (changed(kernel, "device", "tirx.Evaluate", never), "that nobody wrote"),
    ):
        found = decide(wrong)
        assert found.verdict is Verdict.ALARM and words in found.reasons[0], found


def of_batch(kernel, change):
    """An argument that hangs on the number of rows: what `change` makes of it and of that."""
    (function,) = (f for _, f in kernel.device_mod.functions_items())
    (M,) = (p for p in function.params if str(p.name) == "M")
    return lambda e: change(e, M)


HANGS = {
    "column of a load": ("tcgen05_ld", 4, lambda e, M: e + M % 2, "REFUTED"),
    "column of sums": ("ptx_tcgen05_mma_ss", 6, lambda e, M: e + M % 2, "REFUTED"),
    "descriptor": ("ptx_tcgen05_mma_ss", 4, lambda e, M: e + M % 2 * 32, "REFUTED"),
    "sums kept": ("ptx_tcgen05_mma_ss", 8, lambda e, M: M % 2, "ALARM"),
    "instruction": ("ptx_tcgen05_mma_ss", 7, lambda e, M: e - M % 2, "UNKNOWN"),
}


@pytest.mark.parametrize("case", HANGS)
def test_nothing_may_hang_on_the_batch(case):
    name, position, change, verdict = HANGS[case]
    kernel = lowered("64 rows")
    rule = argument(f"tl.{name}", position, of_batch(kernel, change))
    found = decide(changed(kernel, "device", "tirx.Call", rule))
    assert found.verdict is Verdict[verdict], found


def test_blocks_that_multiply_together_are_unknown():
    kernel = compiled(pair())
    report = prove_lowered(kernel, facts={"batch": ["m"]}, use_cache=False)
    assert report.properties["determinism"].verdict is Verdict.UNKNOWN


def test_a_wait_must_find_what_it_waits_for():
    tile = SimpleNamespace(
        lanes=np.arange(32), block=np.zeros(32, int), mask=np.ones(32, bool), cells=cells.Cells(),
        number=lambda e: e, per_lane=lambda v: np.broadcast_to(v, 32),
    )  # fmt: skip
    bar = SimpleNamespace(buffer=SimpleNamespace(data="bar"), indices=[0])
    with pytest.raises(UnfollowedError, match="for several arrivals"):
        cells.initialize(tile, [bar, SimpleNamespace(value=2)], None)
    for parity in (0, 1):
        with pytest.raises(UnfollowedError, match="what others do later"):
            cells.wait(tile, [bar, parity], None)
        cells.wait(tile, [bar, 1 - parity], None)
        cells.commit(tile, [SimpleNamespace(args=["type", "bar", 0])], None)


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
def test_words_of_a_thread_lie_where_the_other_route_has_them(bits):
    words = 8 * max(1, bits // 64)
    for mine, other in zip(cells.pattern(bits, words), field_cells(bits, 8), strict=True):
        assert (mine == other.T).all()
