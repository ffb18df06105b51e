"""Early returns as branches: ``if c: return; rest`` is ``if not c: rest``.

All that reads the device program afterwards needs no notion of a thread that has left.
"""

from __future__ import annotations

from typing import Any

_RETURN = "tirx.thread_return"


def structured(function: Any) -> Any:
    """The device function without the ``thread_return`` calls that branches can stand for.

    A return inside a loop, or one that only some ways through a branch come to, stays.
    """
    if not returns(function.body):
        return function
    return function.with_body(_before(function.body, []))


def _before(s: Any, rest: list[Any]) -> Any:
    """`s` and then `rest`, of which a thread that returns in `s` does nothing."""
    from tilelang import tvm

    kind = type(s).__name__
    if _is_return(s):
        return tvm.tirx.Evaluate(0)
    if kind == "SeqStmt":
        return _sequence([*s.seq, *rest])
    if kind == "AttrStmt" and returns(s):
        return tvm.tirx.AttrStmt(s.node, s.attr_key, s.value, _before(s.body, rest))
    if kind == "IfThenElse" and returns(s):
        yes, no = s.then_case, s.else_case if s.else_case is not None else tvm.tirx.Evaluate(0)
        if _leaves(yes) or _leaves(no):
            # What follows goes to one side only: a barrier in it stays a single place.
            yes = _before(yes, [] if _leaves(yes) else rest)
            no = _before(no, [] if _leaves(no) else rest)
            return tvm.tirx.IfThenElse(s.condition, yes, no)
        if not rest:
            yes, no = _before(yes, []), _before(no, [])
            return tvm.tirx.IfThenElse(s.condition, yes, no)
    return tvm.tirx.SeqStmt([s, _sequence(rest)]) if rest else s


def _sequence(parts: list[Any]) -> Any:
    from tilelang import tvm

    for i, s in enumerate(parts):
        if returns(s):
            last = _before(s, parts[i + 1 :])
            return tvm.tirx.SeqStmt([*parts[:i], last]) if i else last
    return tvm.tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]


def _is_return(s: Any) -> bool:
    value = getattr(s, "value", None)
    return type(s).__name__ == "Evaluate" and str(
        getattr(getattr(value, "op", None), "name", "")
    ) == (_RETURN)


def _leaves(s: Any) -> bool:
    """Whether every thread that comes to `s` returns in it."""
    kind = type(s).__name__
    if kind == "SeqStmt":
        return any(_leaves(part) for part in s.seq)
    if kind == "AttrStmt":
        return _leaves(s.body)
    if kind == "IfThenElse":
        return s.else_case is not None and _leaves(s.then_case) and _leaves(s.else_case)
    return _is_return(s)


def returns(s: Any) -> bool:
    """Whether a return stands anywhere in `s`."""
    from tilelang import tvm

    found: list[bool] = []
    tvm.tirx.stmt_functor.post_order_visit(s, lambda n: found.append(_is_return(n)))
    return any(found)
