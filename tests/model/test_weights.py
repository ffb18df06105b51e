"""Checkpoints in the official format, and those of transformers read as such."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.model import weights
from tileproof.model.checkpoint import tiny_model
from tileproof.model.names import canonical, entries

from .support import VOCABULARY


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, VOCABULARY)


@pytest.fixture(scope="module")
def state(model):
    return canonical(model.state_dict())


def test_names_are_those_of_the_state_dict(model, state):
    wanted = {k: e.shape for k, e in entries(model.config).items() if not k.startswith("mtp.")}
    assert {k: tuple(t.shape) for k, t in state.items()} == wanted


def test_a_checkpoint_of_transformers_is_read(tmp_path, model, state):
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = weights.read(tmp_path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)


def test_the_official_form_round_trips(tmp_path, model, state):
    stored = weights.official(model.config, state)
    for name, entry in entries(model.config).items():
        for part in () if name.startswith("mtp.") else entry.parts(name):
            assert (tuple(stored[part.name].shape), stored[part.name].dtype) == part[1:]
    weights.write(tmp_path, model.config, state)
    read = weights.read(tmp_path)
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[k].view(torch.uint8), stored[k].view(torch.uint8)) for k in stored)
    plain = weights.plain(model.config, read)
    # quantising what was quantised changes no value, though a code may move to a smaller scale
    again = weights.plain(model.config, weights.official(model.config, plain))
    assert all(torch.equal(again[k], plain[k]) for k in plain)
    # half a step of the format's mantissa, relative to the largest of a scale's block at most
    for name, entry in entries(model.config).items():
        step = {"fp8": 2.0**-4, "fp4": 2.0**-2, "bf16": 2.0**-8}.get(entry.stored, 0)
        if name in plain and plain[name].is_floating_point():
            error = (plain[name].float() - state[name].float()).abs()
            assert (error <= step * state[name].abs().max()).all(), name


def without(state, name):
    return {k: t for k, t in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: without(s, "layers.2.attn.wkv.weight"),
            r"layers\.2\.attn\.wkv\.weight: got nothing, expected bfloat16 \[32, 64\]",
        ),
        (
            lambda s: s | {"norm.weight": torch.ones(65)},
            r"norm\.weight: got float32 \[65\], expected bfloat16 \[64\]",
        ),
        (
            lambda s: s | {"head.weight": s["head.weight"].int()},
            r"head\.weight: got int32 \[256, 64\], expected bfloat16",
        ),
        (lambda s: s | {"layers.9.x": torch.ones(1)}, r"got layers\.9\.x, expected only tensors"),
    ],
    ids=["missing", "shape", "type", "unknown"],
)
def test_what_does_not_fit_is_named(model, state, change, message):
    with pytest.raises(ContractError, match=message):
        weights.plain(model.config, change(state))


def test_damaged_folders(tmp_path, model, state):
    with pytest.raises(ContractError, match=r"got no \*\.safetensors, expected a checkpoint"):
        weights.read(tmp_path)
    weights.write(tmp_path, model.config, state)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ContractError, match="expected a whole safetensors file"):
        weights.read(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    with pytest.raises(ContractError, match=r"got no b\.safetensors"):
        weights.read(tmp_path)
