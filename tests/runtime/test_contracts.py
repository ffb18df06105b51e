"""Launchers refuse every call that breaks the op's declaration, in one sentence."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tileproof.runtime import load, virtual
from tileproof.runtime.backends import CPU, Code
from tileproof.runtime.bundle import Bundle

M = 6
SYMBOL = "mhc_post__bf16_N4_D64"


@pytest.fixture(scope="module")
def launcher(bundle):
    """The bare function of mhc/post through the null driver: x, y, post, comb, out."""
    return load(bundle, backend="null").mhc_post.kernel(SYMBOL)


@pytest.fixture
def call(post_inputs):
    """Arguments by name, valid as they are; a test spoils one."""
    inputs = post_inputs(M)
    return dict(zip(("x", "y", "post", "comb"), inputs, strict=True)) | {"out": inputs[0].clone()}


def test_a_valid_call_passes(launcher, call):
    launcher(*call.values())


@pytest.mark.parametrize(
    ("name", "spoil", "error", "words"),
    [
        ("y", lambda t: t[:, :63], ValueError, "mhc/post: y.shape[1]: got 63, expected D=64"),
        ("y", lambda t: t[: M - 1], ValueError, "mhc/post: y.shape[0]: got 5, expected M=6"),
        ("x", lambda t: t[:, :3], ValueError, "mhc/post: x.shape[1]: got 3, expected N=4"),
        ("x", lambda t: t.flatten(), ValueError, "mhc/post: x.ndim: got 1, expected 3"),
        ("y", lambda t: t.float(), TypeError, "mhc/post: y.dtype: got float32, expected bfloat16"),
        ("post", lambda t: t.int(), TypeError, "mhc/post: post.dtype: got int32, expected float32"),
        (
            "comb",
            lambda t: t.double(),
            TypeError,
            "mhc/post: comb.dtype: got float64, expected float32",
        ),
        (
            "comb",
            lambda t: t.transpose(1, 2),
            ValueError,
            "mhc/post: comb.strides[2]: got 4, expected 1 (contiguous)",
        ),
        (
            "y",
            lambda t: torch.cat([t, t], 1)[:, :64],
            ValueError,
            "mhc/post: y.strides[0]: got 128, expected 64 (contiguous)",
        ),
        ("comb", lambda t: 3, TypeError, "mhc/post: comb: got an int, expected a tensor"),
        ("out", lambda t: None, TypeError, "mhc/post: out: got None, expected a tensor"),
    ],
)
def test_a_spoiled_argument_is_named(launcher, call, name, spoil, error, words):
    call[name] = spoil(call[name])
    with pytest.raises(error) as raised:
        launcher(*call.values())
    assert str(raised.value) == words


def test_the_number_of_arguments(launcher, call):
    with pytest.raises(TypeError) as raised:
        launcher(*list(call.values())[:4])
    assert str(raised.value) == "mhc/post: got 4 arguments, expected 5 tensors"


def test_alignment(launcher, call):
    storage = torch.empty(M * 64 + 1, dtype=torch.bfloat16)
    call["y"] = storage[1:].view(M, 64)
    with pytest.raises(
        ValueError, match=r"^mhc/post: y: got address 0x\w+, expected a multiple of 16"
    ):
        launcher(*call.values())


def test_a_view_with_an_offset_that_keeps_alignment_passes(launcher, call):
    call["y"] = torch.empty(M + 1, 64, dtype=torch.bfloat16)[1:]
    launcher(*call.values())


def test_strides_of_axes_of_size_one_are_free(launcher, post_inputs):
    x, y, post, comb = post_inputs(1)
    strided = y.as_strided((1, 64), (1000, 1))
    launcher(x, strided, post, comb, x.clone())


def test_outputs_need_their_own_memory(launcher, call):
    call["out"] = call["x"]
    with pytest.raises(ValueError, match="out: got memory that overlaps x, expected its own"):
        launcher(*call.values())


def test_dims_beyond_their_domain(launcher):
    most = 1 << 20
    x = torch.empty(1, dtype=torch.bfloat16).expand(most + 1, 4, 64)
    with pytest.raises(ValueError) as raised:
        launcher(x, x[:, 0], x, x, x)
    expected = f"mhc/post: x.shape[0]: got M={most + 1}, expected M in 0..{most}"
    assert str(raised.value) == expected


def test_another_device_is_named(bundle, call):
    launcher = load(bundle, backend="null").mhc_post.kernel(SYMBOL, device_index=1)
    with pytest.raises(ValueError) as raised:
        launcher(*call.values())
    assert str(raised.value) == "mhc/post: x: got a tensor on cpu, expected cuda:1"


def test_another_device_of_the_same_kind(bundle, call):
    code = Code(Bundle(bundle))
    launcher = code.bind(SYMBOL, 0, code.launchers["null_driver"](), (CPU, 1), b"")
    with pytest.raises(ValueError, match=r"^mhc/post: x: got a tensor on cpu, expected"):
        launcher(*call.values())


def test_zero_tokens_are_fine_whatever_their_pointers(launcher, post_inputs):
    inputs = post_inputs(0)
    launcher(*inputs, inputs[0].clone())


def test_numpy_arrays_are_taken(bundle):
    symbol = "mhc_sinkhorn__N2_D64"
    launcher = load(bundle, backend="null").mhc_sinkhorn.kernel(symbol)
    shapes = [(1, M, 8), (1, M), (3,), (8,), (M, 2), (M, 2), (M, 2, 2)]
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    launcher(*arrays)
    arrays[3] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as raised:
        launcher(*arrays)
    assert str(raised.value) == "mhc/sinkhorn: base.shape[0]: got 7, expected C=8"


@pytest.fixture(scope="module")
def norm(bundle):
    """norm/rmsnorm_unweighted on the virtual GPU; the rows of its input may lie apart."""
    return load(bundle, backend="virtual").norm_rmsnorm_unweighted


@pytest.mark.parametrize("pitch", [64, 72, 1024])
@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_rows_may_lie_apart(norm, seed, rows, pitch):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, pitch, generator=generator).bfloat16()
    x = wide[:, :64]
    with virtual.options(checked=True):
        assert torch.equal(norm(x), norm(x.contiguous()))


@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((6, 64), (68, 1), "x.strides[0]: got P=68, expected a multiple of 8"),
        ((6, 64), (56, 1), "x.strides[0]: got 56, expected at least 64, the length of what it"),
        ((6, 64), (0, 1), "x.strides[0]: got P=0, expected P in 16..1048576"),
        ((6, 64), (128, 2), "x.strides[1]: got 2, expected 1"),
    ],
)
def test_a_stride_outside_its_contract_is_named(norm, shape, strides, words):
    x = torch.zeros(2048, dtype=torch.bfloat16).as_strided(shape, strides)
    with pytest.raises(ValueError, match=re.escape(f"norm/rmsnorm_unweighted: {words}")):
        norm(x)


def test_an_output_between_the_rows_of_an_input_overlaps_it(norm):
    function = norm.kernel("norm_rmsnorm_unweighted__bf16_D64")
    wide = torch.zeros(256, dtype=torch.bfloat16)
    x, y = wide.as_strided((2, 64), (192, 1)), wide[64:192].view(2, 64)
    with pytest.raises(ValueError, match="y: got memory that overlaps x, expected its own"):
        function(x, y)
