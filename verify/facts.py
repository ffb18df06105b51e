"""Final device TIR → facts: memory accesses, arithmetic that must fit, synchronisation.

Each fact carries the condition under which it happens. A node without a known meaning is recorded
as unmodelled, never passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from . import terms
from .intrinsics import NOTHING, Effect, Mode, Touch, UnmodelledError, effect
from .terms import Symbol, Term, add, apply, const, mul, sub, var

# Attributes without a meaning of their own at this stage. `tl.assume` is not believed.
_INERT_ATTRS = {
    "tl.assume",
    "lexical_alloc_scope",
    "storage_alignment",
    "tl.min_blocks_per_sm",
    "pragma_unroll_explicit",
    "pragma_auto_unroll_max_step",
}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "FloorDiv": "div", "FloorMod": "mod",
           "Div": "tdiv", "Mod": "tmod", "Min": "min", "Max": "max"}  # fmt: skip
_COMPARE = {"LT": ("lt", 0), "LE": ("le", 0), "GT": ("lt", 1), "GE": ("le", 1), "EQ": ("eq", 0),
            "NE": ("ne", 0), "And": ("and", 0), "Or": ("or", 0)}  # fmt: skip
_MAY_OVERFLOW = {"Add", "Sub", "Mul"}


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory a kernel names. `shape` is None when no declaration gives it; `start` is the byte
    offset in the shared arena. `tensor` is the name in the source signature of a global."""

    name: str
    scope: str
    bits: int
    shape: tuple[Term, ...] | None
    start: int = 0
    tensor: str = ""

    @cached_property
    def extent(self) -> Term | None:
        """Elements, as a mathematical integer."""
        if self.shape is None:
            return None
        total = const(1)
        for n in self.shape:
            total = mul(n, total)
        return total


@dataclass(frozen=True, eq=False)
class Context:
    """When a fact happens: conditions on the way, and the loops around it, outermost first."""

    path: tuple[Term, ...] = ()
    loops: tuple[Symbol, ...] = ()

    def given(self, condition: Term) -> Context:
        return Context((*self.path, *terms.conjuncts(condition)), self.loops)


@dataclass(frozen=True, eq=False)
class Access:
    """`lanes` consecutive elements of `buffer` from `index` on, moved by one machine access."""

    buffer: Buffer
    mode: Mode
    index: Term
    lanes: int
    align: int
    context: Context
    order: int
    node: Any
    asynchronous: bool = False

    @property
    def site(self) -> str:
        """``y[bx*512 + tx*4 : +4] =`` for a store of four elements, without ``=`` for a load."""
        count = "" if self.lanes == 1 else f" : +{self.lanes}"
        place = f"{self.buffer.name}[{terms.show(self.index)}{count}]"
        return f"{place} =" if self.mode == "write" else place


@dataclass(frozen=True, eq=False)
class Check:
    """`lo <= term <= hi` must hold wherever it is computed; `what` says why."""

    term: Term
    lo: int
    hi: int
    what: str
    context: Context
    node: Any

    @property
    def site(self) -> str:
        return terms.show(self.term)


@dataclass(frozen=True, eq=False)
class Sync:
    """A barrier, commit or wait, in program order with the accesses."""

    effect: Effect
    args: tuple[Any, ...]
    context: Context
    order: int
    node: Any


@dataclass
class Facts:
    """Everything the properties look at, for one launch (or for the host function)."""

    name: str
    symbols: dict[str, Symbol] = field(default_factory=dict)
    accesses: list[Access] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> list[Symbol]:
        return [s for s in self.symbols.values() if s.kind == "block"]

    @property
    def threads(self) -> list[Symbol]:
        return [s for s in self.symbols.values() if s.kind == "thread"]


