"""Matrix operands that wgmma and tcgen05 read from shared memory through descriptors.

A descriptor is a start address, two strides and a swizzle. Which bytes an operand covers follows
from those and the shape of the multiply (PTX ISA, "Matrix descriptor" and the canonical layouts of
wgmma); here it is rounded to whole lines of the swizzle, in which 16-byte chunks are permuted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from . import tensor
from .facts import Context
from .intrinsics import Effect, Operand, Touch, UnmodelledError
from .terms import Term, add, apply, const, mul, sub

if TYPE_CHECKING:
    from .device import DeviceWalker
    from .replay import Machine

_LINE = (16, 128, 64, 32)  # bytes of a line by the descriptor's layout field
_UNIT = 16  # bytes; of the descriptor's fields and of its offsets
_PATTERN = 1024  # bytes after which the widest swizzle repeats
_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")
_GROUP = 128  # threads that multiply together
_TCGEN05 = Effect(collective="warp")  # of which one lane is elected


@dataclass(frozen=True, eq=False)
class Descriptor:
    """Where an operand starts, in bytes after the pointer `data`; `leading` and `stride` are in
    bytes, and so is `line`. It holds where `context` is around."""

    data: Any
    start: Term
    line: int
    leading: int
    stride: int
    context: Context


def places(line: int, leading: int, stride: int, mn_major: bool, lines: int, row: int) -> list[int]:
    """Bytes from an operand's start to each of its 16-byte chunks, before the swizzle.

    An operand has `lines` lines (rows of A or columns of B if K-major, values of k if MN-major)
    of `row` contiguous bytes.
    """
    found = []
    for i in range(lines):
        for along in range(0, row, _UNIT):
            at = i % 8 * line + along % line
            if line == _UNIT and mn_major:
                at += along // _UNIT * stride + i // 8 * leading
            else:
                at += i // 8 * stride + along // line * leading
            found.append(at)
    return found


def operands(name: str, args: list[Any]) -> tuple[list[Operand], list[Touch]]:
    """What a multiply reads through descriptors, and its touches of registers."""
    match = _SHAPE.fullmatch(str(args[0].value))
    if match is None:
        raise UnmodelledError(f"wgmma {args[0].value}")
    m, n, k = map(int, match.groups())
    element = 32 // k  # a step of K is 32 bytes
    shared = name == "tl.ptx_wgmma_ss"
    k_major, rest = (args[1:3], args[6:]) if shared else (args[1:2], args[5:])

    def operand(at: int, major: Any, size: int) -> Operand:
        lines, row = (size, k * element) if bool(major.value) else (k, size * element)
        return Operand(rest[at], rest[at + 1], not bool(major.value), lines, row)

    read = [operand(2, k_major[-1], n)]
    sums = Touch(rest[4], "read", m * n // _GROUP, rest[5])
    registers = [sums, replace(sums, mode="write")]
    if shared:
        read.append(operand(0, k_major[0], m))
    else:
        registers.append(Touch(rest[0], "read", m * k // _GROUP, rest[1]))
    return read, registers


def layout_of(node: Any) -> tuple[int, int, int]:
    """Line of the swizzle, leading and stride in bytes, of a call that makes a descriptor."""
    args = list(node.args)
    if str(node.op.name) == "tl.initialize_tcgen05_descriptor":
        line, fields = tensor.line_of(args), args[2:4]
    else:
        line, fields = _LINE[int(args[2].value)], args[3:5]
    leading, stride = (int(a.value) * _UNIT for a in fields)
    return line, leading, stride


@cache
def runs(
    layout: tuple[int, int, int], mn_major: bool, lines: int, row: int, start: int
) -> list[tuple[int, int]]:
    """First byte and count of each contiguous part of an operand that begins at `start` of a
    pattern of the swizzle: a line's number goes into that of its chunks."""
    at = np.array(places(*layout, mn_major, lines, row)) + start
    at = np.sort(at ^ (at >> 3 & (layout[0] - _UNIT)))
    first = np.flatnonzero(np.diff(at, prepend=at[0] - 2 * _UNIT) > _UNIT)
    last = np.append(first[1:], len(at)) - 1
    return [(int(a), int(b - a) + _UNIT) for a, b in zip(at[first], at[last], strict=True)]


