"""Arguments nobody should pass: one clear sentence each, and nothing runs."""

import pytest
import torch

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402

import tileproof  # noqa: E402
from tileproof import sanitizer  # noqa: E402
from tileproof.runtime import virtual  # noqa: E402

from .support import kernel  # noqa: E402


@pytest.fixture(scope="module")
def double():
    m = T.dynamic("m")

    @T.prim_func
    def double(x: T.Tensor((m, 32), "float32"), y: T.Tensor((m, 32), "float32")):
        with T.Kernel(m, threads=32) as row:
            for i in T.Parallel(32):
                y[row, i] = x[row, i] * 2

    return double


@pytest.fixture(scope="module")
def run(double):
    return tileproof.virtual.compile(double, "sm_80")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments: got 0, expected 2"),
        ([torch.ones(3, 32)] * 3, "arguments: got 3, expected 2"),
        ([torch.ones(3, 32), None], "got NoneType, expected a tensor"),
        ([torch.ones(3, 32), torch.ones(3, 31)], r"shape\[1\]: got 31, expected 32"),
        ([torch.ones(3, 32), torch.ones(4, 32)], r"shape\[0\]: got 4, expected m=3"),
        ([torch.ones(3, 32), torch.ones(3, 32).half()], "dtype: got float16, expected float32"),
        (
            [torch.ones(3, 32), torch.ones(3, 32, device="meta")],
            "got a tensor on meta, expected cpu",
        ),
    ],
)
def test_arguments_that_do_not_fit(double, run, arguments, words):
    with pytest.raises(ValueError, match=words):
        run(*arguments)
    if arguments:  # no inputs: the sanitizer draws its own
        with pytest.raises(ValueError, match=words):
            sanitizer.sanitize(double, *arguments, arch="sm_80")


def test_a_device_tensor_for_a_module():
    module = virtual.VirtualModule(kernel("float* y", "y[tid] = 1;"))
    with pytest.raises(TypeError, match=r"kernel k: y must be a CPU tensor, got tensor.*meta"):
        module.launch("k", (1,), (32,), 0, [torch.zeros(32, device="meta")])


def test_no_rows_launch_nothing(double, run):
    run(torch.zeros(0, 32), torch.zeros(0, 32))
    facts = {"dims": {"m": [0, 0]}, "written": {"y": "once"}}
    report = sanitizer.sanitize(double, arch="sm_80", facts=facts)
    assert report.exit_code == 0 and report.kernels[0].runs


@pytest.mark.parametrize("grid", [(0,), (2, 0), (1, 1, 0)])
def test_a_grid_of_nothing_is_refused_by_the_driver(grid):
    module = virtual.VirtualModule(kernel("float* y", "y[tid] = 1;"))
    y = torch.zeros(32)
    words = r"a grid has at least one block, got [0-2] x [01] x [01]"
    with pytest.raises(virtual.VirtualError, match=words):
        module.launch("k", grid, (32,), 0, [y])
    assert not y.any()
