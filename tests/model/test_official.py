"""The reference of the official policy is causal, bit for bit, and near the unquantised network."""

import pytest
import torch

from tileproof.model import weights
from tileproof.model.checkpoint import OFFICIAL, official_config, random_state, tiny_model
from tileproof.model.exact import exact_logits
from tileproof.model.names import canonical, official_name

from . import official
from .official import Official
from .support import VOCABULARY, error, token_ids

LENGTH = 44


@pytest.fixture(scope="module")
def network():
    config = official_config(VOCABULARY, compress_rate_hca=16)
    return Official(config, weights.official(config, random_state(config, 1)), LENGTH + 1)


def test_a_token_hangs_on_those_before_it_alone(network):
    ids = token_ids(3, 1, LENGTH)[0]
    whole, streams = network(ids)
    assert whole.isfinite().all()
    for length in (1, 3, 4, 7, 8, 9, 16, 33):
        logits, x = network(ids[:length])
        assert torch.equal(logits, whole[:length]), length
        assert torch.equal(x, streams[:length]), length


def test_every_token_matters(network):
    """Among others to the last, which no window and no choice of entries keeps from it."""
    ids = token_ids(3, 1, LENGTH)[0]
    last = network(ids)[0][-1]
    for t in (0, 17, 31, LENGTH - 1):
        changed = ids.clone()
        changed[t] = (ids[t] + 1) % VOCABULARY
        assert not torch.equal(network(changed)[0][-1], last), t


def test_it_predicts_a_token_more(network):
    ids = token_ids(4, 1, LENGTH + 1)[0]
    _, streams = network(ids[:-1])
    logits = network.predict(streams, ids[1:])
    assert torch.equal(network.predict(streams[:9], ids[1:10]), logits[:9])
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def load(model, state):
    """The tensors of `state`, under official names, into a model of transformers."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            name = official_name(key)
            owner, _, leaf = name.rpartition(".")
            parts = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}.get(leaf)
            if parts is None:
                parameter.copy_(state[name])
                continue
            for e, matrix in enumerate(parameter):
                matrix.copy_(torch.cat([state[f"{owner}.{e}.{w}.weight"] for w in parts]))


def test_without_its_roundings_it_is_transformers_network():
    """In float64, with quantisers that do nothing: what is left to err are roundings."""
    model = tiny_model(5, VOCABULARY, **OFFICIAL)
    stored = weights.official(model.config, canonical(model.state_dict()))
    load(model, weights.plain(model.config, stored))
    ids = token_ids(5, 1, 300)
    expected = exact_logits(model, ids)[0]
    logits = official.unrounded(model.config, stored, ids[0])
    assert logits.dtype == torch.float64
    # cos and sin are float32 on both sides, of angles up to 300: 300 2^-24 and their propagation
    assert error(logits, expected) < 300 * 2.0**-24
