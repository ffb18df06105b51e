"""What the properties look at: memory accesses, arithmetic that must fit, synchronisation.

Each fact carries the condition under which it happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal

from . import terms
from .digits import Digit, split
from .intrinsics import Effect, Mode
from .terms import Symbol, Term, const, mul


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory a kernel names. `shape` is None when no declaration gives it; `strides` are None where
    it is contiguous. `start` is the byte offset in `arena`, the piece of shared memory it lies in;
    all of ``shared.dyn`` is one. `tensor` is the name in the source signature of a global."""

    name: str
    scope: str
    bits: int
    shape: tuple[Term, ...] | None
    start: int = 0
    tensor: str = ""
    strides: tuple[Term, ...] | None = None
    arena: str = ""

    @cached_property
    def extent(self) -> Term | None:
        """Elements from the first to the last, as a mathematical integer."""
        if self.shape is None:
            return None
        if self.strides is not None:
            last = const(0)
            for n, stride in zip(self.shape, self.strides, strict=True):
                last = terms.add(last, mul(terms.sub(n, const(1)), stride))
            return terms.add(last, const(1))
        return terms.product(self.shape)


@dataclass(eq=False)
class Claim:
    """What the program says of itself: ``T.device_assert`` (`traps`) or ``T.assume``.

    `held` says that what follows may rely on it: it was proved, or the kernel stops where it fails.
    """

    term: Term
    traps: bool
    context: Context
    node: Any
    held: bool = False

    @property
    def site(self) -> str:
        return terms.show(self.term)


@dataclass(frozen=True, eq=False)
class Decision:
    """Integers that decide what is computed: bounds of a loop, a condition, a number as data."""

    what: Literal["loop", "condition", "value"]
    terms: tuple[Term, ...]
    context: Context
    node: Any

    @property
    def site(self) -> str:
        return ", ".join(map(terms.show, self.terms))


@dataclass(frozen=True, eq=False)
class Context:
    """When a fact happens: conditions on the way, and the loops around it, outermost first.

    `entered` counts the conditions that stand before each loop.
    """

    path: tuple[Term, ...] = ()
    loops: tuple[Symbol, ...] = ()
    entered: tuple[int, ...] = ()
    claims: tuple[Claim, ...] = ()

    def given(self, condition: Term) -> Context:
        return replace(self, path=(*self.path, *terms.conjuncts(condition)))

    def inside(self, loop: Symbol) -> Context:
        entered = (*self.entered, len(self.path))
        return replace(self, loops=(*self.loops, loop), entered=entered)

    def known(self) -> tuple[Term, ...]:
        """What the program claimed before and may be relied on here."""
        return tuple(claim.term for claim in self.claims if claim.held)


@dataclass(frozen=True, eq=False)
class Access:
    """`lanes` consecutive elements of `buffer` from `index` on, moved by one machine access.

    `stored` are the terms that, with the statement's text, determine the value a store writes; None
    if registers or shared memory do too.
    `atomic` names the operation of an atomic access, "" for any other. `peer` is the rank of the
    block of the cluster whose shared memory it is, None for the block's own.
    """

    buffer: Buffer
    mode: Mode
    index: Term
    lanes: int
    align: int
    context: Context
    order: int
    node: Any
    asynchronous: bool = False
    stored: tuple[Term, ...] | None = None
    atomic: str = ""
    peer: Term | None = None

    @cached_property
    def digits(self) -> list[Digit]:
        """The index, split where its tensor's strides are symbolic or leave gaps."""
        return split(self.index, self.buffer.shape or (), self.lanes, self.buffer.strides)

    @cached_property
    def coordinates(self) -> list[Digit]:
        """The index, split between any two axes of its tensor."""
        return split(self.index, self.buffer.shape or (), self.lanes, self.buffer.strides, True)

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
    """A barrier, commit or wait, or a call that threads must make together; in program order with
    the accesses."""

    effect: Effect
    context: Context
    order: int
    node: Any

    @property
    def site(self) -> str:
        return text(self.node, 60)


@dataclass(frozen=True, eq=False)
class Allocation:
    """Columns of tensor memory that a warp takes, or gives back if they are negative; `holder` is
    the variable that holds their address."""

    holder: str
    columns: int
    context: Context
    node: Any

    @property
    def site(self) -> str:
        return text(self.node, 60)


@dataclass
class Facts:
    """Everything the properties look at, for one launch (or for the host function).

    `unordered` names what orders threads and copies in a way that is not modelled: whatever rests
    on who comes first is unknown, while what each thread touches is not. `common` says that threads
    are taken to read the same from one place in shared memory, which they do if none race.
    """

    name: str
    symbols: dict[str, Symbol] = field(default_factory=dict)
    accesses: list[Access] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    limits: list[Check] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)
    unordered: list[str] = field(default_factory=list)
    common: bool = False

    @property
    def blocks(self) -> list[Symbol]:
        return [s for s in self.symbols.values() if s.kind == "block"]

    @property
    def threads(self) -> list[Symbol]:
        return [s for s in self.symbols.values() if s.kind == "thread"]

    @property
    def linear_thread(self) -> Term:
        """The number of a thread in its block: x, then y, then z."""
        total, stride = const(0), const(1)
        for axis in "xyz":
            symbol = self.symbols.get(f"threadIdx.{axis}")
            if symbol is not None:
                total = terms.add(total, mul(terms.var(symbol), stride))
                stride = mul(stride, terms.add(symbol.hi, const(1)))
        return total


def text(node: Any, limit: int = 160) -> str:
    """One line of IR for a report."""
    line = " ".join(str(node).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def scalar_bits(dtype: Any) -> int:
    """Bits of one element: ``"bfloat16x8"`` → 16, ``"bool"`` → 8."""
    return _scalar_bits(str(dtype))


@cache
def _scalar_bits(dtype: str) -> int:
    base = dtype.split("x")[0]
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


def vector_alignment(size: int, element: int) -> int:
    """Alignment of a machine access of `size` bytes: its own size, up to the widest load there is.

    A size that is no power of two is moved through a struct of elements.
    """
    return min(size, 32) if size & (size - 1) == 0 else element
