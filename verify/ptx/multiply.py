"""What ``wgmma`` reads of shared memory: operands through matrix descriptors.

A descriptor of 64 bits holds, in units of 16 bytes, where an operand starts (bits 0 to 13), the
distances between its parts (leading: 16 to 29, stride: 32 to 45) and its swizzle (62 and 63). A
part is eight lines. The swizzle permutes 16-byte chunks within a line, so whole lines are counted
(PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import bits
from .bits import Term
from .memory import Memory, Touch, UnmodelledError
from .parse import Instruction

SHARED_WINDOW = 1 << 18  # bytes a descriptor can address, more than a block can have
_UNIT = 16  # bytes
_LINES = (16, 128, 64, 32)  # bytes of a line, by the swizzle
_RESERVED = 0x3FFF_C000_C000_C000  # bits that say nothing or, 49 to 51, what no TileLang sets
_SHAPE = re.compile(r"m64n(\d+)k(\d+)")
_ROWS = 64
_STEP = 32  # bytes of an operand along K


@dataclass(frozen=True)
class _Descriptor:
    """`start`: the address, 32 bits wide. The rest is in bytes."""

    start: Term
    line: int
    leading: int
    stride: int


def multiply(i: Instruction, m: Memory) -> list[Touch]:
    """The operands of a ``wgmma.mma_async`` in shared memory."""
    if i.parts[1] in ("fence", "commit_group", "wait_group"):
        return []
    shape = next((s for p in i.parts if (s := _SHAPE.fullmatch(p))), None)
    if i.parts[1] != "mma_async" or "sp" in i.parts or shape is None:
        raise UnmodelledError(".".join(i.parts[:3]))
    columns, depth = int(shape[1]), int(shape[2])
    _, a, b, _, _, _, *transposed = i.operands
    in_shared = not a.startswith("{")
    flags = [bits.number(m.read(t, 32)) or 0 for t in transposed] or [0, 0]
    touches = [_touch(m, b, columns, depth, bool(flags[-1]))]
    if in_shared:
        touches.append(_touch(m, a, _ROWS, depth, bool(flags[0])))
    return touches


def _touch(m: Memory, operand: str, size: int, depth: int, transposed: bool) -> Touch:
    """All of an operand with `size` rows or columns and `depth` elements along K."""
    found = _descriptor(m, operand)
    lines, row = (depth, size * _STEP // depth) if transposed else (size, _STEP)
    count = span(found.line, found.leading, found.stride, transposed, lines, row)
    within = bits.and_(found.start, bits.const(found.line - 1, 32))
    start = bits.sub(found.start, within)
    return Touch(operand, start, bits.const(count, 64), _UNIT, False, bits.true())


def span(line: int, leading: int, stride: int, transposed: bool, lines: int, row: int) -> int:
    """Bytes from the first to behind the last of `lines` lines of an operand, `row` bytes each, in
    whole lines of the swizzle; all in bytes. `transposed`: a line is a value of K."""
    parts, along = lines // 8 - 1, -(-row // line) - 1
    if transposed and line == _UNIT:
        parts, along = along, parts
    return parts * stride + along * leading + 8 * line


def _descriptor(m: Memory, operand: str) -> _Descriptor:
    value = m.read(operand, 64)
    high = bits.number(bits.trunc(bits.shr(value, 32, True), 32))
    low = bits.trunc(value, 32)
    constant, parts = bits.linear(low)
    starts = [
        atom
        for atom, c in parts.items()
        if c == 1 and atom.op == "sar" and atom.value == 4 and m.is_base(atom.args[0])
    ]
    if high is None or len(starts) != 1:
        raise UnmodelledError("a matrix descriptor whose address is not followed")
    # Bits 14 and 15 are zero: where an offset is negative it borrows from the field above.
    offset = bits.signed(constant, 16)
    fields = (constant - offset) & 0xFFFF_FFFF | (high & 0xFFFF_FFFF) << 32
    units = bits.sub(low, bits.add(starts[0], bits.const(constant - offset, 32)))
    # Within the window nothing is carried into the next field.
    most = SHARED_WINDOW // _UNIT
    if fields & _RESERVED or not (-most < units.range[0] and units.range[1] < most):
        raise UnmodelledError(f"a matrix descriptor with fields {fields:#x}")
    start = bits.add(starts[0].args[0], bits.scale(units, _UNIT))
    leading, stride = (_UNIT * (fields >> first & 0x3FFF) for first in (16, 32))
    return _Descriptor(start, _LINES[fields >> 62], leading, stride)
