"""What instructions compute, in exact bit-vector semantics.

``RESULTS`` maps the first part of an opcode to a function from an instruction and a reader of its
operands to the terms of its destinations; None stands for a value that is not tracked (floating
point, data exchanged between lanes). What is neither here nor in ``memory.py`` makes the kernel
UNKNOWN by name. Source: the PTX ISA manual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from . import bits
from .bits import Term
from .parse import Instruction, bits_of, is_type


class Reader(Protocol):
    """How an instruction reads its operands."""

    def read(self, operand: str, width: int) -> Term:
        """A register, an immediate, a special register or an address, in `width` bits."""
        ...

    def unsigned(self, operand: str, width: int) -> Term:
        """As :meth:`read`; a value that the path shows not to be negative is written as such."""
        ...

    def width_of(self, operand: str) -> int | None:
        """Declared width of a register; None for anything else."""
        ...


Result = Callable[[Instruction, Reader], "list[Term | None]"]


def kind(i: Instruction) -> str:
    """The type of the operands: the last part of an opcode that is one."""
    return next((p for p in reversed(i.parts) if is_type(p)), "b32")


def is_float(name: str) -> bool:
    return name[0] == "f" or name.startswith(("bf", "tf"))


def sources(i: Instruction, r: Reader) -> list[Term]:
    width = bits_of(kind(i))
    return [r.read(o, width) for o in i.operands[1:]]


def destinations(operand: str) -> list[str]:
    """``{%r1, %r2}``, ``%p1|%p2`` or one register."""
    return [n.strip() for n in operand.strip("{}").replace("|", ",").split(",")]


def integer(function: Callable[..., Term]) -> Result:
    """A function of integer operands; of floating-point ones the result is not tracked."""

    def result(i: Instruction, r: Reader) -> list[Term | None]:
        name = kind(i)
        if is_float(name) or "x2" in name or "sat" in i.parts:
            return [None]
        return [function(*sources(i, r))]

    return result


def by_sign(function: Callable[[bool], Callable[..., Term]]) -> Result:
    def result(i: Instruction, r: Reader) -> list[Term | None]:
        if is_float(kind(i)) or "x2" in kind(i):
            return [None]
        return [function(kind(i)[0] == "s")(*sources(i, r))]

    return result


def untracked(i: Instruction, r: Reader) -> list[Term | None]:
    return [None] * len(destinations(i.operands[0]))


def nothing(i: Instruction, r: Reader) -> list[Term | None]:
    return []


def _barrier(i: Instruction, r: Reader) -> list[Term | None]:
    return untracked(i, r) if "red" in i.parts else []


def _move(i: Instruction, r: Reader) -> list[Term | None]:
    width = bits_of(kind(i))
    target, source = i.operands
    if source.startswith("{"):
        parts = destinations(source)
        each = width // len(parts)
        total = bits.const(0, width)
        for n, part in enumerate(parts):
            total = bits.add(total, bits.extend(r.read(part, each), width, False), 1 << n * each)
        return [total]
    value = r.read(source, width)
    if not target.startswith("{"):
        return [value]
    each = width // len(destinations(target))
    return [
        bits.trunc(bits.shr(value, n * each, False), each) for n in range(len(destinations(target)))
    ]


def _multiply(i: Instruction, r: Reader) -> list[Term | None]:
    name = kind(i)
    if is_float(name) or "x2" in name or "sat" in i.parts:
        return [None]
    width, sign = bits_of(name), name[0] == "s"
    a, b = (r.read(o, width) for o in i.operands[1:3])
    if ("wide" in i.parts or "hi" in i.parts) and (not sign or _reciprocal(b)):
        a, b = (r.unsigned(o, width) for o in i.operands[1:3])
    if "wide" in i.parts:
        product = bits.mul(*(bits.extend(t, 2 * width, sign) for t in (a, b)))
    elif "hi" in i.parts:
        whole = bits.mul(*(bits.extend(t, 2 * width, sign) for t in (a, b)))
        product = bits.trunc(bits.shr(whole, width, sign), width)
    else:
        product = bits.mul(a, b)
    if len(i.operands) == 4:
        product = bits.add(product, r.read(i.operands[3], product.width))
    return [product]


def _reciprocal(t: Term) -> bool:
    """Whether a factor may stand for a division: then it matters whether the other is negative."""
    n = bits.number(t)
    return n is not None and abs(n) > 1 << 16


def _minimum(sign: bool) -> Callable[..., Term]:
    return lambda a, b: bits.ite(bits.less(a, b, sign), a, b)


def _maximum(sign: bool) -> Callable[..., Term]:
    return lambda a, b: bits.ite(bits.less(a, b, sign), b, a)


def _absolute(a: Term) -> Term:
    zero = bits.const(0, a.width)
    return bits.ite(bits.less(a, zero), bits.sub(zero, a), a)


def _shift(op: str) -> Result:
    def result(i: Instruction, r: Reader) -> list[Term | None]:
        logical = op == "shr" and kind(i)[0] != "s"
        a = (r.unsigned if logical else r.read)(i.operands[1], bits_of(kind(i)))
        by = r.read(i.operands[2], 32)
        return [bits.shift_by("sar" if op == "shr" and kind(i)[0] == "s" else op, a, by)]

    return result


def _compare(i: Instruction, r: Reader) -> list[Term | None]:
    name = kind(i)
    targets = destinations(i.operands[0])
    if is_float(name) or "x2" in name:
        return [None] * len(targets)
    width = bits_of(name)
    a, b = (r.read(o, width) for o in i.operands[1:3])
    relation = i.parts[1]
    sign = name[0] == "s"
    if relation in ("lo", "ls", "hi", "hs"):
        relation = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[relation]
        sign = False
    relations: dict[str, Callable[[], Term]] = {
        "eq": lambda: bits.eq(a, b),
        "ne": lambda: bits.negate(bits.eq(a, b)),
        "lt": lambda: bits.less(a, b, sign),
        "ge": lambda: bits.negate(bits.less(a, b, sign)),
        "gt": lambda: bits.less(b, a, sign),
        "le": lambda: bits.negate(bits.less(b, a, sign)),
    }
    if relation not in relations:
        return [None] * len(targets)
    p = relations[relation]()
    both = [p, bits.negate(p)]
    if len(i.operands) == 4:
        name = i.operands[3]
        other = r.read(name.lstrip("!"), 1)
        other = bits.negate(other) if name.startswith("!") else other
        join = {"and": bits.all_, "or": bits.any_}.get(i.parts[2])
        both = [join((q, other)) if join else _differs(q, other) for q in both]
    return [*both[: len(targets)]]


def _differs(p: Term, q: Term) -> Term:
    return bits.negate(bits.eq(p, q))


def _select(i: Instruction, r: Reader) -> list[Term | None]:
    if is_float(kind(i)):
        return [None]
    width = bits_of(kind(i))
    a, b = (r.read(o, width) for o in i.operands[1:3])
    return [bits.ite(r.read(i.operands[3], 1), a, b)]


def _convert(i: Instruction, r: Reader) -> list[Term | None]:
    types = [p for p in i.parts if is_type(p)]
    if len(types) != 2 or any(is_float(t) or "x2" in t for t in types) or "sat" in i.parts:
        return [None]
    to, of = types
    widens = of[0] != "s" and bits_of(of) < bits_of(to)
    value = (r.unsigned if widens else r.read)(i.operands[1], bits_of(of))
    narrow = bits.resize(value, bits_of(to), of[0] == "s")
    declared = r.width_of(i.operands[0])
    return [narrow if declared is None else bits.resize(narrow, declared, to[0] == "s")]


def _generic(i: Instruction, r: Reader) -> list[Term | None]:
    """``cvta``: an address keeps its name, so the space it is seen through changes nothing."""
    return [r.read(i.operands[1], bits_of(kind(i)))]


def _lookup3(i: Instruction, r: Reader) -> list[Term | None]:
    """``lop3``: the table's algebraic normal form, a XOR of products."""
    a, b, c = (r.read(o, 32) for o in i.operands[1:4])
    table = int(i.operands[4], 0)
    form = [table >> n & 1 for n in range(8)]  # index 4a + 2b + c
    for bit in (1, 2, 4):
        form = [v ^ form[n ^ bit] if n & bit else v for n, v in enumerate(form)]
    total = bits.const(0, 32)
    for n, used in enumerate(form):
        if used:
            product = bits.const(-1, 32)
            for bit, operand in ((4, a), (2, b), (1, c)):
                if n & bit:
                    product = bits.and_(product, operand)
            total = bits.xor(total, product)
    return [total]


