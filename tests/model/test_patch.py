"""What patching does to a model besides its numbers: nothing, and that until undo."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DeepseekV4ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

import tileproof
from tileproof.dsl import ContractError
from tileproof.model import known

from .support import logits, model, token_ids

SWAPPED = {
    hf.DeepseekV4RMSNorm: "norm/rmsnorm",
    hf.DeepseekV4HyperConnection: "mhc/pre",
    hf.DeepseekV4DecoderLayer: "mhc/post",
    hf.DeepseekV4HyperHead: "mhc/head",
    hf.DeepseekV4TopKRouter: "moe/topk_gate",
    hf.DeepseekV4HashRouter: "moe/hash_gate",
    hf.DeepseekV4Experts: "moe/experts",
    hf.DeepseekV4Attention: "attention/sparse",
    torch.nn.Linear: "gemm/dense",
}


def classes(m):
    return {name: type(module) for name, module in m.named_modules()}


def test_undo_restores_classes_attributes_and_bits(seed):
    m = model(seed)
    ids = token_ids(seed, 2, 9)
    before, attributes = classes(m), {n: set(vars(x)) for n, x in m.named_modules()}
    theirs = logits(m, ids)
    patch = tileproof.patch(m, "reference")
    assert not torch.equal(logits(m, ids), theirs)
    patch.undo()
    assert classes(m) == before
    assert {n: set(vars(x)) for n, x in m.named_modules()} == attributes
    assert torch.equal(logits(m, ids), theirs)
    patch.undo()
    assert classes(m) == before


def test_counts_every_module_but_parts_of_attention_and_norms_inside_mhc(seed):
    m = model(seed)
    modules = {n: x for n, x in m.named_modules() if ".self_attn." not in n}
    expected = {
        op: sum(type(x) is cls and not n.endswith("input_norm") for n, x in modules.items())
        for cls, op in SWAPPED.items()
    }
    with tileproof.patch(m, "reference") as patch:
        assert patch.ops == expected
        assert patch.ops["mhc/pre"] == 10
        assert all(f"{op} × {n}" in repr(patch) for op, n in expected.items())
        assert "active" in repr(patch)
    assert "undone" in repr(patch)


def test_class_names_and_kinds_stay_while_patched(seed):
    """Accelerate, FSDP and transformers find modules by class name or by isinstance."""
    m = model(seed)
    before = classes(m)
    with tileproof.patch(m, "reference"):
        after = classes(m)
        assert [c.__name__ for c in after.values()] == [c.__name__ for c in before.values()]
        assert all(issubclass(after[n], before[n]) for n in before)
        changed = {before[n] for n in before if after[n] is not before[n]}
    assert changed == {*SWAPPED, hf.DeepseekV4Model}


def test_state_dict_and_parameters_are_the_same_objects(seed):
    m = model(seed)
    before = {n: (id(p), p.clone()) for n, p in m.named_parameters()}
    keys = list(m.state_dict())
    with tileproof.patch(m, "reference"):
        logits(m, token_ids(seed, 1, 5))
        assert list(m.state_dict()) == keys
        for name, parameter in m.named_parameters():
            assert id(parameter) == before[name][0]
            assert torch.equal(parameter, before[name][1])


def test_a_patched_model_saves_as_a_plain_checkpoint(seed, tmp_path):
    m = model(seed)
    ids = token_ids(seed, 1, 7)
    theirs = logits(m, ids)
    with tileproof.patch(m, "reference"):
        m.save_pretrained(tmp_path)
    loaded = DeepseekV4ForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, ids), theirs)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_of_a_patched_model_are_unpatched(duplicate, seed):
    m = model(seed)
    before = classes(m)
    ids = token_ids(seed, 1, 7)
    theirs = logits(m, ids)
    with tileproof.patch(m, "reference"):
        other = duplicate(m)
        assert classes(other) == before
        assert torch.equal(logits(other, ids), theirs)
        assert classes(m) != before


def test_a_module_made_of_a_patched_class_is_unpatched(seed):
    """transformers' loaders and tests construct ``type(model.model)(config)``."""
    m = model(seed)
    with tileproof.patch(m, "reference"):
        made = type(m.model)(m.config)
    assert type(made) is hf.DeepseekV4Model
    assert not any(hasattr(x, "_tileproof") for x in made.modules())


def test_an_exception_inside_the_block_undoes_too(seed):
    m = model(seed)
    before = classes(m)
    with pytest.raises(KeyError), tileproof.patch(m, "reference"):
        raise KeyError("anything")
    assert classes(m) == before


def test_two_models_side_by_side_with_different_ops(seed):
    a, b, c = model(seed), model(seed), model(seed)
    ids = token_ids(seed, 1, 9)
    theirs = logits(c, ids)
    with tileproof.patch(a, "reference"):
        with tileproof.patch(b, "reference", ops=["mhc/post"]) as patch:
            assert patch.ops == {"mhc/post": 5}
            of_a, of_b = logits(a, ids), logits(b, ids)
        assert torch.equal(logits(a, ids), of_a)
        assert torch.equal(logits(b, ids), theirs)
    assert not torch.equal(of_a, of_b)
    assert torch.equal(logits(c, ids), theirs)


