"""One case on the virtual GPU and on something else that launches kernels; how far they are apart.

Every function returns what is wrong ("" if nothing) and the largest difference as a share of what
is allowed (0 where bits must agree and do).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tileproof.codegen.lower import lower
from tileproof.codegen.virtual import VirtualKernel
from tileproof.dsl import get, load_library
from tileproof.runtime import virtual

from ..kernels.support import draw
from ..runtime.virtual.catalogue import PROGRAMS, compare
from .cases import TEXTS, cuda

# Makes what launches the kernels of a CUDA text: ``CardModule``, or a stand-in.
Make = Callable[[str], Any]
# Results of an op may land on the neighbouring number; float32 ones, of some hundred operations
# with their own mathematics (exp2, rsqrt), within as many units of the largest.
_ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-23}
_F32 = 2.0**-14


class Here(virtual.VirtualModule):
    """The virtual GPU in the place of a card."""

    def __init__(self, cuda: str) -> None:
        super().__init__(cuda, checked=False)

    def launch(self, *args: Any, times: int = 1, **how: Any) -> None:
        for _ in range(times):
            super().launch(*args, **how)


@functools.cache
def _texts_of(make: Make, arch: str) -> Any:
    return make(cuda(arch))


def run_text(name: str, arch: str, make: Make) -> tuple[str, float]:
    """A text of the table; the bits must agree with the virtual GPU's, and they with the oracle."""
    text = TEXTS[name]
    here, there = (text.launch(_texts_of(side, arch), name) for side in (Here, make))
    if text.want is not None and (words := compare(here, text.want(text.inputs()), None)):
        return f"the virtual GPU: {words}", 0.0
    return compare(there, here, None), 0.0


def run_program(name: str, arch: str, make: Make) -> tuple[str, float]:
    """A TileLang program on its draws, against the oracle and its bound."""
    program = PROGRAMS[name]
    lowered = program.lowered(arch)
    here, there = VirtualKernel(lowered), VirtualKernel(lowered)
    there.module = make(lowered.cuda)
    names = [p.name for p in lowered.parameters]
    worst = 0.0
    for number in range(2):
        drawn = program.draw(lowered, here.written(), number).arguments
        expected = program.oracle(dict(zip(names, drawn, strict=True)))
        for side, kernel in (("the virtual GPU", here), ("the card", there)):
            mine = [v.clone() if isinstance(v, torch.Tensor) else v for v in drawn]
            kernel(*mine)
            results = dict(zip(names, mine, strict=True))
            for output, (want, bound) in expected.items():
                if words := compare(results[output], want, bound):
                    return f"{side}: {output}: {words}", worst
                if bound is not None and bound.numel():
                    off = (results[output].double() - want).abs() / bound.clamp_min(1e-300)
                    worst = max(worst, float(off.max()))
    return "", worst


def run_op(name: str, arch: str, make: Make, tokens: int = 17) -> tuple[str, float]:
    """An op of the library at its tiny sizes, on the virtual GPU and elsewhere."""
    spec = get(name).shape_set("tiny")[0][0]
    here = VirtualKernel(lower(spec, arch))
    there = VirtualKernel(here.lowered)
    there.module = make(here.lowered.cuda)
    inputs, shapes = op_inputs(spec, tokens), spec.bind(**op_sizes(spec, tokens))
    types = {a.name: getattr(torch, a.dtype.torch) for a in spec.args if a.role == "out"}
    changed = [a.role == "inout" for a in spec.args if a.role != "out"]
    results = []
    for kernel in (here, there):
        passed = copy.deepcopy(inputs)  # views of one memory stay so
        outputs = [torch.empty(shapes[name], dtype=t) for name, t in types.items()]
        for output in outputs:
            output.view(torch.uint8).fill_(255)  # NaN in every floating-point format
        kernel(*passed, *outputs)
        results.append([t for t, c in zip(passed, changed, strict=True) if c] + outputs)
    return worst_of(*results)


def op_sizes(spec: Any, tokens: int) -> dict[str, int]:
    """The tiny sizes of an op, with as many tokens where it takes that many."""
    (sizes, *_) = spec.op.shape_set("tiny")[1]
    takes = "M" in spec.op.dims and tokens % spec.op.dims["M"].multiple == 0
    return {**sizes, "M": tokens} if takes else sizes


def op_inputs(spec: Any, tokens: int = 17) -> list[torch.Tensor]:
    """Inputs no op makes a NaN of: some are sums of squares."""
    drawn = draw(spec, seed=0, **op_sizes(spec, tokens))
    for tensor in drawn:
        if tensor.is_floating_point():
            tensor.copy_(tensor.float().abs())  # in its own strides
    return drawn


def worst_of(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> tuple[str, float]:
    """How far an op's outputs are from the virtual GPU's."""
    worst = 0.0
    for i, (want, other) in enumerate(zip(expected, got, strict=True)):
        if want.dtype not in _ULP:
            if not torch.equal(want.view(torch.uint8), other.view(torch.uint8)):
                return f"output {i}: other bits, expected the same of {want.dtype}", worst
            continue
        alike = want.isinf() & (want == other)  # -inf of both is no difference
        other = other.masked_fill(alike, 0)
        wide = want.double().masked_fill(alike, 0)
        bound = wide.abs() * _ULP[want.dtype] + wide.abs().amax() * _F32
        if words := compare(other, wide, bound):
            return f"output {i}: {words}", worst
        off = (other.double() - wide).abs() / bound.clamp_min(1e-300)
        worst = max(worst, float(off.max()))
    return "", worst


def library_ops() -> list[str]:
    """Names of the library's ops."""
    return sorted(load_library())
