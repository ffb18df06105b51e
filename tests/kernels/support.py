"""Kernels of the library on the virtual GPU, for tests."""

import copy
from functools import cache

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, settings

from tileproof.codegen import virtual
from tileproof.dsl import ALL, strategies
from tileproof.runtime import virtual as virtual_gpu

UNIT = 2.0**-24  # relative error of one rounding to float32
ACT_UNIT = {"bf16": 2.0**-8, "f32": 2.0**-24}  # of one rounding to the type of activations
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@cache
def _compiled(op, sizes, arch, checked):
    spec = op.specialize(**dict(sizes))
    return spec, virtual.compile(spec, arch, checked=checked)


def kernel(op, arch="sm_80", checked=False, **sizes):
    """(specialization, callable) of one kernel; built once per test session."""
    return _compiled(op, tuple(sorted(sizes.items())), arch, checked)


def draw(spec, M=None, seed=0, **sizes):
    """Seeded standard normal inputs in call order, in their declared types and strides.

    Between the rows of a strided tensor lies NaN. Ops of tiles have no number M of tokens.
    """
    sizes = sizes if M is None else {"M": M, **sizes}
    arrays = strategies.inputs(spec, sizes, seed % 2**31)
    strides = spec.strides(**sizes)
    dtypes = {a.name: getattr(torch, a.dtype.torch) for a in spec.args}
    return [_spread(torch.from_numpy(v).to(dtypes[k]), strides[k]) for k, v in arrays.items()]


def _spread(tensor, strides):
    if tensor.stride() == strides or not tensor.numel():
        return tensor
    last = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    memory = torch.full((last + 1,), float("nan"), dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, strides).copy_(tensor)


def run(op, inputs, arch="sm_80", checked=False, finite=True, **sizes):
    """Outputs of the kernel, which found poison in them; dims are those of the inputs, and among
    `sizes` where only outputs have them.

    With `finite`, poison that is still there is an element that was not written.
    """
    launch = {letter: sizes.pop(letter) for letter in op.dynamic if letter in sizes}
    spec, call = kernel(op, arch, checked, **sizes)
    shapes = spec.bind(**{**_letters(spec, inputs), **launch})
    types = {a.name: getattr(torch, a.dtype.torch) for a in spec.args if a.role == "out"}
    outputs = [torch.empty(shapes[name], dtype=t) for name, t in types.items()]
    for output in outputs:
        as_bytes(output).fill_(
            255
        )  # NaN in every floating-point format, -1 of an index; of codes any byte may be meant
    call(*inputs, *outputs)
    assert not finite or not any(_poisoned(o).any() for o in outputs), "an element was not written"
    return outputs


def results(op, inputs, arch="sm_80", checked=False, **sizes):
    """Copies of the inputs that the op changes, as it leaves them, then its outputs."""
    changed = [a.role == "inout" for a in op.args if a.role != "out"]
    passed = copy.deepcopy(inputs)  # views of one memory stay so
    outputs = run(op, passed, arch, checked, finite=not any(changed), **sizes)
    return [*(t for t, c in zip(passed, changed, strict=True) if c), *outputs]


def _poisoned(output):
    if output.dtype.is_floating_point:
        return output.float().isnan()
    return output == -1 if output.dtype in (torch.int32, torch.int64) else output != output


def as_bytes(tensor):
    """The bytes of a contiguous tensor, along its last dim."""
    return tensor.view(torch.uint8)


def _letters(spec, inputs):
    return {
        letter: size
        for tensor, a in zip(inputs, spec.args, strict=False)
        for letter, size in zip(a.shape, tensor.shape, strict=True)
        if letter in spec.op.dims
    }


def tokens(op, tile=32, cap=257):
    """Numbers of tokens at the edges of the op's domain and around its tile."""
    return strategies.sizes(op, tile=tile, cap=cap).map(lambda sizes: sizes["M"])


def calls(op, **sizes):
    """Tokens as in :func:`tokens`, and distances between rows where the op leaves them open."""
    spec = op.specialize(**sizes)
    return tokens(op).flatmap(
        lambda M: strategies.pitches(spec, {"M": M}).map(lambda pitches: {"M": M, **pitches})
    )


def seeds():
    """Seeds of the inputs."""
    return st.integers(0, 2**31 - 1)


def rows(spec, tensors, index, args):
    """`tensors` cut to the tokens of `index` along each one's token dim."""
    return [
        t.index_select(a.shape.index("M"), index).contiguous() if "M" in a.shape else t
        for t, a in zip(tensors, args, strict=True)
    ]


def assert_rows_alone(op, inputs, picks, **sizes):
    """A token's bits are the same alone and in the batch."""
    spec, _ = kernel(op, **sizes)
    ins = [a for a in spec.args if a.role == "in"]
    outs = [a for a in spec.args if a.role == "out"]
    together = run(op, inputs, **sizes)
    for pick in picks:
        index = torch.tensor([pick])
        alone = run(op, rows(spec, inputs, index, ins), **sizes)
        for got, expected in zip(alone, rows(spec, together, index, outs), strict=True):
            assert torch.equal(as_bytes(got), as_bytes(expected)), f"token {pick}"


def assert_archs_agree(op, inputs, archs=ALL, **sizes):
    """The architectures give the same bits; on the first, every access is checked."""
    first, *others = [results(op, inputs, a, checked=a == archs[0], **sizes) for a in archs]
    for arch, outputs in zip(archs[1:], others, strict=True):
        for got, expected in zip(outputs, first, strict=True):
            assert torch.equal(as_bytes(got), as_bytes(expected)), arch


def assert_schedules_agree(op, inputs, **sizes):
    """The order of warps and blocks, and when asynchronous copies land, change no bit."""
    expected = results(op, inputs, **sizes)
    for late in (True, False):
        for seed in (1, 2):
            with virtual_gpu.options(late=late, seed=seed):
                outputs = results(op, inputs, **sizes)
            for got, same in zip(outputs, expected, strict=True):
                assert torch.equal(as_bytes(got), as_bytes(same)), f"late={late}, seed={seed}"


def assert_within(got, expected, bound):
    """``|got - expected| <= bound`` elementwise, in float64; below normal numbers all is equal."""
    excess = (got.double() - expected.double()).abs() - bound - 2.0**-126
    worst = excess.max().item() if excess.numel() else 0.0
    assert worst <= 0, f"beyond the bound by {worst}"
