"""Calling ops through a library: which kernel runs, what comes out, what a miss says."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.codegen.bundle import describe
from tileproof.dsl import get
from tileproof.kernels.mhc import reference
from tileproof.runtime import BundleError, Library, MissingKernel, load, loader, virtual
from tileproof.runtime.backends import Code

ULP = 2.0**-8  # of bf16


@pytest.fixture(scope="module")
def library(bundle):
    return load(bundle, backend="virtual")


def sinkhorn_inputs(M):
    return torch.randn(1, M, 8), torch.rand(1, M) + 1, torch.ones(3), torch.zeros(8)


@pytest.mark.parametrize("M", [0, 1, 33])
def test_the_virtual_gpu_runs_what_the_bundle_holds(library, post_inputs, M):
    inputs = post_inputs(M)
    out = library.mhc_post(*inputs)
    assert out.shape == (M, 4, 64)
    assert out.dtype == torch.bfloat16
    expected = reference.post(*inputs)
    assert torch.allclose(out.float(), expected.float(), rtol=2 * ULP, atol=ULP)


def test_two_architectures_in_one_process_agree(bundle, post_inputs):
    inputs = post_inputs(19)
    libraries = [load(bundle, backend="virtual", arch=a) for a in ("sm_80", "sm_90a")]
    first, second = (library["mhc/post"](*inputs) for library in libraries)
    assert torch.equal(first, second)
    null = load(bundle, backend="null")
    assert null.mhc_post(*inputs).shape == first.shape
    assert torch.equal(libraries[0].mhc_post(*inputs), first)


def test_the_checked_build_knows_the_tensors_memory(library, post_inputs):
    inputs = post_inputs(5)
    with virtual.options(checked=True):
        assert torch.equal(library.mhc_post(*inputs), library.mhc_post(*inputs))


def test_several_outputs(library):
    inputs = sinkhorn_inputs(5)
    pre, post, comb = library.mhc_sinkhorn(*inputs, D=64)
    for got, expected in zip((pre, post, comb), reference.sinkhorn(*inputs, D=64), strict=True):
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, atol=1e-5)


def test_a_dim_no_input_shows_must_be_given_when_it_matters(library):
    with pytest.raises(TypeError) as raised:
        library.mhc_sinkhorn(*sinkhorn_inputs(5))
    words = "mhc/sinkhorn: D: got no value, expected one of [64, 96] as a keyword argument"
    assert str(raised.value) == words


def test_a_missing_kernel_says_what_there_is(library, post_inputs):
    x, y, post, comb = post_inputs(3)
    with pytest.raises(MissingKernel) as raised:
        library.mhc_post(x.float(), y.float(), post, comb)
    words = "mhc/post: got act=f32 N=4 D=64, expected a kernel of the library: act=bf16 N=4 D=64"
    assert str(raised.value) == words
    assert raised.value.op == "mhc/post"
    assert raised.value.sizes == {"N": 4, "D": 64}
    assert raised.value.types == {"act": "f32"}


def test_params_choose_the_kernel(library):
    with pytest.raises(MissingKernel, match="iters=3"):
        library.mhc_sinkhorn(*sinkhorn_inputs(2), D=64, iters=3)


def test_has(library):
    assert library.has("mhc/post", N=4, D=64, act="bf16")
    assert library.has("mhc_sinkhorn", D=96, iters=20)
    assert not library.has("mhc/post", N=4, D=64, act="f32")
    assert not library.has("mhc/sinkhorn", iters=21)
    assert not library.has("mhc/none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[:3], r"mhc/post: tensors: got 3, expected 4 \(x, y, post, comb\)"),
        (lambda a: [a[0].tolist(), *a[1:]], "mhc/post: x: got list, expected a torch.Tensor"),
        (lambda a: [a[0], a[1][0], *a[2:]], "mhc/post: y.ndim: got 1, expected 2"),
    ],
)
def test_wrong_inputs(library, post_inputs, change, words):
    with pytest.raises((TypeError, ValueError), match=words):
        library.mhc_post(*change(post_inputs(3)))


def test_wrong_keyword(library, post_inputs):
    with pytest.raises(
        TypeError, match=r"mhc/post: keyword arguments: got \['eps'\], expected amo"
    ):
        library.mhc_post(*post_inputs(3), eps=1.0)


def test_an_unknown_op(library):
    with pytest.raises(
        AttributeError, match="got 'mhc_nope', expected one of mhc/post, mhc/sinkho"
    ):
        library.mhc_nope  # noqa: B018
    with pytest.raises(KeyError, match="mhc/nope"):
        library["mhc/nope"]


def test_a_second_bundle_adds_its_kernels(bundle, post_inputs, tmp_path):
    library = load(bundle, backend="virtual")
    x, y, post, comb = post_inputs(3)
    wide = x.float(), y.float(), post, comb
    with pytest.raises(MissingKernel):
        library.mhc_post(*wide)
    more = build([get("mhc/post").specialize(N=4, D=64, act="f32")], ["sm_80"], tmp_path / "more")
    library.add(more)
    assert torch.allclose(library.mhc_post(*wide), reference.post(*wide), atol=1e-6)
    assert torch.equal(library.mhc_post(x, y, post, comb), load(bundle).mhc_post(x, y, post, comb))


def test_references_need_no_bundle(post_inputs):
    library = Library.reference([describe(get("mhc/post"))])
    inputs = post_inputs(5)
    assert library.backend == "reference"
    assert torch.equal(library.mhc_post(*inputs), reference.post(*inputs))
    inputs[1] = inputs[1][:, :63]
    with pytest.raises(ValueError, match=r"mhc/post: y.shape\[1\]: got 63, expected D=64"):
        library.mhc_post(*inputs)


def test_a_reference_outside_our_kernels_is_not_imported(post_inputs):
    description = describe(get("mhc/post"))
    description["reference"]["path"] = "os:system"
    library = Library.reference([description])
    with pytest.raises(
        BundleError, match=r"got os:system, expected a function under tileproof.ker"
    ):
        library.mhc_post(*post_inputs(1))


def test_cuda_tensors_are_needed_on_cuda_and_a_driver_to_load(bundle):
    with pytest.raises(RuntimeError, match=r"no CUDA driver on this machine: libcuda.so.1"):
        load(bundle, backend="cuda")


def test_a_type_and_a_size_only_outputs_have_are_keywords(tmp_path):
    product, score = get("gemm/dense"), get("indexer/score")
    specs = [product.specialize(K=32, act="bf16", out=out) for out in ("bf16", "f32")]
    specs.append(score.specialize(H=4, D=16, act="bf16"))
    library = load(build(specs, ["sm_80"], tmp_path / "bundle"), backend="virtual")
    x, w = torch.ones(3, 32).bfloat16(), torch.ones(16, 32).bfloat16()
    for out, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        for call in (library.gemm_dense, torch.ops.tileproof.gemm_dense):
            y = call(x, w, out=out)
            assert y.dtype == dtype and (y == 32).all()
    with pytest.raises(TypeError, match=r"out: got no value, expected one of \['bf16', 'f32'\]"):
        library.gemm_dense(x, w)
    with pytest.raises(TypeError, match="out: got f16, expected bf16 or f32"):
        library.gemm_dense(x, w, out="f16")
    counts = torch.tensor([1, 2], dtype=torch.int32)
    inputs = torch.ones(2, 4, 16).bfloat16(), torch.ones(2, 16).bfloat16(), torch.ones(2, 4)
    with patch.object(Code, "bind", autospec=True, side_effect=Code.bind) as bind:
        for call in (library.indexer_score, torch.ops.tileproof.indexer_score):
            for S in (*range(4, 4 * 80, 4), 4):
                scores = call(*inputs, 0 * counts, counts, S=S)
                assert scores.shape == (2, S)
                assert (scores > -torch.inf).sum(1).tolist() == [1, 2]
    assert bind.call_count == 1  # one module whatever the sizes
    assert len(library["indexer/score"]._ready) == loader._MOST_READY
    with pytest.raises(TypeError, match="got no S, expected the sizes of outputs"):
        library.indexer_score(*inputs, 0 * counts, counts)


@pytest.mark.parametrize("backend", ["virtual", "reference"])
def test_one_for_each_128_of_a_dim_is_checked(tmp_path, backend):
    spec = get("gemm/fp8").specialize(K=32, out="f32")
    library = load(build([spec], ["sm_80"], tmp_path / "bundle"), backend=backend)

    def ones(*shape):
        return torch.full(shape, 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)

    x, w = torch.ones(3, 32).to(torch.float8_e4m3fn), torch.ones(136, 32).to(torch.float8_e4m3fn)
    assert (library.gemm_fp8(x, ones(3, 1), w, ones(2, 1), out="f32") == 32).all()
    for rows in (1, 3):
        words = rf"gemm/fp8: ws.shape\[0\]: got {rows}, expected N/128=2"
        with pytest.raises(ValueError, match=words):
            library.gemm_fp8(x, ones(3, 1), w, ones(rows, 1), out="f32")
