"""The experts of a layer against transformers', and a token against itself in other batches."""

import copy

import pytest
import torch
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts

import tileproof
from tileproof.dsl import get
from tileproof.model.dispatch import Kernels
from tileproof.model.library import References, built
from tileproof.model.moe import by_expert, experts
from tileproof.runtime import Library
from tileproof.runtime.backends import choose
from tileproof.runtime.bundle import Bundle

from .support import model

KERNELS = ("moe/permute", "moe/source", "moe/dispatch", "gemm/experts", "moe/swiglu", "moe/combine")


@pytest.fixture(scope="module")
def virtual():
    specs = [s for n in KERNELS for s in get(n).for_model(model(0).config.to_dict(), "f32")]
    bundle = Bundle(built(specs, ["sm_80"]))
    library = Library(choose("virtual", "sm_80", bundle))
    library.add(bundle)
    return Kernels(library, None, None)


@pytest.fixture
def run(request):
    name = getattr(request, "param", "virtual")
    if name == "virtual":
        return request.getfixturevalue("virtual")
    return Kernels(References(), None, References())


def layer(seed, M):
    """transformers' module, and tokens with their experts and weights."""
    torch.manual_seed(seed)
    config = copy.copy(model(0).config)
    config._experts_implementation = "eager"
    module = DeepseekV4Experts(config).requires_grad_(False)
    for p in module.parameters():
        p.normal_(std=p.shape[-1] ** -0.5)
    index = torch.rand(M, module.num_experts).argsort(1)[:, : config.num_experts_per_tok]
    x, weight = torch.randn(M, module.hidden_dim) * 3, torch.rand(index.shape)
    return module, x, index.contiguous(), weight


def ours(run, module, x, index, weight, shared):
    weights = module.gate_up_proj.detach(), module.down_proj.detach()
    return experts(run, x, index, weight, *weights, shared, limit=module.limit)


@pytest.mark.parametrize("run", ["reference", "virtual"], indirect=True)
@pytest.mark.parametrize("M", [0, 1, 70])
def test_errs_like_transformers(run, M, seed):
    module, x, index, weight = layer(seed, M)
    exact = copy.deepcopy(module).double()(x.double(), index, weight.double())
    got = ours(run, module, x, index, weight, torch.zeros_like(x))
    theirs = (module(x, index, weight) - exact).abs()
    # the same sums in other orders
    assert got.shape == exact.shape
    assert ((got - exact).abs() <= 2 * theirs.amax().clamp(min=0) if M else torch.ones(0)).all()


def test_a_token_has_its_bits_alone_and_in_any_batch(run, seed):
    module, x, index, weight = layer(seed, 70)
    shared = torch.randn_like(x)
    together = ours(run, module, x, index, weight, shared)
    for picks in ([0], [69, 3], list(range(10, 60))):
        alone = [t[picks].contiguous() for t in (x, index, weight, shared)]
        assert torch.equal(ours(run, module, *alone), together[picks])


def test_slots_without_an_expert_add_nothing(run, seed):
    module, x, index, weight = layer(seed, 5)
    shared = torch.randn_like(x)
    index[2] = -1
    assert torch.equal(ours(run, module, x, index, weight, shared)[2], shared[2])


@pytest.mark.parametrize("run", ["reference", "virtual"], indirect=True)
def test_one_expert_may_have_every_token_and_both_slots(run, seed):
    """The other seven have none."""
    module, x, index, weight = layer(seed, 70)
    index.fill_(5)
    exact = copy.deepcopy(module).double()(x.double(), index, weight.double())
    got = ours(run, module, x, index, weight, torch.zeros_like(x))
    theirs = (module(x, index, weight) - exact).abs()
    assert ((got - exact).abs() <= 2 * theirs.amax()).all()


def test_nan_stays_with_its_token(run, seed):
    module, x, index, weight = layer(seed, 9)
    index[:] = torch.tensor([2, 6])
    clean = ours(run, module, x, index, weight, torch.zeros_like(x))
    x[4, 7] = torch.nan
    got = ours(run, module, x, index, weight, torch.zeros_like(x))
    others = [m for m in range(9) if m != 4]
    assert got[4].isnan().all()
    assert torch.equal(got[others], clean[others])


def test_a_patched_layer_runs_them_and_expert_e_is_none(seed):
    m = model(seed)
    module = m.model.layers[2].mlp.experts
    _, x, index, weight = layer(seed, 9)
    run = Kernels(References(), None, None)
    with tileproof.patch(m, "reference", ops=["moe/experts"]), torch.no_grad():
        index[3, 1], index[4] = 8, 8
        got = module(x, index, weight)
        again = ours(run, module, x, index.where(index < 8, -1), weight, torch.zeros_like(x))
        assert torch.equal(got, again)
        assert not got[4].any()
        module.down_proj.mul_(2)
        assert torch.equal(module(x, index, weight), 2 * got)


def test_an_expert_there_is_not_is_refused(run):
    for wrong in (8, -2):
        with pytest.raises(RuntimeError, match="index: got an element outside its contract"):
            by_expert(run, torch.tensor([[0, wrong]]), 8)
