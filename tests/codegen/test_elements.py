"""Contracts on the elements of index tensors are checked on the device before the op runs."""

from dataclasses import replace

import pytest
import torch

from tileproof.codegen import elements
from tileproof.codegen.build import build
from tileproof.dsl import ContractError, In, Op, Out, Values, dim, registry, static
from tileproof.runtime import load
from tileproof.verify import prove

NAME = "test/gather_rows"


@pytest.fixture(scope="module")
def op():
    """Rows of x by index, zeros where the index is -1."""
    made = Op(
        NAME,
        args=(
            In("x", "T D", "f32"),
            In("idx", "M K", "i32", values=Values("0", "T-1", none=-1, monotone=True)),
            Out("y", "M K D", "f32"),
        ),
        dims={
            "M": dim(0, 1 << 20, batch=True),
            "T": dim(0, 1 << 20),
            "K": static(1, 64),
            "D": static(32, 128),
        },
        doc="rows by index",
        reference=lambda x, idx: x,
        shapes={},
    )

    @made.kernel(
        pass_configs={"tl.disable_tma_lower": True, "tl.disable_safe_memory_legalize": True}
    )
    def gather_rows(T, T_, M, K, D):
        @T.prim_func
        def kernel(
            x: T.Tensor((T_, D), "float32"),
            idx: T.Tensor((M, K), "int32"),
            y: T.Tensor((M, K, D), "float32"),
        ):
            with T.Kernel(M, threads=D) as m:
                d = T.get_thread_binding()
                for k in T.serial(K):
                    y[m, k, d] = T.if_then_else(idx[m, k] >= 0, x[idx[m, k], d], 0)

        return kernel

    yield made
    del registry._OPS[NAME]


@pytest.fixture(scope="module")
def bundle(op, tmp_path_factory):
    return build([op.specialize(K=4, D=32)], ["sm_80"], tmp_path_factory.mktemp("gather") / "b")


def call(library, idx, rows=5):
    x = torch.arange(rows * 32).float().view(rows, 32) + 1
    return x, library["test/gather_rows"](x, torch.tensor(idx, dtype=torch.int32).view(-1, 4))


def test_indices_within_their_contract_pass(bundle):
    idx = [[-1, 0, 3, 4], [0, 0, 0, 0], [-1, -1, -1, 4]] * 100
    x, y = call(load(bundle, backend="virtual"), idx)
    index = torch.tensor(idx)
    assert torch.equal(y, torch.where(index[..., None] >= 0, x[index.clamp_min(0)], 0))


@pytest.mark.parametrize("bad", [5, -2, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("place", [0, 1203])
def test_an_index_outside_is_refused_before_the_op_reads_through_it(bundle, capfd, bad, place):
    idx = torch.full((1204,), 4)
    idx[place] = bad
    with pytest.raises(RuntimeError, match=r"idx: got an element outside its contract, expected 0"):
        call(load(bundle, backend="virtual"), idx.tolist())
    printed = capfd.readouterr().out
    assert f"test/gather_rows: idx: got element {place} = {bad}, expected 0..4" in printed


def test_a_decreasing_row_is_refused_and_a_new_row_may_start_lower(bundle):
    library = load(bundle, backend="virtual")
    call(library, [[1, 2, 3, 4], [0, 1, 1, 4]])
    with pytest.raises(RuntimeError, match="not decreasing along a row"):
        call(library, [[1, 2, 3, 4], [0, 2, 1, 4]])


def test_without_rows_only_none_is_an_index(bundle):
    library = load(bundle, backend="virtual")
    assert not call(library, [[-1] * 4], rows=0)[1].any()
    with pytest.raises(RuntimeError, match="outside its contract"):
        call(library, [[0] * 4], rows=0)


def test_no_index_at_all_checks_nothing(bundle):
    assert call(load(bundle, backend="virtual"), [])[1].shape == (0, 4, 32)


def test_the_check_can_be_left_to_the_caller(bundle):
    """The op's own access is then what the checked build of the virtual GPU sees."""
    from tileproof.runtime import virtual

    library = load(bundle, backend="virtual", check_elements=False)
    with virtual.options(checked=True), pytest.raises(RuntimeError, match="out of bounds: read"):
        call(library, [[-1, 0, 3, 1000]])


def test_the_proof_rests_on_what_the_launch_checks(op):
    spec = op.specialize(K=4, D=32)
    (report,) = prove(spec, "sm_80", use_cache=False).kernels
    assert report.properties["bounds"].verdict == "PROVED"
    assert "0 <= idx[...] <= T - 1 or -1" in report.assumptions
    free = replace(op.args[1], values=None)
    args, op.args = op.args, (op.args[0], free, op.args[2])
    try:
        (report,) = prove(spec, "sm_80", use_cache=False).kernels
    finally:
        op.args = args
    assert report.properties["bounds"].verdict == "ALARM"


def test_a_contract_needs_integers(op):
    spec = op.specialize(K=4, D=32)
    values = Values("0", "T-1")
    args, op.args = op.args, (replace(op.args[0], values=values), *op.args[1:])
    try:
        with pytest.raises(ContractError, match=r"element contract of x: got f32, expected one of"):
            elements.kernel(spec)
    finally:
        op.args = args
