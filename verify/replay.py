"""A counterexample, re-executed on the IR itself with Python integers.

Nothing here uses terms, facts or Z3: an error there cannot confirm itself. Values of data are not
known, so a condition that needs one stops the run, and the counterexample stays an alarm.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tileproof.codegen.hostir import TensorMap, evaluate

from . import cluster
from .calls import effect
from .intrinsics import GROUPS, Columns, Tile, Touch, UnmodelledError, group_size
from .operands import Replayed
from .returns import returns
from .selects import is_lazy
from .tma import clip, tile_bytes


@dataclass(frozen=True)
class Setting:
    """One thread at one moment: sizes, indices by tag, loop values by TIR variable."""

    sizes: Mapping[str, int]
    indices: Mapping[str, int]
    loops: Mapping[Any, int]


@dataclass(frozen=True)
class Touched:
    """An access that really happens; `offset` and `extent` count elements.

    `outside` says that some of it lies beyond the memory or, in a strided tensor, between rows.
    `place` are the indices of its first element in a tensor of the signature.
    """

    memory: str
    mode: str
    offset: int
    lanes: int
    extent: int | None
    outside: bool
    node: Any
    place: tuple[int, ...] = ()


@dataclass
class Trace:
    """What a thread does at a setting; `overflows` are the nodes whose value does not fit.

    `decided` are the loops (first index and trip count) and conditions it meets, with their values.
    `allocated` are the columns of tensor memory it takes or, negative, gives back, by their holder.
    """

    touched: list[Touched] = field(default_factory=list)
    decided: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)
    overflows: list[tuple[Any, int]] = field(default_factory=list)
    allocated: list[tuple[str, int]] = field(default_factory=list)


class UndeterminedError(Exception):
    """A value that only data decides."""


class _LeftError(Exception):
    """The thread may have returned from here on: nothing later is sure to happen."""


class Machine:
    """Executes one device function for one thread, following only the loop iterations given."""

    def __init__(
        self,
        function: Any,
        layouts: Mapping[str, tuple[Any, Any]],
        names: Mapping[Any, str],
        sizes: Mapping[str, int],
        maps: Mapping[Any, TensorMap],
    ) -> None:
        self.source = function, layouts, names, sizes, maps
        self.maps = maps
        self.function = function
        self.leaves = returns(function.body)
        self.layouts = layouts
        self.names = names
        self.sizes = sizes

    def run(self, setting: Setting) -> Trace:
        """The trace of one thread; empty if the setting lies outside the launch."""
        self.prepare(setting)
        with contextlib.suppress(_LeftError):
            self.stmt(self.function.body)
        return self.trace

    def prepare(self, setting: Setting) -> None:
        """Be at the first statement, with nothing done."""
        self.setting, self.trace = setting, Trace()
        self.env: dict[Any, Any] = {}
        self.operands = Replayed()
        self.pointers: dict[Any, Any] = {}
        self.memory, self.allocated, self.elements, self.starts, self.taken = self.declared

    @cached_property
    def _objects(self) -> dict[int, Any]:
        return {}

    def same(self, v: Any) -> Any:
        """The one object that stands for a variable, of which TVM makes a new one whenever asked:
        a dict finds it without comparing."""
        return self._objects.setdefault(hash(v), v)

    @cached_property
    def declared(self) -> tuple[dict[Any, int], ...]:
        """Of buffers: bytes, bytes where allocated, those of an element, start in the arena, and
        columns of tensor memory. The same for every thread."""
        from tilelang import tvm

        memory: dict[Any, int] = {}
        allocated: dict[Any, int] = {}
        elements: dict[Any, int] = {}
        starts: dict[Any, int] = {}
        taken: dict[Any, int] = {}

        def declare(node: Any) -> None:
            if type(node).__name__ == "Bind" and str(node.var.dtype) == "handle":
                args: Any = getattr(node.value, "args", ())
                offset = args[1] if len(args) > 1 else 0  # of a view of the arena
                starts[node.var] = int(getattr(offset, "value", 0))
            if type(node).__name__ == "Call" and str(node.op.name) == "tl.ptx_init_tensor_memory":
                taken[node.args[0].args[1]] = int(node.args[1].value)
            buffer = getattr(node, "buffer", None)
            if buffer is not None:
                elements.setdefault(buffer.data, _element(buffer.dtype))
            if buffer is None or buffer.data in self.names:
                return
            size = _size(buffer)
            if size is not None:
                memory[buffer.data] = max(memory.get(buffer.data, 0), size)
                if type(node).__name__ == "AllocBuffer":
                    allocated[buffer.data] = size

        tvm.tirx.stmt_functor.post_order_visit(self.function.body, declare)
        return memory, allocated, elements, starts, taken

    def extent(self, data: Any, element: int, view: Any = None) -> int | None:
        if data in self.names:
            shape, strides = self.layout(self.names[data])
            last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            return 0 if 0 in shape else last + 1
        size = (
            _size(view)
            if view is not None
            else self.memory.get(data, self.sizes.get(str(data.name)))
        )
        if size is not None and data in self.allocated:
            size = min(size, self.allocated[data])
        return None if size is None else size // element

    def layout(self, tensor: str) -> tuple[list[int], list[int]]:
        """Shape and strides of a tensor of the signature."""
        shape, strides = (
            [evaluate(n, self.setting.sizes) for n in terms] for terms in self.layouts[tensor]
        )
        if not strides:
            for n in [1, *shape[:0:-1]]:
                strides.insert(0, n * strides[0] if strides else 1)
        return shape, strides[: len(shape)]

    def place(self, tensor: str, offset: int) -> tuple[int, ...]:
        """The indices of an element."""
        out = []
        for stride in self.layout(tensor)[1]:
            step, offset = divmod(offset, stride) if stride else (0, offset)
            out.append(step)
        return tuple(out)

    def outside(self, tensor: str, offset: int) -> bool:
        """Whether no element of a tensor lies at an offset."""
        shape, strides = self.layout(tensor)
        if 0 in shape:
            return True
        for n, stride in zip(shape, strides, strict=True):
            step, offset = divmod(offset, stride)
            if not 0 <= step < n:
                return True
        return offset != 0

    def stmt(self, s: Any) -> None:
        kind = type(s).__name__
        if self.leaves and kind in ("For", "IfThenElse") and returns(s):
            raise _LeftError
        if kind == "SeqStmt":
            for part in s.seq:
                self.stmt(part)
        elif kind == "AttrStmt":
            if str(s.attr_key) == "thread_extent":
                self.env[s.node.var] = self.setting.indices.get(str(s.node.thread_tag), 0)
            elif str(s.attr_key) == "tl.assume":
                self.decide(s.node, s.node)
            self.stmt(s.body)
        elif kind == "For":
            self.loop(s)
        elif kind == "IfThenElse":
            taken = self.decide(s.condition, s)
            if taken is not None:
                branch = s.then_case if taken else s.else_case
                if branch is not None:
                    self.stmt(branch)
        elif kind == "BufferStore":
            self.index(s, s.buffer, s.indices, "write")
            self.visit(s.value)
        elif kind == "Bind":
            if str(s.var.dtype) != "handle":
                self.bind(s)
            elif str(s.value.op.name) == "tirx.tvm_access_ptr":
                self.pointers[s.var] = s.value
        elif kind == "Evaluate":
            self.visit(s.value)

    def bind(self, s: Any) -> None:
        try:
            self.env[s.var] = self.number(s.value)
        except UndeterminedError:
            self.visit(s.value)

    def loop(self, s: Any) -> None:
        value = self.setting.loops.get(s.loop_var)
        try:
            lo, extent = self.number(s.min), self.number(s.extent)
        except UndeterminedError:
            return
        self.trace.decided.append((s, (lo, extent)))
        if value is None:
            return
        if lo <= value < lo + extent:
            self.env[s.loop_var] = value
            self.stmt(s.body)

    def condition(self, e: Any) -> bool | None:
        """Its truth; None where only data decides."""
        try:
            return bool(self.number(e))
        except UndeterminedError:
            return None

    def decide(self, e: Any, node: Any) -> bool | None:
        """The truth of a condition, noted as a decision of `node`."""
        taken = self.condition(e)
        if taken is not None:
            self.trace.decided.append((node, (int(taken),)))
        return taken

    # -- expressions -------------------------------------------------------------------------

    def number(self, e: Any) -> int:
        """Exact value of an integer expression; what does not fit its type is noted."""
        return self.value(e)

    def value(self, e: Any) -> int:
        """The same for a part of an expression."""
        kind = type(e).__name__
        if kind == "IntImm":
            return int(e.value)
        if kind == "Var":
            if e in self.env:
                return self.env[e]
            if str(e.name) in self.setting.sizes:
                return self.setting.sizes[str(e.name)]
            raise UndeterminedError(str(e.name))
        if kind == "Cast":
            return self.fits(e, _unsigned(e.dtype, self.value(e.value)))
        if kind in _ARITHMETIC:
            a, b = self.value(e.a), self.value(e.b)
            if kind in _DIVISIONS and b == 0:
                raise UndeterminedError("a quotient by 0")
            return self.fits(e, _ARITHMETIC[kind](a, b))
        if kind == "And":
            return int(bool(self.value(e.a)) and bool(self.value(e.b)))
        if kind == "Or":
            return int(bool(self.value(e.a)) or bool(self.value(e.b)))
        if kind == "Not":
            return int(not self.value(e.a))
        if kind == "Call" and str(e.op.name) in _BITWISE:
            return self.fits(e, _BITWISE[str(e.op.name)](*(self.value(a) for a in e.args)))
        if kind == "Call" and str(e.op.name) == "tirx.if_then_else":
            return self.value(e.args[1] if self.value(e.args[0]) else e.args[2])
        if kind == "Select":
            return self.value(e.true_value if self.value(e.condition) else e.false_value)
        if kind == "Call" and str(e.op.name) == "tl.block_rank_in_cluster":
            return cluster.number(self.setting.indices, self.setting.sizes)
        if kind == "Call" and str(e.op.name) in GROUPS:
            group, number = divmod(self.lane(), group_size(str(e.op.name), list(e.args)))
            return number if str(e.op.name) == "tl.get_lane_idx" else group
        if kind == "Call" and str(e.op.name) == "tl.tl_shuffle_elect":
            own, extent = self.setting.indices.get("threadIdx.x", 0), int(e.args[0].value)
            return int((own % (-(-extent // 32) * 32) if extent else own) == 0)
        raise UndeterminedError(kind)

    def fits(self, e: Any, value: int) -> int:
        name = str(e.dtype)
        if name.startswith("int") and "x" not in name:
            half = 1 << (int(name[3:]) - 1)
            if not -half <= value < half:
                self.trace.overflows.append((e, value))
        return value

    def visit(self, e: Any) -> None:
        """Perform the accesses inside a value."""
        kind = type(e).__name__
        if (kind == "Var" or kind in _ARITHMETIC) and str(e.dtype).startswith(("int", "uint")):
            self.used(e)
        if kind == "BufferLoad":
            self.index(e, e.buffer, e.indices, "read")
        elif kind == "Call":
            self.call(e)
        elif kind == "Select":
            taken = self.decide(e.condition, e)
            self.visit(e.condition)
            for part, wanted in ((e.true_value, True), (e.false_value, False)):
                if taken in (None, wanted) or not is_lazy(e):
                    self.visit(part)
        elif kind == "Shuffle":
            for part in e.vectors:
                self.visit(part)
        else:
            for field_name in ("a", "b", "value", "base"):
                part = getattr(e, field_name, None)
                if hasattr(part, "dtype"):
                    self.visit(part)

    def used(self, e: Any) -> None:
        """Note an integer that becomes data."""
        if "x" not in str(e.dtype):
            with contextlib.suppress(UndeterminedError):
                self.trace.decided.append((e, (self.number(e),)))

    def call(self, e: Any) -> None:
        name = str(e.op.name)
        args = [self.pointers.get(a, a) if type(a).__name__ == "Var" else a for a in e.args]
        if name == "tirx.if_then_else":
            taken = self.decide(args[0], e)
            if taken is not None:
                self.visit(args[1] if taken else args[2])
            return
        try:
            if self.operands.call(self, name, args, e):
                return
            found = effect(name, args)
        except (UndeterminedError, KeyError):  # a place, or a descriptor, that data decides
            return
        except UnmodelledError:
            return
        if found.asserts is not None:
            self.decide(found.asserts, found.asserts)
        for touch in found.touches:
            self.touch(touch, e)
        if found.tile is not None:
            self.tile(found.tile, e)
        for rank in found.ranks:
            self.peer(rank, e)
        for touched in found.columns:
            self.columns(touched, e)
        if found.allocated:
            self.trace.allocated.append((str(args[0].args[1].name), found.allocated))
        for a in args:
            if hasattr(a, "dtype") and str(a.dtype) != "handle":
                self.visit(a)

    def touch(self, touch: Touch, node: Any) -> None:
        if touch.when is not None and not self.decide(touch.when, node):
            return
        if touch.lane_below is not None and self.lane() % 32 >= touch.lane_below:
            return
        pointer, offset, element = touch.pointer, 0, 1
        try:
            if type(pointer).__name__ == "Call":
                dtype, data = pointer.args[0].dtype, pointer.args[1]
                offset = self.number(pointer.args[2])
                element = _element(dtype)
            elif type(pointer).__name__ == "BufferLoad":
                data, element = pointer.buffer.data, _element(pointer.buffer.dtype)
                offset = self.number(pointer.indices[0])
            else:
                data = pointer
                element = self.elements.get(data, 1)
            offset += touch.offset if isinstance(touch.offset, int) else self.number(touch.offset)
        except UndeterminedError:
            return
        if touch.slot is not None:
            first, half = touch.slot
            offset += (self.setting.indices.get("threadIdx.x", 0) - first) ^ half
        if touch.lane_step:
            offset += self.lane() % 32 * touch.lane_step
        if touch.peer is not None:
            with contextlib.suppress(UndeterminedError):
                self.peer(self.number(touch.peer), node)
        self.note(data, touch.mode, offset, touch.count, element, node)

    def columns(self, touched: Columns, node: Any) -> None:
        """Note an access to tensor memory."""
        extent = self.taken.get(touched.holder, 0)
        with contextlib.suppress(UndeterminedError):
            first, name = self.number(touched.first), f"tensor memory {touched.holder.name}"
            outside = not 0 <= first <= extent - touched.count
            found = Touched(name, touched.mode, first, touched.count, extent, outside, node)
            self.trace.touched.append(found)

    def peer(self, rank: int, node: Any) -> None:
        """Note an access to the shared memory of a block of the cluster."""
        sizes = self.setting.sizes
        count = math.prod(sizes.get(f"cluster.{axis}", 1) for axis in cluster.AXES)
        outside = not 0 <= rank < count
        touched = Touched(cluster.PEERS, "write", rank, 1, count, outside, node)
        self.trace.touched.append(touched)

    def tile(self, tile: Tile, node: Any) -> None:
        source = self.maps[tile.tensor_map]
        tensor = source.tensor
        try:
            start = self.number(tile.pointer.args[2]) * _element(tile.pointer.args[0].dtype)
        except UndeterminedError:
            return
        other = "read" if tile.mode == "write" else "write"
        size = tile_bytes(source, len(tile.boxes))
        self.note(tile.pointer.args[1], other, start, size, 1, node)
        runs = []
        for box in tile.boxes:
            with contextlib.suppress(UndeterminedError):  # a row that data names
                corner, offsets = ([self.number(n) for n in part] for part in (box, tile.offsets))
                runs += clip(source, corner, offsets, lambda e: evaluate(e, self.setting.sizes))
        shape, strides = self.layout(tensor)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        extent = 0 if 0 in shape else last + 1
        for first, lanes in runs:
            outside = any(self.outside(tensor, first + i) for i in range(lanes))
            touched = Touched(tensor, tile.mode, first, lanes, extent, outside, node)
            self.trace.touched.append(touched)

    def lane(self) -> int:
        total, stride = 0, 1
        for axis in "xyz":
            total += stride * self.setting.indices.get(f"threadIdx.{axis}", 0)
            stride *= self.setting.sizes.get(f"threads.{axis}", 1)
        return total

    def index(self, node: Any, buffer: Any, indices: Any, mode: str) -> None:
        view = None if buffer.data in self.names else buffer
        element = _element(buffer.dtype)
        try:
            for offset, lanes in self.offsets(indices[0]):
                self.note(buffer.data, mode, offset, lanes, element, node, view)
        except UndeterminedError:
            return

    def offsets(self, e: Any) -> list[tuple[int, int]]:
        """(first element, count) of each machine access behind an index."""
        if "x" not in str(e.dtype):
            return [(self.number(e), 1)]
        if type(e).__name__ == "Ramp" and getattr(e.stride, "value", 0) == 1:
            return [(self.number(e.base), int(e.lanes))]
        return [(v, 1) for v in self.vector(e)]

    def vector(self, e: Any) -> list[int]:
        kind, count = type(e).__name__, int(str(e.dtype).split("x")[1])
        if kind == "Ramp":
            base, stride = self.number(e.base), self.number(e.stride)
            return [base + i * stride for i in range(count)]
        if kind == "Broadcast":
            return [self.number(e.value)] * count
        if kind == "Cast":
            return self.vector(e.value)
        if kind in _ARITHMETIC:
            pairs = zip(self.vector(e.a), self.vector(e.b), strict=True)
            return [_ARITHMETIC[kind](a, b) for a, b in pairs]
        raise UndeterminedError(kind)

    def notes(
        self, data: Any, mode: str, start: int, runs: Sequence[tuple[int, int]], node: Any
    ) -> None:
        """Note accesses of one call to runs of bytes: first, from `start` on, and count of each."""
        for first, count in runs:
            self.note(data, mode, start + first, count, 1, node)

    def note(
        self,
        data: Any,
        mode: str,
        offset: int,
        lanes: int,
        element: int,
        node: Any,
        view: Any = None,
    ) -> None:
        name = self.names.get(data, str(data.name))
        extent = self.extent(data, element, view)
        if data in self.names:
            outside = any(self.outside(name, offset + i) for i in range(lanes))
        else:
            outside = extent is not None and not 0 <= offset <= extent - lanes
        place = self.place(name, offset) if data in self.names else ()
        self.trace.touched.append(Touched(name, mode, offset, lanes, extent, outside, node, place))


def _unsigned(dtype: Any, value: int) -> int:
    """What a cast makes of a number, where the type is unsigned: it wraps."""
    name = str(dtype)
    return value % (1 << int(name[4:])) if name.startswith("uint") and "x" not in name else value


def _truncate(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_DIVISIONS = ("FloorDiv", "FloorMod", "Div", "Mod")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
    "Div": _truncate,
    "Mod": lambda a, b: a - b * _truncate(a, b),
    "Min": min,
    "Max": max,
    "LT": lambda a, b: int(a < b),
    "LE": lambda a, b: int(a <= b),
    "GT": lambda a, b: int(a > b),
    "GE": lambda a, b: int(a >= b),
    "EQ": lambda a, b: int(a == b),
    "NE": lambda a, b: int(a != b),
}
_BITWISE: dict[str, Callable[..., int]] = {
    "tirx.bitwise_and": lambda a, b: a & b,
    "tirx.bitwise_or": lambda a, b: a | b,
    "tirx.bitwise_xor": lambda a, b: a ^ b,
    "tirx.shift_left": lambda a, b: a << b,
    "tirx.shift_right": lambda a, b: a >> b,
    "tirx.likely": lambda a: a,
}


def _element(dtype: Any) -> int:
    from .facts import scalar_bits

    return max(1, scalar_bits(dtype) // 8)


def _size(buffer: Any) -> int | None:
    total = _element(buffer.dtype)
    for n in buffer.shape:
        if type(n).__name__ != "IntImm":
            return None
        total *= int(n.value)
    return total
