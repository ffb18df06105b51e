"""Row-major layouts whose rows may lie further apart than they are long."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .check import check

if TYPE_CHECKING:
    from .spec import BoundTensor, Dim


_PER = re.compile(r"([A-Za-z_]\w*)/(\d+)")  # "N/128": one for each 128 of N, begun ones included


def letter_of(size: str) -> str:
    """The dim that a size of a declaration is written with: "N" or "N/128"; "" for a number."""
    match = _PER.fullmatch(size)
    return match[1] if match else "" if size.isdigit() else size


def expression(size: int | str) -> str:
    """A size in the words of :mod:`.expression` (and of TIR): "N/128" is ``(N + 127) // 128``."""
    match = _PER.fullmatch(str(size))
    return f"({match[1]} + {int(match[2]) - 1}) // {match[2]}" if match else str(size)


def value(size: int | str, sizes: Mapping[str, int]) -> int:
    """A size as a number."""
    if isinstance(size, int) or size.isdigit():
        return int(size)
    match = _PER.fullmatch(size)
    return -(-sizes[match[1]] // int(match[2])) if match else sizes[size]


def fill_pitches(
    tensors: Sequence[BoundTensor], dims: Mapping[str, Dim], sizes: Mapping[str, int]
) -> dict[str, int]:
    """`sizes` with every stride letter it lacks at the smallest value its tensors admit."""
    filled = dict(sizes)
    smallest: dict[str, int] = {}
    for a in tensors:
        if a.strides is None:
            continue
        row = 1  # elements from one step of an axis to the next
        for n, stride in zip(reversed(a.shape), reversed(a.strides), strict=True):
            if isinstance(stride, str) and stride not in sizes:
                d = dims[stride]
                least = -(-max(d.lo, row) // d.multiple) * d.multiple
                smallest[stride] = max(least, smallest.get(stride, 0))
            step = stride if isinstance(stride, int) else {**smallest, **sizes}[stride]
            row = step * value(n, sizes)
    return filled | smallest


def strides(a: BoundTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Strides of one tensor in elements at concrete sizes.

    Raises ContractError where rows would overlap.
    """
    shape = [value(n, sizes) for n in a.shape]
    if a.strides is None:
        out = [1] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            out[i] = out[i + 1] * shape[i + 1]
        return tuple(out)
    found = [s if isinstance(s, int) else sizes[s] for s in a.strides]
    for i in range(len(found) - 1):
        row = shape[i + 1] * found[i + 1]
        expected = f"at least {row}, the length of what it steps over"
        check(found[i] >= row, f"{a.name}.strides[{i}]", got=found[i], expected=expected)
    return tuple(found)
