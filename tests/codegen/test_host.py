"""Launchers of an op with several launches, dynamic dims and plans; what is refused."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.codegen.host import HostKernel, PlannedLaunch, generate, plan
from tileproof.codegen.lower import lower
from tileproof.codegen.target import Target
from tileproof.codegen.user import specialize
from tileproof.dsl import ContractError, In, Op, Out, dim, registry, static
from tileproof.runtime import load
from tileproof.runtime.bundle import read_manifest


def two_steps(T, M, S, D, threads):
    """``y = 2 x`` with one block per row, then ``z = y + w`` with one per column pair."""

    @T.prim_func
    def kernel(
        first: T.Tensor((M, D), "float32"),
        second: T.Tensor((S, M, D), "float32"),
        y: T.Tensor((M, D), "float32"),
        z: T.Tensor((S, M, D), "float32"),
    ):
        with T.Kernel(M, threads=threads) as m:
            for d in T.Parallel(D):
                y[m, d] = 2.0 * first[m, d]
        with T.Kernel(S, M, threads=threads) as (s, m):
            for d in T.Parallel(D):
                z[s, m, d] = 2.0 * first[m, d] + second[s, m, d]

    return kernel


@pytest.fixture(scope="module")
def op():
    made = Op(
        "test/two_steps",
        args=(
            In("x", "M D", "f32"),
            In("w", "S M D", "f32"),
            Out("y", "M D", "f32"),
            Out("z", "S M D", "f32"),
        ),
        dims={"M": dim(0, 1 << 20), "S": dim(2, 12, multiple=2), "D": static(64, 64)},
        doc="for a test",
        reference=lambda x, w: (2 * x, 2 * x + w),
        shapes={},
    )
    made.kernel(archs=("sm_80",), threads=64)(two_steps)
    made.kernel(archs=("sm_90a",), threads=128)(two_steps)
    yield made
    del registry._OPS[made.name]


@pytest.fixture(scope="module")
def bundle(op, tmp_path_factory):
    out = tmp_path_factory.mktemp("host") / "bundle"
    return build([op.specialize(D=64)], ["sm_80", "sm_90a"], out, jobs=1)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_both_launches_run(bundle, arch):
    library = load(bundle, backend="virtual", arch=arch)
    x, w = torch.randn(5, 64), torch.randn(4, 5, 64)
    y, z = library.test_two_steps(x, w)
    assert torch.equal(y, 2 * x)
    assert torch.equal(z, 2 * x + w)


def test_architectures_with_other_blocks_have_their_own_plan(bundle):
    archs = read_manifest(bundle)["specializations"]["test_two_steps__D64"]["archs"]
    facts = [(a["plan"], [tuple(x["block"]) for x in a["launches"]]) for a in archs.values()]
    assert facts == [(0, [(64, 1, 1)] * 2), (1, [(128, 1, 1)] * 2)]


@pytest.mark.parametrize(
    ("S", "words"),
    [
        (0, "expected S in 2..12"),
        (14, "expected S in 2..12"),
        (3, "expected a multiple of 2"),
    ],
)
def test_the_domain_of_every_dynamic_dim_is_checked(bundle, S, words):
    library = load(bundle, backend="null")
    with pytest.raises(ValueError, match=r"^test/two_steps: w.shape\[0\]: got S=\d+, " + words):
        library.test_two_steps(torch.randn(5, 64), torch.randn(S, 5, 64))


def test_a_grid_beyond_the_hardware_is_refused(bundle):
    launcher = load(bundle, backend="null").test_two_steps.kernel("test_two_steps__D64")
    M = 65536
    x, y = torch.empty(M, 64), torch.empty(M, 64)
    w, z = torch.empty(2, M, 64), torch.empty(2, M, 64)
    with pytest.raises(
        ValueError, match="test/two_steps: grid: got 2 x 65536 x 1 blocks, expected"
    ):
        launcher(x, w, y, z)


def test_a_plan_survives_json(op):
    launches = plan(lower(op.specialize(D=64), "sm_80"))
    again = [PlannedLaunch.from_json(json.loads(json.dumps(x.to_json()))) for x in launches]
    assert tuple(again) == launches
    assert [x.grid for x in launches] == [("M", "1", "1"), ("S", "M", "1")]
    assert {p for x in launches for p in x.parameters} >= {("tensor", 0), ("tensor", 3)}


def test_more_tensors_than_launchers_hold_are_refused():
    many = Op(
        "test/many",
        args=tuple(Out(f"y{i}", "M", "f32") for i in range(25)),
        dims={"M": dim(0, 9)},
        doc="for a test",
        reference=lambda: None,
        shapes={},
    )
    del registry._OPS[many.name]
    with pytest.raises(ContractError, match="test/many: tensors: got 25, expected at most 24"):
        generate([HostKernel(many.specialize(), ())])


SCRATCH = """
    import tilelang.language as T

    @T.prim_func
    def scratch(x: T.Tensor((64,), "float32"), y: T.Tensor((64,), "float32")):
        w = T.alloc_global((64,), "float32")
        with T.Kernel(1, threads=64):
            for d in T.Parallel(64):
                w[d] = x[d]
        with T.Kernel(1, threads=64):
            for d in T.Parallel(64):
                y[d] = w[d]
"""


def test_a_kernel_with_a_workspace_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(SCRATCH))
    spec = specialize(Target(f"{tmp_path}/mine.py:scratch"), None, "sm_80")
    with pytest.raises(ContractError, match="pointer: got w, expected one of the op's tensors"):
        plan(lower(spec, "sm_80"))