def _field(i: Instruction, r: Reader) -> list[Term | None]:
    """``bfe`` with constant position and length."""
    width = bits_of(kind(i))
    a = r.read(i.operands[1], width)
    position, length = (bits.number(r.read(o, 32)) for o in i.operands[2:4])
    if position is None or length is None or position + length > width or length <= 0:
        return [None]
    left = bits.shl(a, width - position - length)
    return [bits.shr(left, width - length, kind(i)[0] == "s")]


def _insert(i: Instruction, r: Reader) -> list[Term | None]:
    """``bfi`` with constant position and length."""
    width = bits_of(kind(i))
    a, b = (r.read(o, width) for o in i.operands[1:3])
    position, length = (bits.number(r.read(o, 32)) for o in i.operands[3:5])
    if position is None or length is None or position + length > width or length < 0:
        return [None]
    mask = ((1 << length) - 1) << position
    kept = bits.and_(b, bits.const(~mask, width))
    return [bits.or_(bits.and_(bits.shl(a, position), bits.const(mask, width)), kept)]


def _funnel(i: Instruction, r: Reader) -> list[Term | None]:
    low, high, by = (r.read(o, 32) for o in i.operands[1:4])
    n = bits.number(by)
    if n is None:
        return [None]
    n = n & 31 if "wrap" in i.parts else min(n & 0xFFFFFFFF, 32)
    n = n if "r" in i.parts[1:2] else 32 - n
    if n == 32:
        return [high]
    return [bits.or_(bits.shr(low, n, False), bits.shl(high, 32 - n))]