class Operands:
    """The descriptors of one device function, followed in program order."""

    def __init__(self) -> None:
        self.known: dict[Any, Descriptor] = {}

    def call(self, walker: DeviceWalker, name: str, args: list[Any], node: Any) -> bool:
        """Whether the call is one of those that make or use descriptors; then it is done."""
        handlers = {
            "tl.initialize_wgmma_descriptor": self._initialize,
            "tl.increase_descriptor_offset": self._increase,
            "tl.ptx_wgmma_ss": self._multiply,
            "tl.ptx_wgmma_rs": self._multiply,
            "tl.initialize_tcgen05_descriptor": self._initialize,
            **dict.fromkeys(tensor.MULTIPLIES, self._multiply_in_tensor_memory),
        }
        if name not in handlers:
            return False
        handlers[name](walker, args, node)
        return True

    def _initialize(self, walker: DeviceWalker, args: list[Any], node: Any) -> None:
        data, start = self._place(walker, args[1])
        line, leading, stride = layout_of(node)
        self.known[args[0].buffer.data] = Descriptor(
            data, start, line, leading, stride, walker.context
        )
        self._begins(walker, data, start, line, node)

    def _place(self, walker: DeviceWalker, pointer: Any) -> tuple[Any, Term]:
        if moved(pointer):
            data, start = self._place(walker, pointer.args[0])
            return data, add(start, walker.expr(pointer.args[1]))
        data, dtype, offset = walker.pointer(pointer)
        return data, mul(offset, const(_bytes(dtype)))

    def _begins(self, walker: DeviceWalker, data: Any, start: Term, line: int, node: Any) -> None:
        """The hardware takes the number of a line from its address: eight lines begin a pattern."""
        buffer = walker.buffer(data, "uint8")
        align = _UNIT if line == _UNIT else 8 * line
        walker.record(buffer, "read", start, _UNIT, align, node, asynchronous=True)

    def _increase(self, walker: DeviceWalker, args: list[Any], node: Any) -> None:
        found = self._find(walker, args[0].buffer.data)
        if walker.context.loops != found.context.loops or walker.context.path != found.context.path:
            raise UnmodelledError("a descriptor moved under a condition or in a loop of its own")
        moved = mul(apply("div", walker.expr(args[1]), const(_UNIT)), const(_UNIT))
        start = add(found.start, moved)
        self.known[args[0].buffer.data] = replace(found, start=start)
        self._begins(walker, found.data, start, found.line, node)

    def _find(self, walker: DeviceWalker, data: Any) -> Descriptor:
        found = self.known.get(data)
        here = walker.context
        if found is None or (
            here.loops[: len(found.context.loops)] != found.context.loops
            or here.path[: len(found.context.path)] != found.context.path
        ):
            raise UnmodelledError(f"descriptor {data.name}, not initialized on every way here")
        return found

    def _multiply(self, walker: DeviceWalker, args: list[Any], node: Any) -> None:
        if "wgmma" not in walker.facts.unordered:
            walker.facts.unordered.append("wgmma")
        read, registers = operands(str(node.op.name), args)
        walker.decide("value", (walker.expr(args[-3]),), node)  # whether it adds to its sums
        for operand in read:
            self._read(walker, operand, node)
        for touch in registers:
            walker.touch(touch, node)

    def _multiply_in_tensor_memory(self, walker: DeviceWalker, args: list[Any], node: Any) -> None:
        read, columns = tensor.multiply(str(node.op.name), args)
        if tensor.of_pair(args) and tensor.PAIRS not in walker.facts.unordered:
            walker.facts.unordered.append(tensor.PAIRS)
        walker.sync(_TCGEN05, node)
        for what in (*tensor.chosen_scales(args[7]), args[8]):  # and whether it adds to its sums
            walker.decide("value", (walker.expr(what),), node)
        for operand in read:
            self._read(walker, operand, node)
        for touched in columns:
            walker.touch(Touch(touched.holder, "read"), node)
            walker.columns(touched, node)

    def _read(self, walker: DeviceWalker, operand: Operand, node: Any) -> None:
        found = self._find(walker, operand.descriptor)
        layout = (found.line, found.leading, found.stride)
        last = max(places(*layout, operand.mn_major, operand.lines, operand.row))
        buffer = walker.buffer(found.data, "uint8")
        offset = mul(walker.expr(operand.units), const(operand.unit))
        start = add(found.start, mul(apply("div", offset, const(_UNIT)), const(_UNIT)))
        place = add(start, const(buffer.start))
        # All lines of the length from the first one on, and the line of the last chunk: the start
        # may point into a line.
        for at, count in (
            (place, -(-(last + _UNIT) // found.line) * found.line),
            (add(place, const(last)), found.line),
        ):
            first = sub(at, apply("mod", at, const(found.line)))
            index = sub(first, const(buffer.start))
            walker.record(buffer, "read", index, count, _UNIT, node, asynchronous=True)


class Replayed:
    """The same, for one thread with numbers: which chunks a multiply really reads."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[Any, int, tuple[int, int, int]]] = {}

    def call(self, machine: Machine, name: str, args: list[Any], node: Any) -> bool:
        """Whether the call is one of those that make or use descriptors; then it is done."""
        if name in ("tl.initialize_wgmma_descriptor", "tl.initialize_tcgen05_descriptor"):
            data, start = self._place(machine, args[1])
            self.known[args[0].buffer.data] = data, start, layout_of(node)
            machine.note(data, "read", start, _UNIT, 1, node)
        elif name == "tl.increase_descriptor_offset":
            data, start, sizes = self.known[args[0].buffer.data]
            moved = machine.number(args[1]) // _UNIT * _UNIT
            self.known[args[0].buffer.data] = data, start + moved, sizes
            machine.note(data, "read", start + moved, _UNIT, 1, node)
        elif name in tensor.MULTIPLIES:
            read, columns = tensor.multiply(name, args)
            for operand in read:
                self._read(machine, operand, node)
            for touched in columns:
                machine.columns(touched, node)
        elif name in ("tl.ptx_wgmma_ss", "tl.ptx_wgmma_rs"):
            read, registers = operands(name, args)
            for operand in read:
                self._read(machine, operand, node)
            for touch in registers:
                machine.touch(touch, node)
        else:
            return False
        return True

    def _place(self, machine: Machine, pointer: Any) -> tuple[Any, int]:
        if moved(pointer):
            data, start = self._place(machine, pointer.args[0])
            return data, start + machine.number(pointer.args[1])
        return pointer.args[1], machine.number(pointer.args[2]) * _bytes(pointer.args[0].dtype)

    def _read(self, machine: Machine, operand: Operand, node: Any) -> None:
        data, start, sizes = self.known[operand.descriptor]
        begin = machine.starts.get(data, 0)
        start += begin + machine.number(operand.units) * operand.unit // _UNIT * _UNIT
        rest = int(start % _PATTERN)
        found = runs(sizes, operand.mn_major, operand.lines, operand.row, rest)
        machine.notes(data, "read", start - rest - begin, found, node)


def moved(pointer: Any) -> bool:
    """Whether a pointer is another one some bytes further on, e.g. in the slot of a pipeline."""
    return type(pointer).__name__ == "Call" and (
        str(pointer.op.name) == "tirx.handle_add_byte_offset"
    )


def _bytes(dtype: Any) -> int:
    from .facts import scalar_bits

    bits = scalar_bits(dtype)
    if bits % 8:
        raise UnmodelledError(f"a descriptor of elements of {bits} bits")
    return bits // 8
