"""What an op's declaration says of a call, read a second time: where its launcher must stop.

Written from the declaration and docs/bundle.md, sharing no code with `runtime/csrc/launcher.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tileproof.dsl import BoundTensor, Specialization, layout

from .dlpack import CPU, Array


class RefusedError(Exception):
    """The launcher must say this: kind of error, argument and field."""

    def __init__(self, kind: type[Exception], where: str) -> None:
        super().__init__(where)
        self.kind, self.where = kind, where


def require(holds: bool, where: str, kind: type[Exception] = ValueError) -> None:
    if not holds:
        raise RefusedError(kind, where)


def check_call(spec: Specialization, arguments: Sequence[Any]) -> bool:
    """Raises RefusedError for the first thing that is wrong with a call of `spec` on the CPU.

    False for a call that a launcher may refuse although nothing is wrong: two tensors lie between
    each other's rows, which it sees only where both step alike.
    """
    require(len(arguments) == len(spec.args), f"got {len(arguments)} arguments", TypeError)
    dims: dict[str, int] = {}
    for declared, array in zip(spec.args, arguments, strict=True):
        _check_tensor(spec, declared, array, dims)
    dims |= _pitches(spec, dims)
    clear = True
    for i, first in enumerate(spec.args):
        for j, second in enumerate(spec.args):
            if first.role == "in" or i == j:
                continue
            a, b = (_bytes(arguments[k], spec.args[k], dims) for k in (i, j))
            if not (a.size and b.size) or a[0] > b[-1] or b[0] > a[-1]:
                continue
            between = first.strides and second.strides and not np.intersect1d(a, b).size
            require(bool(between), f"{first.name}: got memory that overlaps {second.name}")
            clear = False
    return clear


def _check_tensor(
    spec: Specialization, declared: BoundTensor, array: Any, dims: dict[str, int]
) -> None:
    """One tensor by itself. A dim takes what it meets first."""
    name = declared.name
    require(isinstance(array, Array), f"{name}: got", TypeError)
    require(array.device == CPU, f"{name}: got a tensor on")
    dtype = (declared.dtype.code, declared.dtype.bits, 1)
    require(array.dtype == dtype, f"{name}.dtype: got", TypeError)
    require(len(array.shape) == len(declared.shape), f"{name}.ndim: got")
    for i, (size, got) in enumerate(zip(declared.shape, array.shape, strict=True)):
        _check_size(spec, dims, size, got, f"{name}.shape[{i}]: got")
    if 0 in array.shape:
        return
    row = 1
    for i in reversed(range(len(array.shape))):
        if array.shape[i] > 1:
            wanted = row if declared.strides is None else declared.strides[i]
            _check_size(spec, dims, wanted, array.strides[i], f"{name}.strides[{i}]: got")
        row *= array.shape[i]
    require(array.data != 0, f"{name}: got a null pointer")
    require((array.data + array.offset) % declared.align == 0, f"{name}: got address")


def _check_size(
    spec: Specialization, dims: dict[str, int], size: int | str, got: int, where: str
) -> None:
    if isinstance(size, str) and layout.letter_of(size) == size and size not in dims:
        _check_domain(spec, size, got, where)
        dims[size] = got
    require(got == layout.value(size, dims), where)


def _check_domain(spec: Specialization, letter: str, got: int, where: str) -> None:
    domain = spec.op.dims[letter]
    require(domain.lo <= got <= domain.hi and got % domain.multiple == 0, where)


def _pitches(spec: Specialization, dims: Mapping[str, int]) -> dict[str, int]:
    """Strides that nothing steps along, as small as may be. Rows of no tensor overlap."""
    settled = layout.fill_pitches(spec.args, spec.op.dims, dims)
    for declared in spec.args:
        row = 1
        for i in reversed(range(len(declared.strides or ()))):
            stride = (declared.strides or ())[i]
            step = layout.value(stride, settled)
            where = f"{declared.name}.strides[{i}]: got"
            require(step >= row, where)
            if isinstance(stride, str):
                _check_domain(spec, stride, step, where)
            row = step * layout.value(declared.shape[i], settled)
    return settled


def _bytes(array: Array, declared: BoundTensor, dims: Mapping[str, int]) -> np.ndarray:
    """The addresses of a tensor's bytes, ascending; of one without gaps the first and the last."""
    begin, size = array.data + array.offset, array.itemsize
    if 0 in array.shape:
        return np.empty(0, np.int64)
    if declared.strides is None:
        return np.array([begin, begin + size * int(np.prod(array.shape)) - 1])
    at = np.array([begin])
    for n, step in zip(array.shape, layout.strides(declared, dims), strict=True):
        at = (at[:, None] + size * step * np.arange(n)).ravel()
    return (at[:, None] + np.arange(size)).ravel()
