"""moe/hash_gate against its reference, the gate of given experts, and other architectures."""

import pytest
import torch

from tileproof.dsl import strategies
from tileproof.kernels.moe import given_gate, reference
from tileproof.kernels.moe.hash_gate import op

from ..support import assert_archs_agree, assert_within, run
from .support import EDGE, weight_bound


def inputs_of(M, seed, V=17):
    arrays = strategies.inputs(op.specialize(**EDGE), {"M": M, "V": V}, seed % 2**31)
    return [torch.from_numpy(a) for a in arrays.values()]


@pytest.mark.parametrize("M", [0, 1, 127, 128, 129, 257])
def test_tokens(M, seed):
    inputs = inputs_of(M, seed)
    index, weight = run(op, inputs, **EDGE)
    chosen, expected = reference.hash_gate(inputs[0].double(), *inputs[1:])
    assert torch.equal(index, chosen)
    assert_within(weight, expected, weight_bound(expected))


def test_given_experts_get_the_same_bits(seed):
    inputs = inputs_of(33, seed, V=1000)
    index, weight = run(op, inputs, **EDGE)
    (expected,) = run(given_gate.op, [inputs[0], index], **EDGE)
    assert torch.equal(weight, expected)


def test_a_token_does_not_see_its_neighbours(seed):
    logits, token, table = inputs_of(130, seed)
    index, weight = run(op, [logits, token, table], **EDGE)
    for m in (0, 127, 128):
        one = slice(m, m + 1)
        alone = run(op, [logits[one].contiguous(), token[one].contiguous(), table], **EDGE)
        assert torch.equal(alone[0], index[one])
        assert torch.equal(alone[1], weight[one])


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(131, seed), **EDGE)


def test_reference_is_hugging_faces_router(seed):
    from transformers.models.deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter

    torch.manual_seed(seed)
    config = DeepseekV4Config(
        hidden_size=32, n_routed_experts=16, num_experts_per_tok=3, vocab_size=50
    )
    router = DeepseekV4HashRouter(config)
    router.weight.data.normal_()
    router.tid2eid.random_(0, 16)
    tokens = torch.randint(0, 50, (9,))
    logits, weight, index = router(torch.randn(9, 32), tokens)
    ours, ours_weight = reference.hash_gate(
        logits, tokens, router.tid2eid, config.routed_scaling_factor
    )
    assert torch.equal(ours, index)
    torch.testing.assert_close(ours_weight, weight, rtol=16 * 2.0**-24, atol=0)
