"""Any TileLang kernel as a function on torch CPU tensors, executed by the virtual GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from tileproof.dsl import arch as architecture
from tileproof.dsl import check
from tileproof.dsl.expression import evaluate as arithmetic
from tileproof.runtime import virtual

from .hostir import TensorMap, evaluate
from .lower import Lowered, Parameter, lower

# A tensor map does not say whether it is for loads or for stores; its uses do.
_STORED = re.compile(r"tma_store\w*(?:<[^(]*>)?\((\w+)")


def compile(
    kernel: Any,
    arch: str = "sm_80",
    *,
    checked: bool | None = None,
) -> VirtualKernel:
    """Lower `kernel` for `arch` and return it as a function of its arguments in signature order.

    Args:
        kernel: a specialization of an op, a TileLang prim_func, or a :class:`Lowered` kernel.
        checked: build with every shared and global access checked (slower); the current
            ``virtual.options`` decide if None. They also choose schedule and async behaviour.

    The function takes torch CPU tensors (outputs included, preallocated) and Python numbers. It
    raises ContractError for a wrong count, shape or type, and VirtualError for whatever the kernel
    did wrong, such as an access out of bounds or a deadlock.
    """
    lowered = kernel if isinstance(kernel, Lowered) else lower(kernel, arch)
    return VirtualKernel(lowered, checked=checked)


class VirtualKernel:
    """A lowered kernel as a function on torch CPU tensors; see :func:`compile`."""

    def __init__(self, lowered: Lowered, *, checked: bool | None = None):
        self.lowered = lowered
        kernels = [launch.kernel for launch in lowered.launches]
        self.module = virtual.VirtualModule(
            lowered.cuda, kernels, checked=checked, arch=lowered.arch
        )

    def written(self) -> set[str]:
        """Names of the tensors that some kernel may write."""
        return written(self.lowered)

    def __call__(self, *args: Any) -> None:
        lowered = self.lowered
        parameters = lowered.parameters
        got, expected = len(args), len(parameters)
        check(got == expected, f"{lowered.name}: arguments", got=got, expected=expected)
        values: dict[str, Any] = {}
        unseen: dict[str, int] = {}
        for parameter, value in zip(parameters, args, strict=True):
            values[parameter.name] = value
            if parameter.shape is not None:
                _bind(lowered.name, parameter, value, values, unseen)
        sizes = {k: v for k, v in values.items() if isinstance(v, int)}
        if lowered.spec is not None:
            sizes = lowered.spec.sizes(**sizes)
        values = {**unseen, **sizes, **values}
        for launch in lowered.launches:
            grid = tuple(evaluate(e, sizes) for e in launch.grid)
            if 0 in grid:
                continue
            block = tuple(evaluate(e, sizes) for e in launch.block)
            smem = evaluate(launch.smem, sizes)
            if smem > (most := architecture(lowered.arch).smem):
                raise virtual.VirtualError(
                    f"kernel {launch.kernel}: a block of {lowered.arch} has at most {most} bytes of"
                    f" shared memory, got {smem}"
                )
            passed = [
                _tensor_map(a.tensor_map, values) if a.tensor_map else values[a.name]
                for a in launch.args
            ]
            self.module.launch(
                launch.kernel,
                grid,
                block,
                smem,
                passed,
                cluster=tuple(evaluate(e, sizes) for e in launch.cluster),
                cooperative=launch.cooperative,
            )


def written(lowered: Lowered) -> set[str]:
    """Names of the tensors that some kernel may write: it does not declare them const."""
    names = set()
    kernels = virtual.signatures(lowered.cuda)
    for launch in lowered.launches:
        declared = kernels[launch.kernel].parameters
        for argument, (kind, _) in zip(launch.args, declared, strict=True):
            if kind.endswith("*") and not kind.startswith("const "):
                names.add(argument.name)
            if argument.tensor_map and argument.name in _STORED.findall(lowered.cuda):
                names.add(argument.tensor_map.tensor)
    return names


def _tensor_map(declared: TensorMap, values: Mapping[str, Any]) -> virtual.TensorMap:
    sizes = {k: v for k, v in values.items() if isinstance(v, int)}

    def at_sizes(field: Any) -> Any:
        if isinstance(field, tuple):
            return tuple(evaluate(e, sizes) for e in field)
        return evaluate(field, sizes)

    fields = {name: at_sizes(field) for name, field in declared.fields.items()}
    return virtual.TensorMap(values[declared.tensor], **fields)


def _bind(
    kernel: str,
    parameter: Parameter,
    value: Any,
    values: dict[str, Any],
    unseen: dict[str, int],
) -> None:
    """Check one tensor against its declared type, shape and strides; symbols take what they meet
    first. Nothing steps along an axis of one element: `unseen` gets a stride it could have."""
    where = f"{kernel}: {parameter.name}"
    check(isinstance(value, torch.Tensor), where, got=type(value).__name__, expected="a tensor")
    check(value.device.type == "cpu", where, got=f"a tensor on {value.device}", expected="cpu")
    got_type = str(value.dtype).removeprefix("torch.")
    check(got_type == parameter.dtype, f"{where}.dtype", got=got_type, expected=parameter.dtype)
    shape = parameter.shape or ()
    check(value.ndim == len(shape), f"{where}.ndim", got=value.ndim, expected=len(shape))
    for i, (size, declared) in enumerate(zip(value.shape, shape, strict=True)):
        _agree(f"{where}.shape[{i}]", size, declared, values)
    if parameter.strides is None:
        check(value.is_contiguous(), where, got="a strided tensor", expected="a contiguous one")
        return
    least = 1
    for i in reversed(range(value.ndim)):
        stride, declared = value.stride(i), parameter.strides[i]
        if value.shape[i] > 1 and value.numel():
            _agree(f"{where}.strides[{i}]", stride, declared, values)
            check(stride >= least, f"{where}.strides[{i}]", got=stride, expected=f">= {least}")
        elif isinstance(declared, str):
            stride = unseen.setdefault(declared, least)
        least = max(1, value.shape[i]) * stride


def _agree(where: str, got: int, declared: int | str, values: dict[str, Any]) -> None:
    expected = declared
    if isinstance(declared, str):  # a symbol, or arithmetic on those that are known
        known = {k: v for k, v in values.items() if isinstance(v, int)}
        symbol = declared.isidentifier()
        expected = values.setdefault(declared, got) if symbol else arithmetic(declared, known)
    name = f"{declared}={expected}" if isinstance(declared, str) else expected
    check(got == expected, where, got=got, expected=name)
