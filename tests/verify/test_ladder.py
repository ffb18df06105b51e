"""Per property, a kernel just inside the rule and its neighbour just outside."""

from dataclasses import replace

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.dsl import ContractError
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.mutate import without_int64
from tileproof.verify.props import PROPERTIES

from . import test_races, test_tma

# Without TileLang's own guards, so that only what the kernel says protects it.
CONFIGS = {
    "tl.disable_safe_memory_legalize": True,
    "tl.disable_tma_lower": True,
    "tl.disable_warp_specialized": True,
}


def rows(columns=128, step=4, inclusive=False, doubled=False):
    """Each warp copies one row of a block's four, four columns a thread."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, columns), "float32"), y: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(M, step), threads=128) as block:
            thread = T.get_thread_binding()
            m = block * step + thread // 32
            if (m <= M) if inclusive else (m < M):
                for v in T.vectorized(4):
                    y[m, thread % 32 * 4 + v] = x[m, thread % 32 * 4 + v]
                if doubled:
                    for v in T.vectorized(4):
                        y[m, thread % 32 * 4 + v] = 0.0

    return kernel


def one_row(columns=4096):
    """A block per row, a thread per column modulo 128."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, columns), "float32"), y: T.Tensor((M, columns), "float32")):
        with T.Kernel(M, threads=128) as m:
            for i in T.serial(columns // 128):
                d = i * 128 + T.get_thread_binding()
                y[m, d] = x[m, d]

    return kernel


def waves(wave=4, blocks=4, step=2):
    """Blocks take a row each of every wave of rows, two of them half a row each."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 256), "float32")):
        with T.Kernel(2, blocks, threads=32) as (half, own):
            for now in T.serial(T.ceildiv(M, wave)):
                m = now * wave + own
                if m < M:
                    for i in T.serial(2):
                        for v in T.vectorized(2):
                            d = (i * step + half) * 64 + T.get_thread_binding() * 2 + v
                            y[m, d] = 0.0

    return kernel


def flat():
    """One flat tensor: the host divides its length by the row's."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M * 7168,), "float32")):
        with T.Kernel(M, 7168 // 128, threads=128) as (m, part):
            y[T.cast(m, "int64") * 7168 + part * 128 + T.get_thread_binding()] = 0.0

    return kernel


def tall():
    """Rows along the grid's second axis."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(1, M, threads=128) as (_, m):
            y[m, T.get_thread_binding()] = 0.0

    return kernel


def columns_written(threads, copies=1):
    """`threads` threads write a row of 128 columns, `copies` of them the same one."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=threads) as m:
            y[m, T.get_thread_binding() // copies] = 0.0

    return kernel


def tiles(blocks, columns=64 * 1030, step=64):
    """Tiles of 64 x 64, too many in a row of blocks to enumerate the elements of all."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, columns), "float32")):
        with T.Kernel(blocks, T.ceildiv(M, 64), threads=128) as (j, i):
            for m, n in T.Parallel(64, 64):
                if (i * 64 + m < M) & (j * step + n < columns):
                    y[i * 64 + m, j * step + n] = 0.0

    return kernel


def added(cleared=False):
    """Each thread adds onto its element, which it may have cleared before."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            t = T.get_thread_binding()
            if cleared:
                y[m, t] = 0.0
            T.atomic_add(y[m, t], x[m, t])

    return kernel


def scaled(parts=1):
    """Each element times the number of rows, rounded down to a multiple of `parts` of them."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            t = T.get_thread_binding()
            y[m, t] = x[m, t] * T.cast(M // parts, "float32")

    return kernel


def short(most=50):
    """A kernel that says itself how many rows there are at most."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            T.device_assert(most >= M)
            y[m, T.get_thread_binding()] = 0.0

    return kernel


def staged(size):
    """A block of 128 threads passes values through `size` floats of shared memory."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            buffer = T.alloc_shared((size,), "float32")
            thread = T.get_thread_binding()
            buffer[thread] = x[m, thread]
            y[m, thread] = buffer[127 - thread]

    return kernel


def split_sum(parts=4):
    """A symbolic stride times a block index: partial results of every row."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((parts, M, 24), "float32")):
        with T.Kernel(T.ceildiv(M, 4), parts, threads=96) as (block, part):
            thread = T.get_thread_binding()
            if block * 4 + thread // 24 < M:
                y[part, block * 4 + thread // 24, thread % 24] = 0.0

    return kernel


def gather(guarded=False):
    """Rows picked by an index tensor."""
    M, R = T.dynamic("M"), T.dynamic("R")

    @T.prim_func
    def kernel(
        x: T.Tensor((R, 128), "float32"),
        rows: T.Tensor((M,), "int32"),
        y: T.Tensor((M, 128), "float32"),
    ):
        with T.Kernel(M, threads=128) as m:
            thread = T.get_thread_binding()
            if not guarded or rows[m] >= 0:
                y[m, thread] = x[rows[m], thread]

    return kernel


def scattered():
    """The row each block writes is shifted by data that passes through shared memory."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(shift: T.Tensor((M,), "int32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            buffer = T.alloc_shared((128,), "int32")
            thread = T.get_thread_binding()
            buffer[thread] = shift[m]
            y[m + buffer[127 - thread], thread] = 0.0

    return kernel


def strided(row=0, column=0, lanes=1, width=128, backwards=False):
    """Rows of 128 lie S apart; each block writes one, `row` and `column` further than it should."""
    M, S = T.dynamic("M"), T.dynamic("S")

    @T.prim_func
    def kernel(y: T.StridedTensor((M, 128), (S, 1), "float32")):
        with T.Kernel(M, threads=width // lanes) as m:
            T.assume(S % lanes == 0)
            for i in T.vectorized(lanes):
                r = M - 1 - m if backwards else m + row
                y[r, T.get_thread_binding() * lanes + i + column] = 0.0

    return kernel


def gemm():
    """A pipelined matrix product whose shared tiles only cp.async and ldmatrix touch."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(
        x: T.Tensor((M, 128), "bfloat16"),
        w: T.Tensor((128, 64), "bfloat16"),
        y: T.Tensor((M, 64), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
            a = T.alloc_shared((64, 32), "bfloat16")
            b = T.alloc_shared((32, 64), "bfloat16")
            c = T.alloc_fragment((64, 64), "float32")
            T.clear(c)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(x[block * 64, k * 32], a)
                T.copy(w[k * 32, 0], b)
                T.gemm(a, b, c)
            T.copy(c, y[block * 64, 0])

    return kernel


def run(kernel, change=None, written="once", **facts):
    lowered = lower(kernel, "sm_80", pass_configs=CONFIGS, keep_stages=True)
    if written is not None:
        facts = {"written": {"y": written}, **facts}
    return prove_lowered(change(lowered) if change else lowered, facts=facts, use_cache=False)


def dims(**highest):
    return {"dims": {name: [0, hi] for name, hi in highest.items()}}


LADDER = {
    "guard": ("bounds", (rows, {}, {}), (rows, {"inclusive": True}, {})),
    "shared": ("bounds", (staged, {"size": 128}, {}), (staged, {"size": 127}, {})),
    "index width": (
        "overflow",
        (one_row, {}, {"change": without_int64, **dims(M=1 << 19)}),
        (one_row, {}, {"change": without_int64, **dims(M=(1 << 19) + 1)}),
    ),
    "host cast": ("overflow", (flat, {}, dims(M=299593)), (flat, {}, dims(M=299594))),
    "grid limit": ("limits", (tall, {}, dims(M=65535)), (tall, {}, dims(M=65536))),
    "assertion": ("asserts", (short, {}, dims(M=50)), (short, {}, dims(M=51))),
    "stride of vectors": (
        "alignment",
        (strided, {"lanes": 4}, {"multiples": {"S": 4}}),
        (strided, {"lanes": 4}, {"multiples": {"S": 2}}),
    ),
    # Up to 8 rows are all one batch to it.
    "size as data": (
        "determinism",
        (scaled, {"parts": 8}, {"batch": ["M"], **dims(M=7)}),
        (scaled, {"parts": 8}, {"batch": ["M"], **dims(M=8)}),
    ),
    "row step": ("blocks", (rows, {"step": 4}, {}), (rows, {"step": 3}, {})),
    "rows of waves": ("blocks", (waves, {"wave": 4}, {}), (waves, {"wave": 3}, {})),
    "parts of a row": ("blocks", (waves, {"step": 2}, {}), (waves, {"step": 1}, {})),
    "blocks of a wave": ("blocks", (waves, {"blocks": 4}, {}), (waves, {"blocks": 5}, {})),
    "missing": (
        "coverage",
        (columns_written, {"threads": 128}, {}),
        (columns_written, {"threads": 127}, {}),
    ),
    "many tiles": ("coverage", (tiles, {"blocks": 1030}, {}), (tiles, {"blocks": 1029}, {})),
    "last tile in part": (
        "coverage",
        (tiles, {"blocks": 1031, "columns": 64 * 1030 + 1}, {}),
        (tiles, {"blocks": 1030, "columns": 64 * 1030 + 1}, {}),
    ),
    "tiles that overlap": (
        "coverage",
        (tiles, {"blocks": 1046}, {}),
        (tiles, {"blocks": 1047, "step": 63}, {}),
    ),
    "twice by a thread pair": (
        "coverage",
        (columns_written, {"threads": 256, "copies": 2}, {"written": "all"}),
        (columns_written, {"threads": 256, "copies": 2}, {}),
    ),
    "twice by one thread": (
        "coverage",
        (rows, {"doubled": True}, {"written": "all"}),
        (rows, {"doubled": True}, {}),
    ),
}


@pytest.mark.parametrize("rung", LADDER)
def test_inside_is_proved_and_outside_refuted(rung):
    name, (inside, kwargs, facts), (outside, bad_kwargs, bad_facts) = LADDER[rung]
    good = run(inside(**kwargs), **facts)
    assert good.verdict is Verdict.PROVED, good
    bad = run(outside(**bad_kwargs), **bad_facts).properties[name]
    assert bad.verdict is Verdict.REFUTED, bad
    assert all(e.confirmed and e.property == name for e in bad.counterexamples)


def test_every_property_has_a_rung():
    """Tensor maps take a program with TMA, synchronisation two threads: their ladders are there."""
    rungs = {name for name, *_ in (*LADDER.values(), *test_races.LADDER.values())}
    rungs |= {broken for *_, broken in test_tma.OUTSIDE.values()}
    assert rungs == {p.name for p in PROPERTIES}


def test_a_solver_that_hangs_is_stopped_and_proves_nothing(monkeypatch):
    """No wait of ours is too short for a solver that has no time at all."""
    monkeypatch.setattr("tileproof.verify.encode._MOST_SECONDS", 0)
    report = run(strided(backwards=True))
    assert report.verdict is Verdict.UNKNOWN
    blocks = report.properties["blocks"]
    assert blocks.verdict is Verdict.UNKNOWN and "the solver hung" in blocks.reasons[0]


def test_a_grid_without_blocks_writes_nothing():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M // 4, 4, threads=128) as (block, row):
            y[block * 4 + row, T.get_thread_binding()] = 0.0

    found = run(kernel).properties["coverage"]
    assert found.verdict is Verdict.REFUTED, found
    assert found.counterexamples[0].message == "y[0] of 128 is never written (0 are)"


def test_a_sum_onto_what_was_there_is_no_write():
    coverage = run(added()).properties["coverage"]
    assert coverage.verdict is Verdict.ALARM
    assert "onto what y held before" in coverage.reasons[0]
    for kernel, facts in ((added(), {"inout": ["y"]}), (added(cleared=True), {})):
        report = run(kernel, written="all", **facts)
        assert report.properties["coverage"].verdict is Verdict.PROVED, report


def test_counterexample_names_block_thread_and_tokens():
    example = run(rows(inclusive=True)).properties["bounds"].counterexamples[0]
    assert example.sizes == {"M": 1} and example.block == (0, 0, 0)
    assert example.thread == (32, 0, 0)  # the first thread of the row that does not exist
    assert (example.buffer, example.offset, example.extent) == ("x", 128, 128)


def test_smallest_overflowing_size_is_found():
    report = run(one_row(), change=without_int64, **dims(M=1 << 20))
    example = report.properties["overflow"].counterexamples[0]
    assert example.sizes == {"M": (1 << 19) + 1}
    # Proofs over unbounded integers say nothing once integers wrap.
    assert report.properties["bounds"].verdict is Verdict.UNKNOWN


def test_two_blocks_that_meet_are_both_named():
    example = run(rows(step=3)).properties["blocks"].counterexamples[0]
    assert example.confirmed and "both write" in example.message
    assert [s.block for s in example.steps] == [(0, 0, 0), (1, 0, 0)]


def test_missing_element_is_named():
    example = run(columns_written(127)).properties["coverage"].counterexamples[0]
    assert example.offset == 127 and example.sizes == {"M": 1}


def test_symbolic_stride_is_proved():
    assert run(split_sum()).verdict is Verdict.PROVED


@pytest.mark.parametrize(
    ("values", "guarded", "verdict"),
    [
        (["0", "R-1"], False, Verdict.PROVED),
        (["0", "R"], False, Verdict.ALARM),
        (["-1", "R-1"], False, Verdict.ALARM),
        (["-1", "R-1"], True, Verdict.PROVED),
        (None, False, Verdict.ALARM),
    ],
)
def test_index_contract_decides_a_gather(values, guarded, verdict):
    facts = {"values": {"rows": values}} if values else {}
    bounds = run(gather(guarded), written=None, **dims(M=100, R=100), **facts).properties["bounds"]
    assert bounds.verdict is verdict, bounds


def picked(how):
    """Elements that indices choose, zero where there is none."""
    M, R = T.dynamic("M"), T.dynamic("R")

    @T.prim_func
    def kernel(
        rows: T.Tensor((M,), "int32"), x: T.Tensor((R,), "float32"), y: T.Tensor((M,), "float32")
    ):
        with T.Kernel(M, threads=32) as m:
            if T.get_thread_binding() == 0:
                r = rows[m]
                if how == "chosen":
                    y[m] = T.Select(r >= 0, x[r], T.float32(0))
                if how == "beyond":
                    y[m] = T.Select(r >= 0, x[r + 1], T.float32(0))
                if how == "branch":
                    y[m] = T.Select(r >= 0, T.if_then_else(r < 5, x[r], T.float32(0)), T.float32(0))
                if how == "nested":
                    inner = T.if_then_else(r < 5, x[r], T.float32(0))
                    y[m] = T.Select(r >= 0, T.Select(r > 3, T.float32(0), inner), T.float32(0))

    return kernel


@pytest.mark.parametrize(
    ("how", "text", "verdict"),
    [
        ("chosen", "? x[", Verdict.PROVED),
        ("beyond", "? x[", Verdict.ALARM),
        # printed before the selection as a branch, which knows the condition of the innermost one
        ("branch", "? condval", Verdict.PROVED),
        ("nested", ": condval", Verdict.ALARM),
    ],
)
def test_a_selection_reads_the_side_that_its_text_reads(how, text, verdict):
    lowered = lower(picked(how), "sm_80", pass_configs=CONFIGS)
    (line,) = [line for line in lowered.cuda.splitlines() if "y[" in line and " = " in line]
    assert text in line
    facts = {"values": {"rows": ["-1", "R-1"]}, **dims(M=100, R=100)}
    bounds = prove_lowered(lowered, facts=facts, use_cache=False).properties["bounds"]
    assert bounds.verdict is verdict, (line, bounds)


def test_store_that_depends_on_data_is_not_called_covered():
    facts = {"values": {"rows": ["-1", "R-1"]}}
    report = run(gather(guarded=True), **dims(M=100, R=100), **facts)
    assert report.properties["coverage"].verdict is Verdict.UNKNOWN


def test_data_differs_between_blocks():
    """A value from shared memory is each block's own; its row may be any other block's."""
    blocks = run(scattered()).properties["blocks"]
    assert blocks.verdict is Verdict.UNKNOWN
    assert "may be so" in blocks.reasons[0]


def test_rows_that_lie_apart_are_proved():
    report = run(strided())
    asked = {p.verdict for p in report.properties.values()} - {Verdict.NOT_APPLICABLE}
    assert asked == {Verdict.PROVED}
    assert "y is strided (S, 1) without overlap and aligned to 16 bytes" in report.assumptions


@pytest.mark.parametrize(
    ("shift", "offset"),
    [({"row": 1}, 128), ({"column": 1}, 128), ({"column": -1}, -1), ({"row": -1}, -128)],
)
def test_an_access_beyond_a_row_is_refuted_even_if_memory_goes_on(shift, offset):
    bounds = run(strided(**shift)).properties["bounds"]
    assert bounds.verdict is Verdict.REFUTED
    example = bounds.counterexamples[0]
    assert example.offset == offset and "not all within a row" in example.message


def test_the_solver_knows_that_rows_do_not_overlap():
    """Block indices that count down are no leading digits: the general question is asked."""
    assert run(strided(backwards=True)).properties["blocks"].verdict is Verdict.PROVED


def test_a_hole_in_a_row_is_refuted_and_a_gap_between_rows_is_none():
    assert run(strided(width=128)).properties["coverage"].verdict is Verdict.PROVED
    short = run(strided(width=96)).properties["coverage"]
    assert short.verdict is Verdict.REFUTED
    assert short.counterexamples[0].offset == 96


@pytest.mark.parametrize(
    ("multiple", "verdict"),
    [(4, Verdict.PROVED), (8, Verdict.PROVED), (2, Verdict.REFUTED), (1, Verdict.REFUTED)],
)
def test_vectors_need_a_stride_that_keeps_their_alignment(multiple, verdict):
    report = run(strided(lanes=4), multiples={"S": multiple})
    assert report.properties["alignment"].verdict is verdict
    assert report.properties["bounds"].verdict is Verdict.PROVED


def test_strides_can_be_stated_and_must_be_those_of_the_kernel():
    assert run(strided(), strides={"y": [["S", 1]]}).properties["bounds"]
    with pytest.raises(ContractError, match=r"strides of y: got \['S', '1'\], expected \['M', 1\]"):
        run(strided(), strides={"y": [["M", 1]]})


def test_dynamic_gemm_is_proved_where_copies_are_guarded():
    guarded = {**CONFIGS, "tl.disable_safe_memory_legalize": False}
    lowered = lower(gemm(), "sm_80", pass_configs=guarded, keep_stages=True)
    report = prove_lowered(lowered, facts={"written": {"y": "once"}}, use_cache=False)
    assert report.verdict is Verdict.PROVED, report
    # Without the stages nothing says how large the tiles are.
    bare = prove_lowered(replace(lowered, stages={}), use_cache=False)
    assert bare.properties["bounds"].verdict is Verdict.UNKNOWN
    assert any("no extent is known" in r for r in bare.properties["bounds"].reasons)


def chosen(default=True, scattered=False):
    """Row m of y is the row of x that an index names, or zeros where it names none."""
    M, R = T.dynamic("M"), T.dynamic("R")

    @T.prim_func
    def kernel(
        x: T.Tensor((R, 64), "float32"),
        rows: T.Tensor((M,), "int32"),
        y: T.Tensor((M, 64), "float32"),
    ):
        with T.Kernel(M, threads=64) as m:
            t = T.get_thread_binding()
            if scattered:
                if rows[m] < M:
                    y[rows[m], t] = 0.0
            elif rows[m] >= 0:
                y[m, t] = x[rows[m], t]
            elif default:
                y[m, t] = 0.0

    return kernel


@pytest.mark.parametrize(
    ("kernel", "verdict", "reason"),
    [
        (chosen(), Verdict.PROVED, ""),
        (chosen(default=False), Verdict.UNKNOWN, "a store depends on the value of data"),
        (chosen(scattered=True), Verdict.UNKNOWN, "no contract that it never says it twice"),
    ],
)
def test_data_may_decide_what_is_stored_but_not_whether_or_where(kernel, verdict, reason):
    lowered = lower(kernel, "sm_80", pass_configs=CONFIGS, keep_stages=True)
    facts = {
        "dims": {"M": [0, 1 << 20], "R": [1, 1 << 20]},
        "values": {"rows": [0, "R-1"]},
        "none": {"rows": -1},
        "written": {"y": "once"},
    }
    coverage = prove_lowered(lowered, facts=facts, use_cache=False).properties["coverage"]
    assert coverage.verdict is verdict
    assert reason in " ".join(coverage.reasons)
