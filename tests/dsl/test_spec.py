"""The declaration layer: domains, specialization, shapes, strategies, one-sentence errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tileproof.dsl import (
    ContractError,
    In,
    Op,
    Out,
    Values,
    arch,
    derived,
    dim,
    dtype,
    expression,
    load_library,
    registry,
    static,
    strategies,
)


@pytest.fixture(scope="module")
def op() -> Iterator[Op]:
    declared = Op(
        "test/gather",
        args=(
            In("x", "T D", "act"),
            In("idx", "M K", "i64", values=Values("0", "T-1", none=-1)),
            Out("y", "M S D", "act"),
        ),
        dims={
            "M": dim(0, 1 << 20, batch=True),
            "T": dim(0, 4096, multiple=4),
            "D": static(32, 8192, multiple=32),
            "K": static(1, 8),
            "S": derived(lambda D, K: D // 32 * K),
        },
        types={"act": ("bf16", "f32")},
        params={"eps": 1e-6, "iters": 20},
        doc="a test op",
        reference=lambda x, idx: x,
        shapes={"tiny": {"D": 64, "K": 2, "M": [0, 3], "T": 8}},
    )
    yield declared
    del registry._OPS["test/gather"]


def test_specialize_fills_derived_dims_defaults_and_a_c_symbol(op: Op) -> None:
    spec = op.specialize(D=64, K=2)
    assert dict(spec.dims) == {"D": 64, "K": 2, "S": 4}
    assert spec.symbol == "test_gather__bf16_D64_K2"
    other = op.specialize(D=64, K=2, eps=1e-20, act="f32")
    assert other.symbol == "test_gather__f32_D64_K2_eps1em20"
    assert other.symbol.isidentifier()


def test_bound_tensors_mix_numbers_and_letters(op: Op) -> None:
    x, idx, y = op.specialize(D=96, K=2, act="f32").args
    assert x.shape == ("T", 96)
    assert x.dtype == dtype("f32")
    assert idx.shape == ("M", 2)
    assert y.shape == ("M", 6, 96)
    assert op.specialize(D=96, K=2).bind(M=7, T=8)["y"] == (7, 6, 96)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"D": 48, "K": 2}, "test/gather: dim D: got 48, expected a multiple of 32"),
        ({"D": 64, "K": 9}, r"test/gather: dim K: got 9, expected 1\.\.8"),
        ({"K": 2}, "test/gather: dim D: got none, expected a size"),
        ({"D": 64, "K": 2, "Q": 1}, r"test/gather: sizes: got \['Q'\], expected among"),
        ({"D": 64, "K": 2, "act": "f16"}, "test/gather: type act: got f16, expected one of bf16"),
    ],
)
def test_a_bad_size_is_one_sentence(op: Op, sizes: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        op.specialize(**sizes)


def test_a_dynamic_size_out_of_its_domain_is_refused(op: Op) -> None:
    with pytest.raises(ContractError, match=r"dim M: got 1048577, expected 0\.\.1048576"):
        op.specialize(D=64, K=2).bind(M=(1 << 20) + 1, T=4)


def test_a_letter_without_a_domain_is_refused() -> None:
    with pytest.raises(ContractError, match=r"test/bad: dims: got no domain for \{'Z'\}"):
        Op("test/bad", (In("x", "Z", "f32"),), {}, "", lambda x: x, {})
    assert "test/bad" not in registry._OPS


def test_a_second_op_of_one_name_is_refused(op: Op) -> None:
    with pytest.raises(ContractError, match="op name: got test/gather twice"):
        registry.add(op)


def test_shape_sets_are_every_type_and_every_dynamic_size(op: Op) -> None:
    specs, points = op.shape_set("tiny")
    assert [s.types["act"] for s in specs] == ["bf16", "f32"]
    assert points == [{"M": 0, "T": 8}, {"M": 3, "T": 8}]


def test_a_missing_variant_names_the_archs_that_exist(op: Op) -> None:
    with pytest.raises(ContractError, match="test/gather: architecture: got sm_80"):
        op.variant("sm_80")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ContractError, match=r"architecture: got 'sm_70', expected one of sm_80"):
        arch("sm_70")
    with pytest.raises(ContractError, match=r"element type: got 'fp8', expected one of bool"):
        dtype("fp8")


@given(data=st.data())
def test_drawn_sizes_lie_in_the_domain_and_reach_its_edges(op: Op, data: st.DataObject) -> None:
    sizes = data.draw(strategies.sizes(op))
    for letter, value in sizes.items():
        op.dims[letter].check(letter, value)
    assert {0, 1, 31, 32, 33, 257} <= set(strategies.edges(op.dims["M"], 32, 257))


@given(seed=st.integers(0, 99))
def test_drawn_indices_keep_their_contract_and_hit_its_ends(op: Op, seed: int) -> None:
    spec = op.specialize(D=32, K=4)
    idx = strategies.inputs(spec, {"M": 16, "T": 8}, seed)["idx"]
    assert {-1, 0, 7} <= set(np.unique(idx)) <= set(range(-1, 8))
    empty = strategies.inputs(spec, {"M": 16, "T": 0}, seed)["idx"]
    assert set(np.unique(empty)) == {-1}


@pytest.fixture
def sliced() -> Iterator[Op]:
    declared = Op(
        "test/sliced",
        args=(In("x", "M N D", "f32", strides="P Q 1"), Out("y", "M D", "f32", strides="R 1")),
        dims={
            "M": dim(0, 99),
            "N": static(1, 8),
            "D": static(1, 64),
            "P": dim(16, 4096, multiple=8),
            "Q": dim(0, 256, multiple=4),
            "R": dim(0, 256),
        },
        doc="a test op",
        reference=lambda x: x,
        shapes={"tiny": {"N": 2, "D": 6, "M": [1, 3]}, "wide": {"N": 2, "D": 6, "M": 3, "P": 64}},
    )
    yield declared
    del registry._OPS["test/sliced"]


def test_a_stride_nobody_chose_is_the_least_without_overlap(sliced: Op) -> None:
    spec = sliced.specialize(N=2, D=6)
    assert spec.strides(M=3) == {"x": (16, 8, 1), "y": (6, 1)}
    assert spec.strides(M=3, Q=12) == {"x": (24, 12, 1), "y": (6, 1)}
    assert spec.strides(M=3, P=32, R=99) == {"x": (32, 8, 1), "y": (99, 1)}
    assert spec.bind(M=3)["x"] == (3, 2, 6)
    assert set(sliced.pitches) == {"P", "Q", "R"}
    assert sliced.shape_set("tiny")[1] == [{"M": 1}, {"M": 3}]
    assert sliced.shape_set("wide")[1] == [{"M": 3, "P": 64}]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"P": 16, "Q": 12}, r"x.strides\[0\]: got 16, expected at least 24, the length of what"),
        ({"R": 5}, r"y.strides\[0\]: got 5, expected at least 6"),
        ({"P": 20}, "dim P: got 20, expected a multiple of 8"),
    ],
)
def test_overlapping_rows_are_refused(sliced: Op, sizes: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        sliced.specialize(N=2, D=6).strides(M=3, **sizes)


@given(data=st.data())
def test_drawn_strides_are_possible_and_not_only_the_least(data: st.DataObject) -> None:
    norm = load_library()["norm/rmsnorm"]
    spec = norm.specialize(D=96)
    sizes = data.draw(strategies.sizes(norm))
    assert "P" not in sizes
    pitch = data.draw(strategies.pitches(spec, sizes))
    assert pitch["P"] in (96, 104, 200)
    assert spec.strides(**sizes, **pitch)["x"] == (pitch["P"], 1)


def test_a_stride_per_axis_and_no_elements_checked_through_strides() -> None:
    dims = {"M": dim(0, 9)}
    with pytest.raises(ContractError, match="test/bad: strides of x: got 2, expected 1, one per"):
        Op("test/bad", (In("x", "M", "f32", strides="M 1"),), dims, "", lambda x: x, {})
    index = In("x", "M", "i32", values=Values("0", "M-1"), strides="M")
    with pytest.raises(ContractError, match="strides of x: got strides, expected none beside"):
        Op("test/bad", (index,), dims, "", lambda x: x, {})


def test_a_bound_of_elements_is_arithmetic_on_dims() -> None:
    assert expression.evaluate("-(T - 9) // 4 % 3", {"T": 4}) == (5 // 4) % 3
    assert expression.evaluate("(T-9)//4", {"T": 4}) == -2
    for text in ("T**2", "f(T)", "M", "T-", "1.5", "True"):
        with pytest.raises(ContractError, match=r"size expression: got .*, expected integers"):
            expression.evaluate(text, {"T": 4})


def test_importing_the_declarations_needs_no_compiler_and_no_solver() -> None:
    code = (
        "import sys, tileproof.dsl; d = tileproof.dsl.load_library();"
        "assert d; bad = {'tilelang', 'tvm', 'z3'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_may_have_one_for_each_128_of_a_dim():
    def declared(*args):
        dims = {"N": dim(8, 1024, multiple=8)}
        return Op("test/per", args=args, dims=dims, doc="", reference=None, shapes={}, listed=False)

    w, scales = In("w", "N", "f32"), In("scales", "N/128", "f32")
    spec = declared(w, scales).specialize()
    assert spec.bind(N=136) == {"w": (136,), "scales": (2,)}
    assert spec.bind(N=128)["scales"] == (1,)
    with pytest.raises(ContractError, match=r"shape of scales: got no .'N'., expected a tensor"):
        declared(scales, w)
    with pytest.raises(ContractError, match="expected dims and numbers"):
        declared(w, Out("y", "N/128", "f32"))
