"""When a selection reads but one of its sides.

By the rules of TIR a ``Select`` may read both. What reaches nvcc is the text of TileLang's printer,
which writes one between scalars as ``c ? a : b``. It computes vectors before the statement,
whatever `c` is, and an ``if_then_else`` in `a` as ``if (c && …)``; but there it knows the innermost
``Select`` only, so that of a nested one is computed whatever the outer says.
"""

from __future__ import annotations

from typing import Any

_PARTS = {"Cast": ("value",), "Not": ("a",), "Select": ("condition", "true_value", "false_value")}
_LEAVES = ("Var", "SizeVar", "IntImm", "FloatImm", "StringImm")


def is_lazy(select: Any) -> bool:
    """Whether only the side that a ``Select`` chooses is evaluated."""
    return not any(_early(side, False) for side in (select.true_value, select.false_value))


def _early(e: Any, nested: bool) -> bool:
    """Whether some of `e` is computed before the statement that holds the selection; `nested`: in
    another selection inside."""
    kind = type(e).__name__
    if "x" in str(e.dtype):  # float32x4
        return True
    if kind == "Call" and str(e.op.name) == "tirx.if_then_else":
        return nested or _early(e.args[0], True)
    if kind in _LEAVES:
        return False
    if kind in ("Call", "BufferLoad"):
        parts = list(e.args if kind == "Call" else e.indices)
    else:
        parts = [getattr(e, name, None) for name in _PARTS.get(kind, ("a", "b"))]
    return any(part is None or _early(part, nested or kind == "Select") for part in parts)
