"""The torch ops: schema, dispatch to the active library, tracing."""

from __future__ import annotations

import pytest
import torch

import tileproof
from tileproof.codegen.bundle import describe
from tileproof.dsl import get
from tileproof.runtime import BundleError, Library, load, ops, use
from tileproof.runtime.signature import Signature


@pytest.fixture
def library(bundle):
    return load(bundle, backend="virtual")


def test_schema_has_params_and_hidden_dims_as_keywords(library):
    text = str(torch.ops.tileproof.mhc_sinkhorn.default._schema)
    assert text == (
        "tileproof::mhc_sinkhorn(Tensor partial, Tensor sqrsum, Tensor scale, Tensor base, *, "
        "int iters=20, float eps=9.9999999999999995e-07, float norm_eps=9.9999999999999995e-07, "
        "int? N=None, int? D=None) -> (Tensor, Tensor, Tensor)"
    )


def test_the_op_is_the_library(library, post_inputs):
    inputs = post_inputs(5)
    expected = library.mhc_post(*inputs)
    assert torch.equal(torch.ops.tileproof.mhc_post(*inputs), expected)
    assert torch.equal(tileproof.ops.mhc_post(*inputs), expected)
    assert "mhc_post" in dir(tileproof.ops)


def test_params_pass_through(library):
    inputs = torch.randn(1, 4, 8), torch.rand(1, 4), torch.ones(3), torch.zeros(8)
    got = tileproof.ops.mhc_sinkhorn(*inputs, D=96)
    assert all(map(torch.equal, got, library.mhc_sinkhorn(*inputs, D=96)))


def test_use_chooses_a_library_for_a_while(library, bundle, post_inputs):
    inputs = post_inputs(4)
    references = load(bundle, backend="reference")
    assert ops.active() is references
    with use(library):
        assert ops.active() is library
        assert torch.equal(tileproof.ops.mhc_post(*inputs), library.mhc_post(*inputs))
    assert ops.active() is references


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_a_graph_break(library, post_inputs, backend):
    def block(x, y, post, comb):
        return tileproof.ops.mhc_post(x, y, post, comb).float().sum(1) * 2

    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    for M in (5, 9):
        inputs = post_inputs(M)
        assert torch.equal(compiled(*inputs), block(*inputs))


def test_compiled_when_an_output_dim_is_not_in_the_inputs(library):
    def block(*tensors):
        return tileproof.ops.mhc_sinkhorn(*tensors, D=64)[2] + 1

    inputs = torch.randn(1, 4, 8), torch.rand(1, 4), torch.ones(3), torch.zeros(8)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), block(*inputs))


@pytest.mark.parametrize("backend", ["virtual", "reference"])
def test_fake_outputs_are_what_runs_give(bundle, post_inputs, backend):
    with use(load(bundle, backend=backend)):
        torch.library.opcheck(
            torch.ops.tileproof.mhc_post.default,
            tuple(post_inputs(3)),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("backend", ["virtual", "reference"])
def test_gradients_are_never_lost_in_silence(bundle, post_inputs, backend):
    library = load(bundle, backend=backend)
    x, *rest = post_inputs(2)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"mhc/post: x: got a tensor that requires grad"):
        tileproof.ops.mhc_post(x, *rest)
    with torch.no_grad():
        expected = tileproof.ops.mhc_post(x, *rest)
    if backend == "virtual":
        with pytest.raises(RuntimeError, match=r"call it under torch.no_grad"):
            library.mhc_post(x, *rest)
    else:  # a reference is plain torch
        out = library.mhc_post(x, *rest)
        assert torch.equal(out, expected)
        out.sum().backward()
        assert x.grad is not None


def test_one_name_has_one_schema():
    description = describe(get("mhc/post"))
    Library.reference([description])
    description["params"] = {"gain": 1.0}
    with pytest.raises(BundleError, match=r"torch op mhc_post: got mhc_post\(.*float gain=1.0"):
        ops.register(Signature(description))


def test_an_op_is_looked_up_once(library):
    assert tileproof.ops.mhc_post is torch.ops.tileproof.mhc_post
    assert vars(tileproof)["ops"] is ops
    assert vars(ops)["mhc_post"] is torch.ops.tileproof.mhc_post


def test_an_unknown_op_is_named():
    with pytest.raises(AttributeError, match=r"tileproof.ops: got nope, expected"):
        tileproof.ops.nope  # noqa: B018
