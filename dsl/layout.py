"""Row-major layouts whose rows may lie further apart than they are long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .check import check

if TYPE_CHECKING:
    from .spec import BoundTensor, Dim


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
            row = step * (n if isinstance(n, int) else sizes[n])
    return filled | smallest


def strides(a: BoundTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Strides of one tensor in elements at concrete sizes.

    Raises ContractError where rows would overlap.
    """
    shape = [n if isinstance(n, int) else sizes[n] for n in a.shape]
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
