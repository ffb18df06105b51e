"""Which memory an instruction touches: the bytes, their alignment, and under which condition.

What is not in the table is :class:`UnmodelledError`, by name: tcgen05 and multimem reach memory
through descriptors (of wgmma: ``multiply.py``). Of a tiled TMA copy the side in shared memory is
seen; the other is the tensor map's, which the hardware keeps to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from . import bits
from .bits import Term
from .parse import Instruction, bits_of
from .semantics import Reader, kind


class UnmodelledError(Exception):
    """An instruction whose effect on memory is not in the table; its text is the name."""


class Memory(Reader, Protocol):
    """Reading operands, and addresses in brackets."""

    def address(self, operand: str) -> Term:
        """``[%rd1+16]``, in the width of the register or 64 bits."""
        ...

    def box(self, operand: str) -> Term:
        """Bytes of the box of the tensor map in ``[%rd1, {%r1, %r2}]``, 64 bits wide.

        Raises UnmodelledError where the launch passes no such map.
        """
        ...

    def is_base(self, t: Term) -> bool:
        """Whether `t` is the variable that stands for the address of some memory."""
        ...

    def lane(self) -> Term:
        """The thread's place in its warp, 32 bits."""
        ...


@dataclass(frozen=True)
class Touch:
    """One access. `count` is in bytes (64 bits wide); nothing happens unless `when` holds."""

    operand: str
    address: Term
    count: Term
    align: int
    write: bool
    when: Term


def _touch(m: Memory, operand: str, count: int, write: bool, when: Term | None = None) -> Touch:
    size = bits.const(count, 64)
    return Touch(operand, m.address(operand), size, count, write, when or bits.true())


def lanes(i: Instruction) -> int:
    """``.v4`` → 4."""
    return next((int(p[1:]) for p in i.parts if p in ("v2", "v4", "v8")), 1)


def _plain(i: Instruction, m: Memory) -> list[Touch]:
    if {"async", "bulk"} & set(i.parts):
        raise UnmodelledError(".".join(i.parts[:3]))
    count = bits_of(kind(i)) // 8 * lanes(i)
    operand = next(o for o in i.operands if o.startswith("["))
    return [_touch(m, operand, count, i.parts[0] not in ("ld", "ldu"))]


def _copy(i: Instruction, m: Memory) -> list[Touch]:
    what = i.parts[2] if i.parts[1] == "async" else ""
    if what == "bulk":
        return _bulk(i, m)
    if what in ("commit_group", "wait_group", "wait_all"):
        return []
    if what == "mbarrier":
        return [_touch(m, i.operands[0], 8, True)]
    if what not in ("ca", "cg"):
        raise UnmodelledError(".".join(i.parts[:4]))
    size = bits.number(m.read(i.operands[2], 32))
    if size is None:
        raise UnmodelledError(f"{i.opcode} of a size that is no constant")
    target = _touch(m, i.operands[0], size, True)
    read, when = bits.const(size, 64), bits.true()
    rest = list(i.operands[3:])
    if rest and m.width_of(rest[0]) == 1:  # "ignore-src": zeros are written, nothing is read
        when = bits.negate(m.read(rest[0], 1))
    elif rest and (m.width_of(rest[0]) in (32, None)):
        read = bits.extend(m.read(rest[0], 32), 64, False)
        when = bits.negate(bits.eq(read, bits.const(0, 64)))
    source = Touch(i.operands[1], m.address(i.operands[1]), read, size, False, when)
    return [target, source]


def _bulk(i: Instruction, m: Memory) -> list[Touch]:
    """TMA: a run of bytes between shared and global memory, or a box of a tensor map."""
    parts = i.parts[3:]
    if parts[0] in ("commit_group", "wait_group"):
        return []
    name = ".".join(i.parts[:3] + [p for p in parts if p not in ("L2::cache_hint", "tile")][:4])
    tensor = parts[0] == "tensor"
    if tensor:
        parts = parts[2:]
    shared = ("shared::cta", "shared")
    loads = parts[0] in shared and parts[1] == "global" and "mbarrier::complete_tx::bytes" in parts
    stores = parts[0] == "global" and parts[1] in shared and "bulk_group" in parts
    known = ("tile", "L2::cache_hint", "mbarrier::complete_tx::bytes", "bulk_group")
    if not (loads or stores) or any(p not in known for p in parts[2:]):
        raise UnmodelledError(name)
    here, there = i.operands[:2] if loads else i.operands[1::-1]
    if tensor:
        size = m.box(there)
        out = [Touch(here, m.address(here), size, 128, loads, bits.true())]
    else:
        size = bits.extend(m.read(i.operands[2], 32), 64, False)
        some = bits.less(bits.const(0, 64), size)
        ends = zip((here, there), (loads, stores), strict=True)
        out = [Touch(o, m.address(o), size, 16, write, some) for o, write in ends]
    barrier = [_touch(m, i.operands[2 if tensor else 3], 8, True)] if loads else []
    return out + barrier


def _matrix(i: Instruction, m: Memory) -> list[Touch]:
    """``ldmatrix`` and ``stmatrix``: the first 8 lanes per matrix give the address of a row."""
    shape = next((p for p in i.parts if p in ("m8n8", "m16n16", "m8n16", "m16n8")), "")
    if shape not in ("m8n8", "m16n8", "m8n16"):
        raise UnmodelledError(".".join(i.parts[:4]))
    count = next((int(p[1:]) for p in i.parts if p in ("x1", "x2", "x4")), 1)
    operand = next(o for o in i.operands if o.startswith("["))
    taking_part = bits.less(m.lane(), bits.const(8 * count, 32))
    return [_touch(m, operand, 16, i.parts[0] == "stmatrix", taking_part)]


def _barrier(i: Instruction, m: Memory) -> list[Touch]:
    if any("cluster" in p for p in i.parts[1:] if p.startswith("shared")):
        raise UnmodelledError(".".join(i.parts[:3]))
    operand = next((o for o in i.operands if o.startswith("[")), None)
    return [] if operand is None else [_touch(m, operand, 8, True)]


TOUCHES: dict[str, Callable[[Instruction, Memory], list[Touch]]] = {
    "ld": _plain,
    "ldu": _plain,
    "st": _plain,
    "atom": _plain,
    "red": _plain,
    "cp": _copy,
    "ldmatrix": _matrix,
    "stmatrix": _matrix,
    "mbarrier": _barrier,
}
