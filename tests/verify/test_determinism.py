"""The same bits every time, whatever lies beside a row: kernels inside the rule and outside."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

CONFIGS = {
    "tl.disable_safe_memory_legalize": True,
    "tl.disable_tma_lower": True,
    "tl.disable_warp_specialized": True,
}


def totals(dtype="float32", operation="add", parts=4, columns=False):
    """`parts` blocks add their sums of a row to one element, or each to its own."""
    M = T.dynamic("M")
    atomic = {"add": T.atomic_add, "max": T.atomic_max}[operation]

    @T.prim_func
    def kernel(x: T.Tensor((M, parts), dtype), y: T.Tensor((M, parts), dtype)):
        with T.Kernel(M, parts, threads=1) as (m, part):
            atomic(y[m, part if columns else 0], x[m, part])

    return kernel


def summed(trips, dtype="float32"):
    """A thread per row sums the row; ``trips(M, row)`` says in how many strides."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 64), dtype), y: T.Tensor((M,), dtype)):
        with T.Kernel(M, threads=1) as m:
            total = T.alloc_local((1,), dtype)
            total[0] = 0
            for i in T.serial(trips(M, m)):
                for j in T.serial(T.ceildiv(64, trips(M, m))):
                    if j * trips(M, m) + i < 64:
                        total[0] += x[m, j * trips(M, m) + i]
            y[m] = total[0]

    return kernel


def read(row, column=lambda m, i: i, scale=None):
    """Each block sums row ``row(m)`` of x over ``column(m, i)``."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 8), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(M, threads=1) as m:
            total = T.alloc_local((1,), "float32")
            total[0] = 0.0
            for i in T.serial(8):
                if row(m) < M:
                    total[0] += x[row(m), column(m, i)]
            y[m] = total[0] if scale is None else total[0] * T.cast(scale(M, m), "float32")

    return kernel


def tiled(partner=0, start=lambda row, block, M: 0, guard=lambda row, M: row < M, columns=8):
    """Eight rows a block, one a thread, of which `columns` pass through shared memory; `partner`
    takes another's."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 8), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, 8), threads=8) as block:
            values = T.alloc_shared((8, 8), "float32")
            total = T.alloc_local((1,), "float32")
            thread = T.get_thread_binding()
            if guard(block * 8 + thread, M):
                for i in T.serial(columns):
                    values[thread, i] = x[block * 8 + thread, i]
            T.sync_threads()
            total[0] = 0.0
            for i in T.serial(8):
                total[0] += values[thread ^ partner, (i + start(thread, block, M)) % 8]
            if block * 8 + thread < M:
                y[block * 8 + thread] = total[0]

    return kernel


def wide(swap=lambda left, N: False):
    """Eight rows and eight columns a block; a thread takes another row if ``swap(left, N)``, where
    `left` columns of N are left."""
    M, N = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def kernel(x: T.Tensor((M, 8), "float32"), y: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, 8), T.ceildiv(M, 8), threads=8) as (j, block):
            values = T.alloc_shared((8, 8), "float32")
            thread = T.get_thread_binding()
            for i in T.serial(8):
                values[thread, i] = 0.0
                if block * 8 + thread < M:
                    values[thread, i] = x[block * 8 + thread, i]
            T.sync_threads()
            for i in T.serial(8):
                if (block * 8 + thread < M) & (j * 8 + i < N):
                    row = T.if_then_else(swap(N - j * 8, N), 7 - thread, thread)
                    y[block * 8 + thread, j * 8 + i] = values[row, i]

    return kernel


def alone(columns=8, choice=None):
    """A row a block, of which `columns` pass through local memory; `choice` says how many are
    added."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 8), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(M, threads=1) as m:
            values = T.alloc_local((8,), "float32")
            total = T.alloc_local((1,), "float32")
            total[0] = 0.0
            for i in T.serial(columns):
                values[i] = x[m, i]
            for i in T.serial(8):
                if choice is None or choice(x, m, i):
                    total[0] += values[i]
            y[m] = total[0]

    return kernel


def chosen(partner=0, by_value=True):
    """Eight rows a block; the data of one, as an integer, decides what becomes of a row."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M,), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, 8), threads=8) as block:
            bits = T.alloc_shared((8,), "int32")
            kept = T.alloc_local((1,), "float32")
            thread = T.get_thread_binding()
            if block * 8 + thread < M:
                bits[thread] = T.reinterpret(x[block * 8 + thread], "int32")
            T.sync_threads()
            if block * 8 + thread < M:
                kept[0] = x[block * 8 + thread]
                if by_value:
                    kept[0] = T.if_then_else(bits[thread ^ partner] > 0, kept[0], 0.0)
                else:
                    if bits[thread ^ partner] < 0:
                        kept[0] = 0.0
                y[block * 8 + thread] = kept[0]

    return kernel


