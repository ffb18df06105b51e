"""Bounds written over dims, such as ``"T-1"``: integers, letters and ``+ - * // %``."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from .check import check

Value = TypeVar("Value")

_NAMES: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "div",
    ast.Mod: "mod",
}
_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}


def fold(
    source: str,
    dims: Mapping[str, Value],
    number: Callable[[int], Value],
    apply: Callable[[str, Value, Value], Value],
) -> Value:
    """The value of `source`, where `apply` does ``add sub mul div mod`` (the last two floor).

    Raises ContractError for anything else than arithmetic on `dims`.
    """

    def walk(node: ast.AST) -> Value:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return number(node.value)
        if isinstance(node, ast.Name) and node.id in dims:
            return dims[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return apply("sub", number(0), walk(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _NAMES:
            return apply(_NAMES[type(node.op)], walk(node.left), walk(node.right))
        raise refused

    expected = f"integers and {', '.join(dims) or 'no dims'} under + - * // %"
    refused = SyntaxError()
    try:
        return walk(ast.parse(source, mode="eval").body)
    except SyntaxError:
        check(False, "size expression", got=repr(source), expected=expected)
        raise AssertionError from None  # unreachable: check raised


def evaluate(source: str, sizes: Mapping[str, int]) -> int:
    """``evaluate("T-1", {"T": 8})`` is 7."""
    return fold(source, sizes, int, lambda op, a, b: _INTEGERS[op](a, b))


def fixed(source: str, sizes: Mapping[str, int]) -> str:
    """`source` with the dims that have a size written as numbers: ``"E*V-1"`` → ``"256*V-1"``."""
    return re.sub(r"[A-Za-z_]\w*", lambda name: str(sizes.get(name[0], name[0])), source)


def to_c(source: str, names: Mapping[str, str]) -> str:
    """The expression in C, over signed integers called as in `names`; divisors are positive."""

    def text(op: str, a: str, b: str) -> str:
        if op in _SIGNS:
            return f"({a} {_SIGNS[op]} {b})"
        quotient = f"({a} >= 0 ? {a} / {b} : -((-{a} + {b} - 1) / {b}))"
        return quotient if op == "div" else f"({a} - {b} * {quotient})"

    return fold(source, names, lambda n: f"{n}LL", text)


_SIGNS = {"add": "+", "sub": "-", "mul": "*"}
