"""Execution of TIR on many lanes at once: what source and lowered programs have in common.

A lane is a thread, or a point of a parallel loop, of one of all blocks; a value is an array with an
entry per lane, a vector a row of such arrays. Statements are generators that yield where threads
must meet, so that whoever runs them decides who runs ahead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import residues
from .arithmetic import arithmetic, convert, reinterpret, wrapped
from .memory import Element, FaultError, Memory, UnmodelledError, element, width
from .schedule import Mbarriers

STEPS = 1 << 22  # statements after which a program is endless


@dataclass
class Lanes:
    """`block`: the number of each lane's block; `thread`: its place there, None at a point."""

    block: Any
    thread: Any = None
    env: dict[Any, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.block)


@dataclass(frozen=True)
class Place:
    """Where a buffer begins: bytes from the start of `memory`, owned by block, lane or nobody."""

    memory: Memory
    owner: str  # "global", "block" or "lane"
    offset: Any = 0


Meeting = Iterator[Callable[[], bool]]  # whether who waits here may go on
Pointer = tuple[Place, Any, Element]  # memory, byte, type of what it points to

_COMPARE = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_BITS = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "shift_left": np.left_shift,
    "shift_right": np.right_shift,
}
_ATOMICS: dict[str, np.ufunc] = {
    **{f"tl.atomic_add{n}_elem_op": np.add for n in ("", "x2", "x4")},
    "tl.atomic_max_elem_op": np.maximum,
    "tl.atomic_min_elem_op": np.minimum,
}
_WARP = 32
_SHUFFLES: dict[str, Callable[[Any, Any], Any]] = {
    "tl.shfl_up_sync": operator.sub,
    "tl.shfl_down_sync": operator.add,
    "tl.shfl_xor_sync": operator.xor,
    "tl.shfl_sync": lambda mine, by: by % _WARP,
}
_WHOLE_WARP = 0xFFFFFFFF
_SAME = {"likely", "pow_of_int"}
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "fdiv": "Div", "max": "Max", "min": "Min"}


