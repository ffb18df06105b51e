"""Which statements of a device function synchronise, and which memory holds its counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tileproof.verify.intrinsics import PURE
from tileproof.verify.replay import _BITWISE

COMPOUND = ("SeqStmt", "AttrStmt", "For", "IfThenElse")
_SMALL = 4  # elements of local memory that may hold counters


class Parts:
    """Facts about a function, found once.

    * `syncing`: compound statements with a call that synchronises.
    * `counters`: local integers of which no address is taken, and `counting` the statements that
      store one.
    * `inside`: what each loop's body declares.
    * `uniform`: parameters and block indices, which all threads agree on.
    * `fixed`: global memory that the function does not write; `stored` says what maps write.
    * `quiet`: handles of values in which nothing happens to shared memory, and nobody synchronises.
    * `decisive`: variables that a condition or length around a synchronising statement may hang on.
    """

    def __init__(self, function: Any, syncs: Callable[[Any], bool], stored: set[Any]) -> None:
        from tilelang import tvm

        self._visit, self._syncs = tvm.tirx.stmt_functor.post_order_visit, syncs
        self.syncing: set[Any] = set()
        self.counting: set[Any] = set()
        self.inside: dict[Any, list[Any]] = {}
        self.uniform = set(function.params)
        self.counters = self._counters(function.body)
        self._written = set(stored)
        self.quiet: set[int] = set()
        self._calls: dict[int, tuple[Any, str, list[Any]]] = {}
        self.decisive: set[Any] = set()
        self._visit(function.body, self._look)
        self.fixed = set(function.params) - self._written
        self._decide(function.body)

    def call(self, e: Any) -> tuple[str, list[Any]]:
        """Name and arguments of a call, read from TIR once."""
        found = self._calls.get(hash(e))
        if found is None:  # the call with them, so that its handle stays its own
            found = self._calls[hash(e)] = e, str(e.op.name), list(e.args)
        return found[1:]

    def _look(self, n: Any) -> None:
        kind = type(n).__name__
        if all(hash(part) in self.quiet for part in _parts(n)) and self._harmless(n):
            self.quiet.add(hash(n))
        if kind == "BufferStore":
            self._written.add(n.buffer.data)
        elif kind == "Call":
            self._written.update(self._handed(n))
        elif kind in COMPOUND:
            self._compound(n)
        extent = kind == "AttrStmt" and str(n.attr_key) == "thread_extent"
        if extent and str(n.node.thread_tag).startswith("blockIdx"):
            self.uniform.add(n.node.var)

    def _decide(self, body: Any) -> None:
        """Of what decides about synchronisation, all variables, and those they are made of."""
        bound: dict[Any, Any] = {}

        def look(n: Any) -> None:
            if type(n).__name__ == "Bind":
                bound[n.var] = n.value

        def take(n: Any) -> None:
            if type(n).__name__ == "Var" and n not in self.decisive:
                self.decisive.add(n)
                if n in bound:
                    self._visit(bound[n], take)

        self._visit(body, look)
        for s in self.syncing:
            for e in (getattr(s, name, None) for name in ("min", "extent", "condition")):
                if e is not None:
                    self._visit(e, take)

    def _harmless(self, n: Any) -> bool:
        """Whether evaluating `n` does nothing but what its parts do."""
        kind = type(n).__name__
        if kind == "BufferLoad":
            return str(n.buffer.scope()) in ("global", "local", "local.var", "local.fragment")
        if kind == "Call":
            return str(n.op.name) in (*PURE, *_BITWISE, "tirx.if_then_else")
        return hasattr(n, "dtype")

    def _compound(self, n: Any) -> None:
        within: list[Any] = []
        self._visit(n, within.append)
        kinds = [type(m).__name__ for m in within]
        if any(k == "Call" and self._syncs(m) for k, m in zip(kinds, within, strict=True)):
            self.syncing.add(n)
        kind = type(n).__name__
        if kind in ("For", "IfThenElse") and any(
            k == "BufferStore" and m.buffer.data in self.counters
            for k, m in zip(kinds, within, strict=True)
        ):
            self.counting.add(n)
        if kind == "For":
            self.inside[n] = [d for m in within if not m.same_as(n) for d in _declared(m)]

    def _counters(self, body: Any) -> set[Any]:
        kinds: dict[Any, set[str]] = {}
        taken: set[Any] = set()

        def look(n: Any) -> None:
            if (buffer := getattr(n, "buffer", None)) is not None:
                kinds.setdefault(buffer.data, set()).add(_counts(buffer))
            if type(n).__name__ == "Call":
                taken.update(self._handed(n))

        self._visit(body, look)
        return {d for d, found in kinds.items() if len(found) == 1 and "" not in found} - taken

    def _handed(self, call: Any) -> Iterator[Any]:
        """Memory that a call may write."""
        name = str(call.op.name)
        values = name in PURE or name in _BITWISE or name == "tirx.if_then_else"
        for a in call.args:
            if type(a).__name__ == "Var":
                yield a
            elif type(a).__name__ == "BufferLoad" and not values and not self._syncs(call):
                yield a.buffer.data


def _parts(n: Any) -> list[Any]:
    """The values in a value, an access, or a call."""
    kind = type(n).__name__
    if kind == "BufferLoad":
        return list(n.indices)
    if kind == "Call":
        return list(n.args)
    names = ("a", "b", "value", "base", "stride", "condition", "true_value", "false_value")
    found = [part for name in names if hasattr(part := getattr(n, name, None), "dtype")]
    return found + (list(n.vectors) if kind == "Shuffle" else [])


def _counts(buffer: Any) -> str:
    """The type of a buffer that may hold counters, else nothing."""
    size = 1
    for extent in buffer.shape:
        size *= int(getattr(extent, "value", _SMALL + 1))
    dtype = str(buffer.dtype)
    whole = dtype.startswith(("int", "uint")) and "x" not in dtype
    local = str(buffer.scope()) in ("local", "local.var")
    return dtype if whole and local and size <= _SMALL else ""


def _declared(n: Any) -> list[Any]:
    kind = type(n).__name__
    if kind == "Bind":
        return [n.var]
    if kind == "For":
        return [n.loop_var]
    return [n.buffer.data] if kind == "AllocBuffer" else []
