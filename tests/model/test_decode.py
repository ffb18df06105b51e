"""Which form of attention the tokens of a batch are given, and that no bit hangs on it."""

import pytest
import torch

from tileproof.dsl import get
from tileproof.kernels.attention import form
from tileproof.model.official import core

from ..kernels.attention.test_paged import draw
from ..kernels.support import run

SIZES = {"H": 5, "V": 64, "R": 64, "E": 4, "F": 2}
H100 = 132


@pytest.mark.parametrize(
    ("tokens", "heads", "slots", "few"),
    [
        (0, 64, 640, 0),
        (1, 64, 640, 1),
        (33, 64, 640, 33),  # 132 blocks
        (34, 64, 640, 0),
        (131, 64, 640, 0),
        (132, 64, 640, 0),  # a whole wave
        (133, 64, 640, 1),
        (132 + 33, 64, 640, 33),
        (132 + 34, 64, 640, 0),
        (1, 64, form._LEAST - 1, 0),
        (16, 128, 1152, 16),  # two blocks of heads
        (17, 128, 1152, 0),
        (66 + 16, 128, 1152, 16),
        (4, 8, 640, 4),
    ],
)
def test_clusters_take_a_last_wave_that_would_leave_most_of_the_device_idle(
    tokens, heads, slots, few
):
    assert form.clustered(tokens, heads, 512, slots, H100) == few


def test_without_a_device_or_with_channels_that_cannot_be_cut_there_is_one_form():
    assert form.clustered(1, 64, 512, 640, 0) == 0
    assert form.clustered(1, 64, 96, 640, H100) == 0
    assert form.clustered(1, 128, 512, 640, 1) == 0  # a token fills it


@pytest.mark.parametrize("M", [0, 1, 3, 5])
def test_the_form_changes_no_bit(M, seed, monkeypatch):
    """On four multiprocessors, of which five tokens fill one wave and a cluster for the last."""
    monkeypatch.setattr(form, "_LEAST", 98)
    q, *lists, sink = draw(M, 33, 65, seed=seed, sizes=SIZES)
    called = []

    def device(op, *tensors):
        called.append((op, len(tensors[0])))
        return run(get(op), list(tensors), "sm_100a", **SIZES)[0]

    expected = core(device, q, lists, sink, 0)
    out = core(device, q, lists, sink, 4)
    assert torch.equal(out, expected)
    one, many = "attention_paged", "attention_paged_cluster"
    forms = {0: [(one, 0)], 1: [(many, 1)], 3: [(one, 3)], 5: [(many, 1), (one, 4)]}
    assert called == [("attention_paged", M), *forms[M]]