class Machine:
    """One group of lanes that runs a program together."""

    def __init__(self, lanes: Lanes, places: dict[Any, Place]) -> None:
        self.lanes = lanes
        self.active = np.ones(lanes.count, bool)
        self.places = places  # by the data variable of a buffer
        self.steps = 0
        self.results: dict[Any, Any] = {}  # of calls in which threads met

    # --- statements ------------------------------------------------------------------------------

    def run(self, s: Any) -> Meeting:
        self.steps += 1
        if self.steps > STEPS:
            raise FaultError(f"more than {STEPS} statements")
        name = type(s).__name__
        method = getattr(self, f"run_{name}", None)
        if method is None:
            raise UnmodelledError(f"statement {name}")
        result = method(s)
        if result is not None:
            yield from result

    def run_SeqStmt(self, s: Any) -> Meeting:
        for part in s.seq:
            yield from self.run(part)

    def run_Bind(self, s: Any) -> Meeting:
        yield from self.meet(s.value)
        self.bind(s.var, s.value)

    def bind(self, var: Any, value: Any) -> None:
        if str(var.dtype) != "handle":
            self.lanes.env[var] = self.value(value)
            return
        place, at, _ = self.pointer(value)
        self.places[var] = Place(place.memory, place.owner, at)

    def run_Evaluate(self, s: Any) -> Meeting:
        if type(s.value).__name__ != "Call":
            return
        yield from self.meet(s.value)
        yield from self.call(s.value)

    def run_BufferStore(self, s: Any) -> Meeting:
        yield from self.meet(s.value)
        self.store(s.buffer, self.indices(s.indices), self.value(s.value))

    def run_IfThenElse(self, s: Any) -> Meeting:
        yield from self.meet(s.condition)
        taken = np.broadcast_to(self.value(s.condition), self.active.shape) != 0
        yield from self.where(taken, s.then_case)
        if s.else_case is not None:
            yield from self.where(~taken, s.else_case)

    def where(self, mask: Any, body: Any) -> Meeting:
        outer = self.active
        self.active = outer & mask
        if self.active.any():
            yield from self.run(body)
        self.active = outer

    def run_For(self, s: Any) -> Meeting:
        start, extent = self.value(s.min), self.value(s.extent)
        stride = 1 if getattr(s, "step", None) is None else self.value(s.step)
        trips = np.where(self.active, -(-np.asarray(extent) // stride), 0)
        for trip in range(int(trips.max(initial=0))):
            self.lanes.env[s.loop_var] = start + trip * np.asarray(stride)
            yield from self.where(trip < trips, s.body)

    def run_While(self, s: Any) -> Meeting:
        outer = self.active
        while True:
            self.active = self.active & (self.value(s.condition) != 0)
            if not self.active.any():
                break
            yield from self.run(s.body)
        self.active = outer

    def run_AttrStmt(self, s: Any) -> Meeting:
        yield from self.run(s.body)

    def run_AllocBuffer(self, s: Any) -> Meeting:
        self.allocate(s.buffer)
        body = getattr(s, "body", None)
        if body is not None:
            yield from self.run(body)

    def run_DeclBuffer(self, s: Any) -> Meeting:
        self.place(s.buffer)
        body = getattr(s, "body", None)
        if body is not None:
            yield from self.run(body)

    def allocate(self, buffer: Any) -> None:
        raise NotImplementedError

    def call(self, call: Any) -> Meeting:
        """A call made for its effect."""
        operation = _ATOMICS.get(str(call.op.name))
        if operation is None:
            raise UnmodelledError(_name(call))
        place, at, kind = self.pointer(call.args[0])
        if operation is not np.add and kind.kind == "float":
            raise UnmodelledError(f"{_name(call)} of {kind.name}")
        value = self.value(call.args[1])
        if np.ndim(value) > 1:
            at = at + np.arange(len(value))[:, None] * kind.bytes
        place.memory.update(self.owner(place), at, kind, value, self.active, operation)
        return iter(())

    def meet(self, value: Any) -> Meeting:
        """Makes calls within an expression at which threads meet; their `results` are used once."""
        return iter(())

    # --- memory ----------------------------------------------------------------------------------

    def mbarriers(self, load: Any) -> Mbarriers:
        """The mbarriers one of which is the element `load`."""
        raise UnmodelledError(f"mbarrier {load}")

    def indices(self, indices: Any) -> list[Any]:
        return [self.value(i) for i in indices]

    def place(self, buffer: Any) -> Place:
        found = self.places.get(buffer.data)
        if found is None:
            raise UnmodelledError(f"buffer {buffer.name} without memory")
        return found

    def owner(self, place: Place) -> Any:
        if place.owner == "global":
            return 0
        return self.lanes.block if place.owner == "block" else np.arange(self.lanes.count)

    def address(self, buffer: Any, indices: list[Any]) -> tuple[Place, Any, Element, Any]:
        """Memory, byte, type, and where the index is one of the buffer's, of an element."""
        place = self.place(buffer)
        kind = element(str(buffer.dtype))
        shape = [self.value(n) for n in buffer.shape]
        strides = [self.value(s) for s in buffer.strides]
        if not strides:
            strides = [np.prod(shape[axis + 1 :], dtype=np.int64) for axis in range(len(shape))]
        offset = self.value(buffer.elem_offset)
        within: Any = True
        for index, stride, n in zip(indices, strides, shape, strict=True):
            offset = offset + index * stride
            within = within & (index >= 0) & (index < n)
        many = width(str(buffer.dtype))
        if many > 1:
            offset = offset * many + np.arange(many)[:, None]
        return place, place.offset + offset * kind.bytes, kind, within

    def pointer(self, e: Any) -> Pointer:
        name = type(e).__name__
        if name == "Var":
            place = self.places.get(e)
            if place is None:
                raise UnmodelledError(f"pointer {e.name}")
            annotation = getattr(e.type_annotation, "element_type", None)
            kind = element(str(getattr(annotation, "dtype", "uint8") or "uint8"))
            return place, place.offset, kind
        if name == "Call" and str(e.op.name) == "tirx.handle_add_byte_offset":
            place, at, kind = self.pointer(e.args[0])
            return place, at + self.value(e.args[1]), kind
        if name == "Call" and str(e.op.name) == "tirx.tvm_access_ptr":
            place, at, _ = self.pointer(e.args[1])
            kind = element(str(e.args[0].dtype))
            return place, at + self.value(e.args[2]) * kind.bytes, kind
        if name == "Call" and str(e.op.name) in ("tl.access_ptr", "tirx.address_of"):
            element_of = e.args[0]
            place, at, kind, within = self.address(
                element_of.buffer, self.indices(element_of.indices)
            )
            self.require(within, element_of.buffer)
            return place, at, kind
        raise UnmodelledError(f"pointer {e}")

    def read(self, pointer: Pointer, count: int, offset: Any = 0) -> Any:
        """`count` elements from `offset` on, a row each."""
        place, at, kind = pointer
        steps = np.arange(count)[:, None] + offset
        return place.memory.load(self.owner(place), at + steps * kind.bytes, kind, self.active)

    def write(self, pointer: Pointer, value: Any, offset: Any = 0) -> None:
        place, at, kind = pointer
        steps = np.arange(len(value))[:, None] + offset
        place.memory.store(self.owner(place), at + steps * kind.bytes, kind, value, self.active)

    def fetched(self, args: list[Any]) -> tuple[Pointer, Any]:
        """Where cp.async (to, from, elements, predicate) copies, and what: 0 where it is off."""
        to, outer = self.pointer(args[0]), self.active
        if len(args) > 3:
            self.active = outer & (self.value(args[3]) != 0)
        value = self.read(self.pointer(args[1]), int(args[2].value))
        self.active = outer
        return to, value

    def load(self, buffer: Any, indices: list[Any]) -> Any:
        place, at, kind, within = self.address(buffer, indices)
        self.require(within, buffer)
        return place.memory.load(self.owner(place), at, kind, self.active)

    def store(self, buffer: Any, indices: list[Any], value: Any) -> None:
        place, at, kind, within = self.address(buffer, indices)
        self.require(within, buffer)
        place.memory.store(self.owner(place), at, kind, value, self.active)

    def require(self, within: Any, buffer: Any) -> None:
        if (self.active & ~np.asarray(within)).any():
            raise FaultError(f"an index of {buffer.name} outside its shape")

    def spread(self, value: Any) -> Any:
        """A value with an entry for every lane."""
        return np.broadcast_to(value, self.active.shape)

    def each(self, e: Any) -> Any:
        """The value of a scalar expression, for every lane."""
        return self.spread(self.value(e))

    # --- values ----------------------------------------------------------------------------------

    def value(self, e: Any) -> Any:
        if isinstance(e, (int, np.integer)):
            return np.int64(e)
        name = type(e).__name__
        method = getattr(self, f"value_{name}", None)
        if method is not None:
            return method(e)
        if name in _COMPARE:
            a, b = self.value(e.a), self.value(e.b)
            if element(str(e.a.dtype)).kind == "float" and name not in ("EQ", "NE"):
                a, b = residues.order(a), residues.order(b)
            return _COMPARE[name](a, b)
        if name in ("Add", "Sub", "Mul", "Div", "FloorDiv", "FloorMod", "Max", "Min", "Mod"):
            return arithmetic(name, str(e.dtype), self.value(e.a), self.value(e.b))
        raise UnmodelledError(f"expression {name}")

    def value_IntImm(self, e: Any) -> Any:
        return np.int64(e.value)

    def value_FloatImm(self, e: Any) -> Any:
        return np.int64(residues.constant(float(e.value)))

    def value_Var(self, e: Any) -> Any:
        if e not in self.lanes.env:
            raise UnmodelledError(f"variable {e.name}")
        return self.lanes.env[e]

    def value_BufferLoad(self, e: Any) -> Any:
        return self.load(e.buffer, self.indices(e.indices))

    def value_Ramp(self, e: Any) -> Any:
        steps = np.arange(int(e.lanes), dtype=np.int64)[:, None]
        return np.asarray(self.value(e.base)) + self.value(e.stride) * steps

    def value_Broadcast(self, e: Any) -> Any:
        return self.value(e.value)

    def value_Shuffle(self, e: Any) -> Any:
        rows: list[Any] = []
        for vector in e.vectors:
            value = self.value(vector)
            rows += list(value) if np.ndim(value) > 1 else [value] * width(str(vector.dtype))
        chosen = [rows[int(i.value)] for i in e.indices]
        return chosen[0] if len(chosen) == 1 else np.stack(np.broadcast_arrays(*chosen))

    def value_And(self, e: Any) -> Any:
        return (self.value(e.a) != 0) & (self.value(e.b) != 0)

    def value_Or(self, e: Any) -> Any:
        return (self.value(e.a) != 0) | (self.value(e.b) != 0)

    def value_Not(self, e: Any) -> Any:
        return self.value(e.a) == 0

    def value_Select(self, e: Any) -> Any:
        return self.choose(e.condition, e.true_value, e.false_value)

    def choose(self, condition: Any, then: Any, otherwise: Any) -> Any:
        """Each side is evaluated only on the lanes that take it."""
        taken, outer = self.value(condition) != 0, self.active
        if np.ndim(taken) > 1:
            return np.where(taken, self.value(then), self.value(otherwise))
        self.active = outer & taken
        yes = self.value(then)
        self.active = outer & ~taken
        no = self.value(otherwise)
        self.active = outer
        return np.where(taken, yes, no)

    def value_Let(self, e: Any) -> Any:
        self.lanes.env[e.var] = self.value(e.value)
        return self.value(e.body)

    def value_Cast(self, e: Any) -> Any:
        return convert(self.value(e.value), str(e.value.dtype), str(e.dtype))

    def value_Call(self, e: Any) -> Any:
        if e in self.results:
            return self.results[e]
        name = _name(e)
        short = name.split(".", 1)[-1]
        if short == "if_then_else":
            return self.choose(*e.args)
        if short in _BITS or short == "bitwise_not":
            args = [self.value(a) for a in e.args]
            if str(e.dtype).startswith("bool"):
                args = [a != 0 for a in args]
                return ~args[0] if short == "bitwise_not" else _BITS[short](*args)
            return wrapped(
                ~args[0] if short == "bitwise_not" else _BITS[short](*args), element(str(e.dtype))
            )
        return self.shuffled(name, e) if name in _SHUFFLES else self.function(name, e)

    def shuffled(self, name: str, e: Any) -> Any:
        """Each lane's value of another lane of its warp, or its own where there is none."""
        mask, value, by, segment = (self.value(a) for a in e.args)
        thread = self.lanes.thread
        if thread is None or int(mask) != _WHOLE_WARP or int(segment) != _WARP:
            raise UnmodelledError(f"{name} of some threads")
        mine = thread % _WARP
        wanted = _SHUFFLES[name](mine, by)
        inside = (wanted >= 0) & (wanted < _WARP)
        other = np.arange(self.lanes.count) + np.where(inside, wanted - mine, 0)
        if (self.active & ~self.active[other.clip(0, self.lanes.count - 1)]).any():
            raise UnmodelledError(f"{name} of some threads")
        return self.spread(value)[other]

    def function(self, name: str, e: Any) -> Any:
        """A function of its arguments alone."""
        short = name.split(".", 1)[-1]
        operation = short.removeprefix("ieee_").rstrip("2")
        if short in _SAME:
            return self.value(e.args[0])
        if short == "reinterpret":
            return reinterpret(self.value(e.args[0]), str(e.args[0].dtype), str(e.dtype))
        if short == "isnan":
            return self.value(e.args[0]) == residues.constant(float("nan"))
        if name in ("tl.infinity", "tirx.infinity"):
            return np.int64(residues.constant(float("inf")))
        if name.startswith("tl.") and operation in _ARITHMETIC:
            a, b = (self.value(a) for a in e.args[:2])
            return arithmetic(_ARITHMETIC[operation], str(e.dtype), a, b)
        if operation in ("fma", "fmaf"):
            a, b, c = (self.value(a) for a in e.args[:3])
            product = arithmetic("Mul", str(e.dtype), a, b)
            return arithmetic("Add", str(e.dtype), product, c)
        if name not in PURE or element(str(e.dtype)).kind != "float":
            raise UnmodelledError(str(name))
        return residues.symbol(name, *(self.value(a) for a in e.args))


PURE = {
    *(f"tirx.{n}" for n in ("exp", "exp2", "exp10", "log", "log2", "log10", "log1p", "sqrt")),
    *(f"tirx.{n}" for n in ("rsqrt", "pow", "tanh", "tan", "sin", "cos", "sigmoid", "erf")),
    *(f"tirx.{n}" for n in ("fabs", "floor", "ceil", "round", "trunc", "nearbyint")),
    *(f"tl.{n}" for n in ("__exp", "__exp10", "__log", "__log2", "__log10", "__tan", "__cos")),
    *(f"tl.{n}" for n in ("__sin", "ieee_frcp", "ieee_fsqrt", "ieee_frsqrt")),
}


def _name(call: Any) -> str:
    name = str(call.op.name)
    return str(call.args[0].value) if name == "tirx.call_extern" else name