def _permute(i: Instruction, r: Reader) -> list[Term | None]:
    """``prmt`` with a constant selector that replicates no sign."""
    a, b, selector = (r.read(o, 32) for o in i.operands[1:4])
    chosen = bits.number(selector)
    if chosen is None or len(i.parts) > 2 or chosen & 0x8888:
        return [None]
    total = bits.const(0, 32)
    for n in range(4):
        source = chosen >> 4 * n & 7
        word = bits.shr(a if source < 4 else b, 8 * (source % 4), False)
        total = bits.add(total, bits.and_(word, bits.const(255, 32)), 1 << 8 * n)
    return [total]


def _predicate(function: Callable[..., Term]) -> Result:
    return lambda i, r: [function(*(r.read(o, 1) for o in i.operands[1:]))]


def _logic(name: str) -> Result:
    wide: dict[str, Callable[..., Term]] = {
        "and": bits.and_,
        "or": bits.or_,
        "xor": bits.xor,
        "not": bits.not_,
    }
    narrow: dict[str, Callable[..., Term]] = {
        "and": lambda a, b: bits.all_((a, b)),
        "or": lambda a, b: bits.any_((a, b)),
        "xor": _differs,
        "not": bits.negate,
    }

    def result(i: Instruction, r: Reader) -> list[Term | None]:
        return (_predicate(narrow[name]) if kind(i) == "pred" else integer(wide[name]))(i, r)

    return result


def _divide(op: str) -> Result:
    def result(i: Instruction, r: Reader) -> list[Term | None]:
        if is_float(kind(i)):
            return [None]
        a, b = (r.unsigned(o, bits_of(kind(i))) for o in i.operands[1:])
        return [bits.divide(("s" if kind(i)[0] == "s" else "u") + op, a, b)]

    return result


RESULTS: dict[str, Result] = {
    "mov": _move,
    "add": integer(bits.add),
    "sub": integer(bits.sub),
    "mul": _multiply,
    "mad": _multiply,
    "div": _divide("div"),
    "rem": _divide("rem"),
    "neg": integer(lambda a: bits.sub(bits.const(0, a.width), a)),
    "abs": integer(_absolute),
    "min": by_sign(_minimum),
    "max": by_sign(_maximum),
    "and": _logic("and"),
    "or": _logic("or"),
    "xor": _logic("xor"),
    "not": _logic("not"),
    "shl": _shift("shl"),
    "shr": _shift("shr"),
    "setp": _compare,
    "selp": _select,
    "cvt": _convert,
    "cvta": _generic,
    "lop3": _lookup3,
    "bfe": _field,
    "bfi": _insert,
    "shf": _funnel,
    "prmt": _permute,
}
_UNTRACKED = (
    "fma rcp sqrt rsqrt ex2 lg2 sin cos tanh copysign testp set slct sad mul24 mad24 addc subc "
    "madc popc clz brev bfind fns szext bmsk dp2a dp4a cnot shfl vote match redux activemask elect "
    "mma bfma vabsdiff vadd vmin vmax isspacep"
)
RESULTS |= dict.fromkeys(_UNTRACKED.split(), untracked)
_SILENT = "membar fence nanosleep griddepcontrol setmaxnreg pmevent prefetch prefetchu"
RESULTS |= dict.fromkeys(_SILENT.split(), nothing)
RESULTS |= dict.fromkeys(("bar", "barrier"), _barrier)