def unpacked(partner=0):
    """A row of two e2m1 a byte as e4m3, four at a time; `partner` has another row's bytes."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 8), "uint8"), y: T.Tensor((M, 16), "float8_e4m3fn")):
        with T.Kernel(T.ceildiv(M, 8), threads=8) as block:
            row = block * 8 + (T.get_thread_binding() ^ partner)
            packed = T.alloc_local((8,), "uint8")
            codes = T.alloc_local((16,), "float8_e4m3fn")
            if (row < M) & (block * 8 + T.get_thread_binding() < M):
                for v in T.vectorized(8):
                    packed[v] = x[row, v]
                for v in T.unroll(4):
                    four = T.reinterpret(packed[T.Ramp(2 * v, 1, 2)], "float4_e2m1fnx4")
                    codes[T.Ramp(4 * v, 1, 4)] = T.Cast("float8_e4m3fnx4", four)
                for v in T.vectorized(16):
                    y[block * 8 + T.get_thread_binding(), v] = codes[v]

    return kernel


def gathered(partner=0, index=0):
    """Eight rows a block, one a thread: a row takes its largest element, and one that an index
    names; `partner` compares with, and `index` asks, another row of the tile."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(
        x: T.Tensor((M, 8), "float32"),
        which: T.Tensor((M,), "int32"),
        y: T.Tensor((M,), "float32"),
        z: T.Tensor((M,), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, 8), threads=8) as block:
            values = T.alloc_shared((8, 8), "float32")
            picks = T.alloc_shared((8,), "int32")
            best = T.alloc_local((1,), "float32")
            thread = T.get_thread_binding()
            row = block * 8 + thread
            for i in T.serial(8):
                values[thread, i] = T.if_then_else(row < M, x[row, i], 0.0)
            picks[thread] = T.if_then_else(row < M, which[row], 0)
            T.sync_threads()
            best[0] = values[thread, 0]
            for i in T.serial(8):
                limit = values[thread ^ partner, i]
                best[0] = T.if_then_else(limit > best[0], values[thread, i], best[0])
            if row < M:
                y[row] = best[0]
                z[row] = x[row, picks[thread ^ index] % 8]

    return kernel