def text(node: Any, limit: int = 160) -> str:
    """One line of IR for a report."""
    line = " ".join(str(node).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def scalar_bits(dtype: Any) -> int:
    """Bits of one element: ``"bfloat16x8"`` → 16, ``"bool"`` → 8."""
    base = str(dtype).split("x")[0]
    if base == "bool":
        return 8
    digits = ""
    for character in base.lstrip("abcdefghijklmnopqrstuvw"):
        if not character.isdigit():
            break
        digits += character
    return int(digits) if digits else 8


def integer_range(dtype: Any) -> tuple[int, int] | None:
    """What a machine integer of the type holds, or None for other types."""
    name = str(dtype).split("x")[0]
    if name == "bool":
        return 0, 1
    if name.startswith("uint"):
        return 0, (1 << int(name[4:])) - 1
    if name.startswith("int"):
        half = 1 << (int(name[3:]) - 1)
        return -half, half - 1
    return None


class Converter:
    """TIR integer expressions → terms, with the range checks and accesses met on the way."""

    def __init__(self, facts: Facts, dims: Mapping[str, Symbol]) -> None:
        self.facts = facts
        self.dims = dims
        self.env: dict[Any, Term] = {}
        self.context = Context()
        self.node: Any = None
        self._order = itertools.count()

    # -- hooks -------------------------------------------------------------------------------

    def load(self, node: Any, indices: list[Term]) -> Term:
        """Value of an integer element; overridden where elements have a known meaning."""
        return self.opaque(node)

    def call(self, node: Any) -> None:
        """A call met in a value or as a statement."""
        raise NotImplementedError

    # -- expressions -------------------------------------------------------------------------

    def opaque(self, node: Any) -> Term:
        lo, hi = integer_range(node.dtype) or (-(1 << 63), (1 << 63) - 1)
        return var(Symbol(text(node, 40), "opaque", const(lo), const(hi)))

    def check(self, term: Term, dtype: Any, what: str, node: Any) -> Term:
        limits = integer_range(dtype)
        if limits is not None and not (term.is_const and limits[0] <= term.value <= limits[1]):
            self.facts.checks.append(Check(term, *limits, what, self.context, node))
        return term

    def under(self, condition: Term, visit: Any) -> Any:
        outer, self.context = self.context, self.context.given(condition)
        try:
            return visit()
        finally:
            self.context = outer

    def expr(self, e: Any) -> Term:
        """An integer or boolean scalar expression as a term. Raises UnmodelledError."""
        kind = type(e).__name__
        if kind == "IntImm":
            return const(int(e.value))
        if kind == "Var":
            return self.variable(e)
        if kind in _BINARY:
            a, b = self.expr(e.a), self.expr(e.b)
            if _BINARY[kind] in ("div", "mod", "tdiv", "tmod"):
                self.divisor(b, e)
            term = apply(_BINARY[kind], a, b)
            return self.check(term, e.dtype, str(e.dtype), e) if kind in _MAY_OVERFLOW else term
        if kind in _COMPARE:
            return self.comparison(kind, e)
        if kind == "Not":
            return apply("not", self.expr(e.a))
        if kind == "Cast":
            return self.cast(e)
        if kind == "BufferLoad":
            indices = self.access(e, e.buffer, list(e.indices), "read")
            return self.load(e, indices)
        if kind == "Select":
            return apply(
                "ite", self.expr(e.condition), self.expr(e.true_value), self.expr(e.false_value)
            )
        if kind == "Call":
            return self.integer_call(e)
        raise UnmodelledError(kind)

    def variable(self, e: Any) -> Term:
        if e in self.env:
            return self.env[e]
        if str(e.name) in self.dims:
            return var(self.dims[str(e.name)])
        raise UnmodelledError(f"variable {e.name} with no known range")

    def divisor(self, b: Term, e: Any) -> None:
        if not (b.is_const and b.value > 0):
            limits = (1, (1 << 63) - 1)
            self.facts.checks.append(Check(b, *limits, "divisor", self.context, e))

    def comparison(self, kind: str, e: Any) -> Term:
        op, swap = _COMPARE[kind]
        if integer_range(e.a.dtype) is None:  # a comparison of data: its operands still load
            self.value(e.a)
            self.value(e.b)
            return self.opaque(e)
        a = self.expr(e.a)
        if kind == "And":  # && evaluates its right side only if the left holds
            b = self.under(a, lambda: self.expr(e.b))
        elif kind == "Or":
            b = self.under(apply("not", a), lambda: self.expr(e.b))
        else:
            b = self.expr(e.b)
        return apply(op, b, a) if swap else apply(op, a, b)

    def cast(self, e: Any) -> Term:
        if integer_range(e.value.dtype) is None:
            self.value(e.value)
            return self.opaque(e)
        term = self.expr(e.value)
        if str(e.dtype) == "bool":
            return apply("ne", term, const(0))
        inner, outer = integer_range(e.value.dtype), integer_range(e.dtype)
        if outer is None:
            raise UnmodelledError(f"index of type {e.dtype}")
        if inner is not None and (inner[0] < outer[0] or inner[1] > outer[1]):
            self.check(term, e.dtype, f"cast to {e.dtype}", e)
        return term

    def integer_call(self, e: Any) -> Term:
        name, args = str(e.op.name), list(e.args)
        if name == "tirx.if_then_else":
            condition = self.expr(args[0])
            yes = self.under(condition, lambda: self.expr(args[1]))
            no = self.under(apply("not", condition), lambda: self.expr(args[2]))
            return apply("ite", condition, yes, no)
        if name == "tirx.likely":
            return self.expr(args[0])
        if name in ("tirx.bitwise_and", "tirx.bitwise_or", "tirx.bitwise_xor", "tirx.shift_right",
                    "tirx.shift_left"):  # fmt: skip
            return self.bitwise(name.split(".")[1], e, self.expr(args[0]), self.expr(args[1]))
        self.call(e)
        return self.opaque(e)

    def bitwise(self, name: str, e: Any, a: Term, b: Term) -> Term:
        if str(e.dtype) == "bool" and name != "bitwise_xor":
            return apply("and" if name == "bitwise_and" else "or", a, b)
        if b.is_const and b.value >= 0:
            if name == "shift_right":
                return apply("div", a, const(1 << b.value))
            if name == "shift_left":
                return self.check(mul(a, const(1 << b.value)), e.dtype, str(e.dtype), e)
            if name == "bitwise_and" and b.value & (b.value + 1) == 0:
                return apply("mod", a, const(b.value + 1))
        if name == "bitwise_xor":
            return apply("xor", a, b)
        raise UnmodelledError(f"{name} of two variables")

    # -- values (of any type) ----------------------------------------------------------------

    def value(self, e: Any) -> None:
        """Visit an expression whose value does not matter here, for the loads inside it."""
        kind = type(e).__name__
        if kind in ("IntImm", "FloatImm", "StringImm", "Var"):
            return
        if kind == "BufferLoad":
            self.access(e, e.buffer, list(e.indices), "read")
        elif kind == "Call":
            self.value_call(e)
        elif kind == "Cast":
            self.value(e.value)
        elif kind == "Ramp":
            self.value(e.base)
        elif kind == "Broadcast":
            self.value(e.value)
        elif kind == "Shuffle":
            for part in (*e.vectors, *e.indices):
                self.value(part)
        elif kind == "Select":
            for part in (e.condition, e.true_value, e.false_value):
                self.value(part)
        elif kind == "Not":
            self.value(e.a)
        elif kind in _BINARY or kind in _COMPARE:
            self.value(e.a)
            self.value(e.b)
        else:
            raise UnmodelledError(kind)

    def value_call(self, e: Any) -> None:
        name, args = str(e.op.name), list(e.args)
        if name != "tirx.if_then_else":
            self.call(e)
            return
        if "x" in str(args[0].dtype):
            raise UnmodelledError("if_then_else with a vector condition")
        condition = self.expr(args[0])
        self.under(condition, lambda: self.value(args[1]))
        self.under(apply("not", condition), lambda: self.value(args[2]))

    # -- accesses ----------------------------------------------------------------------------

    def access(self, node: Any, buffer: Any, indices: list[Any], mode: Mode) -> list[Term]:
        """Record a buffer access; returns the scalar indices (empty for a vector)."""
        raise NotImplementedError


class DeviceWalker(Converter):
    """Collects the facts of one device function under one launch."""

    def __init__(
        self,
        facts: Facts,
        dims: Mapping[str, Symbol],
        tensors: Mapping[str, tuple[tuple[Term, ...], str]],
        param_names: Mapping[Any, str],
        extents: Mapping[str, Term],
    ) -> None:
        super().__init__(facts, dims)
        self.tensors = tensors
        self.params = param_names
        self.extents = extents
        self.buffers: dict[Any, Buffer] = {}
        self.arena: dict[Any, tuple[Any, int]] = {}
        self.declared: dict[Any, Any] = {}
        self.allocated: dict[Any, Any] = {}
        self.written: set[str] = set()

    def run(self, function: Any) -> Facts:
        """Walk the function. Declarations first: a pointer may be used before its buffer is."""
        from tilelang import tvm

        def declare(node: Any) -> None:
            kind = type(node).__name__
            if kind in ("AllocBuffer", "DeclBuffer"):
                self.declare(node.buffer)
                if kind == "AllocBuffer":
                    self.allocated[node.buffer.data] = node.buffer
            elif kind == "BufferStore":
                self.declare(node.buffer)
                self.written.add(self.params.get(node.buffer.data, ""))
            elif kind == "BufferLoad":
                self.declare(node.buffer)

        tvm.tirx.stmt_functor.post_order_visit(function.body, declare)
        self.stmt(function.body)
        return self.facts

    def declare(self, buffer: Any) -> None:
        """Keep the largest declaration of each data pointer: views alias the same memory."""
        if buffer.data in self.params:
            return
        known = self.declared.get(buffer.data)
        if known is None or _bytes(buffer) > _bytes(known):
            self.declared[buffer.data] = buffer

    def buffer(self, data: Any, dtype: Any, view: Any = None) -> Buffer:
        """The memory behind a data pointer, seen as elements of `dtype`."""
        key = (data, str(dtype), view)
        if key not in self.buffers:
            self.buffers[key] = self._buffer(data, dtype, view)
        return self.buffers[key]

    def _buffer(self, data: Any, dtype: Any, view: Any) -> Buffer:
        bits = scalar_bits(dtype)
        if bits % 8:
            raise UnmodelledError(f"elements of {bits} bits")
        if data in self.params:
            tensor = self.params[data]
            shape, declared = self.tensors.get(tensor, (None, ""))
            if shape is not None and scalar_bits(declared) != bits:
                raise UnmodelledError(f"{tensor} of {declared} seen as {dtype}")
            return Buffer(tensor, "global", bits, shape, tensor=tensor)
        declaration = view if view is not None else self.declared.get(data)
        name = str(data.name)
        start = self.arena.get(data, (data, 0))[1]
        if declaration is None:
            return Buffer(name, "shared.dyn", bits, None, start)
        size = _bytes(declaration)
        if size < 0:
            raise UnmodelledError(f"{name} of a size known only at run time")
        if data in self.allocated:  # a view cannot be larger than the memory behind it
            size = min(size, _bytes(self.allocated[data]))
        scope = str(declaration.scope())
        return Buffer(name, scope, bits, (const(size * 8 // bits),), start)

    def load(self, node: Any, indices: list[Term]) -> Term:
        buffer = self.buffer(node.buffer.data, node.dtype)
        if buffer.tensor and buffer.tensor not in self.written and len(indices) == 1:
            return terms.load(buffer.tensor, indices[0])
        return self.opaque(node)

    def access(self, node: Any, buffer: Any, indices: list[Any], mode: Mode) -> list[Term]:
        # A view may be narrower than the memory it aliases: it bounds its own accesses.
        view = None if buffer.data in self.params else buffer
        memory = self.buffer(buffer.data, buffer.dtype, view)
        if len(indices) != 1:
            raise UnmodelledError("an access that was not flattened")
        index = indices[0]
        lanes = int(str(index.dtype).split("x")[1]) if "x" in str(index.dtype) else 1
        width = memory.bits // 8
        if lanes == 1:
            term = self.expr(index)
            self.record(memory, mode, term, 1, width, node)
            return [term]
        if type(index).__name__ == "Ramp" and _is_one(index.stride):
            size = width * lanes
            align = _vector_alignment(size, width)
            self.record(memory, mode, self.expr(index.base), lanes, align, node)
            return []
        for lane in self.lanes(index, lanes):  # codegen moves scattered lanes one by one
            self.record(memory, mode, lane, 1, width, node)
        return []

    def lanes(self, e: Any, count: int) -> list[Term]:
        """The scalar index of every lane of a vector index."""
        kind = type(e).__name__
        if kind == "Ramp":
            base, stride = self.expr(e.base), self.expr(e.stride)
            return [
                self.check(add(base, mul(stride, const(i))), e.base.dtype, str(e.base.dtype), e)
                for i in range(count)
            ]
        if kind == "Broadcast":
            return [self.expr(e.value)] * count
        if kind in _BINARY:
            pairs = zip(self.lanes(e.a, count), self.lanes(e.b, count), strict=True)
            scalar = str(e.dtype).split("x")[0]
            return [self.check(apply(_BINARY[kind], a, b), scalar, scalar, e) for a, b in pairs]
        if kind == "Cast":
            return self.lanes(e.value, count)
        raise UnmodelledError(f"vector index {kind}")

    def record(
        self,
        buffer: Buffer,
        mode: Mode,
        index: Term,
        lanes: int,
        align: int,
        node: Any,
        asynchronous: bool = False,
    ) -> None:
        if buffer.tensor and mode == "write":
            self.written.add(buffer.tensor)
        order = next(self._order)
        self.facts.accesses.append(
            Access(buffer, mode, index, lanes, align, self.context, order, node, asynchronous)
        )

    # -- calls -------------------------------------------------------------------------------

    def call(self, node: Any) -> None:
        name, args = str(node.op.name), list(node.args)
        found = effect(name, args)
        if found.sync is not None:
            self.facts.syncs.append(Sync(found, tuple(args), self.context, next(self._order), node))
            return
        pointers = {id(t.pointer) for t in found.touches}
        for touch in found.touches:
            self.touch(touch, node)
        if found is NOTHING or found.collective != "none":
            for a in args:
                if id(a) not in pointers and str(a.dtype) != "handle":
                    self.value(a)

    def touch(self, touch: Touch, node: Any) -> None:
        data, dtype, offset = self.pointer(touch.pointer)
        if dtype is None and data not in self.declared:
            raise UnmodelledError(f"pointer {data.name} without a type")
        buffer = self.buffer(data, dtype if dtype is not None else self.declared[data].dtype)
        extra = const(touch.offset) if isinstance(touch.offset, int) else self.expr(touch.offset)
        index = add(offset, extra)
        if touch.slot is not None:
            index = add(offset, self.slot(*touch.slot))
        context = self.context
        if touch.when is not None:
            context = context.given(self.expr(touch.when))
        if touch.lane_below is not None:
            lane = apply("mod", self.linear_thread(), const(32))
            context = context.given(apply("lt", lane, const(touch.lane_below)))
        width = buffer.bits // 8
        align = touch.align or _vector_alignment(width * touch.count, width)
        outer, self.context = self.context, context
        self.record(buffer, touch.mode, index, touch.count, align, node, touch.asynchronous)
        self.context = outer

    def pointer(self, e: Any) -> tuple[Any, Any, Term]:
        """A pointer argument as (data variable, element type or None, element offset)."""
        kind = type(e).__name__
        if kind == "Var":
            return e, None, const(0)
        if kind == "Call" and str(e.op.name) == "tirx.tvm_access_ptr":
            dtype = e.args[0].dtype
            return e.args[1], dtype, self.expr(e.args[2])
        raise UnmodelledError(f"pointer {text(e, 40)}")

    def linear_thread(self) -> Term:
        total, stride = const(0), const(1)
        for axis in ("x", "y", "z"):
            symbol = self.facts.symbols.get(f"threadIdx.{axis}")
            if symbol is not None:
                total = add(total, mul(var(symbol), stride))
                stride = mul(stride, add(symbol.hi, const(1)))
        return total

    def slot(self, first: int, half: int) -> Term:
        """Workspace slot of this thread (half 0) or of its butterfly partner ``slot ^ half``."""
        own = sub(var(self.facts.symbols["threadIdx.x"]), const(first))
        if half == 0:
            return own
        # Flipping bit `half` of a non-negative number, in arithmetic that every reading knows.
        group = const(2 * half)
        start = mul(apply("div", own, group), group)
        return add(start, apply("mod", add(own, const(half)), group))

    # -- statements --------------------------------------------------------------------------

    def stmt(self, s: Any) -> None:
        try:
            self._stmt(s)
        except UnmodelledError as missing:
            self.facts.unmodelled.append(f"{missing}")

    def _stmt(self, s: Any) -> None:
        kind = type(s).__name__
        if kind == "SeqStmt":
            for part in s.seq:
                self.stmt(part)
        elif kind in ("DeclBuffer", "AllocBuffer"):
            pass
        elif kind == "AttrStmt":
            self.attribute(s)
        elif kind == "Bind":
            self.bind(s)
        elif kind == "BufferStore":
            self.access(s, s.buffer, list(s.indices), "write")
            self.value(s.value)
        elif kind == "For":
            self.loop(s)
        elif kind == "IfThenElse":
            condition = self.expr(s.condition)
            self.under(condition, lambda: self.stmt(s.then_case))
            if s.else_case is not None:
                self.under(apply("not", condition), lambda: self.stmt(s.else_case))
        elif kind == "Evaluate":
            self.value(s.value)
        else:
            raise UnmodelledError(kind)

    def attribute(self, s: Any) -> None:
        key = str(s.attr_key)
        if key == "thread_extent":
            tag = str(s.node.thread_tag)
            if tag not in self.facts.symbols:
                # The launch decides how many there are; the device text merely repeats it.
                extent = self.extents.get(tag)
                if extent is None:
                    raise UnmodelledError(f"extent of {tag}")
                kind: Literal["block", "thread"] = "block" if tag[0] == "b" else "thread"
                self.facts.symbols[tag] = Symbol(tag, kind, const(0), sub(extent, const(1)))
            self.env[s.node.var] = var(self.facts.symbols[tag])
        elif key not in _INERT_ATTRS:
            self.facts.unmodelled.append(f"attribute {key}")
        self.stmt(s.body)

    def bind(self, s: Any) -> None:
        if str(s.var.dtype) == "handle":
            self.arena_view(s)
        elif integer_range(s.var.dtype) is not None and "x" not in str(s.var.dtype):
            self.env[s.var] = self.expr(s.value)
        else:
            self.value(s.value)

    def arena_view(self, s: Any) -> None:
        value = s.value
        is_view = (
            type(value).__name__ == "Call" and str(value.op.name) == "tirx.handle_add_byte_offset"
        )
        if not is_view:
            raise UnmodelledError(f"pointer {text(value, 40)}")
        offset = self.expr(value.args[1])
        if not offset.is_const:
            raise UnmodelledError("a shared buffer whose place depends on a size")
        self.arena[s.var] = (value.args[0], offset.value)
        declared = self.declared.get(s.var)
        arena = self.declared.get(value.args[0])
        if declared is None or arena is None:
            return  # its accesses have no extent and say so
        last = const(offset.value + _bytes(declared))
        if last.value > _bytes(arena):
            limit = _bytes(arena)
            self.facts.checks.append(Check(last, 0, limit, "end in the arena", self.context, s))

    def loop(self, s: Any) -> None:
        lo, extent = self.expr(s.min), self.expr(s.extent)
        hi = sub(add(lo, extent), const(1))
        symbol = Symbol(str(s.loop_var.name), "loop", lo, hi, s.loop_var)
        self.env[s.loop_var] = var(symbol)
        outer = self.context
        self.context = Context(outer.path, (*outer.loops, symbol))
        self.stmt(s.body)
        self.context = outer


def _is_one(e: Any) -> bool:
    return type(e).__name__ == "IntImm" and int(e.value) == 1


def _bytes(buffer: Any) -> int:
    """Size of a declared buffer, or -1 when it depends on a run-time size."""
    total = scalar_bits(buffer.dtype)
    for n in buffer.shape:
        if type(n).__name__ != "IntImm":
            return -1
        total *= int(n.value)
    return total // 8


def _vector_alignment(size: int, element: int) -> int:
    """Alignment of a machine access of `size` bytes: its own size, up to the widest load there is.

    A size that is no power of two is moved through a struct of elements.
    """
    return min(size, 32) if size & (size - 1) == 0 else element
