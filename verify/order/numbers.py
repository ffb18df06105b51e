"""Integer expressions of one function, each turned once into a Python function of a thread's state.

A thread meets the same few hundred expressions tens of thousands of times, and walking TIR through
its bindings costs far more than the arithmetic does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tileproof.verify.replay import _ARITHMETIC, _DIVISIONS, UndeterminedError, _unsigned

from .lanes import Lanes
from .values import Form

if TYPE_CHECKING:
    from .control import Control

Code = Callable[[], Any]
_WIDE = ("uint32", "uint64")  # types that a counter is taken not to leave


class Numbers:
    """``numbers[e]()`` is the value of `e` in the state that `machine` is in; a :class:`Form` where
    it hangs on how far a loop of unknown length has come."""

    def __init__(self, machine: Control) -> None:
        self._machine = machine
        self._codes: dict[int, tuple[Any, Code]] = {}  # by handle; the node with it, to stay alive

    def __getitem__(self, e: Any) -> Code:
        found = self._codes.get(hash(e))
        if found is None:
            found = self._codes[hash(e)] = e, self._code(e)
        return found[1]

    def _code(self, e: Any) -> Code:
        kind = type(e).__name__
        if kind == "IntImm":
            number = int(e.value)
            return lambda: number
        if kind == "Var":
            return self._variable(e)
        if kind == "Cast":
            return self._cast(self[e.value], str(e.dtype))
        if kind in _ARITHMETIC:
            return self._arithmetic(kind, self[e.a], self[e.b])
        return lambda: self._machine.walked(e)

    def _variable(self, e: Any) -> Code:
        machine, name, e = self._machine, str(e.name), self._machine.same(e)

        def code() -> Any:
            try:
                return machine.env[e]
            except KeyError:
                pass
            try:
                return machine.setting.sizes[name]
            except KeyError:
                raise UndeterminedError(name) from None

        return code

    def _cast(self, inner: Code, dtype: str) -> Code:
        if not dtype.startswith("uint"):
            return inner  # what may wrap is a property of its own
        wide = dtype in _WIDE

        def code() -> Any:
            value = inner()
            if isinstance(value, Form) and wide:
                return value
            if isinstance(value, Lanes) and dtype == "uint64":  # the modulus is no 64-bit integer
                if value.view(np.ndarray).min() >= 0:
                    return value
                value = int(value)
            return _unsigned(dtype, value)

        return code

    def _arithmetic(self, kind: str, a: Code, b: Code) -> Code:
        operation = _ARITHMETIC[kind]
        if kind not in _DIVISIONS:
            return lambda: operation(a(), b())

        def code() -> Any:
            divisor = b()
            if not isinstance(divisor, Form) and divisor == 0:
                raise UndeterminedError("a quotient by 0")
            return operation(a(), divisor)

        return code
