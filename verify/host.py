"""The host function's arithmetic: what it computes from shapes before it launches anything.

A tensor of more than 2^31 elements is where host code goes wrong first: TileLang reads each extent
through a cast to the type of its dim.
"""

from __future__ import annotations

from typing import Any

from . import terms
from .convert import Converter
from .domain import Domain, contiguous
from .facts import Check, Facts
from .intrinsics import Mode, UnmodelledError
from .terms import Term, const

_SHAPE_FIELD, _STRIDES_FIELD = 2, 3
_MAX_GRID = {"blockIdx.x": 2**31 - 1, "blockIdx.y": 65535, "blockIdx.z": 65535}


class HostWalker(Converter):
    """Range checks of one host function; shapes and strides of tensors are known terms."""

    def __init__(self, facts: Facts, domain: Domain) -> None:
        super().__init__(facts, domain.dims)
        self.domain = domain
        self.fields: dict[Any, tuple[Term, ...]] = {}

    def run(self, function: Any) -> Facts:
        self.stmt(function.body)
        return self.facts

    def variable(self, e: Any) -> Term:
        if e not in self.env and str(e.name) not in self.dims:
            return self.opaque(e)
        return super().variable(e)

    def access(self, node: Any, buffer: Any, indices: list[Any], mode: Mode) -> list[Term]:
        return [self.expr(i) for i in indices]

    def load(self, node: Any, indices: list[Term]) -> Term:
        known = self.fields.get(node.buffer.data)
        if known is None or len(indices) != 1 or not indices[0].is_const:
            return self.opaque(node)
        return known[indices[0].value]

    def call(self, node: Any) -> None:
        for a in node.args:
            if str(a.dtype) not in ("handle", "void"):
                self.value(a)

    def value(self, e: Any) -> None:
        # Every integer the host computes matters: all of it feeds checks and launch extents.
        if type(e).__name__ in ("StringImm", "FloatImm"):
            return
        self.expr(e)

    def stmt(self, s: Any) -> None:
        try:
            self._stmt(s)
        except UnmodelledError as missing:
            self.facts.unmodelled.append(f"host: {missing}")

    def _stmt(self, s: Any) -> None:
        kind = type(s).__name__
        if kind == "SeqStmt":
            for part in s.seq:
                self.stmt(part)
        elif kind == "Bind":
            self.bind(s)
        elif kind == "AssertStmt":
            self.expr(s.condition)
            if getattr(s, "body", None) is not None:
                self.stmt(s.body)
        elif kind == "AttrStmt":
            self.stmt(s.body)
        elif kind == "Evaluate":
            if str(getattr(s.value, "dtype", "")) != "handle":
                self.value(s.value)
        elif kind == "IfThenElse":
            condition = self.expr(s.condition)
            self.under(condition, lambda: self.stmt(s.then_case))
            if s.else_case is not None:
                self.under(terms.apply("not", condition), lambda: self.stmt(s.else_case))
        elif kind not in ("DeclBuffer", "AllocBuffer"):
            raise UnmodelledError(kind)

    def bind(self, s: Any) -> None:
        value = s.value
        is_call = type(value).__name__ == "Call"
        field = value
        if is_call and str(value.op.name) == "tirx.if_then_else":
            field = value.args[1]  # a tensor that no kernel uses may be null: then it has no field
        if _is_field(field):
            self.struct_field(s.var, field)
        if not is_call and str(s.var.dtype) not in ("handle",):
            self.env[s.var] = self.expr(value)

    def struct_field(self, target: Any, call: Any) -> None:
        """``tvm_struct_get(x_handle, 0, 2)`` is the shape array of tensor x, 3 its strides."""
        owner, which = call.args[0], getattr(call.args[2], "value", None)
        tensor = self.domain.tensors.get(str(getattr(owner, "name", "")).removesuffix("_handle"))
        if tensor is None:
            return
        if which == _SHAPE_FIELD:
            self.fields[target] = tensor.shape
        elif which == _STRIDES_FIELD:
            self.fields[target] = tensor.strides or contiguous(tensor.shape)


def _is_field(e: Any) -> bool:
    is_call = type(e).__name__ == "Call"
    return is_call and str(e.op.name) == "tirx.tvm_struct_get" and len(e.args) >= 3


def launch_checks(launch: Any, facts: Facts, domain: Domain) -> dict[str, Term]:
    """Extents of a launch as terms; the grid's limits go to `facts`."""
    converter = Converter(facts, domain.dims)
    extents: dict[str, Term] = {}
    for name, values in (("blockIdx", launch.grid), ("threadIdx", launch.block)):
        for axis, value in zip("xyz", values, strict=True):
            tag = f"{name}.{axis}"
            try:
                extents[tag] = const(value) if isinstance(value, int) else converter.expr(value)
            except UnmodelledError as missing:
                facts.unmodelled.append(f"host: extent of {tag}: {missing}")
                continue
            if tag in _MAX_GRID:
                limit = _MAX_GRID[tag]
                facts.limits.append(
                    Check(extents[tag], 0, limit, f"the grid's {tag[-1]}", converter.context, value)
                )
    return extents
