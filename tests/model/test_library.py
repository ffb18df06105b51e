"""Where kernels come from, and one clear sentence where they cannot."""

from __future__ import annotations

import sys

import pytest
import torch

import tileproof
from tileproof.codegen.toolchain import ToolchainError
from tileproof.dsl import ContractError, get
from tileproof.model import library
from tileproof.runtime import BundleError

from .support import logits, model, token_ids

OP = "norm/rmsnorm_unweighted"  # one small kernel: the query heads' norm
ONE = {"ops": [OP], "backend": "virtual"}


@pytest.fixture(scope="module")
def other_bundle():
    """A bundle that has the op, but for heads of another width."""
    return library.built([get(OP).specialize(D=48, act="f32")], ["sm_80"])


def test_the_model_says_which_kernels_it_needs(seed):
    m = model(seed)
    symbols = {s.symbol for s in library.specializations(m, ["mhc/pre", "norm/rmsnorm"])}
    assert symbols == {
        "mhc_pre__f32_N4_D64",
        "mhc_prenorm_gemm__f32_N4_D64_C24",
        "mhc_prenorm_gemm__f32_N4_D64_C4",
        "mhc_sinkhorn__N4_D64",
        "mhc_collapse__f32_N4_D64",
        *(f"norm_rmsnorm__f32_f32_D{D}" for D in (16, 32, 64)),
    }
    both = library.specializations(m.to(torch.bfloat16), ["norm/rmsnorm"])
    assert {s.symbol for s in both} == {f"norm_rmsnorm__bf16_bf16_D{D}" for D in (16, 32, 64)}


def test_a_bundle_without_the_size_is_an_error_when_asked(seed, other_bundle):
    m = model(seed)
    before = [type(x) for x in m.modules()]
    words = r"got a bundle without norm_rmsnorm_unweighted__f32_D32, expected a kernel for every"
    with pytest.raises(ContractError, match=words):
        tileproof.patch(m, **ONE, bundle=other_bundle, on_missing="error")
    assert [type(x) for x in m.modules()] == before


def test_a_bundle_without_the_size_falls_back_to_references_when_asked(seed, other_bundle):
    m = model(seed)
    ids = token_ids(seed, 1, 5)
    with tileproof.patch(m, "reference", ops=[OP]):
        expected = logits(m, ids)
    with tileproof.patch(m, **ONE, bundle=other_bundle, on_missing="reference") as patch:
        assert torch.equal(logits(m, ids), expected)
    assert patch.library.backend == "virtual"


def test_a_bundle_without_the_size_gets_it_compiled_by_default(seed, other_bundle):
    m = model(seed)
    with tileproof.patch(m, **ONE, bundle=other_bundle) as patch:
        assert patch.library.has(OP, D=32, act="f32")
        assert patch.library.has(OP, D=48, act="f32")
        logits(m, token_ids(seed, 1, 3))


def test_no_bundle_and_no_compiling_is_an_error(seed):
    with pytest.raises(ContractError, match="bundle: got None, expected a folder written by"):
        tileproof.patch(model(seed), **ONE, on_missing="error")


def test_no_bundle_and_references_asked_for_runs_references(seed):
    with tileproof.patch(model(seed), **ONE, on_missing="reference") as patch:
        assert patch.library.backend == "reference"


@pytest.mark.parametrize("failure", ["tool", "module"])
def test_a_missing_compiler_is_one_sentence_with_the_way_out(failure, seed, monkeypatch):
    def without_nvcc(*_, **__):
        raise ToolchainError("nvcc from PyPI (nvidia-cuda-nvcc) is not installed")

    if failure == "tool":
        monkeypatch.setattr("tileproof.codegen.build.build", without_nvcc)
    else:
        monkeypatch.setitem(sys.modules, "tileproof.codegen.build", None)
    words = r"compiling 1 kernels for sm_80: got .*expected pip install \"tileproof\[build\]\""
    with pytest.raises(ContractError, match=words) as raised:
        tileproof.patch(model(seed), **ONE)
    assert "\n" not in str(raised.value)


def test_a_kernel_first_missed_at_a_call_is_compiled_then(seed):
    m = model(seed)
    ids = token_ids(seed, 1, 3)
    with tileproof.patch(m, **ONE) as patch:
        assert not patch.library.has(OP, D=32, act="bf16")
        half = m.to(torch.bfloat16)
        ours = logits(half, ids)
        assert patch.library.has(OP, D=32, act="bf16")
    assert ours.dtype == torch.bfloat16
    assert not torch.equal(ours, logits(half, ids))


def test_a_kernel_first_missed_at_a_call_is_an_error_when_asked(seed):
    m = model(seed)
    bundle = library.built(library.specializations(m, [OP]), ["sm_80"])
    words = r"got act=bf16 .*expected a kernel of the library.*on_missing=\"reference\""
    with (
        tileproof.patch(m, **ONE, bundle=bundle, on_missing="error"),
        pytest.raises(ContractError, match=words),
    ):
        logits(m.to(torch.bfloat16), token_ids(seed, 1, 3))


def test_an_architecture_the_bundle_lacks_is_an_error(seed, other_bundle):
    with pytest.raises(BundleError, match="got sm_90a, expected one of sm_80"):
        tileproof.patch(model(seed), **ONE, bundle=other_bundle, arch="sm_90a")


def test_an_unknown_backend_is_an_error(seed, other_bundle):
    with pytest.raises(BundleError, match="backend: got 'metal', expected one of auto, cuda"):
        tileproof.patch(model(seed), "metal", bundle=other_bundle)


def test_models_side_by_side_on_different_backends(seed):
    """Each module has its own library, whatever tileproof.ops runs on."""
    a, b = model(seed), model(seed)
    ids = token_ids(seed, 1, 5)
    with tileproof.patch(b, "reference", ops=[OP]):
        references = logits(b, ids)
    with tileproof.patch(a, **ONE), tileproof.patch(b, "reference", ops=[OP]):
        virtual = logits(a, ids)
        assert torch.equal(logits(b, ids), references)
        assert torch.equal(logits(a, ids), virtual)
    torch.testing.assert_close(virtual, references, rtol=1e-4, atol=1e-4)
