"""Kernels of a bundle called with other arrays than torch's, and from C++."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tvm_ffi import libinfo

from tileproof.codegen.build import build
from tileproof.dsl import get
from tileproof.runtime import load
from tileproof.runtime.bundle import Bundle

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    specs = [get("mhc/post").specialize(N=4, D=64, act="f32")]
    return build(specs, ["sm_80"], tmp_path_factory.mktemp("arrays") / "bundle")


@pytest.fixture
def inputs(seed):
    generator = np.random.default_rng(seed)
    shapes = ((5, 4, 64), (5, 64), (5, 4), (5, 4, 4))
    return [generator.random(shape, np.float32) for shape in shapes]


def expected_of(library, inputs):
    return library.mhc_post(*map(torch.from_numpy, inputs)).numpy()


def test_numpy_arrays(folder, inputs):
    library = load(folder, backend="virtual")
    run = library["mhc/post"].kernel("mhc_post__f32_N4_D64")
    out = np.full((5, 4, 64), np.nan, np.float32)
    run(*inputs, out)
    assert np.array_equal(out, expected_of(library, inputs))
    with pytest.raises(ValueError, match=r"mhc/post: out.shape\[0\]: got 4, expected M=5"):
        run(*inputs, out[:4])
    with pytest.raises(TypeError, match="mhc/post: "):
        run(*inputs, "no array")
    with pytest.raises(TypeError, match="mhc/post: "):
        run(*inputs)


def test_jax_arrays(folder, inputs):
    jax = pytest.importorskip("jax", reason="JAX is optional")
    library = load(folder, backend="virtual")
    run = library["mhc/post"].kernel("mhc_post__f32_N4_D64")
    out = np.full((5, 4, 64), np.nan, np.float32)
    run(*map(jax.numpy.asarray, inputs), out)
    assert np.array_equal(jax.numpy.asarray(out), expected_of(library, inputs))


def test_the_program_of_the_docs_calls_a_kernel_from_cpp(bundle, tmp_path):
    library = Path(libinfo.find_libtvm_ffi()).parent
    command = ["g++", "-std=c++17", str(DOCS / "from_cpp.cpp"), f"-I{libinfo.include_paths()[0]}"]
    command += [f"-L{library}", "-ltvm_ffi", f"-Wl,-rpath,{library}", "-o", "from_cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    symbol = "norm_rmsnorm_unweighted__bf16_D64"
    opened = Bundle(bundle)
    built = opened.manifest["specializations"][symbol]["archs"]["sm_80"]
    words = [opened.launchers(), bundle / built["cubin"], symbol, built["plan"]]
    run = subprocess.run(
        ["./from_cpp", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == [
        "launched",
        "norm/rmsnorm_unweighted: y.shape[0]: got 4, expected M=5",
    ]
