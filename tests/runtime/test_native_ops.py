"""Torch ops whose calls run without Python: the same results, the same errors, never stale."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch

import tileproof
from tileproof.runtime import Library, MissingKernel, load, ops, use, virtual
from tileproof.runtime.backends import CPU, Null, Virtual
from tileproof.runtime.loader import Operation
from tileproof.runtime.virtual.device import _Driver


class Native(Virtual):
    """The virtual GPU without the registration of tensors that takes Python."""

    native = True

    def function(self, code, symbol, names, index):
        kernel = code.kernel(symbol, self.arch or "sm_80")
        text = code.bundle.read(kernel["cuda"]).decode()
        names = [launch["kernel"] for launch in kernel["launches"]]
        path = virtual.build(text, names, checked=False)
        return code.bind(symbol, kernel["plan"], virtual.driver(), (CPU, 0), bytes(path))


def loaded(bundle, backend):
    library = Library(backend)
    library.add(bundle)
    ops.activate(library)
    return library


@pytest.fixture
def library(bundle):
    return loaded(bundle, Native())


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def without_python():
    """No call reaches the Python implementation."""
    return patch.object(Operation, "__call__", side_effect=AssertionError("Python was asked"))


def sinkhorn_inputs(M, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(1, M, 8, generator=generator)
    return first, torch.rand(1, M, generator=generator) + 1, torch.ones(3), torch.zeros(8)


@pytest.mark.parametrize("M", [0, 1, 33])
def test_a_second_call_needs_no_python(library, post_inputs, M):
    inputs = post_inputs(M)
    op = torch.ops.tileproof.mhc_post
    first = op(*inputs)
    assert torch.equal(first, library.mhc_post(*inputs))
    with without_python():
        again, other = op(*inputs), op(*post_inputs(7))
    assert torch.equal(again, first)
    assert again.is_contiguous()
    assert again.data_ptr() != first.data_ptr() or M == 0
    assert torch.equal(other, library.mhc_post(*post_inputs(7)))


def test_options_and_several_outputs(library):
    op = torch.ops.tileproof.mhc_sinkhorn
    inputs = sinkhorn_inputs(5)
    expected = {D: library.mhc_sinkhorn(*inputs, D=D) for D in (64, 96)}
    for D in expected:
        op(*inputs, D=D)
    with without_python():
        for D, results in expected.items():
            assert all(map(torch.equal, op(*inputs, D=D), results))
    assert not torch.equal(expected[64][2], expected[96][2])


def test_rows_may_lie_apart(library):
    wide = torch.randn(9, 96, dtype=torch.bfloat16)
    expected = library.norm_rmsnorm_unweighted(wide[:, :64])
    op = torch.ops.tileproof.norm_rmsnorm_unweighted
    op(wide[:, :64].contiguous())
    with without_python():
        got = op(wide[:, :64])
    results = [(a, b) if torch.is_tensor(a) else (a[0], b[0]) for a, b in [(got, expected)]]
    assert all(torch.equal(a, b) for a, b in results)


BAD = {
    "a size": lambda a: [a[0], a[1][:2], *a[2:]],
    "a rank": lambda a: [a[0][0], *a[1:]],
    "a type": lambda a: [a[0], a[1].float(), *a[2:]],
    "strides": lambda a: [a[0].transpose(0, 1).contiguous().transpose(0, 1), *a[1:]],
    "no such kernel": lambda a: [a[0].float(), *a[1:]],
    "a width": lambda a: [a[0][:, :, :32].contiguous(), *a[1:]],
    "alignment": lambda a: [a[0], torch.cat([a[1].flatten(), a[1][0]])[1:193].view(3, 64), *a[2:]],
}


@pytest.mark.parametrize("what", BAD)
def test_errors_are_those_of_the_library(library, post_inputs, what):
    torch.ops.tileproof.mhc_post(*post_inputs(3))
    bad = BAD[what](post_inputs(3))
    with pytest.raises((ValueError, TypeError)) as expected:
        library.mhc_post(*bad)
    with pytest.raises((ValueError, TypeError)) as got:
        torch.ops.tileproof.mhc_post(*bad)
    assert type(got.value) is type(expected.value)
    assert str(got.value) == str(expected.value)
    if what == "no such kernel":
        assert isinstance(got.value, MissingKernel)
        assert got.value.types == {"act": "f32"}


def test_gradients_are_refused(library, post_inputs):
    x, *rest = post_inputs(2)
    torch.ops.tileproof.mhc_post(x, *rest)
    x.requires_grad_()
    with (
        torch.enable_grad(),
        pytest.raises(RuntimeError, match="x: got a tensor that requires"),
    ):
        torch.ops.tileproof.mhc_post(x, *rest)


def test_another_library_is_never_answered_by_the_old_one(bundle, library, post_inputs):
    op, inputs = torch.ops.tileproof.mhc_post, post_inputs(3)
    expected = op(*inputs)
    nothing = Library(Null())
    with use(nothing), pytest.raises(KeyError, match="op: got 'mhc_post', expected one of"):
        op(*inputs)
    assert torch.equal(op(*inputs), expected)
    reference = load(bundle, backend="reference")
    got = op(*inputs)
    assert torch.equal(got, reference.mhc_post(*inputs))
    with use(library), without_python(), pytest.raises(AssertionError, match="Python was asked"):
        op(*inputs)


def test_a_task_that_outlives_its_block_is_outside_of_it(bundle, library):
    import contextvars

    other = load(bundle, backend="reference")
    ops.activate(library)
    with use(other):
        inside = contextvars.copy_context()
        assert inside.run(ops.active) is other
    assert inside.run(ops.active) is library


def test_compiled_and_exported(library, post_inputs):
    class Block(torch.nn.Module):
        def forward(self, x, y, post, comb):
            return tileproof.ops.mhc_post(x, y, post, comb).float().sum(1) * 2

    block, rows = Block(), torch.export.Dim("rows", min=2, max=64)
    expected = {M: block(*post_inputs(M)) for M in (5, 9)}
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    shapes = ({0: rows},) * 4
    exported = torch.export.export(block, tuple(post_inputs(5)), dynamic_shapes=shapes)
    assert "tileproof.mhc_post" in str(exported.graph)
    for M in expected:
        assert torch.equal(compiled(*post_inputs(M)), expected[M])
        with without_python():
            assert torch.equal(exported.module()(*post_inputs(M)), expected[M])


def test_a_registered_backward_is_used(library, post_inputs):
    op = torch.ops.tileproof.mhc_post

    def backward(ctx, grad):
        return grad * 3, None, None, None

    with torch.library._scoped_library("tileproof", "IMPL") as scope:
        torch.library.register_autograd("tileproof::mhc_post", backward, lib=scope)
        x, *rest = post_inputs(2)
        expected = op(x, *rest)
        x.requires_grad_()
        with torch.enable_grad():
            out = op(x, *rest)
            out.sum().backward()
        assert torch.equal(out, expected)
        assert torch.equal(x.grad, torch.full_like(x, 3))


def test_many_threads_at_once(library, post_inputs):
    expected = {M: library.mhc_post(*post_inputs(M)) for M in range(1, 9)}
    ops.forget()

    def work(M):
        inputs = post_inputs(M)
        with torch.no_grad():
            got = [torch.ops.tileproof.mhc_post(*inputs) for _ in range(50)]
        return all(torch.equal(g, expected[M]) for g in got)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, expected))


def _words_of(buffer):
    """A driver's `error` that returns one C string; ctypes would free what a callback returns."""
    returns_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)
    error = returns_address(lambda code: ctypes.addressof(buffer))
    _words_of.kept.append(error)
    return ctypes.cast(error, dict(_Driver._fields_)["error"])