@pytest.mark.parametrize("op", SWAPPED.values())
def test_a_subset_swaps_its_class_only(op, seed):
    m = model(seed)
    before = classes(m)
    with tileproof.patch(m, "reference", ops=[op]) as patch:
        after = classes(m)
    assert set(patch.ops) == {op}
    swapped = {cls for cls, name in SWAPPED.items() if name == op}
    if op == "attention/sparse":
        swapped.add(hf.DeepseekV4Model)
    assert {before[n] for n in before if before[n] is not after[n]} == swapped


def test_patching_twice_is_refused(seed):
    m = model(seed)
    refused = pytest.raises(ContractError, match="got one that is patched already")
    with tileproof.patch(m, "reference", ops=["mhc/post"]), refused:
        tileproof.patch(m, "reference", ops=["mhc/head"])
    tileproof.patch(m, "reference").undo()


def test_another_architecture_is_refused_with_its_classes():
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(ContractError, match=r"LlamaForCausalLM made of .*LlamaAttention.*expected"):
        tileproof.patch(LlamaForCausalLM(config), "reference")


def test_an_unknown_op_is_refused_with_the_known_ones(seed):
    with pytest.raises(ContractError, match=r"got \['mhc/nosuch'\].*mhc/pre, mhc/post, mhc/head"):
        tileproof.patch(model(seed), "reference", ops=["mhc/post", "mhc/nosuch"])


def test_an_unknown_rule_is_refused(seed):
    with pytest.raises(ContractError, match="on_missing: got 'guess'"):
        tileproof.patch(model(seed), "reference", on_missing="guess")


def test_a_forward_bound_to_the_module_is_refused(seed):
    """It would win over the class, and the kernels would silently not run."""
    m = model(seed)
    before = classes(m)
    m.model.norm.forward = m.model.norm.forward
    with pytest.raises(ContractError, match="accelerate"):
        tileproof.patch(m, "reference")
    assert classes(m) == before


def test_another_text_of_a_forward_is_refused(seed, monkeypatch):
    """transformers 5.8 mixes streams by comb instead of its transpose, under this signature."""

    def forward(self, hidden_states, input_ids=None, **kwargs):
        return hidden_states

    m = model(seed)
    monkeypatch.setattr(hf.DeepseekV4DecoderLayer, "forward", forward)
    with pytest.raises(ContractError, match=r"DecoderLayer.forward of transformers .* was not wri"):
        tileproof.patch(m, "reference")
    tileproof.patch(m, "reference", ops=["norm/rmsnorm"]).undo()


def test_a_fingerprint_ignores_comments_and_annotations_but_no_statement():
    class A:
        def forward(self, x: int) -> int:
            """Words."""
            return x + 1  # more words

    class B:
        def forward(self, x):
            return x + 1

    class C:
        def forward(self, x):
            return x - 1

    assert known.fingerprint(A) == known.fingerprint(B) != known.fingerprint(C)


@pytest.mark.parametrize("rule", ["compile", "error"])
def test_gradients_are_refused_in_one_sentence(rule, seed):
    m = model(seed)
    refused = pytest.raises(ContractError, match=r"require grad.*torch.no_grad\(\)[^\n]*$")
    with tileproof.patch(m, "reference", on_missing=rule), refused:
        m(token_ids(seed, 1, 4))


def test_gradients_flow_through_the_references_when_asked(seed):
    m = model(seed)
    ids = token_ids(seed, 1, 6)

    def gradient():
        m.zero_grad()
        m(ids, labels=ids).loss.backward()
        return m.model.layers[0].attn_hc.fn.grad.clone()

    theirs = gradient()
    with tileproof.patch(m, "reference", on_missing="reference"):
        ours = gradient()
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_half_precision_is_refused_or_served_by_the_references(seed):
    m = model(seed).half()
    ids = token_ids(seed, 1, 5)
    theirs = logits(m, ids)
    refused = pytest.raises(ContractError, match="got float16 activations, expected bfloat16 or fl")
    with tileproof.patch(m, "reference"), refused:
        logits(m, ids)
    with tileproof.patch(m, "reference", on_missing="reference"):
        ours = logits(m, ids)
    assert ours.dtype == torch.float16
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().mean() < 0.1 * theirs.std()


def test_routers_that_score_otherwise_are_refused(seed):
    m = model(seed)
    m.config.scoring_func = "softmax"
    before = classes(m)
    with pytest.raises(ContractError, match="scoring_func of the model: got 'softmax', expected"):
        tileproof.patch(m, "reference")
    assert classes(m) == before
    with tileproof.patch(m, "reference", ops=["norm/rmsnorm"]):
        logits(m, token_ids(seed, 1, 5))
