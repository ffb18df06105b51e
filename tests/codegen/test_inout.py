"""Ops that change a tensor in part, at places an index chooses: build, launch, contracts, proof."""

from dataclasses import replace

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.dsl import In, InOut, Op, Values, derived, dim, registry, static
from tileproof.kernels.row_stream import OPTIONS
from tileproof.runtime import load
from tileproof.sanitizer import sanitize
from tileproof.verify import prove

NAME = "test/store_rows"
SIZES = {"E": 4, "D": 32}


def reference(x, slot, left, right):
    """Columns 0..D-1 to `left`, the others to `right`."""
    there = slot >= 0
    where = slot[there].long() // left.shape[1], slot[there].long() % left.shape[1]
    left[where], right[where] = x[there].split(left.shape[2], -1)


@pytest.fixture(scope="module")
def op():
    """Rows of x into pages, at slots that are all different; the pages' parts are two views."""
    made = Op(
        NAME,
        args=(
            In("x", "M D2", "f32"),
            In("slot", "M", "i32", values=Values("0", "Z*E-1", none=-1, distinct=True)),
            InOut("left", "Z E D", "f32", strides="P S 1"),
            InOut("right", "Z E D", "f32", strides="P S 1"),
        ),
        dims={
            "M": dim(0, 1 << 20, batch=True),
            "Z": dim(0, 1 << 20),
            "E": static(1, 64),
            "D": static(32, 64),
            "D2": derived(lambda D: 2 * D),
            "S": derived(lambda D: 2 * D),
            "P": dim(4, 1 << 20, multiple=4),
        },
        doc="rows into pages",
        reference=reference,
        shapes={},
    )

    @made.kernel(**OPTIONS)
    def store_rows(T, M, Z, E, D, D2, S, P):
        @T.prim_func
        def kernel(
            x: T.Tensor((M, D2), "float32"),
            slot: T.Tensor((M,), "int32"),
            left: T.StridedTensor((Z, E, D), (P, S, 1), "float32"),
            right: T.StridedTensor((Z, E, D), (P, S, 1), "float32"),
        ):
            with T.Kernel(M, threads=D) as m:
                d = T.get_thread_binding()
                if slot[m] >= 0:
                    left[slot[m] // E, slot[m] % E, d] = x[m, d]
                    right[slot[m] // E, slot[m] % E, d] = x[m, D + d]

        return kernel

    yield made
    del registry._OPS[NAME]


def specialized(op):
    return op.specialize(**SIZES)


@pytest.fixture(scope="module")
def bundle(op, tmp_path_factory):
    return build([specialized(op)], ["sm_80"], tmp_path_factory.mktemp("store") / "b")


def pages(count=3, gap=64):
    """[count, 4, 64] pages with a gap behind each, and their two halves."""
    memory = torch.full((count, 4 * 64 + gap), -7.0)
    whole = memory[:, : 4 * 64].view(count, 4, 64)
    return memory, whole[..., :32], whole[..., 32:]


def test_what_the_index_names_changes_and_nothing_else(bundle):
    load(bundle, backend="virtual")
    x, slot = torch.randn(5, 64), torch.tensor([11, -1, 0, 6, -1], dtype=torch.int32)
    memory, left, right = pages()
    expected, *views = pages()
    reference(x, slot, *views)
    with torch.no_grad():
        for _ in range(2):  # the second call takes the way without Python
            assert torch.ops.tileproof.test_store_rows(x, slot, left, right) is None
    assert torch.equal(memory, expected)
    assert int((memory == -7).sum()) == memory.numel() - 3 * 64


def test_torch_knows_what_is_changed(bundle):
    load(bundle, backend="virtual")
    schema = torch.ops.tileproof.test_store_rows.default._schema
    assert not schema.returns
    assert [a.name for a in schema.arguments if a.is_write] == ["left", "right"]

    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(x, slot, memory):
        whole = memory[:, : 4 * 64].view(-1, 4, 64)
        left, right = whole[..., :32], whole[..., 32:]
        torch.ops.tileproof.test_store_rows(2 * x, slot, left, right)
        return memory + 1

    memory, _, _ = pages()
    x, slot = torch.randn(2, 64), torch.tensor([5, 2], dtype=torch.int32)
    with torch.no_grad():
        out = twice(x, slot, memory)
    expected, *views = pages()
    reference(2 * x, slot, *views)
    assert torch.equal(memory, expected) and torch.equal(out, expected + 1)


def test_two_rows_for_one_place_are_refused(bundle, capfd):
    library = load(bundle, backend="virtual")
    _, left, right = pages()
    slot = torch.full((300,), -1, dtype=torch.int32)
    slot[[3, 299]] = 7
    with pytest.raises(RuntimeError, match="slot: got two equal elements, expected none"):
        library["test/store_rows"](torch.randn(300, 64), slot, left, right)
    printed = capfd.readouterr().out
    assert "slot: got elements 3 and 299 = 7, expected no two equal" in printed


def test_views_may_lie_between_each_other_but_not_over(bundle):
    """Parts of one page pass; a part twice, parts that overlap, and other distances do not."""
    call = load(bundle, backend="virtual")["test/store_rows"]
    x, slot = torch.randn(1, 64), torch.tensor([1], dtype=torch.int32)
    memory, left, right = pages()
    call(x, slot, right, left)
    flat = memory.view(-1)
    strides = left.stride()
    for first in (0, 4, 28):
        other = flat.as_strided((2, 4, 32), strides, first)
        with pytest.raises(ValueError, match="left: got memory that overlaps right"):
            call(x, slot, left[:2], other)
    call(x, slot, left[:2], flat.as_strided((2, 4, 32), strides, 32))
    # it starts behind left's last entry and would reach into the next page
    with pytest.raises(ValueError, match="overlaps"):
        call(x, slot, left[:2], flat.as_strided((2, 4, 32), strides, 4 * 64))


def test_blocks_keep_apart_because_the_index_is_distinct(op):
    spec = specialized(op)
    (report,) = prove(spec, "sm_80", use_cache=False).kernels
    assert report.verdict == "PROVED"
    assert "no two elements of slot are equal, -1 aside" in report.assumptions
    values = replace(op.args[1].values, distinct=False)
    args, op.args = op.args, (op.args[0], replace(op.args[1], values=values), *op.args[2:])
    try:
        (report,) = prove(spec, "sm_80", use_cache=False).kernels
    finally:
        op.args = args
    assert report.properties["blocks"].verdict == "ALARM"
    assert report.properties["determinism"].verdict == "ALARM"


def test_a_row_that_reads_its_neighbour_is_no_batch_invariant(op):
    def neighbour(T, M, Z, E, D, D2, S, P):
        @T.prim_func
        def kernel(
            x: T.Tensor((M, D2), "float32"),
            slot: T.Tensor((M,), "int32"),
            left: T.StridedTensor((Z, E, D), (P, S, 1), "float32"),
            right: T.StridedTensor((Z, E, D), (P, S, 1), "float32"),
        ):
            with T.Kernel(M, threads=D) as m:
                d = T.get_thread_binding()
                if (slot[m] >= 0) & (m > 0):
                    left[slot[m] // E, slot[m] % E, d] = x[m - 1, d]
                    right[slot[m] // E, slot[m] % E, d] = x[m, D + d]

        return kernel

    variant = op.variants[0]
    op.variants[0] = replace(variant, factory=neighbour)
    try:
        (report,) = prove(specialized(op), "sm_80", use_cache=False).kernels
    finally:
        op.variants[0] = variant
    assert report.properties["determinism"].verdict != "PROVED"


def test_samples_keep_the_contract(op):
    (report,) = sanitize(specialized(op), arch="sm_80").kernels
    assert report.verdict == "CLEAN"
