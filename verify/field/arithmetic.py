"""What the operators and casts of TIR do to integers and to residues."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from . import residues
from .memory import Element, UnmodelledError, element


def wrapped(value: Any, kind: Element) -> Any:
    """An integer as its type stores it."""
    if kind.kind == "bool" or kind.bits == 64:
        return value
    low = -(1 << (kind.bits - 1)) if kind.name.startswith("int") else 0
    return (value - low) % (1 << kind.bits) + low


def _float_division(a: Any, b: Any) -> Any:
    return residues.multiply(a, residues.inverse(b))


_FLOAT: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: (a + b) % residues.P,
    "Sub": lambda a, b: (a - b) % residues.P,
    "Mul": residues.multiply,
    "Div": _float_division,
    "Max": residues.maximum,
    "Min": residues.minimum,
}


def _truncated(a: Any, b: Any) -> Any:
    quotient = np.abs(a) // np.where(b == 0, 1, np.abs(b))
    return np.where((a < 0) != (b < 0), -quotient, quotient)


_INT: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _truncated,
    "Mod": lambda a, b: a - _truncated(a, b) * b,
    "FloorDiv": lambda a, b: a // np.where(b == 0, 1, b),
    "FloorMod": lambda a, b: a % np.where(b == 0, 1, b),
    "Max": np.maximum,
    "Min": np.minimum,
}


def arithmetic(name: str, dtype: str, a: Any, b: Any) -> Any:
    """`a` and `b` combined as numbers of `dtype`."""
    kind = element(dtype)
    if kind.kind == "float":
        return _FLOAT[name](a, b)
    return wrapped(_INT[name](a, b), kind)


def convert(value: Any, source: str, target: str) -> Any:
    """A cast between scalar types, or vectors of them."""
    a, b = element(source), element(target)
    if a.name == b.name:
        return value
    if b.kind != "float":
        if a.kind != "float":
            return value != 0 if b.kind == "bool" else wrapped(np.asarray(value, np.int64), b)
        drawn = residues.scramble(f"to {b.name}", value) >> np.uint64(1)
        return wrapped(drawn.astype(np.int64), b)
    if a.kind != "float":
        value = np.asarray(value, np.int64) % residues.P
        return value if b.bits >= 32 else residues.rounded(b.name, value)
    return value if _holds(b, a) else residues.rounded(b.name, value)


def reinterpret(value: Any, source: str, target: str) -> Any:
    """The bits of a number as one of another type: of integers their own, else a random function,
    but that no bits are 0. Integers may be cut into several numbers each.

    Raises UnmodelledError for numbers that are joined, and for parts of a float.
    """
    a, b = element(source), element(target)
    if a.bits != b.bits:
        if a.kind == "float" or a.bits % b.bits:
            raise UnmodelledError(f"{source} as {target}")
        begin = np.arange(0, a.bits, b.bits)
        parts = np.atleast_1d(value)[..., None, :] >> begin[:, None] & (1 << b.bits) - 1
        a, value = Element(f"uint{b.bits}", "int", b.bits), parts.reshape(-1, parts.shape[-1])
    if "float" not in (a.kind, b.kind):
        return wrapped(np.asarray(value, np.int64), b)
    name = f"bits of {a.name} as {b.name}"
    if b.kind == "float":
        found = residues.symbol(name, value)
    else:
        found = wrapped((residues.scramble(name, value) >> np.uint64(1)).astype(np.int64), b)
    return np.where(np.asarray(value) == 0, 0, found)


def _holds(wide: Element, narrow: Element) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if narrow.name == "float8_e8m0fnu" and wide.name == "float16":
        return False
    return wide.bits >= 2 * narrow.bits or (wide.bits >= 32 and narrow.name == "tfloat32")