_words_of.kept = []


class Recording(Null):
    """A driver in Python that notes what it is asked and fails launches on demand."""

    def __init__(self):
        super().__init__("sm_80")
        self.asked, self.failing = [], 0
        self.words = ctypes.create_string_buffer(b"the card fell out")
        fields = dict(_Driver._fields_)

        def note(name, code=lambda: 0):
            return fields[name](lambda *_: self.asked.append(name) or code())

        self.table = _Driver(
            2,
            b"recording",
            fields["module_load"](self._load),
            note("module_unload"),
            note("function_get"),
            note("launch", lambda: self.failing),
            _words_of(self.words),
        )

    def _load(self, device, image, size, module):
        self.asked.append("module_load")
        module[0] = 1
        return 0

    def function(self, code, symbol, names, index):
        plan = code.kernel(symbol, "sm_80")["plan"]
        return code.bind(symbol, plan, ctypes.addressof(self.table), (CPU, 0), b"image")


def test_driver_errors_name_the_op(bundle, post_inputs):
    driver = Recording()
    loaded(bundle, driver)
    torch.ops.tileproof.mhc_post(*post_inputs(3))
    driver.failing = 1
    with without_python(), pytest.raises(RuntimeError, match=r"^mhc/post: the card fell out$"):
        torch.ops.tileproof.mhc_post(*post_inputs(3))


def test_a_library_that_is_replaced_is_unloaded(bundle, post_inputs):
    driver = Recording()
    library = loaded(bundle, driver)
    torch.ops.tileproof.mhc_post(*post_inputs(3))
    assert driver.asked == ["module_load", "function_get", "launch"]
    load(bundle, backend="null")
    del library
    gc.collect()
    assert driver.asked[3:] == ["module_unload"]


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_a_torch_without_its_stable_interface_keeps_python(library, post_inputs):
    op = ops._defined["mhc_post"]
    assert op.kernel is None
    with patch.object(ops, "_native", {"torch_implement": lambda *_: False}):
        op.implement()
        assert op.kernel is not None
        assert torch.equal(
            torch.ops.tileproof.mhc_post(*post_inputs(3)), library.mhc_post(*post_inputs(3))
        )
    op.implement()
    assert op.kernel is None