def persistent(trips):
    """Two blocks walk over all rows; each row is summed in ``trips(M)`` strides."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 64), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(2, threads=1) as block:
            total = T.alloc_local((1,), "float32")
            for step in T.serial(T.ceildiv(M, 2)):
                if step * 2 + block < M:
                    total[0] = 0.0
                    for i in T.serial(trips(M)):
                        for j in T.serial(T.ceildiv(64, trips(M))):
                            if j * trips(M) + i < 64:
                                total[0] += x[step * 2 + block, j * trips(M) + i]
                    y[step * 2 + block] = total[0]

    return kernel


def verdict(kernel, **facts):
    lowered = lower(kernel, "sm_80", pass_configs=CONFIGS, keep_stages=True)
    return prove_lowered(lowered, facts=facts, use_cache=False).properties["determinism"]


CLEAN = {
    "own element": totals(columns=True),
    "integer sum": totals("int32"),
    "integer maximum": totals("int32", "max"),
    "fixed split": summed(lambda M, m: 4),
    "own row": read(lambda m: m),
    "fixed column order": read(lambda m: m, lambda m, i: 7 - i),
    "fixed scale": read(lambda m: m, scale=lambda M, m: 3),
    "tile": tiled(),
    "its data decides": chosen(),
    "bits in other lanes": unpacked(),
}
BATCH = {
    "trips by batch size": summed(lambda M, m: T.if_then_else(M < 8, 4, 8)),
    "trips by row": summed(lambda M, m: T.if_then_else(m < 8, 4, 8)),
    "columns by row": read(lambda m: m, lambda m, i: (i + m) % 8),
    "neighbour": read(lambda m: m + 1),
    "size as data": read(lambda m: m, scale=lambda M, m: M),
    "row as data": read(lambda m: m, scale=lambda M, m: m),
    "guard by neighbour": tiled(guard=lambda row, M: row + 1 < M),
    "other row of the tile": tiled(partner=1),
    "a neighbour's data decides": chosen(partner=1),
    "order by place in the tile": tiled(start=lambda row, block, M: row),
    "order in shared memory by block": tiled(start=lambda row, block, M: block),
    "order in shared memory by batch size": tiled(start=lambda row, block, M: M),
    "another row's bits in other lanes": unpacked(partner=1),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean(name):
    found = verdict(CLEAN[name], batch=["M"])
    assert found.verdict is Verdict.PROVED, found


@pytest.mark.parametrize("name", BATCH)
def test_a_row_depends_on_its_batch(name):
    found = verdict(BATCH[name], batch=["M"])
    assert found.verdict in (Verdict.REFUTED, Verdict.ALARM), found
    assert verdict(BATCH[name]).verdict is Verdict.PROVED  # nobody asked for more than that


def test_columns_that_are_not_all_there_are_followed_for_every_number_of_them():
    facts = {"batch": ["M"], "dims": {"N": [2, 1 << 18]}, "multiples": {"N": 2}}
    found = verdict(wide(), **facts)
    assert found.verdict is Verdict.PROVED, found
    some = [lambda left, N, c=c: left == c for c in (2, 4, 6)]  # of the last block
    for swap in (*some, lambda left, N: left >= 8):
        found = verdict(wide(swap), **facts)
        assert found.verdict is Verdict.ALARM, found
        assert "depends on row" in found.reasons[0]
    found = verdict(wide(lambda left, N: N > 99), **facts)
    assert found.verdict is Verdict.UNKNOWN, found


@pytest.mark.parametrize("make", [tiled, alone])
def test_no_output_hangs_on_memory_that_nobody_wrote(make):
    inside = verdict(make(columns=8), batch=["M"])
    assert inside.verdict is Verdict.PROVED, inside
    outside = verdict(make(columns=7), batch=["M"])
    assert outside.verdict is Verdict.ALARM, outside
    assert "depends on memory of its block that nobody wrote" in outside.reasons[0]


def test_a_row_alone_that_is_not_followed_leaves_a_remark():
    lowered = lower(alone(7, lambda x, m, i: x[m, i] > 0), "sm_80", pass_configs=CONFIGS)
    report = prove_lowered(lowered, facts={"batch": ["M"]}, use_cache=False)
    assert report.properties["determinism"].verdict is Verdict.PROVED
    assert any("that nobody wrote is not known" in note for note in report.notes)


def test_a_row_may_choose_by_its_own_data():
    found = verdict(gathered(), batch=["M"])
    assert found.verdict is Verdict.PROVED, found


@pytest.mark.parametrize("kernel", [gathered(partner=1), gathered(index=1)])
def test_a_row_that_chooses_by_anothers_data_depends_on_its_batch(kernel):
    found = verdict(kernel, batch=["M"])
    assert found.verdict in (Verdict.REFUTED, Verdict.ALARM), found


@pytest.mark.parametrize("kernel", [totals(), totals("float32", "max")])
def test_order_of_float_atomics_shows(kernel):
    found = verdict(kernel)
    assert found.verdict is Verdict.REFUTED, found
    (example,) = found.counterexamples
    assert example.confirmed and example.sizes == {"M": 1}
    assert {s.block for s in example.steps} == {(0, 0, 0), (0, 1, 0)}
    assert verdict(kernel, deterministic=False).verdict is Verdict.NOT_APPLICABLE


def test_two_runs_of_one_row_are_shown():
    found = verdict(BATCH["trips by row"], batch=["M"])
    assert found.verdict is Verdict.REFUTED
    message = found.counterexamples[0].message
    assert "4 times" in message and "8 times" in message


def test_what_is_done_may_hang_on_data_that_is_not_followed():
    found = verdict(chosen(by_value=False), batch=["M"])
    assert found.verdict is Verdict.UNKNOWN, found
    assert verdict(chosen(by_value=False)).verdict is Verdict.PROVED


def test_a_persistent_kernel_is_not_refuted_for_its_rows_but_for_its_sums():
    """More rows are more trips, which is no defect; that nothing is carried along is not shown."""
    found = verdict(persistent(lambda M: 4), batch=["M"])
    assert found.verdict is Verdict.UNKNOWN, found
    assert any("loop step goes from row to row" in r for r in found.reasons)
    found = verdict(persistent(lambda M: T.if_then_else(M < 8, 4, 8)), batch=["M"])
    assert found.verdict is Verdict.REFUTED, found
