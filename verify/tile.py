"""What one block does to the rows of its tile: do they mix, and is each treated like the others?

One block is executed on the IR, all threads in step, on abstract values: a label (the row whose
data went into a value, if any) and a word that stands for the expression computed, in which every
input is known by its tensor and columns alone. An element of an output must carry its own row's
label, and the same word in every row; none may carry what lay in memory before. Lockstep is one of
the orders a race-free program may run in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import cells, matrices, rows
from .facts import Access, scalar_bits
from .flow import (
    NONE,
    Flow,
    Memory,
    UnfollowedError,
    combine,
    join,
    mix,
    name_word,
)
from .replay import _ARITHMETIC, _BITWISE
from .rounds import Rounds, rounds_of
from .rows import Place
from .terms import Symbol

_ALL_REDUCE = re.compile(r"tl::AllReduce<tl::(\w+), (\d+), (\d+), .*")
# Calls that mean nothing to threads in step.
_IN_STEP = {
    *("tirx.tvm_storage_sync", "tl.sync_warp", "tirx.ptx_commit_group", "tirx.ptx_wait_group"),
    *("tl.device_assert", "tl.device_assert_with_msg"),
    *("tl.fence_proxy_async", "tl.warpgroup_arrive", "tl.warpgroup_fence_operand"),
    *("tl.warpgroup_commit_batch", "tl.warpgroup_wait"),
    *("tl.tcgen05_before_thread_sync", "tl.tcgen05_after_thread_sync", "tl.ptx_fence_barrier_init"),
}
_CALLS = {**matrices.CALLS, **cells.CALLS}
_LANES = re.compile(r"x(\d+)$")
_MOST_STEPS = 1 << 20
_MOST_LANES = 1 << 14


def _lanes(dtype: Any) -> int:
    found = _LANES.search(str(dtype))
    return int(found[1]) if found else 1


def _cut(flow: Flow, source: Any, target: Any) -> Flow:
    """The bits of a vector as a vector of more or fewer lanes: a lane is what it shares bits with,
    and which part of that."""
    old, new = _lanes(source), _lanes(target)
    if max(old, new) % min(old, new):
        raise UnfollowedError(f"{source} as {target}")
    flow = Flow(*(np.reshape(v, (-1, old)) for v in flow))
    lane = np.arange(new)
    first = [Flow(*(v[:, lane * old // new + n] for v in flow)) for n in range(max(old // new, 1))]
    whole = combine(f"bits of {source} as {target}", first)
    return Flow(whole.label, mix(whole.word, lane % max(new // old, 1)))


class Tile:
    """One block of a launch, or several that share no memory, executed abstractly.

    `indices` maps each ``blockIdx.*`` and ``threadIdx.*`` to an array over lanes, `block` numbers
    the lanes' blocks, and `first` is what the number of row 0 is in them; `strides` are those
    of each tensor and `axis` is its batch axis. Sizes and strides may be arrays over lanes, too.
    """

    def __init__(
        self,
        function: Any,
        names: Mapping[Any, str],
        sizes: Mapping[str, Any],
        indices: Mapping[str, Any],
        block: Any,
        first: Any,
        strides: Mapping[str, Any],
        axis: Mapping[str, int],
        shared: Mapping[str, int],
        places: Mapping[Access, Place],
        symbols: Mapping[str, Symbol],
        shorten: bool,
    ) -> None:
        self.places, self.symbols = places, symbols
        self.function, self.names, self.sizes = function, names, sizes
        self.indices, self.block, self.first = indices, block, first
        self.strides, self.axis = strides, axis
        self.shared_sizes = shared
        self.lanes = np.arange(len(block))
        self.mask = np.ones(len(block), bool)
        self.env: dict[Any, Any] = {}
        self.data: dict[Any, Flow] = {}
        self.memory: dict[Any, Memory] = {}
        self.views: dict[Any, tuple[Any, int]] = {}
        self.descriptors: dict[Any, tuple[Any, Any, tuple[int, int, int]]] = {}
        self.pointers: dict[Any, tuple[Any, Any, Any]] = {}
        self.cells = cells.Cells()
        self.steps = 0
        self.shorten, self.shortened = shorten, False  # whether rounds may be, and were left out
        self.watch: Rounds | None = None
        self.plain: set[Any] = set()  # loops that are left to all of their rounds
        self.salt = 0
        self.most: dict[Any, int] = {}  # bytes, scope and smallest access of each buffer
        self.scope: dict[Any, str] = {}
        self.unit: dict[Any, int] = {}
        self.written: list[tuple[str, Any, Any, Flow]] = []

    def run(self) -> None:
        from tilelang import tvm

        def declare(node: Any) -> None:
            kind = type(node).__name__
            buffer = getattr(node, "buffer", None)
            if buffer is not None and buffer.data not in self.names:
                self.most[buffer.data] = max(self.most.get(buffer.data, 0), _bits(buffer) // 8)
                self.scope[buffer.data] = str(buffer.scope())
                if kind in ("BufferLoad", "BufferStore"):
                    self.smallest(buffer.data, buffer.dtype)
            elif kind == "Call" and str(node.op.name) == "tirx.tvm_access_ptr":
                self.smallest(node.args[1], node.args[0].dtype)
            elif kind == "Call" and str(node.op.name) == "tl.ptx_init_tensor_memory":
                self.cells.columns += int(node.args[1].value)

        tvm.tirx.stmt_functor.post_order_visit(self.function.body, declare)
        self.stmt(self.function.body)

    # -- statements --------------------------------------------------------------------------

    def stmt(self, s: Any) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise UnfollowedError("too many statements")
        kind = type(s).__name__
        if kind == "SeqStmt":
            for part in s.seq:
                self.stmt(part)
        elif kind == "AttrStmt":
            if str(s.attr_key) == "thread_extent":
                self.env[s.node.var] = self.indices[str(s.node.thread_tag)]
            self.stmt(s.body)
        elif kind == "For":
            self.loop(s)
        elif kind == "IfThenElse":
            self.branch(self.number(s.condition) != 0, s)
        elif kind == "BufferStore":
            self.store(s)
        elif kind == "Bind":
            self.bind(s)
        elif kind == "Evaluate":
            if type(s.value).__name__ == "Call":
                self.call(s.value)
        elif kind not in ("DeclBuffer", "AllocBuffer"):
            raise UnfollowedError(kind)

    def loop(self, s: Any) -> None:
        lo, extent = self.number(s.min), self.number(s.extent)
        outer = self.mask
        rounds = rounds_of(self, s.loop_var, lo, extent)
        i, count = 0, int(np.max(np.broadcast_to(extent, outer.shape), initial=0))
        while i < count:
            self.mask = outer & (i < extent)
            self.env[s.loop_var] = lo + i
            if self.mask.any():
                self.stmt(s.body)
            i = i + 1 if rounds is None else rounds.after(i)
        self.mask = outer

    def branch(self, taken: Any, s: Any) -> None:
        outer = self.mask
        for mask, body in ((outer & taken, s.then_case), (outer & ~taken, s.else_case)):
            self.mask = mask
            if body is not None and mask.any():
                self.stmt(body)
        self.mask = outer

    def bind(self, s: Any) -> None:
        if str(s.var.dtype) == "handle":
            if str(s.value.op.name) != "tirx.handle_add_byte_offset":
                self.pointers[s.var] = self.pointer(s.value)
                return
            self.views[s.var] = (s.value.args[0], int(self.number(s.value.args[1])))
            return
        try:
            self.env[s.var] = self.looked_at(s.value)
        except UnfollowedError:
            self.data[s.var] = self.value(s.value)
            return
        if self.watch is not None:
            self.watch.bound(s.var, s.value)

    def store(self, s: Any) -> None:
        index = self.index(s.indices[0], s.buffer.dtype)
        flow = self.value(s.value)
        self.put(s.buffer.data, s.buffer.dtype, index, flow)

    # -- memory ------------------------------------------------------------------------------

    def index(self, e: Any, dtype: Any) -> Any:
        """One row per thread; a vector, or an element that is one, has a column per lane."""
        return self.spread(self.number(e), dtype)

    def spread(self, index: Any, dtype: Any) -> Any:
        """The elements of what is at an index."""
        lanes = _lanes(dtype)
        return index if lanes == 1 else np.reshape(index, (-1, 1)) * lanes + np.arange(lanes)

    def owner(self, data: Any, like: Any) -> tuple[Memory, Any, int]:
        base, offset = self.views.get(data, (data, 0))
        local = self.scope.get(base) == "local"
        if base not in self.memory:
            size = self.most.get(base) or self.shared_sizes.get(str(base.name), 0)
            owners = len(self.lanes) if local else int(self.block.max()) + 1
            # Views of one arena have accesses of several sizes.
            unit = self.unit[data] if base is data else min(self.unit.values())
            self.memory[base] = Memory(owners, size, unit)
        owner = self.lanes if local else self.block
        return self.memory[base], owner[:, None] if np.ndim(like) == 2 else owner, offset

    def smallest(self, data: Any, dtype: Any) -> None:
        self.unit[data] = min(self.unit.get(data, 16), max(1, scalar_bits(dtype) // 8))

    def get(self, data: Any, dtype: Any, index: Any) -> Flow:
        if data in self.names:
            return self.input(self.names[data], index)
        memory, owner, byte, width = self.where(data, dtype, index)
        return memory.read(owner, byte, width)

    def where(self, data: Any, dtype: Any, index: Any) -> tuple[Memory, Any, Any, int]:
        """Memory, owners, bytes and their number of elements in shared or local memory."""
        width = scalar_bits(dtype) // 8
        memory, owner, offset = self.owner(data, index)
        byte = np.broadcast_to(index * width + offset, np.broadcast_shapes(
            np.shape(index), owner.shape))  # fmt: skip
        keep = self.mask[:, None] if byte.ndim == 2 else self.mask
        return memory, owner, np.where(keep, byte, 0), width

    def load(self, e: Any, place: Any) -> Flow:
        """What a load reads at a place that is an integer."""
        data, dtype = e.buffer.data, e.buffer.dtype
        if self.watch is not None and data in self.names:
            self.watch.input(self.names[data], e.indices[0], place)
        flow = self.get(data, dtype, self.spread(place, dtype))
        if self.watch is not None and data not in self.names:
            flow = self.watch.cells(data, dtype, e.indices[0], place, flow)
        return flow

    def put(self, data: Any, dtype: Any, index: Any, flow: Flow, mask: Any = None) -> None:
        mask = self.mask if mask is None else mask
        vector = np.ndim(index) == 2 or np.ndim(flow.word) == 2
        keep = mask[:, None] if vector else mask
        if data in self.names:
            tensor = self.names[data]
            row, columns = self.place(tensor, index)
            shape = np.broadcast_shapes(np.shape(row), keep.shape, np.shape(flow.word))
            chosen = np.broadcast_to(keep, shape)
            pick = [np.broadcast_to(v, shape)[chosen] for v in (row, columns, *flow)]
            self.written.append((tensor, pick[0], pick[1], Flow(pick[2], pick[3])))
            return
        width = scalar_bits(dtype) // 8
        memory, owner, offset = self.owner(data, index if not vector else np.zeros((1, 1)))
        memory.write(owner, index * width + offset, width, flow, keep)

    def place(self, tensor: str, index: Any) -> tuple[Any, Any]:
        """Row (NONE without one) and a word for the other indices."""
        row: Any = np.int64(NONE)
        word: Any = name_word(tensor)
        for a, stride in enumerate(self.strides[tensor]):
            step, first = stride, self.first
            if np.ndim(index) == 2:
                step, first = np.reshape(step, (-1, 1)), first[:, None]
            digit, index = index // step, index % step
            if a == self.axis.get(tensor):
                row = first + digit
            else:
                word = mix(word, digit)
        return row, word

    def input(self, tensor: str, index: Any) -> Flow:
        row, word = self.place(tensor, index)
        if self.watch is not None:
            word = self.watch.renamed(word)
        return Flow(np.broadcast_to(row, np.shape(word) or np.shape(row)), word)

    def gathered(self, e: Any) -> Flow:
        """An element of a tensor chosen by data, which flows into it like its own."""
        if self.watch is not None:
            self.watch.end = self.watch.now
        place = next((p for a, p in self.places.items() if e.same_as(a.node)), None)
        data = list(self.sources(e.indices[0]))
        if place is None:
            raise UnfollowedError(f"which element of {e.buffer.name} is read")
        point: dict[Symbol, Any] = {s: self.indices[tag] for tag, s in self.symbols.items()}
        wanted = {s for t in (place.row, *place.columns) if t is not None for s in t.symbols}
        for s in wanted - point.keys():
            if s.kind == "dim":
                point[s] = self.sizes[s.name]
            elif s.origin in self.env:
                point[s] = self.env[s.origin]
        try:
            row, columns = rows.at_point(place, point)
        except (KeyError, rows.RowlessError) as why:
            raise UnfollowedError(f"which element of {e.buffer.name} is read: {why}") from None
        which = (name_word(str(e.buffer.name)), name_word(str(e.indices[0])))
        word = mix(*which, *columns, *(flow.word for flow in data))
        label = self.per_lane(np.int64(NONE) if row is None else row)
        for flow in data:
            label = join(label, self.per_lane(flow.label))
        return Flow(label, self.per_lane(word))

    def sources(self, e: Any) -> Iterator[Flow]:
        """The data in an index, which is arithmetic on it and on numbers."""
        kind = type(e).__name__
        if kind == "BufferLoad" or (kind == "Var" and e in self.data):
            yield self.value(e)
        elif kind == "Cast":
            yield from self.sources(e.value)
        elif kind in _NUMPY:
            yield from self.sources(e.a)
            yield from self.sources(e.b)
        else:
            self.number(e)

    # -- expressions -------------------------------------------------------------------------

    def number(self, e: Any) -> Any:
        """An integer of every thread that decides what is done."""
        found = self.looked_at(e)
        if self.watch is not None:
            self.watch.decided(e, found)
        return found

    def looked_at(self, e: Any) -> Any:
        """An integer of which the caller says to `watch` what it is for."""
        if self.watch is not None:
            self.watch.moved = False
        return self.integer(e)

    def integer(self, e: Any) -> Any:
        """An integer of every thread, or a row of them for a vector."""
        kind = type(e).__name__
        if kind == "IntImm":
            return np.int64(e.value)
        if kind == "Var":
            if e in self.env:
                if self.watch is not None and e in self.watch.moving:
                    self.watch.moved = True
                return self.env[e]
            if str(e.name) in self.sizes:
                return self.sizes[str(e.name)]
            raise UnfollowedError(f"the value of {e.name}")
        if kind == "Cast" and str(e.value.dtype).startswith(("int", "uint", "bool")):
            return self.integer(e.value)
        if kind in _NUMPY and not str(e.a.dtype).startswith(("float", "bfloat")):
            a, b = self.integer(e.a), self.integer(e.b)
            if "x" in str(e.dtype):
                a, b = (v[:, None] if np.ndim(v) == 1 else v for v in (a, b))
            return _NUMPY[kind](a, b)  # type: ignore[operator]
        if kind == "Not":
            return 1 - (self.integer(e.a) != 0)
        if kind == "Ramp":
            base, stride = (np.reshape(self.integer(v), (-1, 1)) for v in (e.base, e.stride))
            return base + stride * np.arange(int(e.lanes))
        if kind == "Broadcast":
            return np.reshape(self.integer(e.value), (-1, 1)) + np.zeros(int(e.lanes), np.int64)
        if kind == "Call" and str(e.op.name) in _BITWISE:
            return _BITWISE[str(e.op.name)](*(np.asarray(self.integer(a)) + 0 for a in e.args))
        if kind == "Call" and str(e.op.name) == "tirx.if_then_else":
            condition, yes, no = (self.integer(a) for a in e.args)
            return np.where(condition != 0, yes, no)
        if kind == "Select":
            condition = self.integer(e.condition)
            return np.where(condition != 0, self.integer(e.true_value), self.integer(e.false_value))
        if kind == "Call" and str(e.op.name) == "tl.tl_shuffle_elect":
            return cells.elected(self, int(e.args[0].value))
        raise UnfollowedError(f"{kind} as an integer")

    def value(self, e: Any) -> Flow:
        """The data of an expression."""
        kind = type(e).__name__
        if kind in ("FloatImm", "IntImm", "StringImm"):
            return Flow(np.int64(NONE), mix(name_word(f"{e.dtype} {e.value}")))
        if kind == "Var" and e in self.data:
            return self.data[e]
        if kind == "BufferLoad":
            try:
                place = self.looked_at(e.indices[0])
            except UnfollowedError:
                return self.gathered(e)
            return self.load(e, place)
        if kind == "Cast":
            return combine(f"to {str(e.dtype).split('x')[0]}", [self.value(e.value)])
        if kind == "Broadcast":
            flow = self.value(e.value)
            return Flow(*(np.reshape(v, (-1, 1)) + np.zeros(int(e.lanes), v.dtype) for v in flow))
        if kind == "Shuffle" and len(e.vectors) == 1 and len(e.indices) == 1:
            vector, lane = self.value(e.vectors[0]), int(e.indices[0].value)
            return Flow(*(v[:, lane] for v in vector))
        if kind == "Select":
            return self.choose(e.condition, e.true_value, e.false_value)
        if kind == "Call":
            return self.call(e)
        if kind == "Not":
            return combine(kind, [self.value(e.a)])
        if hasattr(e, "a") and hasattr(e, "b"):
            try:
                return self.known(self.number(e))
            except UnfollowedError:
                return combine(kind, [self.value(e.a), self.value(e.b)])
        return self.known(self.number(e))

    def known(self, number: Any) -> Flow:
        return Flow(np.full(np.shape(number), NONE, np.int64), mix(np.asarray(number)))

    def choose(self, condition: Any, yes: Any, no: Any) -> Flow:
        try:
            taken = np.broadcast_to(self.number(condition) != 0, self.mask.shape)
        except UnfollowedError:
            parts = [self.value(condition), self.value(yes), self.value(no)]
            return combine("choose", parts)
        outer = self.mask
        self.mask = outer & taken
        a = self.value(yes)
        self.mask = outer & ~taken
        b = self.value(no)
        self.mask = outer
        vector = max(np.ndim(a.word), np.ndim(b.word)) == 2
        pick = taken[:, None] if vector else taken
        return Flow(*(np.where(pick, x, y) for x, y in zip(a, b, strict=True)))

    # -- calls -------------------------------------------------------------------------------

    def call(self, e: Any) -> Flow:
        name, args = str(e.op.name), list(e.args)
        nothing = Flow(np.int64(NONE), np.uint64(0))
        if name == "tirx.if_then_else":
            return self.choose(*args)
        if name in _IN_STEP:
            return nothing
        if name == "tl.infinity":
            return Flow(np.int64(NONE), name_word(f"{name} {e.dtype}"))
        if name == "tirx.reinterpret" and _lanes(e.dtype) != _lanes(args[0].dtype):
            return _cut(self.value(args[0]), args[0].dtype, e.dtype)
        if name == "tl.ptx_cp_async":
            self.copy(args)
            return nothing
        if name in _CALLS:
            _CALLS[name](self, args, e)
            return nothing
        if name == "tirx.call_extern":
            match = _ALL_REDUCE.match(str(args[0].value))
            if match is None:
                raise UnfollowedError(str(args[0].value))
            return self.reduce(self.value(args[1]), match)
        if name.startswith(("tirx.", "tl.")) and all(str(a.dtype) != "handle" for a in args):
            from .calls import effect
            from .intrinsics import GROUPS

            found = effect(name, args)
            by_thread = name in GROUPS or found.collective != "none"  # lanes do not do it alone
            if found.touches or found.sync or by_thread:
                raise UnfollowedError(name)
            return combine(name, [self.value(a) for a in args])
        raise UnfollowedError(name)

    def pointer(self, e: Any, extra: Any = 0) -> tuple[Any, Any, Any]:
        if type(e).__name__ == "Var" and e in self.pointers:
            data, kind, at = self.pointers[e]
            if self.watch is not None and data in self.names:
                self.watch.moved = False
                self.watch.input(self.names[data], e, at)
            return data, kind, at + extra
        if type(e).__name__ == "Call" and str(e.op.name) == "tirx.tvm_access_ptr":
            data, place = e.args[1], self.looked_at(e.args[2])
            if self.watch is not None and data in self.names:
                self.watch.input(self.names[data], e.args[2], place)
            elif self.watch is not None:
                self.watch.decided(e.args[2], place)
            return data, e.args[0].dtype, self.per_lane(place + extra)
        raise UnfollowedError("a pointer")

    def per_lane(self, v: Any) -> Any:
        return np.broadcast_to(v, self.mask.shape)

    def copy(self, args: list[Any]) -> None:
        count = int(args[2].value)
        here = self.per_lane(self.number(args[3]) != 0) if len(args) > 3 else self.mask
        to, kind, target = self.pointer(args[0])
        source, _, start = self.pointer(args[1])
        steps = np.arange(count)
        outer, self.mask = self.mask, self.mask & here
        flow = self.get(source, kind, start[:, None] + steps)
        self.mask = outer
        zero = mix(name_word("zero"))
        flow = Flow(
            np.where(here[:, None], flow.label, NONE), np.where(here[:, None], flow.word, zero)
        )
        self.put(to, kind, target[:, None] + steps, flow)

    def reduce(self, flow: Flow, match: Any) -> Flow:
        operation, threads, scale = match.group(1), int(match.group(2)), int(match.group(3))
        label, word = (np.broadcast_to(v, self.mask.shape) for v in flow)
        half = threads // 2
        while half >= scale:
            partner = self.lanes ^ half
            with np.errstate(over="ignore"):
                word = mix(name_word(operation), word + word[partner], word ^ word[partner])
            label = join(label, label[partner])
            half //= 2
        return Flow(label, word)


def _bits(buffer: Any) -> int:
    lanes = _LANES.search(str(buffer.dtype))
    total = scalar_bits(buffer.dtype) * (int(lanes[1]) if lanes else 1)
    for n in buffer.shape:
        total *= int(getattr(n, "value", 0))
    return total


_NUMPY = {
    **_ARITHMETIC,
    "Div": lambda a, b: np.sign(a) * np.sign(b) * (abs(a) // abs(b)),
    "Mod": lambda a, b: a - b * (np.sign(a) * np.sign(b) * (abs(a) // abs(b))),
    "Min": np.minimum,
    "Max": np.maximum,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
    "And": lambda a, b: (a != 0) & (b != 0),
    "Or": lambda a, b: (a != 0) | (b != 0),
}
