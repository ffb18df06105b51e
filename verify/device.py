"""Final device TIR → facts: what one thread of one launch touches, computes and waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from . import cluster, tensor, terms
from .arena import bytes_of
from .calls import effect
from .convert import BINARY, Converter
from .domain import TensorFacts
from .facts import (
    Access,
    Allocation,
    Buffer,
    Check,
    Claim,
    Facts,
    Sync,
    integer_range,
    scalar_bits,
    text,
    vector_alignment,
)
from .intrinsics import (
    BARRIER,
    GROUPS,
    NOTHING,
    WARP_BARRIER,
    Columns,
    Effect,
    Mode,
    Touch,
    UnmodelledError,
    group_size,
)
from .operands import Operands
from .terms import Symbol, Term, add, apply, const, mul, product, sub, var
from .tma import Map, touch_tile

# Attributes without a meaning of their own at this stage.
_INERT_ATTRS = {
    "lexical_alloc_scope",
    "storage_alignment",
    "tl.min_blocks_per_sm",
    "pragma_unroll_explicit",
    "pragma_auto_unroll_max_step",
    "kWarpSpecializationScope",
}
# What another thread may see another value of.
_OWN = ("thread", "lane", "opaque")
_THREAD_BINDING = 4  # TVM's ForKind


class DeviceWalker(Converter):
    """Collects the facts of one device function under one launch."""

    def __init__(
        self,
        facts: Facts,
        dims: Mapping[str, Symbol],
        tensors: Mapping[str, TensorFacts],
        param_names: Mapping[Any, str],
        extents: Mapping[str, Term],
        sizes: Mapping[str, int],
        maps: Mapping[Any, Map],
        clusters: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__(facts, dims)
        self.maps = maps
        self.clusters = clusters
        self.elected: set[Term] = set()
        self.operands = Operands()
        self.pointers: dict[Any, Any] = {}
        self.taken: dict[Any, int] = {}
        self.tensors = tensors
        self.params = param_names
        self.extents = extents
        self.sizes = sizes
        self.buffers: dict[Any, Buffer] = {}
        self.arena: dict[Any, tuple[Any, int]] = {}
        self.declared: dict[Any, Any] = {}
        self.allocated: dict[Any, Any] = {}
        self.written: set[str] = set()
        self.value_of_store: tuple[Term, ...] | None = None

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
            elif kind == "Call" and str(node.op.name) == "tl.ptx_init_tensor_memory":
                self.taken[node.args[0].args[1]] = int(node.args[1].value)

        tvm.tirx.stmt_functor.post_order_visit(function.body, declare)
        self.stmt(function.body)
        return self.facts

    def declare(self, buffer: Any) -> None:
        """Keep the largest declaration of each data pointer: views alias the same memory."""
        if buffer.data in self.params:
            return
        known = self.declared.get(buffer.data)
        if known is None or bytes_of(buffer) > bytes_of(known):
            self.declared[buffer.data] = buffer

    def buffer(self, data: Any, dtype: Any, view: Any = None) -> Buffer:
        """The memory behind a data pointer, seen as elements of `dtype`."""
        key = (data, str(dtype), view)
        if key not in self.buffers:
            self.buffers[key] = self._buffer(data, dtype, view)
        return self.buffers[key]

    def _buffer(self, data: Any, dtype: Any, view: Any) -> Buffer:
        bits = scalar_bits(dtype)
        if bits % 8 and bits != 4:
            raise UnmodelledError(f"elements of {bits} bits")
        if data in self.params:
            tensor = self.params[data]
            known = self.tensors.get(tensor)
            if known is None:
                return Buffer(tensor, "global", bits, None, tensor=tensor)
            if scalar_bits(known.dtype) != bits:
                raise UnmodelledError(f"{tensor} of {known.dtype} seen as {dtype}")
            strides = known.strides
            return Buffer(tensor, "global", bits, known.shape, tensor=tensor, strides=strides)
        declaration = view if view is not None else self.declared.get(data)
        name = str(data.name)
        start = self.arena.get(data, (data, 0))[1]
        if declaration is None:
            # Only touched through pointers, so the final IR does not declare it.
            size = self.sizes.get(name, 0)
            shape = (const(size * 8 // bits),) if size and data in self.arena else None
            return Buffer(name, "shared.dyn", bits, shape, start, arena="shared.dyn")
        size = bytes_of(declaration)
        if size < 0:
            raise UnmodelledError(f"{name} of a size known only at run time")
        if data in self.allocated:  # a view cannot be larger than the memory behind it
            size = min(size, bytes_of(self.allocated[data]))
        scope = str(declaration.scope())
        # Every dynamic allocation of CUDA text starts at the same address.
        arena = {"shared.dyn": scope, "shared": f"shared {name}"}.get(scope, "")
        return Buffer(name, scope, bits, (const(size * 8 // bits),), start, arena=arena)

    def load(self, node: Any, indices: list[Term]) -> Term:
        buffer = self.buffer(node.buffer.data, node.dtype)
        if buffer.tensor and buffer.tensor not in self.written and len(indices) == 1:
            return terms.load(buffer.tensor, indices[0])
        if buffer.arena and not any(s.kind in _OWN for i in indices for s in i.symbols):
            return self.common(node)
        return self.opaque(node)

    def common(self, node: Any) -> Term:
        """What all threads of a block read from one place in shared memory, in one iteration.

        They agree because nothing writes there between two reads without a barrier to order it,
        which is what ``races`` shows: by induction, since a first disagreement needs such a write.
        The value is a function of the place in the program, the block and the iteration, numbered.
        """
        self.facts.common = True
        where = const(0)
        for s in (*self.facts.blocks, *self.context.loops):
            if not (s.lo.is_const and s.lo == s.hi):
                where = terms.add(mul(where, const(1 << 32)), var(s))
        return terms.load(f"{node.dtype}:{text(node, 40)}:{len(self.facts.accesses)}", where)

    def access(self, node: Any, buffer: Any, indices: list[Any], mode: Mode) -> list[Term]:
        # A view may be narrower than the memory it aliases: it bounds its own accesses.
        view = None if buffer.data in self.params else buffer
        memory = self.buffer(buffer.data, buffer.dtype, view)
        if len(indices) != 1:
            raise UnmodelledError("an access that was not flattened")
        index = indices[0]
        lanes = int(str(index.dtype).split("x")[1]) if "x" in str(index.dtype) else 1
        width = memory.bits // 8  # 0 for a part of a byte, which is cut out of its byte
        if lanes == 1:
            if memory.bits < 8 and memory.tensor and mode == "write":
                # It rewrites the whole byte, which its neighbour's writer may do at the same time.
                raise UnmodelledError("half a byte written to global memory")
            term = self.expr(index)
            self.record(memory, mode, term, 1, width, node)
            return [term]
        if type(index).__name__ == "Ramp" and _is_one(index.stride):
            if memory.bits * lanes % 8:
                raise UnmodelledError(f"{lanes} elements of {memory.bits} bits at once")
            size = memory.bits * lanes // 8
            align = vector_alignment(size, max(1, width))
            self.record(memory, mode, self.expr(index.base), lanes, align, node)
            return []
        if memory.bits < 8:
            raise UnmodelledError("scattered elements of less than a byte")
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
        if kind in BINARY:
            pairs = zip(self.lanes(e.a, count), self.lanes(e.b, count), strict=True)
            scalar = str(e.dtype).split("x")[0]
            return [self.check(apply(BINARY[kind], a, b), scalar, scalar, e) for a, b in pairs]
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
        atomic: str = "",
        peer: Term | None = None,
    ) -> None:
        if buffer.tensor and mode == "write":
            self.written.add(buffer.tensor)
        self.not_of_elected(index)
        what = buffer, mode, index, lanes, align, self.context, next(self._order), node
        stored = self.value_of_store if mode == "write" else None
        self.facts.accesses.append(Access(*what, asynchronous, stored, atomic, peer))

    def stored(self, e: Any, reads: list[Access]) -> tuple[Term, ...] | None:
        """What determines the value of an expression; None if memory that is written does."""
        if any(a.buffer.tensor in ("", *self.written) for a in reads):
            return None
        try:
            return (*(a.index for a in reads), *self.variables(e))
        except UnmodelledError:
            return None

    def variables(self, e: Any) -> list[Term]:
        """The variables of a value, but for those in the indices of its loads."""
        kind = type(e).__name__
        if kind in ("IntImm", "FloatImm", "StringImm", "BufferLoad"):
            return []
        if kind == "Var":
            return [self.variable(e)]
        if kind == "Call" and effect(str(e.op.name), list(e.args)) is NOTHING:
            return [v for a in e.args for v in self.variables(a)]
        fields = {"Cast": "value", "Broadcast": "value", "Not": "a"}
        names = (fields[kind],) if kind in fields else ("a", "b") if kind in BINARY else ()
        if not names:
            raise UnmodelledError(kind)
        return [v for name in names for v in self.variables(getattr(e, name))]

    # -- calls -------------------------------------------------------------------------------

    def call(self, node: Any) -> None:
        name, args = str(node.op.name), [self.pointed(a) for a in node.args]
        if self.operands.call(self, name, args, node):
            return
        if name in tensor.MOVES:
            args = tensor.plain(args)
        found = effect(name, args)
        if found.unordered and found.unordered not in self.facts.unordered:
            self.facts.unordered.append(found.unordered)
        if found.tile is not None:
            touch_tile(self, found.tile, node)
            args = found.tile.coordinates
        for rank in found.ranks:
            self.peer(const(rank), node)
        for value in found.values:
            self.value(value)
        for touched in found.columns:
            self.columns(touched, node)
        if found.allocated:
            holder = str(self.pointer(args[0])[0].name)
            allocation = Allocation(holder, found.allocated, self.context, node)
            self.facts.allocations.append(allocation)
        if found.sync is not None or found.collective in ("warp", "cluster"):
            self.sync(found, node)
        if found.sync is not None:
            return
        if found.threads is not None:
            self.whole_block(found.threads)
        if found.asserts is not None:
            self.claim(found.asserts, True)
            return
        pointers = {id(t.pointer) for t in found.touches}
        for touch in found.touches:
            if touch.after_barrier:
                self.sync(BARRIER, node)
            if touch.after_warp:
                self.sync(WARP_BARRIER, node)
            self.touch(touch, node)
        atomic = any(t.atomic for t in found.touches)
        if found is NOTHING or found.collective != "none" or found.unordered or atomic:
            for a in args:
                if id(a) not in pointers and str(a.dtype) != "handle":
                    self.value(a)

    def sync(self, found: Effect, node: Any) -> None:
        self.facts.syncs.append(Sync(found, self.context, next(self._order), node))

    def whole_block(self, threads: int) -> None:
        """A named barrier of every thread is a barrier of the block; of fewer it is something
        else."""
        size = terms.product(add(s.hi, const(1)) for s in self.facts.threads)
        if not size.is_const or size.value != threads:
            self.facts.unordered.append("named barriers")

    def touch(self, touch: Touch, node: Any) -> None:
        data, dtype, offset = self.pointer(touch.pointer)
        if dtype is None and data not in self.declared:
            raise UnmodelledError(f"pointer {data.name} without a type")
        buffer = self.buffer(data, dtype if dtype is not None else self.declared[data].dtype)
        extra = const(touch.offset) if isinstance(touch.offset, int) else self.expr(touch.offset)
        index = add(offset, extra)
        if touch.slot is not None:
            index = add(offset, self.slot(*touch.slot))
        if touch.lane_step:
            lane = apply("mod", self.facts.linear_thread, const(32))
            index = add(index, mul(lane, const(touch.lane_step)))
        context = self.context
        if touch.when is not None:
            condition = self.expr(touch.when)
            self.decide("condition", (condition,), node)
            context = context.given(condition)
        if touch.lane_below is not None:
            lane = apply("mod", self.facts.linear_thread, const(32))
            context = context.given(apply("lt", lane, const(touch.lane_below)))
        if buffer.bits < 8:
            raise UnmodelledError("a pointer to elements of less than a byte")
        peer = None
        if touch.peer is not None:
            peer = self.expr(touch.peer)
            self.peer(peer, node)
            buffer = replace(buffer, name=f"{buffer.name} of another block")
        width = buffer.bits // 8
        align = touch.align or vector_alignment(width * touch.count, width)
        outer, self.context = self.context, context
        how = touch.asynchronous, touch.atomic, peer
        self.record(buffer, touch.mode, index, touch.count, align, node, *how)
        self.context = outer

    def columns(self, touched: Columns, node: Any) -> None:
        """An access to tensor memory."""
        if touched.holder not in self.taken:
            raise UnmodelledError(f"tensor memory at {touched.holder.name}, which none was given")
        shape = (const(self.taken[touched.holder]),)
        memory = Buffer(f"tensor memory {touched.holder.name}", "tensor", 32, shape)
        self.record(memory, touched.mode, self.expr(touched.first), touched.count, 4, node, True)

    def pointed(self, e: Any) -> Any:
        """An argument, or what it was bound to if it is a pointer with a name."""
        return self.pointers.get(e, e) if type(e).__name__ == "Var" else e

    def peer(self, rank: Term, node: Any) -> None:
        """An access to the shared memory of a block of the cluster."""
        self.record(cluster.peers(self.clusters), "write", rank, 1, 1, node)

    def value_call(self, e: Any) -> None:
        if str(e.op.name) == "tl.block_rank_in_cluster":
            self.decide("value", (self.integer_call(e),), e)
        else:
            super().value_call(e)

    def integer_call(self, e: Any) -> Term:
        name = str(e.op.name)
        if name in GROUPS:
            threads = const(group_size(name, list(e.args)))
            part = "mod" if name == "tl.get_lane_idx" else "div"
            return apply(part, self.facts.linear_thread, threads)
        if name == "tl.block_rank_in_cluster":
            return cluster.rank(self.facts.symbols, self.clusters)
        if name != "tl.tl_shuffle_elect":
            return super().integer_call(e)
        if any(s.hi != const(0) for s in self.facts.threads if s.name != "threadIdx.x"):
            raise UnmodelledError("tl_shuffle_elect in a block of several dimensions")
        # elect.sync picks one lane of a warp; which one must not matter, see `not_of_elected`.
        own, extent = var(self.facts.symbols["threadIdx.x"]), int(e.args[0].value)
        if extent:
            own = apply("mod", own, const(-(-extent // 32) * 32))
        term = apply("eq", own, const(0))
        self.elected.add(term)
        return term

    def not_of_elected(self, term: Term) -> None:
        """What an elected thread computes is followed for lane 0, so it must be the same for all
        lanes; what is not elected likewise."""
        path = self.context.path
        first = next((i for i, c in enumerate(path) if self.elects(c)), len(path))
        if first < len(path) and any(
            s.kind == "thread"
            for t in (term, *path[first:])
            if t not in self.elected
            for s in t.symbols
        ):
            raise UnmodelledError("an elected thread that uses its own number")

    def elects(self, condition: Term) -> bool:
        """Whether a condition has to do with an election."""
        return condition in self.elected or any(map(self.elects, condition.args))

    def check(self, term: Term, dtype: Any, what: str, node: Any) -> Term:
        self.not_of_elected(term)
        return super().check(term, dtype, what, node)

    def pointer(self, e: Any) -> tuple[Any, Any, Term]:
        """A pointer argument as (data variable, element type or None, element offset)."""
        kind = type(e).__name__
        if kind == "Var":
            return e, None, const(0)
        if kind == "Call" and str(e.op.name) == "tirx.tvm_access_ptr":
            dtype = e.args[0].dtype
            return e.args[1], dtype, self.expr(e.args[2])
        if kind == "BufferLoad" and len(e.indices) == 1:  # by reference
            return e.buffer.data, e.buffer.dtype, self.expr(e.indices[0])
        raise UnmodelledError(f"pointer {text(e, 40)}")

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
            outer = self.context
            for part in s.seq:
                self.stmt(part)
            self.context = outer
        elif kind in ("DeclBuffer", "AllocBuffer"):
            pass
        elif kind == "AttrStmt":
            self.attribute(s)
        elif kind == "Bind":
            self.bind(s)
        elif kind == "BufferStore":
            before = len(self.facts.accesses)
            self.value(s.value)
            self.value_of_store = self.stored(s.value, self.facts.accesses[before:])
            self.access(s, s.buffer, list(s.indices), "write")
            self.value_of_store = None
        elif kind == "For":
            self.loop(s)
        elif kind == "IfThenElse":
            condition = self.expr(s.condition)
            self.decide("condition", (condition,), s)
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
        elif key == "tl.assume":
            outer = self.context
            self.claim(s.node, False)
            self.stmt(s.body)
            self.context = outer
            return
        elif key == "threadblock_swizzle_pattern":
            self.rasterization(s)
        elif key not in _INERT_ATTRS:
            self.facts.unmodelled.append(f"attribute {key}")
        self.stmt(s.body)

    def claim(self, condition: Any, traps: bool) -> None:
        """What the program says of itself; it is known until the enclosing statement ends."""
        self.parameters_of_host(condition)
        term = self.expr(condition)
        self.not_of_elected(term)
        if not (term.is_const and term.value):
            claim = Claim(term, traps, self.context, condition)
            self.facts.claims.append(claim)
            self.context = replace(self.context, claims=(*self.context.claims, claim))

    def parameters_of_host(self, condition: Any) -> None:
        """TileLang leaves the host's names of tensors in an assumption: those of the signature."""
        from tilelang import tvm

        def visit(node: Any) -> None:
            if type(node).__name__ == "BufferLoad" and node.buffer.data not in self.params:
                name = str(node.buffer.data.name)
                if name in self.tensors and node.buffer.scope() == "global":
                    self.params = {**self.params, node.buffer.data: name}

        tvm.tirx.stmt_functor.post_order_visit(tvm.tirx.Evaluate(condition), visit)

    def rasterization(self, s: Any) -> None:
        """From here on blocks are numbered another way: some order of the grid's first two axes,
        which no property can tell from another unless blocks were numbered before."""
        name = str(s.value.args[0].value)
        if name not in ("rasterization2DRow", "rasterization2DColumn"):
            raise UnmodelledError(f"threadblock_swizzle_pattern {name}")
        terms_ = [a.index for a in self.facts.accesses] + [c.term for c in self.facts.checks]
        if any(b.kind == "block" for t in terms_ for b in t.symbols):
            raise UnmodelledError(f"{name} after blocks were numbered otherwise")
        tags = ("blockIdx.x", "blockIdx.y")
        size = product(self.extents[tag] for tag in tags if tag in self.extents)
        what = f"{name}'s uint32 number of a block"
        self.facts.checks.append(Check(size, 0, (1 << 32) - 1, what, self.context, s))

    def bind(self, s: Any) -> None:
        called = str(s.value.op.name) if type(s.value).__name__ == "Call" else ""
        if called == "tirx.tvm_access_ptr":
            self.pointers[s.var] = s.value
        elif str(s.var.dtype) == "handle":
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
        last = const(offset.value + bytes_of(declared))
        if last.value > bytes_of(arena):
            limit = bytes_of(arena)
            self.facts.checks.append(Check(last, 0, limit, "end in the arena", self.context, s))

    def loop(self, s: Any) -> None:
        if int(s.kind) == _THREAD_BINDING:
            raise UnmodelledError("a loop bound to a thread axis")
        lo, extent = self.expr(s.min), self.expr(s.extent)
        hi = sub(add(lo, extent), const(1))
        symbol = Symbol(str(s.loop_var.name), "loop", lo, hi, s.loop_var)
        self.env[s.loop_var] = var(symbol)
        outer = self.context
        self.decide("loop", (lo, hi), s)
        self.context = outer.inside(symbol)
        self.stmt(s.body)
        self.context = outer


def _is_one(e: Any) -> bool:
    return type(e).__name__ == "IntImm" and int(e.value) == 1
